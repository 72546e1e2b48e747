//! Misses: bytes pass through as they arrive, one transfer serves everybody, wrong bytes end nowhere.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use kit::{
    agent::{assert_store_is_right, blob_path, manifest_path},
    pull::Puller,
    registry::{Fault, Layer, On, Where, random_bytes, sha256},
    wire::{Ending, Exchange, exchange, get},
};
use reqwest::Method;

use super::{REPOSITORY, start};

const LIMIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn the_first_byte_reaches_the_client_before_the_last_has_left_upstream() {
    let (upstream, agent) = start().await;
    let digest = upstream.random_blob(REPOSITORY, 1, 2_000_000).await;
    upstream.fault(On::blob().get(), Fault::Rate(2_000_000));
    let started = Instant::now();
    let mut response = agent.get(&blob_path(REPOSITORY, &digest)).await;
    response.chunk().await.expect("bytes").expect("some");
    let first = started.elapsed();
    while response.chunk().await.expect("bytes").is_some() {}
    assert!(
        started.elapsed() > Duration::from_millis(900),
        "the upstream was not slow: {:?}",
        started.elapsed()
    );
    assert!(first < Duration::from_millis(500), "the first byte took {first:?}");
}

#[tokio::test]
async fn eight_concurrent_readers_share_one_transfer() {
    let (upstream, agent) = start().await;
    let size = 8_000_000;
    let digest = upstream.random_blob(REPOSITORY, 2, size).await;
    upstream.fault(On::blob().get(), Fault::Rate(8_000_000));
    let path = blob_path(REPOSITORY, &digest);
    let readers = (0..8).map(|number: u64| {
        let (agent, path) = (&agent, &path);
        async move {
            // Some come while it is under way.
            tokio::time::sleep(Duration::from_millis(number * 60)).await;
            let mut response = agent.get(path).await;
            let mut body = response.chunk().await.expect("bytes").expect("some").to_vec();
            let first = Instant::now();
            while let Some(piece) = response.chunk().await.expect("bytes") {
                body.extend_from_slice(&piece);
            }
            (first, sha256(&body))
        }
    });
    let read = join_all(readers).await;
    let gets = upstream.log().blob_gets();
    assert_eq!((gets.len(), gets.bytes()), (1, size), "{}", gets.describe());
    let last_left = gets.iter().next().expect("one").last_byte_at();
    for (first, read_digest) in read {
        assert_eq!(read_digest, digest);
        assert!(first < last_left, "a reader waited for the whole blob");
    }
    let metrics = agent.metrics().await;
    let count = |result| metrics.sum("hearth_content_total", &[("kind", "blob"), ("result", result)]);
    assert!(
        (count("miss") - 1.0).abs() < f64::EPSILON && (count("joined") - 7.0).abs() < f64::EPSILON,
        "{}",
        metrics.text()
    );
}

#[tokio::test]
async fn eight_concurrent_pulls_of_one_tag_ask_upstream_once_for_each_part() {
    let (upstream, agent) = start().await;
    let image = upstream.image(REPOSITORY, "one", [Layer::random(1, 400_000), Layer::random(2, 10)]).await;
    upstream.index("v1", &image);
    let puller = Puller::new(&agent.url(), Some(kit::agent::REGISTRY));
    let pulls = join_all((0..8).map(|_| puller.pull(REPOSITORY, "v1", |_| ()))).await;
    for pulled in pulls {
        assert_eq!(pulled.expect("the pull succeeds").blobs, image.blobs().collect::<Vec<_>>());
    }
    let log = upstream.log();
    assert!(log.manifest_gets().len() <= 2, "index and manifest:\n{}", log.describe());
    assert_eq!(log.blob_gets().len(), 3, "config and two layers:\n{}", log.describe());
}

