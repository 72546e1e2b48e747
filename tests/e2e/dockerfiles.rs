//! Both Dockerfiles, built by buildah and run by podman. No registry of the world is reached here, so a Debian root file system
//! stands for the public images of Rust and Python, and scripts for their `apk`, `pip` and `cargo`; the last one puts the
//! programs of this build where a compiler would.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    build_fixture::printed,
    fixtures::base_rootfs,
    process::binary,
    runtime::{ContainersTools, Suite},
};

/// The limits of a container may not be above those of this test's process.
const LIMITS: [&str; 4] = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];

const STAND_INS: [(&str, &str); 3] = [
    ("apk", "exit 0"),
    ("pip", "exit 0"),
    ("cargo", "mkdir -p target/release && cp /programs/* target/release/"),
];

/// An image for both `FROM`s, in the storage of the tools.
async fn base(tools: &ContainersTools) -> Result<()> {
    let (scripts, programs) = (tools.path().join("scripts"), tools.path().join("programs"));
    fs::create_dir(&scripts)?;
    fs::create_dir(&programs)?;
    for (name, text) in STAND_INS {
        let path = scripts.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    for name in ["hearth-agent", "hearth"] {
        printed("strip", &[Path::new("-o"), &programs.join(name), &binary(name)?]);
    }
    let container = tools.output("buildah", &["from", "scratch"]).await?;
    let container = container.trim();
    for (source, place) in [(base_rootfs()?, "/"), (scripts, "/usr/local/bin"), (programs, "/programs")] {
        let source = source.to_str().context("text")?;
        tools.output("buildah", &["add", "--quiet", container, source, place]).await?;
    }
    tools.output("buildah", &["commit", "--rm", "--quiet", container, "localhost/base"]).await.map(drop)
}

async fn build(tools: &ContainersTools, name: &str) -> Result<()> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let file: PathBuf = project.join(format!("docker/{name}.Dockerfile"));
    let mut command = Command::new("buildah");
    command
        .args(["bud", "--isolation", "chroot", "--build-arg", "RUST=localhost/base"])
        .current_dir(&project);
    if name == "hearth" {
        command.args(["--build-arg", "PYTHON=localhost/base"]);
    }
    // This buildah does not look for it by itself.
    command.arg("--ignorefile").arg(file.with_extension("Dockerfile.dockerignore"));
    command.args(["--tag", &format!("localhost/{name}"), "--file"]).arg(file).arg(".");
    tools.run(command).await?.output().map(drop)
}

#[tokio::test]
async fn both_dockerfiles_make_images_that_run_without_rights() -> Result<()> {
    let tools = ContainersTools::without_mirror(Suite::Own)?;
    base(&tools).await?;
    for (name, program) in [("agent", "hearth-agent"), ("hearth", "hearth")] {
        build(&tools, name).await?;
        let image = format!("localhost/{name}");
        let user =
            tools.output("podman", &["image", "inspect", "--format", "{{.Config.User}}", &image]).await?;
        assert_eq!(user.trim(), "65532:65532");
        // Static programs need no libraries; those of this build do.
        let libraries = ["-v", "/lib:/lib:ro", "-v", "/lib64:/lib64:ro"];
        let fixed: &[&str] = &["run", "--rm", "--network", "none"];
        let words = [fixed, &LIMITS, if name == "agent" { &libraries } else { &[] }, &[&image, "--version"]];
        let version = tools.output("podman", &words.concat()).await?;
        ensure!(version.trim() == format!("{program} {}", env!("CARGO_PKG_VERSION")), "{name}: {version}");
    }
    Ok(())
}
