//! Documents about images: in the layout and in registries, whether these know the referrers API or not.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
    process::Command,
};

use kit::{
    registry::FakeUpstream,
    runtime::{DockerRegistry, missing},
};
use serde_json::Value;

use kit::build_fixture::{Archive, Fixture, blob, finish, report, skipped, write_base, write_spark};

fn document(layout: &Path, digest: &Value) -> Value {
    let path = blob(layout, digest.as_str().expect("a digest"));
    serde_json::from_slice(&fs::read(path).expect("it was written")).expect("JSON")
}

#[test]
fn an_image_comes_with_what_is_in_it_and_where_it_came_from() {
    let fixture = Fixture::new();
    let built = fixture.build(&["--sbom"]);
    let layout = fixture.path("dist");
    let referrers = built["referrers"].as_array().expect("a list").clone();
    assert_eq!(referrers.len(), 3);
    let mut kinds = Vec::new();
    for digest in &referrers {
        let manifest = document(&layout, digest);
        assert_eq!(manifest["subject"]["digest"], built["images"][0]["manifest"]);
        let kind = manifest["artifactType"].as_str().expect("text").to_owned();
        let content = document(&layout, &manifest["layers"][0]["digest"]).to_string();
        let expected = match kind.as_str() {
            "application/spdx+json" => "pkg:generic/hadoop-client-api@3.3.4",
            "application/vnd.cyclonedx+json" => "pkg:generic/spark-core_2.12@3.5.9",
            _ => "\"name\":\"spark 3.5.9\"",
        };
        assert!(content.contains(expected), "{kind}: {content}");
        kinds.push(kind);
    }
    kinds.sort();
    let expected =
        ["application/spdx+json", "application/vnd.cyclonedx+json", "application/vnd.in-toto+json"];
    assert_eq!(kinds, expected);
    // The same image has the same documents, and they do not come between a reader and the only image.
    assert_eq!(fixture.build(&["--sbom"])["referrers"].as_array(), Some(&referrers));
    fs::rename(&layout, fixture.path("base-layout")).expect("movable");
    fixture.spec("registry.test/data/other", "{ layout: base-layout }", "");
    fixture.build(&[]);
}

/// A database of packages: one is installed, of the other one only its configuration is left.
const PACKAGES: &str = "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2.15-2+b7\n\n\
                        Package: removed-package\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n";

/// A base with a database of packages.
fn with_packages(fixture: &Fixture) {
    const END: usize = 1024;
    let mut bytes = Vec::new();
    write_base(&mut bytes, &[]);
    bytes.truncate(bytes.len() - END);
    let mut more = Archive::new(Vec::new());
    more.file("usr/lib/os-release", 0o644, b"ID=debian\nVERSION_ID=\"12\"\n");
    more.file("var/lib/dpkg/status", 0o644, PACKAGES.as_bytes());
    bytes.extend(more.finish());
    fs::write(fixture.path("base.tar"), bytes).expect("writable");
}

/// The contents of the documents of a kind in a layout, by the name of their image.
fn documents(layout: &Path, kind: &str) -> BTreeMap<String, Value> {
    let index: Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).expect("readable")).expect("JSON");
    let entries = index["manifests"].as_array().expect("a list").iter();
    let of_kind = entries.filter(|entry| entry["artifactType"] == kind);
    of_kind
        .map(|entry| {
            let manifest = document(layout, &entry["digest"]);
            let subject = manifest["subject"]["digest"].as_str().expect("text").to_owned();
            (subject, document(layout, &manifest["layers"][0]["digest"]))
        })
        .collect()
}

#[test]
fn provenance_names_the_inputs_of_its_own_image_only() {
    let fixture = Fixture::new();
    write_spark(File::create(fixture.path("pyspark-3.5.8.tar.gz")).expect("writable"), "3.5.8", &[]);
    let text = fs::read_to_string(fixture.path("hearth.yaml")).expect("readable");
    fs::write(fixture.path("hearth.yaml"), text.replace("[\"3.5.9\"]", "[\"3.5.8\", \"3.5.9\"]"))
        .expect("writable");
    let built = fixture.build(&["--sbom"]);
    let documents = documents(&fixture.path("dist"), "application/vnd.in-toto+json");
    let images = built["images"].as_array().expect("a list");
    assert_eq!((images.len(), documents.len()), (2, 2));
    for image in images {
        let document = &documents[image["manifest"].as_str().expect("a digest")];
        let inputs = &document["predicate"]["buildDefinition"]["resolvedDependencies"];
        let names: Vec<&str> =
            inputs.as_array().expect("a list").iter().filter_map(|input| input["name"].as_str()).collect();
        let reference = image["reference"].as_str().expect("text");
        let spark = if reference.contains("3.5.8") { "spark 3.5.8" } else { "spark 3.5.9" };
        assert_eq!(names, ["base base.tar", spark], "{reference}");
    }
}

