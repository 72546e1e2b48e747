//! Manifests that move or are larger than anyone accepts.

use kit::{
    agent::{Agent, AgentConfig, manifest_path},
    registry::{FakeUpstream, Layer, MANIFEST, sha256},
};

#[tokio::test]
async fn a_tag_that_moves_between_head_and_get_gives_one_of_the_two_whole() {
    let upstream = FakeUpstream::start().await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream).with("tags: { freshness: 0s }")).await;
    let old = upstream.image("team/app", "v1", [Layer::random(1, 10)]).await;
    let new = upstream.image("team/app", "other", [Layer::random(2, 10)]).await;
    let path = manifest_path("team/app", "v1");
    let before = agent.head(&path).await.headers()["docker-content-digest"].clone();
    assert_eq!(before, old.digest.as_str());
    let bytes = std::fs::read(upstream.blob_file(&new.config).expect("there")).expect("readable");
    assert!(!bytes.is_empty());
    let moved = agent.get(&manifest_path("team/app", "other")).await.bytes().await.expect("a manifest");
    upstream.manifest("team/app", "v1", MANIFEST, moved);
    let response = agent.get(&path).await;
    assert_eq!(response.headers()["docker-content-digest"], new.digest.as_str());
    assert_eq!(sha256(&response.bytes().await.expect("a manifest")), new.digest);
    // The old one can still be had by its digest, from the store.
    assert_eq!(agent.get(&manifest_path("team/app", &old.digest)).await.status(), 200);
}

#[tokio::test]
async fn a_manifest_larger_than_the_limit_of_the_specification_is_refused() {
    let (upstream, agent) = super::start().await;
    let padding = "x".repeat(5 << 20);
    let manifest = serde_json::json!({ "schemaVersion": 2, "mediaType": MANIFEST, "annotations": { "padding": padding } });
    upstream.manifest("team/app", "v1", MANIFEST, manifest.to_string());
    assert_eq!(super::refusal(agent.get(&manifest_path("team/app", "v1")).await).await.0, 406);
}
