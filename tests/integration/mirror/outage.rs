//! Upstream gone, silent or throttling: what was there stays there, and what is not is refused quickly.

use std::time::{Duration, Instant};

use kit::{
    agent::{Agent, AgentConfig, REGISTRY, blob_path, manifest_path},
    pull::Puller,
    registry::{BlackHole, FakeUpstream, Fault, Image, Layer, Mute, On, absent_digest},
};

use super::{HEADER_LIMIT, REPOSITORY, refusal, start};

async fn image(upstream: &FakeUpstream) -> Image {
    upstream.image(REPOSITORY, "v1", [Layer::random(1, 500_000), Layer::random(2, 1_000)]).await
}

async fn pull(agent: &Agent) -> anyhow::Result<kit::pull::Pulled> {
    Puller::new(&agent.url(), Some(REGISTRY)).pull(REPOSITORY, "v1", |_| ()).await
}

/// Tags are asked for at every request, so that the outage is felt.
fn always_fresh(upstream: &FakeUpstream) -> AgentConfig {
    AgentConfig::for_upstream(upstream).with("tags: { freshness: 0s }")
}

#[tokio::test]
async fn an_image_that_was_pulled_is_pulled_again_while_upstream_is_off_tag_included() {
    let upstream = FakeUpstream::start().await;
    let agent = Agent::start(&always_fresh(&upstream)).await;
    let image = image(&upstream).await;
    pull(&agent).await.expect("the first pull succeeds");
    let asked = upstream.log().len();
    upstream.stop().await;
    let again = pull(&agent).await.expect("the second pull succeeds");
    assert_eq!((again.digest, again.blobs.len()), (image.digest, 3));
    assert_eq!(upstream.log().len(), asked);
    let warned = agent.head(&manifest_path(REPOSITORY, "v1")).await.headers().contains_key("warning");
    assert!(warned, "an unconfirmed tag is marked");
    let stale = agent.metrics().await.sum("hearth_content_total", &[("kind", "tag"), ("result", "stale")]);
    assert!(stale >= 2.0, "{stale}");
}

#[tokio::test]
async fn a_restarted_agent_still_serves_what_was_pulled_while_upstream_is_off() {
    let upstream = FakeUpstream::start().await;
    let config = always_fresh(&upstream);
    let agent = Agent::start(&config).await;
    image(&upstream).await;
    pull(&agent).await.expect("the first pull succeeds");
    let home = agent.stop().await;
    upstream.stop().await;
    let agent = Agent::start_in(&config, home).await;
    pull(&agent).await.expect("the second pull succeeds");
}

#[tokio::test]
async fn a_tag_older_than_allowed_is_not_served_stale() {
    let upstream = FakeUpstream::start().await;
    let config = AgentConfig::for_upstream(&upstream).with("tags: { freshness: 0s, maxStale: 5s }");
    let agent = Agent::start(&config).await;
    image(&upstream).await;
    pull(&agent).await.expect("the first pull succeeds");
    upstream.stop().await;
    assert_eq!(agent.head(&manifest_path(REPOSITORY, "v1")).await.status(), 200, "young enough");
    tokio::time::sleep(Duration::from_millis(6_100)).await;
    assert_eq!(agent.head(&manifest_path(REPOSITORY, "v1")).await.status(), 503);
}

#[tokio::test]
async fn a_fresh_tag_costs_no_request_and_an_old_one_a_head() {
    let upstream = FakeUpstream::start().await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream).with("tags: { freshness: 1s }")).await;
    image(&upstream).await;
    pull(&agent).await.expect("the first pull succeeds");
    let mark = upstream.log().len();
    pull(&agent).await.expect("the second pull succeeds");
    assert_eq!(upstream.log().len(), mark, "{}", upstream.log().since(mark).describe());
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    pull(&agent).await.expect("the third pull succeeds");
    let asked = upstream.log().since(mark);
    let heads = asked.method(&reqwest::Method::HEAD).len();
    assert_eq!((asked.len(), heads), (1, 1), "{}", asked.describe());
}

