//! `hearth convert`: images of any builder become zstd:chunked and stay the same images.

use std::{
    fs::{self, File},
    io::Read as _,
};

use hearth_builder::layer::chunked::{Annotations, Reader};
use kit::{
    build_fixture::{Fixture, blob, finish, layers, report},
    registry::{FakeUpstream, sha256},
};

use crate::archive_of;
use serde_json::Value;

const TAG: &str = "3.5.9-java17-python3.11";

/// An image with gzip layers in the layout `dist`.
fn gzip_image(more: &str) -> (Fixture, Value) {
    let fixture = Fixture::new();
    fixture.spec("registry.test/data/spark", "{ rootfs: base.tar }", &format!("compression: gzip\n{more}"));
    let built = fixture.build(&["--docker-archive", "images.tar"]);
    (fixture, built)
}

fn convert(fixture: &Fixture, arguments: &[&str]) -> Value {
    report(&finish(fixture.subcommand("convert", arguments).args(["--output-format", "json"])))
}

fn json(fixture: &Fixture, layout: &str, digest: &Value) -> Value {
    let path = blob(&fixture.path(layout), digest.as_str().expect("a digest"));
    serde_json::from_slice(&fs::read(path).expect("it was written")).expect("JSON")
}

/// The archives of an image's layers, read through their tables of contents.
fn archives(fixture: &Fixture, layout: &str, manifest: &Value) -> Vec<Vec<u8>> {
    let layers = manifest["layers"].as_array().expect("an image has layers");
    let archive = |layer: &Value| {
        let path = blob(&fixture.path(layout), layer["digest"].as_str().expect("a digest"));
        let annotations: Annotations =
            serde_json::from_value(layer["annotations"].clone()).expect("a table of contents");
        let file = File::open(&path).expect("it was written");
        let size = layer["size"].as_u64().expect("a size");
        let mut reader = Reader::open(file, size, &annotations).expect("its table is right");
        assert!(reader.verify().expect("its chunks are right") > 0);
        let mut archive = Vec::new();
        reader.archive(&mut archive).expect("its tar-split data is right");
        let mut plain = Vec::new();
        archive_of(&path).read_to_end(&mut plain).expect("a zstd layer for everyone else");
        assert!(plain == archive);
        archive
    };
    layers.iter().map(archive).collect()
}

#[test]
fn a_gzip_image_keeps_its_configuration_and_the_bytes_of_its_archives() {
    let (fixture, built) = gzip_image("");
    let from = format!("oci:dist:{TAG}");
    let converted = convert(&fixture, &[&from, "oci:chunked:new"]);
    let image = &converted["images"][0];
    assert_eq!(
        (image["config"].as_str(), converted["source"].as_str()),
        (built["images"][0]["config"].as_str(), Some(&*format!("dist:{TAG}")))
    );
    assert_eq!(converted["warnings"], serde_json::json!([]));
    let old = built["images"][0]["manifest"].clone();
    let manifest = json(&fixture, "chunked", &image["manifest"]);
    assert_eq!(manifest["annotations"]["dev.hearth.converted.digest"], old);
    assert_eq!(manifest["annotations"]["dev.hearth.converted.name"], format!("dist:{TAG}"));
    let before: Vec<String> = layers(&built, "diffId");
    let after: Vec<String> =
        archives(&fixture, "chunked", &manifest).iter().map(|archive| sha256(archive)).collect();
    assert_eq!(after, before);
    assert_eq!(json(&fixture, "chunked", &image["config"])["rootfs"]["diff_ids"], serde_json::json!(before));

    // The same layers as a build makes of the same files.
    fixture.spec("registry.test/data/spark", "{ rootfs: base.tar }", "");
    let digests = layers(&fixture.build(&["--output", "direct"]), "digest");
    let made = image["layers"].as_array().expect("layers").iter().map(|layer| layer["digest"].clone());
    assert_eq!(made.collect::<Vec<Value>>(), digests);

    // Once more: everything is passed on. With another cache and another number of threads: the same bytes.
    let again = convert(&fixture, &["oci:chunked:new", "oci:again"]);
    let passed = |report: &Value| {
        let layers = report["images"][0]["layers"].as_array().expect("layers").clone();
        layers.iter().map(|layer| (layer["digest"].clone(), layer["passed"] == true)).unzip()
    };
    let (first, none): (Vec<Value>, Vec<bool>) = passed(&converted);
    let (second, all): (Vec<Value>, Vec<bool>) = passed(&again);
    assert!(first == second && none.iter().all(|passed| !passed) && all.iter().all(|passed| *passed));
    let fresh = convert(&fixture, &[&from, "oci:fresh:new", "--cache-dir", "fresh-cache", "--jobs", "1"]);
    assert_eq!(fresh["digest"], converted["digest"]);
}

