//! The guides as their readers use them: every command block runs as it is pasted, or an HTML comment before it says why it cannot
//! run here (`<!-- not run: REASON -->`); every block of configuration is read by the program that it is for.
//!
//! The commands of one guide run one after the other in one directory. What they need from elsewhere has stand-ins: a
//! `mmdebstrap` that gives the small base of these tests, and a `uv` that finds a small Spark.

mod agents;
mod blocks;

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use hearth_builder::spec;
use kit::{
    build_fixture::{Fixture, finish, write_spark},
    process::binary,
};

use self::blocks::{Block, blocks};

/// Every guide of the project, and what its commands need.
const GUIDES: [(&str, Needs); 10] = [
    ("README.md", Needs::Inputs),
    ("agent/README.md", Needs::Agent),
    ("agent/SECURITY.md", Needs::Nothing),
    ("bench/README.md", Needs::Nothing),
    ("builder/README.md", Needs::Inputs),
    ("docker/README.md", Needs::Inputs),
    ("manifests/README.md", Needs::Nothing),
    ("tests/README.md", Needs::Nothing),
    (".github/ARCHITECTURE.md", Needs::Nothing),
    (".github/CONTRIBUTING.md", Needs::Nothing),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// Nothing runs its commands: each block has to be marked.
    Nothing,
    /// What builds need, in the directory where they run.
    Inputs,
    /// A running agent that has images.
    Agent,
}

fn page(guide: &str) -> String {
    let path = root().join(guide);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("`{}`: {error}", path.display()))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The commands of a guide that are to be run, as one script.
fn script(guide: &str) -> String {
    let page = page(guide);
    let blocks = blocks(&page);
    let commands: Vec<_> = blocks.iter().filter(|block| block.runs()).flat_map(Block::commands).collect();
    assert!(!commands.is_empty(), "{guide}: every command is marked as not run");
    ["set -euo pipefail\n".to_owned()]
        .into_iter()
        .chain(commands.iter().map(|one| format!("{one}\n")))
        .collect()
}

