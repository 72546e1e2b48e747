//! Requests to the peer port, against the registry's rate budget and what the agent believes of a registry.

use std::time::Duration;

use kit::{
    agent::{Agent, AgentConfig, REGISTRY, blob_path, manifest_path},
    cluster::{Place, peer_config, places},
    registry::{FakeUpstream, Layer, absent_digest},
    wire,
};

const REPOSITORY: &str = "team/app";

async fn agent(upstream: &FakeUpstream, more: &str) -> (Agent, Vec<Place>) {
    let places = places(2);
    let base = AgentConfig::for_upstream(upstream).with(more);
    (Agent::start(&peer_config(&base, &places[0], &places, "")).await, places)
}

async fn ask(place: &Place, path: &str) -> u16 {
    let get = wire::get(&format!("/peer/v1/{path}&registry={REGISTRY}&repository={REPOSITORY}"), "");
    let answer = wire::exchange(place.address, &get, Duration::from_secs(30)).await.expect("an answer");
    answer.status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_cannot_say_that_a_registry_has_no_ranges() {
    let upstream = FakeUpstream::start().await;
    let size = 12 << 20;
    let (first, second) =
        (upstream.random_blob(REPOSITORY, 1, size).await, upstream.random_blob(REPOSITORY, 2, size).await);
    let (_agent, places) = agent(&upstream, "").await;
    let piece = |digest: &str, whole: u8| {
        format!("pieces/{digest}/1?size={size}&role=source&member=evil&zone=&whole={whole}")
    };
    let told = ask(&places[0], &piece(&first, 1)).await;
    // A peer that has heard nothing of the kind is not told so, and what is read for it is read by ranges.
    let mut status = ask(&places[0], &piece(&second, 0)).await;
    for _ in 0..20 {
        if status != 202 {
            break;
        }
        status = ask(&places[0], &piece(&second, 0)).await;
    }
    assert_eq!(status, 200, "after {told}: {}", upstream.log().describe());
    let reads = upstream.log().blob_gets().reference(&second);
    assert!(reads.iter().all(|read| read.range().is_some()), "{}", reads.describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_cannot_use_up_the_registrys_rate_limit() {
    let upstream = FakeUpstream::start().await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 10_000)]).await;
    upstream.throttle(Some((40, Duration::from_hours(1))));
    let (agent, places) = agent(&upstream, "tags: { negative: 0s }").await;
    for at in 0..=120 {
        ask(&places[0], &format!("manifests/{}?a", absent_digest(at))).await;
        ask(&places[0], &format!("tags/absent-{at}?a")).await;
    }
    let spent = upstream.log().manifest_gets().len();
    assert!(spent < 40, "{spent} of 40");
    assert_eq!(agent.get(&manifest_path(REPOSITORY, &image.digest)).await.status(), 200);
}

/// The manifest of one repository says that another's layer has another size.
#[tokio::test(flavor = "multi_thread")]
async fn the_manifest_of_one_repository_cannot_make_anothers_layer_unavailable() {
    let upstream = FakeUpstream::start().await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 10_000)]).await;
    let (layer, size) = (&image.layers[0].0, image.layers[0].1);
    let config = upstream.blob("evil/app", b"{}").await;
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": size + 1}],
    });
    upstream.manifest("evil/app", "v1", "application/vnd.oci.image.manifest.v1+json", manifest.to_string());
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    assert_eq!(agent.get(&manifest_path(REPOSITORY, "v1")).await.status(), 200);
    assert_eq!(agent.get(&manifest_path("evil/app", "v1")).await.status(), 200);
    let answer = agent.get(&blob_path(REPOSITORY, layer)).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.bytes().await.expect("a whole body").len() as u64, size);
}