#[tokio::test]
async fn a_client_that_leaves_does_not_stop_the_transfer() {
    let (upstream, agent) = start().await;
    let size = 1_500_000;
    let digest = upstream.random_blob(REPOSITORY, 3, size).await;
    upstream.fault(On::blob().get(), Fault::Rate(3_000_000)).times(1);
    let request = get(&blob_path(REPOSITORY, &digest), "");
    let mut reader = Exchange::open(agent.mirror(), request.as_bytes(), LIMIT).await.expect("connected");
    reader.head().await.expect("a head");
    reader.read(1000).await.expect("some bytes");
    reader.reset();
    let stored = async {
        while agent.stored().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, stored).await.expect("the transfer goes on without a reader");
    assert_eq!(upstream.log().blob_gets().bytes(), size);
    let body = agent.get(&blob_path(REPOSITORY, &digest)).await.bytes().await.expect("a whole body");
    assert_eq!(sha256(&body), digest);
    assert_eq!(upstream.log().blob_gets().len(), 1, "served from the store");
}

#[tokio::test]
async fn a_slow_reader_does_not_hold_up_the_others() {
    let (upstream, agent) = start().await;
    let digest = upstream.random_blob(REPOSITORY, 4, 30_000_000).await;
    let request = get(&blob_path(REPOSITORY, &digest), "");
    let mut slow = Exchange::open(agent.mirror(), request.as_bytes(), LIMIT).await.expect("connected");
    slow.head().await.expect("a head");
    slow.read(1).await.expect("one byte");
    let quick =
        async { agent.get(&blob_path(REPOSITORY, &digest)).await.bytes().await.expect("a whole body") };
    let body = tokio::time::timeout(LIMIT, quick).await.expect("the quick reader is not held up");
    assert_eq!(sha256(&body), digest);
    let rest = slow.read(29_999_999).await.expect("the slow reader gets everything too");
    assert!(rest == random_bytes(4, 30_000_000)[1..]);
}

/// Wrong bytes anywhere: no client completes the blob, nothing is stored, and the next transfer heals it.
#[tokio::test]
async fn wrong_bytes_are_never_completed_and_never_stored() {
    let (upstream, agent) = start().await;
    let sizes = [1_000_u64, 65_536, 65_537, 1_000_000];
    for (seed, (size, at)) in (10..)
        .zip(sizes.iter().flat_map(|&size| [Where::First, Where::Middle, Where::Last].map(|at| (size, at))))
    {
        let digest = upstream.random_blob(REPOSITORY, seed, size).await;
        let case = format!("{size} bytes, {at:?} wrong");
        // More often than any retry inside one request.
        let fault = upstream.fault(On::blob().get().reference(&digest), Fault::Corrupt(at));
        let request = get(&blob_path(REPOSITORY, &digest), "connection: close\r\n");
        let answer = exchange(agent.mirror(), &request, LIMIT).await.expect("an answer");
        match answer.status() {
            200 => {
                assert_eq!(answer.ending, Ending::Fin, "{case}");
                assert!((answer.body.len() as u64) < size, "{case}: completed");
            }
            status => assert_eq!(status, 503, "{case}"),
        }
        assert!(!agent.stored().contains(&digest), "{case}: stored");
        fault.clear();
        // A host that lied twice about a blob is not asked for it for a moment.
        let response =
            super::when_available(|| agent.request(Method::GET, &blob_path(REPOSITORY, &digest))).await;
        let body = response.bytes().await.expect("a whole body");
        assert_eq!(sha256(&body), digest, "{case}: after upstream healed");
    }
    let metrics = agent.metrics().await;
    assert!(metrics.sum("hearth_digest_mismatch_total", &[]) >= 12.0, "{}", metrics.text());
    assert_store_is_right(&agent.data());
}

