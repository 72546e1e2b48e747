//! Images without Spark: files on nothing or on a base, for several platforms. `docker/hearth-agent.yaml` is one; here it is built
//! with stand-ins for its programs, and `e2e::programs` runs real ones.

use std::{collections::BTreeSet, fs, path::Path};

use kit::build_fixture::{Fixture, blob, finish, layers};
use serde_json::{Value, json};

use crate::build::listing;

const SPEC: &str = include_str!("../../docker/hearth-agent.yaml");

/// The machines of ELF headers (System V ABI).
const PLATFORMS: [(&str, u8); 2] = [("amd64", 62), ("arm64", 183)];

/// The head of a static program, and something that differs.
fn program(machine: u8) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18] = machine;
    bytes
}

/// The specification of the agent's image with the files that it names.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fs::write(fixture.path("hearth.yaml"), SPEC).expect("writable");
    for (arch, machine) in PLATFORMS {
        let directory = fixture.path(&format!("programs/{arch}"));
        fs::create_dir_all(&directory).expect("writable");
        fs::write(directory.join("hearth-agent"), program(machine)).expect("writable");
    }
    fs::write(fixture.path("programs/ca-certificates.crt"), "certificates").expect("writable");
    fixture
}

fn document(layout: &Path, digest: &Value) -> Value {
    let path = blob(layout, digest.as_str().expect("a digest"));
    serde_json::from_slice(&fs::read(path).expect("it was written")).expect("JSON")
}

#[test]
fn an_image_from_nothing_has_its_files_and_settings_on_every_platform() {
    let fixture = fixture();
    let built = fixture.build(&[]);
    let layout = fixture.path("dist");
    for (image, (arch, _)) in built["images"].as_array().expect("a list").iter().zip(PLATFORMS) {
        assert_eq!(image["reference"], "registry.example.com/hearth/hearth-agent:0.1.0");
        let config = document(&layout, &image["config"]);
        assert_eq!(config["architecture"], arch);
        assert_eq!(
            config["config"],
            json!({
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "User": "65532:65532",
                "Entrypoint": ["/usr/local/bin/hearth-agent"],
                "Cmd": ["run", "--config", "/etc/hearth/agent.yaml"],
                "ExposedPorts": { "5050/tcp": {}, "5051/tcp": {}, "5052/tcp": {} },
                "Labels": {
                    "org.opencontainers.image.title": "hearth-agent",
                    "org.opencontainers.image.licenses": "Apache-2.0",
                },
            })
        );
        let digests =
            image["layers"].as_array().expect("a list").iter().filter_map(|layer| layer["digest"].as_str());
        let files: BTreeSet<String> = digests.flat_map(|digest| listing(&blob(&layout, digest))).collect();
        for line in [
            "-rwxr-xr-x 0/0 64 1980-01-01 00:00:00 usr/local/bin/hearth-agent",
            "-rw-r--r-- 0/0 12 1980-01-01 00:00:00 etc/ssl/certs/ca-certificates.crt",
        ] {
            assert!(files.contains(line), "{files:#?}");
        }
        let regular = files.iter().filter(|line| line.starts_with('-'));
        assert_eq!(regular.count(), 2, "nothing else is in it: {files:#?}");
    }
    let index = fs::read(layout.join("index.json")).expect("it was written");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    let index = document(&layout, &index["manifests"][0]["digest"]);
    let platforms: Vec<_> =
        PLATFORMS.map(|(arch, _)| json!({ "architecture": arch, "os": "linux" })).to_vec();
    let found = index["manifests"].as_array().expect("a list").iter().map(|entry| entry["platform"].clone());
    assert_eq!(found.collect::<Vec<_>>(), platforms);
}

#[test]
fn the_same_files_give_the_same_image_with_a_lock_and_without() {
    let (first, second) = (fixture(), fixture());
    let expected = first.build(&[])["images"].clone();
    assert_eq!(second.build(&["--jobs", "1"])["images"], expected);
    assert!(finish(&mut second.subcommand("lock", &[])).status.success());
    assert_eq!(second.build(&["--locked", "--offline"])["images"], expected);
    fs::write(second.path("programs/ca-certificates.crt"), "other certificates").expect("writable");
    let (code, message) = second.failure(&["--locked"]);
    assert!(code != 0 && message.contains("programs/ca-certificates.crt"), "{message}");
}