#[test]
fn the_packages_of_the_base_and_its_java_are_components() {
    let fixture = Fixture::new();
    with_packages(&fixture);
    fixture.build(&["--sbom"]);
    let documents = documents(&fixture.path("dist"), "application/vnd.cyclonedx+json");
    let document = documents.values().next().expect("there is one");
    let components = document["components"].as_array().expect("a list");
    let purls: Vec<&str> = components.iter().filter_map(|component| component["purl"].as_str()).collect();
    for expected in [
        "pkg:deb/debian/bash@5.2.15-2%2Bb7?arch=amd64&distro=debian-12",
        "pkg:generic/openjdk@17.0.21",
        "pkg:generic/debian@12",
        "pkg:generic/python@3.11",
    ] {
        assert!(purls.contains(&expected), "{expected} in {purls:#?}");
    }
    assert!(!purls.iter().any(|purl| purl.contains("removed-package") || purl.contains("java-runtime")));
    assert!(purls.iter().any(|purl| purl.starts_with("pkg:generic/base.tar?checksum=sha256:")), "{purls:#?}");
}

#[test]
fn documents_validate_against_their_schemas_and_package_urls_are_canonical() {
    if !missing(&["uv"]).is_empty() {
        return skipped("needs uv");
    }
    let fixture = Fixture::new();
    with_packages(&fixture);
    fixture.build(&["--sbom"]);
    let mut uv = Command::new("uv");
    uv.args(["run", "--no-project", "--quiet", "--with", "cyclonedx-python-lib[json-validation]==11.12.0"]);
    uv.args(["--with", "spdx-tools==0.8.5", "python"]);
    uv.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("building/sbom_schema.py"));
    let output = finish(uv.arg(fixture.path("dist")).current_dir(fixture.path("")));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

async fn push(fixture: &Fixture, host: &str) -> Value {
    fixture.spec(&format!("{host}/data/spark"), "{ rootfs: base.tar }", "");
    let mut command = fixture.command(&["--push", "--sbom", "--plain-http", host, "--output", "json"]);
    report(&tokio::task::spawn_blocking(move || finish(&mut command)).await.expect("it does not panic"))
}

/// The digests of an index.
async fn listed(url: &str) -> Vec<String> {
    let request = reqwest::Client::new().get(url).header("Accept", "application/vnd.oci.image.index.v1+json");
    let answer = request.send().await.expect("it answers");
    assert!(answer.status().is_success(), "{url}: {}", answer.status());
    let index: Value = serde_json::from_slice(&answer.bytes().await.expect("whole")).expect("JSON");
    let entries = index["manifests"].as_array().expect("a list").iter();
    let mut found: Vec<String> =
        entries.map(|entry| entry["digest"].as_str().expect("text").to_owned()).collect();
    found.sort();
    found
}

fn expected(built: &Value) -> Vec<String> {
    let referrers = built["referrers"].as_array().expect("a list").iter();
    let mut found: Vec<String> = referrers.map(|digest| digest.as_str().expect("text").to_owned()).collect();
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_the_referrers_api_lists_them() {
    let upstream = FakeUpstream::start().await;
    let host = upstream.address().to_string();
    let built = push(&Fixture::new(), &host).await;
    let subject = built["images"][0]["manifest"].as_str().expect("text");
    assert_eq!(listed(&format!("http://{host}/v2/data/spark/referrers/{subject}")).await, expected(&built));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_it_gets_an_index_under_the_tag_of_the_subject() {
    if !missing(&["docker-registry"]).is_empty() {
        return skipped("needs docker-registry");
    }
    let storage = tempfile::tempdir().expect("temporary folders are available");
    let registry = DockerRegistry::start(storage.path()).await.expect("it starts");
    let host = registry.address().to_string();
    let fixture = Fixture::new();
    push(&fixture, &host).await;
    // A second push replaces nothing and doubles nothing.
    let built = push(&fixture, &host).await;
    let subject = built["images"][0]["manifest"].as_str().expect("text").replace(':', "-");
    assert_eq!(listed(&format!("http://{host}/v2/data/spark/manifests/{subject}")).await, expected(&built));
}