#[tokio::test]
async fn a_deleted_tag_is_gone() {
    let upstream = FakeUpstream::start().await;
    let agent =
        Agent::start(&AgentConfig::for_upstream(&upstream).with("tags: { freshness: 0s, negative: 1s }"))
            .await;
    image(&upstream).await;
    pull(&agent).await.expect("the pull succeeds");
    upstream.remove(REPOSITORY, "v1");
    let mark = upstream.log().len();
    for _ in 0..3 {
        assert_eq!(refusal(agent.get(&manifest_path(REPOSITORY, "v1")).await).await.0, 404);
    }
    assert_eq!(upstream.log().since(mark).len(), 1, "upstream's word is believed for a moment");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    upstream.stop().await;
    assert_eq!(
        refusal(agent.get(&manifest_path(REPOSITORY, "v1")).await).await.0,
        503,
        "and is not served from memory"
    );
}

#[tokio::test]
async fn a_throttled_upstream_is_never_felt_as_429_and_a_known_tag_is_served() {
    let upstream = FakeUpstream::start().await;
    let agent = Agent::start(&always_fresh(&upstream)).await;
    let image = image(&upstream).await;
    pull(&agent).await.expect("the first pull succeeds");
    upstream.fault(On::any(), Fault::too_many(Some("7")));
    pull(&agent).await.expect("the second pull succeeds");
    let response = agent.get(&manifest_path("team/unknown", "v1")).await;
    assert_eq!(response.headers()["retry-after"], "7");
    assert_eq!(refusal(response).await.0, 503);
    assert_eq!(agent.get(&blob_path(REPOSITORY, &image.config)).await.status(), 200);
    let served = agent.metrics().await.sum("hearth_http_requests_total", &[("status", "429")]);
    assert!(served.abs() < f64::EPSILON);
}

#[tokio::test]
async fn docker_is_told_to_move_on_where_503_would_make_it_wait() {
    let (upstream, agent) = start().await;
    upstream.stop().await;
    for (client, path, status) in [
        ("docker/20.10.24 go/go1.19", blob_path(REPOSITORY, &absent_digest(1)), 404),
        ("docker/20.10.24 go/go1.19", manifest_path(REPOSITORY, "v1"), 503),
        ("containerd/1.7.34", blob_path(REPOSITORY, &absent_digest(1)), 503),
    ] {
        let request = agent.request(reqwest::Method::GET, &path).header("user-agent", client);
        assert_eq!(request.send().await.expect("an answer").status(), status, "{client} {path}");
    }
}

/// The default limits: nothing that cannot be had keeps a client waiting for more than five seconds.
#[tokio::test]
async fn an_upstream_that_says_nothing_costs_five_seconds_at_most() {
    let (mute, hole) = (Mute::start().await, BlackHole::start().await);
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port");
    let endpoints = [
        ("mute", format!("http://{}", mute.address())),
        ("black hole", format!("http://{}", hole.address())),
        ("refused", format!("http://{closed}")),
        ("no such host", "http://nowhere.invalid".to_owned()),
        ("no TLS there", format!("https://{}", mute.address())),
        ("two dead ones", format!("http://{}, http://{}", hole.address(), mute.address())),
    ];
    let ask = |(name, endpoint): (&'static str, String)| async move {
        let agent = Agent::start(&AgentConfig::default().registry(REGISTRY, &[&endpoint], "")).await;
        for path in [
            manifest_path(REPOSITORY, "v1"),
            manifest_path(REPOSITORY, &absent_digest(1)),
            blob_path(REPOSITORY, &absent_digest(2)),
        ] {
            let started = Instant::now();
            let response = agent.get(&path).await;
            let took = started.elapsed();
            assert_eq!(refusal(response).await.0, 503, "{name} {path}");
            assert!(took < HEADER_LIMIT, "{name} {path} took {took:?}");
        }
    };
    futures_util::future::join_all(endpoints.map(ask)).await;
}

#[tokio::test]
async fn the_next_endpoint_is_asked_when_the_first_is_dead_throttled_or_broken() {
    let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
    image(&second).await;
    let config = AgentConfig::default().registry(REGISTRY, &[&first.url(), &second.url()], "");
    for fault in [Fault::Close, Fault::too_many(None), Fault::status(503)] {
        let shown = format!("{fault:?}");
        first.heal();
        first.fault(On::any(), fault);
        let agent = Agent::start(&config).await;
        pull(&agent).await.unwrap_or_else(|error| panic!("{shown}: {error:#}"));
    }
    first.stop().await;
    let agent = Agent::start(&config).await;
    pull(&agent).await.expect("the first endpoint is off");
}
