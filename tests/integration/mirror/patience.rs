//! How long clients wait for the header of an answer, and what leaves with it.

use std::time::Duration;

use kit::{
    agent::{Agent, AgentConfig, REGISTRY, blob_path, manifest_path},
    registry::{FakeUpstream, Fault, FaultHandle, Layer, On, Where},
    wire::{Ending, Exchange, exchange, get},
};
use reqwest::{Method, Response};

use super::{REPOSITORY, refusal};

const SKOPEO: &str = "skopeo/1.22.0";
const LIMIT: Duration = Duration::from_secs(30);

/// Short limits: clients with another place to go wait 300 ms, the registry may take 20 s.
async fn start(more: &str) -> (FakeUpstream, Agent) {
    let upstream = FakeUpstream::start().await;
    let limits = format!("limits: {{ firstHeader: 300ms, blobHeader: 20s{more} }}");
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream).with(&limits)).await;
    (upstream, agent)
}

async fn as_skopeo(agent: &Agent, path: &str) -> Response {
    agent.request(Method::GET, path).header("user-agent", SKOPEO).send().await.expect("an answer")
}

#[tokio::test]
async fn a_client_that_never_falls_back_waits_as_long_as_the_registry_takes() {
    let (upstream, agent) = start("").await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 100_000)]).await;
    upstream.fault(On::blob().get(), Fault::Delay(Duration::from_secs(2)));
    upstream.fault(On::manifest().reference(&image.digest), Fault::Delay(Duration::from_secs(2)));
    let (manifest, layer) =
        (manifest_path(REPOSITORY, &image.digest), blob_path(REPOSITORY, &image.layers[0].0));
    for path in [&manifest, &layer] {
        assert_eq!(agent.get(path).await.status(), 503, "containerd asks the registry then: {path}");
        assert_eq!(as_skopeo(&agent, path).await.status(), 200, "{path}");
    }
    assert_eq!(upstream.log().blob_gets().reference(&image.layers[0].0).len(), 1);
}

#[tokio::test]
async fn a_registry_that_takes_long_is_asked_once_more_and_no_more_bytes_are_read() {
    let (upstream, agent) = start(", header: 500ms").await;
    let digest = upstream.random_blob(REPOSITORY, 1, 4 << 20).await;
    upstream.fault(On::blob().get(), Fault::Delay(Duration::from_secs(3)));
    let response = as_skopeo(&agent, &blob_path(REPOSITORY, &digest)).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.bytes().await.expect("the blob").len(), 4 << 20);
    let log = upstream.log().blob_gets();
    assert!(log.len() <= 3, "{}", log.describe());
}

#[tokio::test]
async fn a_request_that_got_lost_is_sent_again_beside_the_first() {
    let (upstream, agent) = start(", header: 500ms").await;
    let digest = upstream.random_blob(REPOSITORY, 1, 100_000).await;
    upstream.fault(On::blob().get(), Fault::Delay(Duration::from_mins(1))).times(1);
    assert_eq!(as_skopeo(&agent, &blob_path(REPOSITORY, &digest)).await.status(), 200);
}

#[tokio::test]
async fn an_endpoint_that_is_silent_does_not_keep_the_next_one_from_being_asked() {
    let (silent, well) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let digest = well.random_blob(REPOSITORY, 1, 100_000).await;
    silent.fault(On::any(), Fault::Delay(Duration::from_mins(1)));
    let config = AgentConfig::default()
        .registry(REGISTRY, &[&silent.url(), &well.url()], "")
        .with("limits: { header: 300ms, blobHeader: 60s }");
    let agent = Agent::start(&config).await;
    let response = as_skopeo(&agent, &blob_path(REPOSITORY, &digest)).await;
    assert_eq!(response.status(), 200);
}

/// A blob that is verified before its first byte leaves, from a registry that sends it within two seconds.
#[tokio::test]
async fn while_bytes_arrive_every_client_waits_for_the_header() {
    let (upstream, agent) = start("").await;
    let digest = upstream.random_blob(REPOSITORY, 1, 60_000).await;
    upstream.rate_per_connection(30_000);
    let response = agent.get(&blob_path(REPOSITORY, &digest)).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.bytes().await.expect("the blob").len(), 60_000);
    assert_eq!(upstream.log().blob_gets().len(), 1);
}