#[tokio::test]
async fn a_manifest_with_wrong_bytes_is_refused_before_the_first_byte() {
    let (upstream, agent) = start().await;
    let image = upstream.image(REPOSITORY, "v1", []).await;
    upstream.fault(On::manifest().get(), Fault::Corrupt(Where::Middle));
    for reference in ["v1", &image.digest] {
        let response = agent.get(&manifest_path(REPOSITORY, reference)).await;
        assert_eq!(super::refusal(response).await.0, 503, "{reference}");
    }
    upstream.heal();
    let body = agent.get(&manifest_path(REPOSITORY, "v1")).await.bytes().await.expect("a whole body");
    assert_eq!(sha256(&body), image.digest);
}

#[tokio::test]
async fn a_client_can_pull_through_a_transfer_that_is_cut_again_and_again() {
    let (upstream, agent) = start().await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(20, 3_000_000)]).await;
    let layer = &image.layers[0].0;
    for after in [1, 100_000, 700_000] {
        upstream.fault(On::blob().get().reference(layer), Fault::Cut(after)).times(1);
    }
    upstream.fault(On::blob().get().reference(layer), Fault::CutReset(500_000)).times(1);
    let puller = Puller::new(&agent.url(), Some(kit::agent::REGISTRY));
    puller.pull(REPOSITORY, "v1", |_| ()).await.expect("the pull succeeds");
    let log = upstream.log().blob_gets().reference(layer);
    assert_eq!(log.bytes(), 3_000_000, "nothing is fetched twice:\n{}", log.describe());
    assert_store_is_right(&agent.data());
}

#[tokio::test]
async fn a_transfer_that_never_completes_ends_with_fin_and_a_resumable_part() {
    let (upstream, agent) = start().await;
    let size = 1_000_000;
    let digest = upstream.random_blob(REPOSITORY, 30, size).await;
    upstream.fault(On::blob().get().whole(), Fault::Cut(400_000));
    upstream.fault(On::blob().get().ranged(), Fault::Close);
    let request = get(&blob_path(REPOSITORY, &digest), "");
    let answer = exchange(agent.mirror(), &request, Duration::from_secs(30)).await.expect("an answer");
    assert_eq!((answer.status(), answer.ending), (200, Ending::Fin));
    let got = answer.body.len();
    assert!(answer.body == random_bytes(30, 1_000_000)[..got], "the bytes so far are right");
    upstream.heal();
    // An endpoint that failed several times is left alone for a moment.
    let resume = || {
        agent.request(Method::GET, &blob_path(REPOSITORY, &digest)).header("range", format!("bytes={got}-"))
    };
    let response = super::when_available(resume).await;
    assert_eq!(response.status(), 206);
    let rest = response.bytes().await.expect("the rest");
    assert!(rest == random_bytes(30, 1_000_000)[got..]);
}

#[tokio::test]
async fn many_clients_that_leave_early_leave_nothing_behind() {
    let (upstream, agent) = start().await;
    let digest = upstream.random_blob(REPOSITORY, 40, 2_000_000).await;
    upstream.fault(On::blob().get(), Fault::Rate(4_000_000));
    let request = get(&blob_path(REPOSITORY, &digest), "");
    for _ in 0..20 {
        let readers = (0..20).map(|_| async {
            let mut reader =
                Exchange::open(agent.mirror(), request.as_bytes(), LIMIT).await.expect("connected");
            // Some leave before the head, some after.
            let _ = tokio::time::timeout(Duration::from_millis(5), reader.head()).await;
            reader.reset();
        });
        join_all(readers).await;
    }
    let body = agent.get(&blob_path(REPOSITORY, &digest)).await.bytes().await.expect("a whole body");
    assert_eq!(sha256(&body), digest);
    assert_eq!(upstream.log().blob_gets().len(), 1, "{}", upstream.log().describe());
    let settled = async {
        while agent.metrics().await.sum("hearth_downloads", &[])
            + agent.metrics().await.sum("hearth_mirror_connections", &[])
            > 1.0
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, settled).await.expect("connections and downloads end");
    let partial = std::fs::read_dir(agent.data().join("partial-v1")).map_or(0, Iterator::count);
    assert_eq!(partial, 0, "partial files are left behind");
}
