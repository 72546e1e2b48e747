//! One specification for many images: variants, platforms, files, runtimes beside the base, several tags.

use std::fs::{self, File};

use flate2::{Compression, write::GzEncoder};
use serde_json::Value;

use kit::build_fixture::{Archive, Fixture, blob, finish, report};

use crate::archive_of;

const SPEC: &str = r#"apiVersion: hearth.dev/v1alpha1
kind: ImageMatrix
repository: registry.test/data/spark
tag: "{spark}-{variant}"
axes:
  spark: ["3.5.9"]
  java: ["17"]
  platform: [linux/amd64, linux/arm64]
base: { rootfs: base.tar }
sources:
  spark: { path: "pyspark-{spark}.tar.gz" }
variants:
  plain:
    tags: ["{sparkLine}"]
  own:
    when: { platform: linux/amd64 }
    sources:
      java: { path: jre.tar.gz }
    user: "1000:0"
    command: [driver]
    files:
      - { path: conf, to: /opt/spark/conf }
      - { path: conf/run.sh, to: /usr/local/bin/run, mode: "0500", owner: "7:8" }
      - { text: "hello", to: /opt/spark/RELEASE }
"#;

fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fs::write(fixture.path("hearth.yaml"), SPEC).expect("writable");
    let jre = File::create(fixture.path("jre.tar.gz")).expect("writable");
    let mut archive = Archive::new(GzEncoder::new(jre, Compression::fast()));
    archive.file("jdk-17-jre/release", 0o644, b"JAVA_VERSION=\"17.0.9\"\nMODULES=\"java.base\"\n");
    archive.file("jdk-17-jre/bin/java", 0o755, b"#!java\n");
    archive.finish().finish().expect("writable");
    fs::create_dir(fixture.path("conf")).expect("writable");
    fs::write(fixture.path("conf/spark-defaults.conf"), "spark.a b\n").expect("writable");
    fs::write(fixture.path("conf/run.sh"), "#!/bin/sh\n").expect("writable");
    fixture
}

fn json(fixture: &Fixture, digest: &Value) -> Value {
    let digest = digest.as_str().expect("a digest");
    let text = fs::read(blob(&fixture.path("dist"), digest)).expect("it was written");
    serde_json::from_slice(&text).expect("JSON")
}

/// Path, mode, owner and group of everything that an image adds to its base.
fn members(fixture: &Fixture, image: &Value) -> Vec<(String, u32, u64, u64)> {
    let layers = image["layers"].as_array().expect("a list");
    let mut found = Vec::new();
    for layer in layers.iter().skip(1) {
        let digest = layer["digest"].as_str().expect("a digest");
        let mut archive = tar::Archive::new(archive_of(&blob(&fixture.path("dist"), digest)));
        for member in archive.entries().expect("a tar archive") {
            let member = member.expect("whole");
            let header = member.header();
            let path = member.path().expect("text").display().to_string();
            let number = |value: std::io::Result<u64>| value.expect("a number");
            let (uid, gid) = (number(header.uid()), number(header.gid()));
            found.push((path, header.mode().expect("a number"), uid, gid));
        }
    }
    found
}

#[test]
fn a_matrix_becomes_one_tag_per_image_with_an_index_over_its_platforms() {
    let fixture = fixture();
    let built = fixture.build(&[]);
    let images = built["images"].as_array().expect("a list");
    let named: Vec<(&str, &str)> = images
        .iter()
        .map(|image| (image["reference"].as_str().expect("text"), image["platform"].as_str().expect("text")))
        .collect();
    let expected = [
        ("registry.test/data/spark:3.5.9-own", "linux/amd64"),
        ("registry.test/data/spark:3.5.9-plain", "linux/amd64"),
        ("registry.test/data/spark:3.5.9-plain", "linux/arm64"),
    ];
    assert_eq!(named, expected);
    let tags = &built["tags"];
    assert_eq!(tags["3.5.9-own"], images[0]["manifest"], "one platform needs no index");
    assert_eq!(tags["3.5.9-plain"], tags["3.5"]);
    let index = json(&fixture, &tags["3.5"]);
    for (at, architecture) in [(0, "amd64"), (1, "arm64")] {
        let entry = &index["manifests"][at];
        assert_eq!(entry["platform"]["architecture"], architecture);
        assert_eq!(entry["digest"], images[at + 1]["manifest"]);
        let config = json(&fixture, &images[at + 1]["config"]);
        assert_eq!(config["architecture"], architecture);
    }
    // Nothing of Spark depends on the platform here: every layer is shared.
    assert_eq!(images[1]["layers"], images[2]["layers"]);
}