/// A download that waits for one of the registry's connections moves with the download that holds it.
#[tokio::test]
async fn a_client_waits_for_a_download_that_waits_for_its_turn() {
    let upstream = FakeUpstream::start().await;
    let config = AgentConfig::default()
        .registry(REGISTRY, &[&upstream.url()], "connections: 1")
        .with("limits: { firstHeader: 300ms }");
    let agent = Agent::start(&config).await;
    let slow = upstream.random_blob(REPOSITORY, 1, 200_000).await;
    let queued = upstream.random_blob(REPOSITORY, 2, 100_000).await;
    upstream.fault(On::blob().reference(&slow), Fault::Rate(100_000));
    let first = agent.get(&blob_path(REPOSITORY, &slow)).await;
    assert_eq!(first.status(), 200);
    let second = agent.get(&blob_path(REPOSITORY, &queued)).await;
    assert_eq!(second.status(), 200);
    assert_eq!(second.bytes().await.expect("the blob").len(), 100_000);
}

/// The header of a 206 promises bytes: it leaves when the first of them is there. containerd commits to a host whose
/// header it has, and after three of them without a byte its pull fails; a 503 sends it to the registry.
#[tokio::test]
async fn a_resume_without_a_byte_is_refused() {
    let (upstream, agent) = start("").await;
    let digest = upstream.random_blob(REPOSITORY, 1, 1_000_000).await;
    upstream.fault(On::blob().get(), Fault::CutWhole(400_000));
    let path = blob_path(REPOSITORY, &digest);
    let whole = exchange(agent.mirror(), &get(&path, ""), LIMIT).await.expect("an answer");
    assert_eq!((whole.status(), whole.ending), (200, Ending::Fin));
    let have = whole.body.len();
    assert!(have > 0);
    let resume = get(&path, &format!("range: bytes={have}-\r\n"));
    let answer = exchange(agent.mirror(), &resume, LIMIT).await.expect("an answer");
    assert_eq!(answer.status(), 503, "{}", answer.head);
}

/// A wrong beginning was streamed; the registry is well again. The rest must not make it whole.
#[tokio::test]
async fn a_blob_whose_beginning_was_wrong_is_not_completed_by_a_second_answer() {
    let (upstream, agent) = start("").await;
    let digest = upstream.random_blob(REPOSITORY, 1, 1_000_000).await;
    upstream.rate_per_connection(4_000_000);
    let wrong: FaultHandle = upstream.fault(On::blob().get(), Fault::Corrupt(Where::First));
    let path = blob_path(REPOSITORY, &digest);
    let mut first =
        Exchange::open(agent.mirror(), get(&path, "").as_bytes(), LIMIT).await.expect("a connection");
    let answer = first.answer(false).await;
    assert_eq!((answer.status(), answer.ending), (200, Ending::Fin));
    let have = answer.body.len();
    assert!(have > 0, "its beginning was streamed");
    wrong.clear();
    let resume = get(&path, &format!("range: bytes={have}-\r\n"));
    let answer = exchange(agent.mirror(), &resume, LIMIT).await.expect("an answer");
    assert_eq!(answer.status(), 503, "{}", answer.head);
    assert!(String::from_utf8_lossy(&answer.body).contains("from the beginning"), "{answer:?}");

    // Begun anew, it is whole; and a part of it may be resumed.
    let whole = super::when_available(|| agent.request(Method::GET, &path)).await;
    assert_eq!(whole.bytes().await.expect("the blob").len(), 1_000_000);
    let answer = exchange(agent.mirror(), &resume, LIMIT).await.expect("an answer");
    assert_eq!(answer.status(), 206);
}

#[tokio::test]
async fn a_registry_without_head_for_manifests_is_asked_by_get() {
    let (upstream, agent) = start("").await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 10)]).await;
    upstream.fault(On::manifest().head(), Fault::status(405));
    let response = agent.head(&manifest_path(REPOSITORY, "v1")).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["docker-content-digest"], image.digest.as_str());
}

#[tokio::test]
async fn an_escaped_digest_is_a_digest() {
    let (upstream, agent) = start("").await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 10)]).await;
    let escaped = |path: String| path.replace("sha256:", "sha256%3A");
    for path in [manifest_path(REPOSITORY, &image.digest), blob_path(REPOSITORY, &image.layers[0].0)] {
        assert_eq!(agent.get(&escaped(path.clone())).await.status(), 200, "{path}");
    }
    let bad = agent.get(&format!("/v2/{REPOSITORY}/blobs/sha256%3Aabc?ns={REGISTRY}")).await;
    assert_eq!(refusal(bad).await, (400, "DIGEST_INVALID".to_owned()));
}