#[test]
fn every_block_is_run_or_read_or_says_why_not() {
    let mut problems = Vec::new();
    for (guide, needs) in GUIDES {
        let page = page(guide);
        problems.extend(
            blocks::stray(&page)
                .map(|line| format!("{guide}:{line}: commands outside of a ```console block")),
        );
        for block in blocks(&page) {
            let told = match block.language {
                "console" if block.reason.is_some() || needs != Needs::Nothing => Ok(()),
                "console" => {
                    Err("nothing runs this: write `<!-- not run: REASON -->` in front of it".to_owned())
                }
                _ if block.reason.is_some() => Ok(()),
                _ => block.read(),
            };
            problems.extend(told.err().map(|problem| format!("{guide}:{}: {problem}", block.line)));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn links_between_guides_lead_somewhere() {
    let mut problems = Vec::new();
    for (guide, _) in GUIDES {
        let text = page(guide);
        let folder = root().join(guide).parent().expect("a file has a folder").to_path_buf();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            if link.contains("://") {
                continue;
            }
            let target = if path.is_empty() { root().join(guide) } else { folder.join(path) };
            let anchors =
                || fs::read_to_string(&target).map(|text| blocks::anchors(&text)).unwrap_or_default();
            if !target.exists() || (!anchor.is_empty() && !anchors().iter().any(|one| one == anchor)) {
                problems.push(format!("{guide}: `{link}` leads nowhere"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn the_main_page_is_short() {
    assert!(page("README.md").lines().count() <= 150);
}

/// The Dockerfiles, the release and the packages name files of the project.
#[test]
fn what_releases_are_made_of_is_there() {
    let workflow = page(".github/workflows/release.yml");
    serde_saphyr::from_str::<serde_json::Value>(&workflow).expect("YAML");
    let named = workflow.split(|one: char| !(one.is_alphanumeric() || "/.-_".contains(one)));
    let named: Vec<_> = named
        .filter(|word| ["docker/", "manifests/", ".github/"].iter().any(|start| word.starts_with(start)))
        .collect();
    // The workflow makes the directory of programs itself.
    let files: Vec<_> = named.into_iter().filter(|word| !word.starts_with("docker/programs/")).collect();
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        assert!(root().join(file).exists(), "release.yml names `{file}`");
    }
    for package in ["agent", "builder"] {
        let manifest: toml::Table = page(&format!("{package}/Cargo.toml")).parse().expect("TOML");
        let deb = &manifest["package"]["metadata"]["deb"];
        let assets = deb["assets"].as_array().expect("there are some");
        for asset in
            assets.iter().filter_map(|asset| asset[0].as_str()).filter(|path| !path.starts_with("target/"))
        {
            assert!(root().join(package).join(asset).exists(), "{package}/Cargo.toml names `{asset}`");
        }
    }
    let kustomization = page("manifests/base/kustomization.yaml");
    for name in ["hearth-agent", "hearth"] {
        let matrix =
            spec::file::load(&root().join(format!("docker/{name}.yaml")), None).expect("it is right");
        let tags = matrix.tags();
        assert!(tags.len() == 1 && tags[0].0 == env!("CARGO_PKG_VERSION"), "{name}.yaml: {tags:?}");
        assert!(matrix.repository.to_string().ends_with(&format!("/hearth/{name}")));
        if name == "hearth-agent" {
            assert!(kustomization.contains(&format!("newName: {}\n", matrix.repository)), "another name");
        }
        let users = matrix.wanted.iter().map(|wanted| wanted.recipe.user.as_deref());
        assert_eq!(
            users.collect::<Vec<_>>(),
            [Some("65532:65532"); 2],
            "{name}.yaml: both platforms, not root"
        );
    }
    for name in ["agent", "hearth"] {
        let text = page(&format!("docker/{name}.Dockerfile"));
        assert!(text.contains("USER 65532:65532"), "{name}.Dockerfile: not root");
        assert!(root().join(format!("docker/{name}.Dockerfile.dockerignore")).exists());
    }
}

/// Serves the files of a directory over HTTP until the process ends; returns the URL. `hearth` takes what a package index
/// names from web servers only.
fn serve(directory: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let directory = directory.to_owned();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut line = String::new();
            let read = BufReader::new(&mut stream).read_line(&mut line);
            let name = line.split(' ').nth(1).and_then(|path| path.rsplit('/').next()).unwrap_or_default();
            let Ok(body) = read.and_then(|_| fs::read(directory.join(name))) else { continue };
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            // A client that left notices nothing.
            let _ = stream.write_all(&[head.as_bytes(), &body].concat());
        }
    });
    url
}

/// A directory that is first on the `PATH`: both programs, and stand-ins for programs that download.
fn programs(inputs: &Path) -> PathBuf {
    let directory = inputs.join("programs");
    fs::create_dir(&directory).expect("writable");
    for name in ["hearth", "hearth-agent"] {
        symlink(binary(name).expect("the binary is built"), directory.join(name)).expect("writable");
    }
    let (place, server) = (inputs.display(), serve(inputs));
    let uv = format!(
        r#"#!/bin/sh
case "$1" in
python) echo 3.11.2 ;;
lock)
    version=$(sed -n 's/.*"pyspark==\(.*\)".*/\1/p' pyproject.toml)
    file={place}/pyspark-$version.tar.gz
    hash=$(sha256sum "$file" | cut -d' ' -f1)
    printf 'version = 1\n[[package]]\nname = "pyspark"\nversion = "%s"\nsdist = {{ url = "{server}/%s", hash = "sha256:%s" }}\n' \
        "$version" "${{file##*/}}" "$hash" > uv.lock ;;
esac
"#
    );
    let base = format!("#!/bin/sh\nfor last; do :; done\ncp {place}/base.tar \"$last\"\n");
    for (name, text) in [("uv", uv), ("mmdebstrap", base)] {
        let path = directory.join(name);
        fs::write(&path, text).expect("writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its owner may");
    }
    directory
}

/// A shell in a directory, with the programs of [`programs`].
fn shell(script: &str, directory: &Path, programs: &Path) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("bash");
    command.args(["-x", "-c", script]).current_dir(directory);
    command.env("PATH", format!("{}:{path}", programs.display()));
    command
        .env("HOME", directory)
        .env("HEARTH_CACHE_DIR", directory.join("cache"))
        .env_remove("SOURCE_DATE_EPOCH");
    command
}

fn run(command: &mut Command, guide: &str) {
    let output = finish(command);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{guide}: {}\n{err}\n{out}", output.status);
}

#[test]
fn commands_of_the_builders_guides_work_as_they_are_pasted() {
    for (guide, _) in GUIDES.into_iter().filter(|(_, needs)| *needs == Needs::Inputs) {
        let fixture = Fixture::new();
        for version in ["3.5.8", "3.5.9"] {
            let file = File::create(fixture.path(&format!("pyspark-{version}.tar.gz"))).expect("writable");
            write_spark(file, version, &[]);
        }
        let programs = programs(&fixture.path(""));
        // The examples with their base, where the guide names them.
        let examples = fixture.path("docker/examples");
        fs::create_dir_all(&examples).expect("writable");
        fs::copy(fixture.path("base.tar"), examples.join("base.tar")).expect("writable");
        for entry in fs::read_dir(root().join("docker/examples")).expect("there are examples") {
            let entry = entry.expect("readable");
            fs::copy(entry.path(), examples.join(entry.file_name())).expect("writable");
        }
        run(&mut shell(&script(guide), &fixture.path(""), &programs), guide);
    }
}
