//! What fails costs only itself: other content of the same registry is served as ever.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use kit::{
    agent::{Agent, AgentConfig, REGISTRY, blob_path, manifest_path},
    pull::Puller,
    registry::{FakeUpstream, Fault, Layer, On},
};

use super::REPOSITORY;

/// Asks for a path again and again until told to stop.
async fn loops(agent: &Agent, path: &str, stop: &AtomicBool, refused: &AtomicUsize) {
    while !stop.load(Ordering::SeqCst) {
        assert_ne!(agent.get(path).await.status(), 200, "it is broken");
        refused.fetch_add(1, Ordering::SeqCst);
    }
}

/// A blob with a fault that clients ask for in a loop, and eight images that are well.
async fn broken(fault: Fault) {
    let upstream = FakeUpstream::start().await;
    let bad = upstream.image("team/bad", "v1", [Layer::random(99, 50_000)]).await;
    for n in 0..8 {
        upstream.image(&format!("team/good-{n}"), "v1", [Layer::random(n, 50_000)]).await;
    }
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    upstream.fault(On::blob().reference(&bad.layers[0].0), fault);
    let (stop, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
    let path = blob_path("team/bad", &bad.layers[0].0);
    let pulls = async {
        // The trouble has begun.
        while refused.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        let mut pulled = 0;
        for n in 0..8 {
            let puller = Puller::new(&agent.url(), Some(REGISTRY));
            pulled += usize::from(puller.pull(&format!("team/good-{n}"), "v1", |_| ()).await.is_ok());
        }
        stop.store(true, Ordering::SeqCst);
        pulled
    };
    let clients = (0..4).map(|_| loops(&agent, &path, &stop, &refused));
    let (pulled, _) = tokio::join!(pulls, join_all(clients));
    assert_eq!(pulled, 8, "pulls of images that are well\n{}", upstream.log().describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_fails_in_a_loop_costs_other_images_nothing() {
    broken(Fault::status(500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_whose_connection_is_reset_in_a_loop_costs_other_images_nothing() {
    broken(Fault::Reset).await;
}

/// One blip that meets many requests at once is one failure.
#[tokio::test(flavor = "multi_thread")]
async fn a_blip_of_429_that_meets_many_requests_is_over_soon() {
    let upstream = FakeUpstream::start().await;
    upstream.image(REPOSITORY, "v1", [Layer::random(1, 50_000)]).await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    let blip = upstream.fault(On::any(), Fault::too_many(None));
    let asks = (0..24).map(|n| {
        let agent = &agent;
        async move { agent.head(&manifest_path(&format!("team/other-{n}"), "v1")).await.status() }
    });
    let ending = async {
        while upstream.log().status(429).is_empty() {
            tokio::task::yield_now().await;
        }
        blip.clear();
    };
    // Each of them waits for the registry and then has its answer, within one client's patience.
    let (answers, ()) = tokio::join!(join_all(asks), ending);
    assert!(answers.iter().all(|status| *status == 404), "{answers:?}");
    let puller = Puller::new(&agent.url(), Some(REGISTRY));
    puller.pull(REPOSITORY, "v1", |_| ()).await.expect("the registry is well again");
}
