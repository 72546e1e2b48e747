//! Other ways out of a build: one file for `docker load`, and nothing at all.

use std::{collections::BTreeMap, fs, io::Read};

use kit::{registry::sha256, runtime::missing};
use serde_json::Value;

use kit::build_fixture::{Fixture, finish, layers, printed, report, skipped};

const TAG: &str = "3.5.9-java17-python3.11";

#[test]
fn an_archive_for_docker_load_holds_the_images_and_nothing_else() {
    let fixture = Fixture::new();
    fixture.spec("registry.test/data/spark", "{ rootfs: base.tar }", "tags: [\"newest\"]\n");
    let built = fixture.build(&["--docker-archive", "images.tar"]);
    let path = fixture.path("images.tar");
    let first = fs::read(&path).expect("it was written");
    let mut members = BTreeMap::new();
    for member in tar::Archive::new(&first[..]).entries().expect("a tar archive") {
        let mut member = member.expect("whole");
        let name = member.path().expect("text").display().to_string();
        let mut content = Vec::new();
        member.read_to_end(&mut content).expect("readable");
        assert!(members.insert(name, content).is_none(), "each member is there once");
    }
    let manifest: Value =
        serde_json::from_slice(&members.remove("manifest.json").expect("it names them")).expect("JSON");
    let blob = |digest: &str| digest.replacen("sha256:", "blobs/sha256/", 1);
    let expected: Vec<String> = layers(&built, "digest").iter().map(|digest| blob(digest)).collect();
    assert_eq!(manifest[0]["Layers"], serde_json::json!(expected));
    assert_eq!(manifest[0]["Config"], blob(built["images"][0]["config"].as_str().expect("a digest")));
    let names = [format!("registry.test/data/spark:{TAG}"), "registry.test/data/spark:newest".to_owned()];
    let mut tags: Vec<&str> =
        manifest[0]["RepoTags"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    tags.sort_unstable();
    assert_eq!(tags, names);
    for (name, content) in &members {
        assert_eq!(format!("blobs/sha256/{}", &sha256(content)[7..]), *name);
    }
    assert_eq!(members.len(), expected.len() + 1);
    fixture.build(&["--docker-archive", "images.tar"]);
    assert!(fs::read(&path).expect("it was written") == first, "the same images give the same bytes");

    if !missing(&["skopeo"]).is_empty() {
        skipped("skopeo is not installed");
        return;
    }
    let place = format!("docker-archive:{}:registry.test/data/spark:newest", path.display());
    let config = printed("skopeo", &["inspect", "--config", "--raw", &place]);
    assert_eq!(sha256(config.as_bytes()), built["images"][0]["config"].as_str().expect("a digest"));
}

#[test]
fn a_tag_for_several_platforms_does_not_fit_into_an_archive_for_docker_load() {
    let fixture = Fixture::new();
    let text = fs::read_to_string(fixture.path("hearth.yaml")).expect("readable");
    let text = text.replace("  java: [", "  platform: [linux/amd64, linux/arm64]\n  java: [");
    fs::write(fixture.path("hearth.yaml"), text).expect("writable");
    let (code, message) = fixture.failure(&["--docker-archive", "images.tar"]);
    assert!(code == 2 && message.contains(TAG) && message.contains("several platforms"), "{message}");
    assert!(!fixture.path("images.tar").exists());
}

#[test]
fn a_dry_run_shows_what_would_be_built_and_writes_nothing() {
    let fixture = Fixture::new();
    let mut command = fixture.command(&["--dry-run", "--push", "--offline", "--output", "json"]);
    let planned = report(&finish(&mut command));
    assert_eq!(planned["images"][0]["tag"], TAG);
    assert!(!fixture.path("dist").exists());
}