#[test]
fn an_archive_of_docker_save_is_converted_to_the_same_image_id() {
    let (fixture, built) = gzip_image("tags: [\"newest\"]\n");
    let from = "docker-archive:images.tar";
    for name in ["", ":registry.test/data/spark:newest"] {
        let converted = convert(&fixture, &[&format!("{from}{name}"), "oci:chunked"]);
        let image = &converted["images"][0];
        assert_eq!((&image["config"], &image["from"]), (&built["images"][0]["config"], &image["config"]));
        let manifest = json(&fixture, "chunked", &image["manifest"]);
        assert_eq!(archives(&fixture, "chunked", &manifest).len(), layers(&built, "digest").len());
    }
    let mut command =
        fixture.subcommand("convert", &[&format!("{from}:registry.test/other:1"), "oci:chunked"]);
    let output = finish(&mut command);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(1) && message.contains("registry.test/data/spark:newest"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn all_platforms_go_from_registry_to_registry() {
    let registry = FakeUpstream::start().await;
    let host = registry.address().to_string();
    let fixture = Fixture::new();
    fixture.spec(&format!("{host}/data/spark"), "{ rootfs: base.tar }", "compression: gzip\n");
    let text = fs::read_to_string(fixture.path("hearth.yaml")).expect("readable");
    let text = text.replace("  java: [", "  platform: [linux/amd64, linux/arm64]\n  java: [");
    fs::write(fixture.path("hearth.yaml"), text).expect("writable");
    let built = tokio::task::block_in_place(|| fixture.build(&["--push", "--plain-http", &host]));
    let (from, to) = (format!("{host}/data/spark:{TAG}"), format!("{host}/data/chunked:new"));
    let converted = tokio::task::block_in_place(|| {
        convert(&fixture, &[&from, &to, "--plain-http", &host, "--cache-dir", "other-cache"])
    });
    let platforms: Vec<&str> = converted["images"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|image| image["platform"].as_str())
        .collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
    assert_eq!(registry.resolve("data/chunked", "new").as_deref(), converted["digest"].as_str());
    assert_eq!(converted["sourceDigest"], built["tags"][TAG]);
    let read = |digest: &Value| {
        let path = registry.blob_file(digest.as_str().expect("a digest"));
        fs::read(path.expect("the registry has it")).expect("readable")
    };
    for (image, old) in converted["images"]
        .as_array()
        .expect("a list")
        .iter()
        .zip(built["images"].as_array().expect("a list"))
    {
        assert_eq!(image["config"], old["config"]);
        for layer in image["layers"].as_array().expect("layers") {
            assert_eq!(sha256(&read(&layer["digest"])), layer["digest"].as_str().expect("a digest"));
        }
    }
    // The same again sends nothing.
    let again = tokio::task::block_in_place(|| convert(&fixture, &[&from, &to, "--plain-http", &host]));
    assert_eq!((&again["digest"], &again["push"]["uploadedBytes"]), (&converted["digest"], &0.into()));
}

#[test]
fn mistakes_and_damage_are_told_apart() {
    let (fixture, built) = gzip_image("");
    let failure = |arguments: &[&str]| {
        let output = finish(&mut fixture.subcommand("convert", arguments));
        (
            output.status.code().expect("it ends by itself"),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let from = format!("oci:dist:{TAG}");
    let cases = [
        (["./dist", "oci:new"], 2, "write `oci:./dist`"),
        ([&from, "docker-archive:new.tar"], 2, "write `oci:DIR`"),
        ([&from, "registry.test/a@sha256:00"], 2, "registry.test/a@sha256:00"),
        (["oci:dist:other", "oci:new"], 1, TAG),
        (["oci:nothing", "oci:new"], 1, "nothing/index.json"),
        (["docker-archive:base.tar", "oci:new"], 1, "manifest.json"),
    ];
    for (arguments, code, part) in cases {
        let (found, message) = failure(&arguments);
        assert!(found == code && message.contains(part), "{arguments:?}: {found} {message}");
    }
    let layer = blob(&fixture.path("dist"), &layers(&built, "digest")[1]);
    let mut bytes = fs::read(&layer).expect("it was written");
    *bytes.last_mut().expect("it has bytes") ^= 1;
    fs::remove_file(&layer).expect("removable");
    fs::write(&layer, bytes).expect("writable");
    let (code, message) = failure(&[&from, "oci:new", "--cache-dir", "fresh"]);
    assert!(code == 1 && message.contains("the layout is damaged"), "{message}");
    assert!(!fixture.path("new").exists(), "nothing is half written");
    assert_eq!(fs::read_dir(fixture.path("fresh/tmp-v1")).expect("readable").count(), 0);
}
