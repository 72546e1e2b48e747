//! The images of the two programs: built by the real `hearth` from the specifications that a release uses, pushed to a real
//! registry, and run by podman.
//!
//! The programs here are linked with glibc, so their base has the libraries that they name. In a release they are static: the
//! agent stands on nothing, and the builder on a public Python image, whose place here a stand-in takes.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use kit::{
    build_fixture::{Archive, printed},
    process::binary,
    runtime::{ContainersTools, DockerRegistry, Suite, run},
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_mins(4);

/// The limits of a container may not be above those of this test's process.
const LIMITS: [&str; 4] = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The specifications with the files that they name. The program of the other platform is the head of one.
fn specifications(directory: &Path) -> Result<()> {
    for name in ["hearth-agent", "hearth"] {
        let spec = format!("{name}.yaml");
        fs::copy(project().join("docker").join(&spec), directory.join(&spec))?;
        let (here, there, machine) =
            if cfg!(target_arch = "aarch64") { ("arm64", "amd64", 62) } else { ("amd64", "arm64", 183) };
        let place = |arch: &str| directory.join("programs").join(arch);
        fs::create_dir_all(place(here))?;
        fs::create_dir_all(place(there))?;
        // What debuggers read has ten times the size of the program.
        let stripped = place(here).join(name);
        printed("strip", &[Path::new("-o"), &stripped, &binary(name)?]);
        let mut head = vec![0; 64];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        head[18] = machine;
        fs::write(place(there).join(name), head)?;
    }
    fs::copy("/etc/ssl/certs/ca-certificates.crt", directory.join("programs/ca-certificates.crt"))
        .context("the package `ca-certificates` is not installed")?;
    Ok(())
}

/// A root file system with the libraries of both programs and of `uv`, and a Python that only has its name.
fn base(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("base.tar");
    let mut base = Archive::new(File::create(&path)?);
    base.directory("usr");
    base.file("usr/bin/python3.13", 0o755, b"#!/bin/sh\n");
    let named = printed("ldd", &[binary("hearth-agent")?, binary("hearth")?]);
    let named = named.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    let mut libraries: BTreeSet<PathBuf> = named.map(PathBuf::from).collect();
    let libc =
        libraries.iter().find(|path| path.ends_with("libc.so.6")).context("a program names its C library")?;
    let beside = |name: &str| libc.with_file_name(name);
    // Parts of the C library in earlier days, which `uv` still names.
    let former = ["libpthread.so.0", "libdl.so.2", "librt.so.1"].map(beside);
    libraries.extend(former.into_iter().filter(|path| path.exists()));
    for library in libraries {
        let place = library.strip_prefix("/")?.to_str().context("paths of libraries are text")?;
        base.file(place, 0o755, &fs::read(&library)?);
    }
    base.finish();
    Ok(path)
}

/// `hearth build` of one of the specifications; gives its report.
async fn build(directory: &Path, name: &str, cache: &str, more: &[&str]) -> Result<Value> {
    let mut command = Command::new(binary("hearth")?);
    command.args(["build", "--output", "json", "--file"]).arg(directory.join(format!("{name}.yaml")));
    command.arg("--set-source").arg(format!("base={}", directory.join("base.tar").display()));
    command.arg("--to").arg(directory.join(format!("{cache}-layout")));
    command.arg("--cache-dir").arg(directory.join(cache)).args(more);
    Ok(serde_json::from_str(&run(command, LIMIT).await?.output()?)?)
}

#[tokio::test]
async fn the_images_of_a_release_run_as_a_user_without_rights() -> Result<()> {
    let home = tempfile::tempdir()?;
    let directory = home.path();
    specifications(directory)?;
    base(directory)?;
    let registry = DockerRegistry::start(&directory.join("storage")).await?;
    let host = registry.address().to_string();
    let tools = ContainersTools::without_mirror(Suite::Own)?;
    let insecure = format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n");
    fs::write(tools.path().join("etc/containers/registries.conf"), insecure)?;
    for name in ["hearth-agent", "hearth"] {
        let image = format!("{host}/hearth/{name}");
        let push = ["--push", "--plain-http", &host, "--repository", &image, "--tag", "1.2.3"];
        let built = build(directory, name, "first", &push).await?;
        let platforms = built["images"].as_array().context("images were built")?;
        let platforms: Vec<_> = platforms.iter().filter_map(|image| image["platform"].as_str()).collect();
        assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);

        let reference = format!("{image}:1.2.3");
        let run = async |options: &[&str], arguments: &[&str]| {
            let fixed: &[&str] = &["run", "--rm", "--network", "none"];
            tools.output("podman", &[fixed, &LIMITS, options, &[&reference], arguments].concat()).await
        };
        let version = run(&[], &["--version"]).await?;
        assert_eq!(version.trim(), format!("{name} {}", env!("CARGO_PKG_VERSION")));
        let user = ["image", "inspect", "--format", "{{.Config.User}}", &reference];
        assert_eq!(tools.output("podman", &user).await?.trim(), "65532:65532");
        if name == "hearth" {
            let uv = run(&["--entrypoint", "uv"], &["--version"]).await?;
            assert!(uv.starts_with("uv "), "{uv}");
            // A command that has to write: the user may.
            run(&[], &["init", "new"]).await?;
        }

        // On another machine the same files come to the same image.
        let again = build(directory, name, "second", &["--repository", &image, "--tag", "1.2.3"]).await?;
        assert_eq!(again["images"], built["images"]);
    }
    Ok(())
}
