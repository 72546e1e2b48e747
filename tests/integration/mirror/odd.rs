//! Content that is allowed and rare: each kind has one defined behaviour, the one that the README's table says.

use kit::{
    agent::{Agent, AgentConfig, REGISTRY, blob_path, manifest_path},
    pull::Puller,
    registry::{FakeUpstream, Fault, Layer, MANIFEST, On, absent_digest, sha256},
};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

use super::{REPOSITORY, refusal, start};

fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex::encode(Sha512::digest(bytes)))
}

#[tokio::test]
async fn content_is_checked_and_kept_under_its_sha512_digest() {
    let (upstream, agent) = start().await;
    let content = b"content with a long name".as_slice();
    let answer = |bytes: &[u8]| {
        Fault::Raw(
            [format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", bytes.len()).as_bytes(), bytes]
                .concat()
                .into(),
        )
    };
    let digest = sha512(content);
    upstream.fault(On::blob().get(), answer(content));
    for _ in 0..2 {
        let response = agent.get(&blob_path(REPOSITORY, &digest)).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["docker-content-digest"], digest.as_str());
        assert_eq!(response.bytes().await.expect("the body arrives"), content);
    }
    assert_eq!(upstream.log().blob_gets().len(), 1, "{}", upstream.log().describe());
    let hex = digest.trim_start_matches("sha512:");
    super::when_there(&agent.data().join("blobs-v1/sha512").join(&hex[..2]).join(hex)).await;
    let other = sha512(b"something else");
    let wrong = agent.get(&blob_path(REPOSITORY, &other)).await;
    assert_eq!(refusal(wrong).await.0, 503, "wrong bytes are not given out");
    // An algorithm that nobody here can check.
    let md5 = agent.get(&blob_path(REPOSITORY, &format!("md5:{}", "0".repeat(32)))).await;
    assert_eq!(refusal(md5).await, (400, "DIGEST_INVALID".to_owned()));
}

#[tokio::test]
async fn an_empty_blob_is_a_blob() {
    let (upstream, agent) = start().await;
    let digest = upstream.blob(REPOSITORY, b"").await;
    for _ in 0..2 {
        let response = agent.get(&blob_path(REPOSITORY, &digest)).await;
        assert_eq!(
            (response.status().as_u16(), response.headers()["content-length"].as_bytes()),
            (200, &b"0"[..])
        );
        assert!(response.bytes().await.expect("the body arrives").is_empty());
        let head = agent.head(&blob_path(REPOSITORY, &digest)).await;
        assert_eq!((head.status().as_u16(), head.headers()["content-length"].as_bytes()), (200, &b"0"[..]));
    }
    let range =
        agent.request(Method::GET, &blob_path(REPOSITORY, &digest)).header("range", "bytes=0-").send().await;
    let range = range.expect("an answer");
    assert_eq!(
        (range.status().as_u16(), range.headers()["content-range"].as_bytes()),
        (416, &b"bytes */0"[..])
    );
    upstream.image(REPOSITORY, "v1", [Layer::Bytes(Vec::new())]).await;
    let pulled = Puller::new(&agent.url(), Some(REGISTRY)).pull(REPOSITORY, "v1", |_| ()).await;
    pulled.expect("an image with an empty layer is pulled");
    assert_eq!(upstream.log().blob_gets().reference(&digest).len(), 1, "{}", upstream.log().describe());
}

/// A manifest of exactly so many bytes.
fn manifest_of(size: usize) -> String {
    let of = |padding: usize| {
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "annotations": { "padding": "x".repeat(padding) } })
            .to_string()
    };
    of(size - of(0).len())
}

#[tokio::test]
async fn the_largest_manifest_is_served_and_one_byte_more_is_refused() {
    let (upstream, agent) = start().await;
    let largest = manifest_of(4 << 20);
    assert_eq!(largest.len(), 4 << 20);
    let digest = upstream.manifest(REPOSITORY, "largest", MANIFEST, largest);
    let response = agent.get(&manifest_path(REPOSITORY, "largest")).await;
    assert_eq!(response.status(), 200);
    assert_eq!(sha256(&response.bytes().await.expect("the body arrives")), digest);
    let too_large = manifest_of((4 << 20) + 1);
    let digest = upstream.manifest(REPOSITORY, "larger", MANIFEST, too_large);
    for reference in ["larger", &digest] {
        let refused = refusal(agent.get(&manifest_path(REPOSITORY, reference)).await).await;
        assert_eq!(refused, (406, "MANIFEST_INVALID".to_owned()), "never repeated, never taken for missing");
    }
}

