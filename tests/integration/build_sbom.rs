//! Documents about images: in the layout and in registries, whether these know the referrers API or not.

use std::fs;

use kit::{
    registry::FakeUpstream,
    runtime::{DockerRegistry, missing},
};
use serde_json::Value;

use crate::build_fixture::{Fixture, blob, finish, report, skipped};

fn document(layout: &std::path::Path, digest: &Value) -> Value {
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

async fn push(fixture: &Fixture, host: &str) -> Value {
    fixture.spec(&format!("{host}/data/spark"), "{ rootfs: base.tar }", "");
    let mut command = fixture.command(&["--push", "--sbom", "--plain-http", host, "--output-format", "json"]);
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