#[test]
fn repository_and_tag_of_the_command_line_win() {
    let fixture = fixture();
    let built = fixture.build(&["--repository", "registry.test/a/agent", "--tag", "2.0"]);
    assert_eq!(built["images"][0]["reference"], "registry.test/a/agent:2.0");
    for (arguments, expected) in [
        (["--repository", "registry.test/a:1"], "only a repository is meant"),
        (["--tag", "{spark}"], "`{spark}` needs the axis `spark`"),
        (["--set-source", "spark=x.tar.gz"], "no image of the specification has Spark"),
    ] {
        let (code, message) = fixture.failure(&arguments);
        assert!(code == 2 && message.contains(expected), "{message}");
    }
}

#[test]
fn an_inventory_names_what_is_there() {
    let fixture = fixture();
    fixture.build(&["--sbom"]);
    let plan = finish(&mut fixture.subcommand("plan", &["--offline"]));
    let text = String::from_utf8_lossy(&plan.stdout);
    assert!(plan.status.success() && text.contains("0.1.0 linux/arm64"), "{text}");
    assert!(!text.contains("base "), "there is none: {text}");
}

#[test]
fn a_program_that_could_not_start_is_refused() {
    let fixture = fixture();
    let agent = |arch: &str| fixture.path(&format!("programs/{arch}/hearth-agent"));
    fs::write(agent("arm64"), program(62)).expect("writable");
    let (code, message) = fixture.failure(&[]);
    let expected = "is a program for `linux/amd64`, but the image is for `linux/arm64`";
    assert!(code == 2 && message.contains(expected), "{message}");
    fs::write(agent("arm64"), program(183)).expect("writable");
    // This machine's shell is linked dynamically.
    let shell = fs::read("/bin/sh").expect("every machine has a shell");
    let host = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    fs::write(agent(host), shell).expect("writable");
    let (code, message) = fixture.failure(&[]);
    assert!(code == 2 && message.contains("needs the loader `/lib"), "{message}");
    let elsewhere = SPEC.replace("entrypoint: [/usr/local", "entrypoint: [/usr");
    fs::write(fixture.path("hearth.yaml"), elsewhere).expect("writable");
    let (code, message) = fixture.failure(&[]);
    assert!(
        code == 2 && message.contains("start `/usr/bin/hearth-agent`, but the image has no such"),
        "{message}"
    );
}

#[test]
fn what_is_not_set_stays_as_the_base_has_it() {
    let fixture = fixture();
    let base = SPEC.replace("axes: { platform: [linux/amd64, linux/arm64] }", "platform: linux/amd64");
    fs::write(fixture.path("hearth.yaml"), base).expect("writable");
    fixture.build(&["--to", "base"]);
    let on_top = r#"apiVersion: hearth.dev/v1alpha1
kind: ImageMatrix
repository: registry.test/tools/agent
tag: on-top
base: { layout: base }
platform: linux/amd64
files:
  - { to: /var/lib/hearth/, mode: "1777", owner: "65532:0" }
  - { to: /etc/hearth/agent.yaml, text: "dataDir: /var/lib/hearth" }
ports: ["8080"]
"#;
    fs::write(fixture.path("hearth.yaml"), on_top).expect("writable");
    let built = fixture.build(&[]);
    let layout = fixture.path("dist");
    let config = document(&layout, &built["images"][0]["config"]);
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Entrypoint"], json!(["/usr/local/bin/hearth-agent"]));
    assert_eq!(config["config"]["Cmd"], json!(["run", "--config", "/etc/hearth/agent.yaml"]));
    let ports = config["config"]["ExposedPorts"].as_object().expect("a map");
    assert_eq!(ports.len(), 4, "{ports:?}");
    let digests = layers(&built, "digest");
    let top = listing(&blob(&layout, digests.last().expect("it has layers")));
    assert!(top.contains("drwxrwxrwt 65532/0 0 1980-01-01 00:00:00 var/lib/hearth/"), "{top:#?}");
}