#[tokio::test]
async fn a_manifest_of_the_first_schema_is_refused_with_the_reason() {
    let (upstream, agent) = start().await;
    let old = json!({ "schemaVersion": 1, "name": REPOSITORY, "tag": "old", "fsLayers": [] });
    let kind = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    upstream.manifest(REPOSITORY, "old", kind, old.to_string());
    let response = agent.get(&manifest_path(REPOSITORY, "old")).await;
    assert_eq!(response.status(), 406);
    let text = response.text().await.expect("the body arrives");
    assert!(text.contains("schema version 1") && text.contains("MANIFEST_INVALID"), "{text}");
    assert!(agent.stored().is_empty());
}

#[tokio::test]
async fn layers_that_are_to_be_had_elsewhere_are_never_fetched_from_there() {
    let (upstream, agent) = start().await;
    let elsewhere = FakeUpstream::start().await;
    let foreign = absent_digest(9);
    let config = upstream.blob(REPOSITORY, b"{}").await;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2 },
        "layers": [{
            "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": foreign, "size": 5,
            "urls": [format!("{}/v2/{REPOSITORY}/blobs/{foreign}", elsewhere.url())],
        }],
    });
    upstream.manifest(REPOSITORY, "v1", MANIFEST, manifest.to_string());
    assert_eq!(agent.get(&manifest_path(REPOSITORY, "v1")).await.status(), 200);
    assert_eq!(agent.get(&blob_path(REPOSITORY, &foreign)).await.status(), 404, "upstream's own word");
    assert!(elsewhere.log().is_empty(), "the client may follow `urls`; the agent does not");
    // A registry that does have it is asked like for any other layer.
    let digest = upstream.blob(REPOSITORY, b"here").await;
    assert_eq!(agent.get(&blob_path(REPOSITORY, &digest)).await.status(), 200);
}

#[tokio::test]
async fn artifacts_are_served_like_images_and_their_referrers_passed_on() {
    let upstream = FakeUpstream::start().await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream).with("tags: { freshness: 0s }")).await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 10)]).await;
    let empty = upstream.blob(REPOSITORY, b"{}").await;
    let content = upstream.blob(REPOSITORY, b"a bill of materials").await;
    let subject = json!({ "mediaType": MANIFEST, "digest": image.digest, "size": image.size });
    let artifact = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/spdx+json", "subject": subject,
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2 },
        "layers": [{ "mediaType": "application/spdx+json", "digest": content, "size": 19 }],
    });
    let old_kind = "application/vnd.oci.artifact.manifest.v1+json";
    let old = json!({ "mediaType": old_kind, "artifactType": "application/spdx+json", "subject": subject,
        "blobs": [{ "mediaType": "application/spdx+json", "digest": content, "size": 19 }] });
    for (tag, kind, manifest) in [("sbom", MANIFEST, artifact), ("old-sbom", old_kind, old)] {
        let digest = upstream.manifest(REPOSITORY, tag, kind, manifest.to_string());
        let response = agent.get(&manifest_path(REPOSITORY, tag)).await;
        assert_eq!(
            (response.status().as_u16(), response.headers()["content-type"].to_str().ok()),
            (200, Some(kind))
        );
        assert_eq!(response.headers()["docker-content-digest"], digest.as_str());
    }
    assert_eq!(agent.get(&blob_path(REPOSITORY, &content)).await.status(), 200);
    let referrers = format!("/v2/{REPOSITORY}/referrers/{}?ns={REGISTRY}", image.digest);
    let listed: Value = agent.get(&referrers).await.json().await.expect("an index is JSON");
    assert!(listed["manifests"].as_array().is_some_and(|all| !all.is_empty()), "{listed}");
    // Upstream without the API says 404, and clients look for the tag `sha256-...` instead; without upstream it is 503,
    // because an empty list would say that there is no signature.
    upstream.fault(On::any(), Fault::Status(404, Vec::new(), "404 page not found".into())).times(1);
    assert_eq!(refusal(agent.get(&referrers).await).await.0, 404);
    upstream.stop().await;
    assert_eq!(refusal(agent.get(&referrers).await).await.0, 503);
    assert_eq!(
        agent.get(&manifest_path(REPOSITORY, "sbom")).await.status(),
        200,
        "the artifact itself is here"
    );
}