#[test]
fn a_variant_adds_files_a_runtime_and_settings() {
    let fixture = fixture();
    let built = fixture.build(&[]);
    let image = &built["images"][0];
    let config = json(&fixture, &image["config"])["config"].clone();
    assert_eq!((&config["User"], &config["Cmd"][0]), (&"1000:0".into(), &"driver".into()));
    let env = config["Env"].to_string();
    assert!(env.contains("JAVA_HOME=/opt/java"), "{env}");
    let members = members(&fixture, image);
    let find = |path: &str| members.iter().filter(|(name, ..)| name == path).collect::<Vec<_>>();
    assert_eq!(find("opt/java/bin/java"), [&("opt/java/bin/java".to_owned(), 0o755, 0, 0)]);
    assert_eq!(find("usr/local/bin/run"), [&("usr/local/bin/run".to_owned(), 0o500, 7, 8)]);
    assert_eq!(find("opt/spark/conf/spark-defaults.conf").len(), 1);
    assert_eq!(find("opt/spark/RELEASE").len(), 1, "the user's file is there in the place of Spark's");
    assert!(find("usr/").is_empty() || find("usr/").iter().all(|(_, mode, ..)| *mode == 0o755));
}

#[test]
fn a_place_with_a_slash_is_the_directory_that_a_file_goes_into() {
    let fixture = fixture();
    let spec = SPEC
        .replace("path: conf, to: /opt/spark/conf", "path: conf/spark-defaults.conf, to: /opt/spark/conf/");
    fs::write(fixture.path("hearth.yaml"), spec).expect("writable");
    let built = fixture.build(&[]);
    let members = members(&fixture, &built["images"][0]);
    assert!(members.iter().any(|(name, ..)| name == "opt/spark/conf/spark-defaults.conf"), "{members:?}");
}

#[test]
fn a_lock_covers_what_a_variant_adds_and_a_build_with_it_is_offline() {
    let fixture = fixture();
    let lock = |more: &[&str]| {
        let mut command = fixture.subcommand("lock", more);
        report(&finish(command.args(["--output", "json"])))
    };
    lock(&[]);
    let text = fs::read_to_string(fixture.path("hearth.lock")).expect("it was written");
    for name in ["base base.tar", "spark 3.5.9", "java jre.tar.gz", "files conf", "file conf/run.sh"] {
        assert!(text.contains(&format!("\"{name}\"")), "{name} is locked: {text}");
    }
    fixture.build(&["--locked", "--offline"]);
    fs::write(fixture.path("conf/spark-defaults.conf"), "spark.a c\n").expect("writable");
    let (code, message) = fixture.failure(&[]);
    assert!(code == 1 && message.contains("--upgrade 'files conf'"), "{message}");
    lock(&["--upgrade", "files conf"]);
    fixture.build(&["--locked", "--offline"]);
}

#[test]
fn what_cannot_come_together_is_refused() {
    let fixture = fixture();
    let edit = |from: &str, to: &str| {
        fs::write(fixture.path("hearth.yaml"), SPEC.replacen(from, to, 1)).expect("writable");
        fixture.failure(&[])
    };
    let (code, message) = edit("to: /opt/spark/RELEASE", "to: /opt/spark/jars");
    assert!(code == 1 && message.contains("`/opt/spark/jars` is a file in one input"), "{message}");
    for place in ["/usr/bin", "/bin"] {
        let (code, message) = edit("to: /usr/local/bin/run,", &format!("to: {place},"));
        assert!(code == 1 && message.contains(&format!("`{place}/` as its place")), "{message}");
    }
    let (code, message) = edit("to: /usr/local/bin/run,", "to: /opt/spark/RELEASE,");
    assert!(
        code == 2 && message.contains("contradicts the entry at") && message.contains("hearth.yaml:23:"),
        "{message}"
    );
    let (code, message) = edit("java: { path: jre.tar.gz }", "java: { path: base.tar }");
    assert!(code == 1 && message.contains("base.tar"), "{message}");
    let (code, message) = edit("path: conf/run.sh", "path: conf/none.sh");
    assert!(code == 1 && message.contains("conf/none.sh"), "{message}");
}
