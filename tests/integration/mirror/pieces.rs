//! Transfers over pieces: several connections, ranges before the rest, silent connections, kills.

use std::{sync::Arc, time::Duration};

use kit::{
    agent::{Agent, AgentConfig, assert_store_is_right, blob_path},
    registry::{FakeUpstream, Fault, FaultHandle, On, sha256},
};
use reqwest::StatusCode;
use tempfile::TempDir;

use super::REPOSITORY;

const PIECE: u64 = 4 << 20;

/// Any blob may use several connections, so that a test's blob need not be large.
fn parallel(upstream: &FakeUpstream) -> AgentConfig {
    AgentConfig::for_upstream(upstream).with("fetch: { parallelFrom: 8MiB }")
}

async fn fetch(agent: &Agent, digest: &str) -> bytes::Bytes {
    let response = agent.get(&blob_path(REPOSITORY, digest)).await;
    assert_eq!(response.status(), StatusCode::OK);
    response.bytes().await.expect("the blob arrives whole")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_from_slow_connections_comes_over_several_and_each_byte_once() {
    let upstream = FakeUpstream::start().await;
    let size = 16 * PIECE;
    let digest = upstream.random_blob(REPOSITORY, 1, size).await;
    upstream.rate_per_connection(8_000_000);
    let agent = Agent::start(&parallel(&upstream)).await;
    let bytes = fetch(&agent, &digest).await;
    assert_eq!(sha256(&bytes), digest);
    let gets = upstream.log().blob_gets();
    assert!(gets.len() >= 4, "{}", gets.describe());
    // A connection that hands its rest to another one has a little more under way.
    assert!(gets.bytes() <= size + size / 8, "{} of {size}: {}", gets.bytes(), gets.describe());
    assert_store_is_right(&agent.data());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_without_ranges_is_asked_for_everything_once_and_that_is_remembered() {
    let upstream = FakeUpstream::start().await;
    let (first, second) = (
        upstream.random_blob(REPOSITORY, 1, 8 * PIECE).await,
        upstream.random_blob(REPOSITORY, 2, 8 * PIECE).await,
    );
    upstream.rate_per_connection(16_000_000);
    upstream.fault(On::blob(), Fault::IgnoreRange);
    let agent = Agent::start(&parallel(&upstream)).await;
    assert_eq!(sha256(&fetch(&agent, &first).await), first);
    let learnt = upstream.log().len();
    assert_eq!(sha256(&fetch(&agent, &second).await), second);
    let gets = upstream.log().since(learnt).blob_gets();
    assert_eq!((gets.len(), gets.bytes()), (1, 8 * PIECE), "{}", gets.describe());
}

#[tokio::test]
async fn a_bounded_range_of_a_missing_blob_costs_its_pieces_only() {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.random_blob(REPOSITORY, 1, 8 * PIECE).await;
    let content = std::fs::read(upstream.blob_file(&digest).expect("there")).expect("readable");
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    let range = (5 * PIECE + 100, 5 * PIECE + 199);
    for _ in 0..2 {
        let request = agent.request(reqwest::Method::GET, &blob_path(REPOSITORY, &digest));
        let response = request
            .header("range", format!("bytes={}-{}", range.0, range.1))
            .send()
            .await
            .expect("an answer");
        assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
        let bytes = response.bytes().await.expect("the part arrives");
        let expected = usize::try_from(range.0).expect("small")..=usize::try_from(range.1).expect("small");
        assert_eq!(bytes, content[expected], "the right hundred bytes");
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let gets = upstream.log().blob_gets();
    assert_eq!((gets.len(), gets.bytes()), (1, PIECE), "{}", gets.describe());
    assert!(agent.stored().is_empty(), "a part is not a blob");
    assert_eq!(sha256(&fetch(&agent, &digest).await), digest);
    assert_eq!(upstream.log().blob_gets().bytes(), 8 * PIECE, "the part is not fetched again");
}

#[tokio::test]
async fn a_bounded_range_brings_the_whole_blob_when_so_configured() {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.random_blob(REPOSITORY, 1, 4 * PIECE).await;
    let agent =
        Agent::start(&AgentConfig::for_upstream(&upstream).with("fetch: { wholeOnRange: true }")).await;
    let request = agent.request(reqwest::Method::GET, &blob_path(REPOSITORY, &digest));
    let response = request.header("range", "bytes=10-19").send().await.expect("an answer");
    assert_eq!(response.bytes().await.expect("the part arrives").len(), 10);
    let stored = async {
        while agent.stored().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), stored).await.expect("the rest follows");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_far_ahead_of_a_slow_transfer_is_served_before_the_transfer_gets_there() {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.random_blob(REPOSITORY, 1, 16 * PIECE).await;
    upstream.rate_per_connection(4_000_000);
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    let mut whole = agent.get(&blob_path(REPOSITORY, &digest)).await;
    whole.chunk().await.expect("it has begun");
    let request = agent.request(reqwest::Method::GET, &blob_path(REPOSITORY, &digest));
    let range = format!("bytes={}-{}", 12 * PIECE, 12 * PIECE + 9);
    let response = request.header("range", range).send().await.expect("an answer");
    assert_eq!(response.bytes().await.expect("the part arrives").len(), 10);
    let so_far = upstream.log().blob_gets().bytes();
    assert!(so_far < 8 * PIECE, "the transfer was not waited for: {so_far}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_goes_silent_gets_a_rival() {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.random_blob(REPOSITORY, 1, 4 * PIECE).await;
    let stall = upstream.fault(On::blob().get(), Fault::Stall(PIECE, Duration::from_mins(2))).times(1);
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    let fetched = tokio::time::timeout(Duration::from_secs(20), fetch(&agent, &digest)).await;
    assert_eq!(sha256(&fetched.expect("the silence is not waited out")), digest);
    assert_eq!(stall.hits(), 1);
    let gets = upstream.log().blob_gets();
    assert_eq!(gets.len(), 2, "{}", gets.describe());
}

#[tokio::test]
async fn an_endpoint_that_lied_is_asked_last() {
    let (liar, honest) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let digest = liar.random_blob(REPOSITORY, 1, 2 * PIECE).await;
    assert_eq!(
        honest.random_blob(REPOSITORY, 1, 2 * PIECE).await,
        digest,
        "the same seed gives the same blob"
    );
    liar.fault(On::blob().get(), Fault::Corrupt(kit::registry::Where::Middle));
    let config = AgentConfig::for_upstream(&liar).registry("two.test", &[&liar.url(), &honest.url()], "");
    let agent = Agent::start(&config).await;
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}?ns=two.test");
    // Cut short, or right because the other endpoint was asked before anything had left.
    let first = agent.get(&path).await;
    assert_eq!(first.status(), StatusCode::OK);
    if let Ok(bytes) = first.bytes().await {
        assert_eq!(sha256(&bytes), digest);
    }
    let second = agent.get(&path).await.bytes().await.expect("the other endpoint is asked");
    assert_eq!(sha256(&second), digest);
    assert_eq!(liar.log().blob_gets().len(), 1);
    assert_store_is_right(&agent.data());
}

/// kill -9 at 200 moments of one transfer: never a wrong byte served afterwards, and less than a piece fetched again
/// for each connection and kill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_kills_cost_less_than_a_piece_each_and_never_a_wrong_byte() {
    const KILLS: u64 = 200;
    let upstream = FakeUpstream::start().await;
    let size = 30 * PIECE;
    let digest = upstream.random_blob(REPOSITORY, 1, size).await;
    upstream.rate_per_connection(60_000_000);
    let home = TempDir::new().expect("temporary folders are available");
    // One connection, so that the bound is one piece a kill.
    let config = AgentConfig::for_upstream(&upstream).with("fetch: { blobConnections: 1 }");
    let path = blob_path(REPOSITORY, &digest);
    let mut random = 88_172_645_463_325_252_u64;
    for kill in 0..KILLS {
        let agent = config.start_process(home.path()).await.expect("it starts");
        let url = format!("http://{}{path}", agent.addresses.mirror);
        let client = tokio::spawn(async move { reqwest::get(url).await?.bytes().await });
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        tokio::time::sleep(Duration::from_millis(random % 80)).await;
        agent.kill().await.expect("it dies");
        client.abort();
        if kill % 20 == 0 {
            assert_store_is_right(&home.path().join("data"));
        }
    }
    let agent = config.start_process(home.path()).await.expect("it starts");
    let url = format!("http://{}{path}", agent.addresses.mirror);
    let bytes = reqwest::get(url).await.expect("an answer").bytes().await.expect("the blob arrives whole");
    assert_eq!(sha256(&bytes), digest);
    assert_store_is_right(&home.path().join("data"));
    let again = upstream.log().blob_gets().bytes().saturating_sub(size);
    assert!(again <= KILLS * PIECE, "{again} bytes fetched again");
}

/// An upstream with a blob, and a store with the beginning of it: left by a connection that broke off when upstream was
/// switched off.
async fn with_a_beginning() -> (FakeUpstream, AgentConfig, Arc<TempDir>, String) {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.random_blob(REPOSITORY, 1, 3 * PIECE).await;
    let config = AgentConfig::for_upstream(&upstream);
    let agent = Agent::start(&config).await;
    let broken = [
        upstream.fault(On::blob().get().whole(), Fault::Cut(PIECE)),
        upstream.fault(On::blob().get(), Fault::status(503)),
    ];
    let response = agent.get(&blob_path(REPOSITORY, &digest)).await;
    assert_eq!(response.status(), StatusCode::OK);
    response.bytes().await.expect_err("the body ends early");
    broken.iter().for_each(FaultHandle::clear);
    let home = agent.stop().await;
    (upstream, config, home, digest)
}

#[tokio::test]
async fn the_rest_of_a_blob_is_asked_for_on_the_condition_that_it_is_still_the_same_version() {
    let (upstream, config, home, digest) = with_a_beginning().await;
    let mark = upstream.log().len();

    let agent = Agent::start_in(&config, home).await;
    assert_eq!(sha256(&fetch(&agent, &digest).await), digest);

    let gets = upstream.log().since(mark).blob_gets();
    let conditions: Vec<_> = gets.iter().map(|get| get.header("if-range").map(str::to_owned)).collect();
    assert_eq!(conditions, [Some(format!("\"{digest}\""))], "{}", gets.describe());
    assert_eq!(gets.bytes(), 2 * PIECE, "{}", gets.describe());
}

#[tokio::test]
async fn an_upstream_that_has_another_version_by_now_is_read_from_the_beginning() {
    let (upstream, config, home, digest) = with_a_beginning().await;
    // What lies there is of a version that upstream has not any more; and wrong, as such bytes are.
    let file = |end: &str| {
        let name = format!("{}.{end}", digest.replace(':', "-"));
        home.path().join("data/partial-v1").join(name)
    };
    let map = std::fs::read_to_string(file("map")).expect("a map");
    assert!(map.contains(&digest), "{map}");
    std::fs::write(file("map"), map.replace(&digest, "an older one")).expect("writable");
    std::fs::write(file("data"), vec![7; usize::try_from(PIECE).expect("small")]).expect("writable");
    let mark = upstream.log().len();

    let agent = Agent::start_in(&config, home).await;
    assert_eq!(sha256(&fetch(&agent, &digest).await), digest);

    let gets = upstream.log().since(mark).blob_gets();
    assert_eq!(gets.len(), 2, "the one that showed it, and one for everything: {}", gets.describe());
    assert_store_is_right(&agent.data());
}
