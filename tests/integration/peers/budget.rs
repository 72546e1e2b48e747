//! The rate limit of a registry that all nodes share: pre-pulls of all of them together leave the reserve to waiting pods.

use std::{fmt::Write as _, time::Duration};

use kit::{
    agent::{Agent, AgentConfig, REGISTRY, manifest_path},
    cluster::{Place, peer_config, places},
    peer::{BadPeer, Manner},
    registry::{FakeUpstream, Fault, Image, Layer, On},
    signatures::Signer,
};

const REPOSITORY: &str = "team/sets";

const NODES: usize = 8;

/// Requests in a window, and what is reserved for waiting pods.
const LIMIT: u64 = 60;
const RESERVE: u64 = 18;

/// Refused work comes again earlier.
const QUIET: Duration = Duration::from_secs(30);

/// The agent of one node, with a set of images that no other node has.
fn config(
    upstream: &FakeUpstream,
    place: &Place,
    all: &[Place],
    (at, images): (usize, usize),
    verify: &str,
) -> AgentConfig {
    let mut sets = String::from("prepull: { parallel: 4, sets: [{ name: own, images: [");
    for image in 0..images {
        let _ = write!(sets, "\"{REGISTRY}/{REPOSITORY}:{}\", ", tag(at, image));
    }
    sets += "] }] }";
    let config = AgentConfig::default().registry(REGISTRY, &[&upstream.url()], verify).with(&sets);
    peer_config(&config, place, all, "")
}

fn tag(node: usize, image: usize) -> String {
    format!("n{node}-{image}")
}

async fn images(upstream: &FakeUpstream, nodes: usize, images: usize) -> Vec<Image> {
    let mut all = Vec::new();
    for node in 0..nodes {
        for image in 0..images {
            let seed = (node * 1_000 + image) as u64;
            all.push(upstream.image(REPOSITORY, &tag(node, image), [Layer::random(seed, 100)]).await);
        }
    }
    all
}

/// Waits until the registry has received no manifest request for a while; how many it has received.
async fn settled(upstream: &FakeUpstream) -> u64 {
    let mut before = usize::MAX;
    loop {
        let now = upstream.log().manifest_gets().len();
        if now == before && now > 0 {
            return now as u64;
        }
        before = now;
        tokio::time::sleep(QUIET).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pre_pulls_of_eight_nodes_leave_the_reserve_to_waiting_pods() {
    // Every node is up before the first manifest is requested.
    leave_the_reserve(Duration::from_secs(2), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pre_pulls_of_eight_nodes_leave_the_reserve_of_a_slow_registry() {
    // Pre-pulls that waited 3.5 s for a tag, and then asked peers for it, spent 77 to 122 of 60.
    leave_the_reserve(Duration::from_secs(4), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pre_pulls_of_signed_images_leave_the_reserve_too() {
    // Each needs two requests that count: one for its manifest and one for that of its signature.
    leave_the_reserve(Duration::from_secs(1), Some(Signer::generate())).await;
}

async fn leave_the_reserve(head: Duration, signer: Option<Signer>) {
    let upstream = FakeUpstream::start().await;
    let images = images(&upstream, NODES, 12).await;
    let home = tempfile::tempdir().expect("temporary folders are available");
    let mut verify = String::new();
    if let Some(signer) = &signer {
        for image in &images {
            upstream.sign_simple(REPOSITORY, &image.digest, signer).await;
        }
        let key = home.path().join("team.pub");
        std::fs::write(&key, signer.public_pem()).expect("writable");
        verify = format!("verify: {{ keys: [{}] }}", key.display());
    }
    upstream.throttle(Some((LIMIT, Duration::from_hours(1))));
    upstream.fault(On::manifest().head(), Fault::Delay(head));
    // So slow that many requests are under way when the reserve is near.
    upstream.fault(On::manifest().get(), Fault::Delay(Duration::from_millis(500)));
    let places = places(NODES);
    let mut agents = Vec::new();
    for (at, place) in places.iter().enumerate() {
        agents.push(Agent::start(&config(&upstream, place, &places, (at, 12), &verify)).await);
    }
    let spent = settled(&upstream).await;
    let requests = upstream.log().manifest_gets().describe();
    // Nodes that did not ask before they resolved a tag spent 75.
    assert!(spent <= LIMIT - RESERVE, "{spent} of {LIMIT}: the reserve is {RESERVE}\n{requests}");
    assert!(spent > LIMIT / 2, "{spent} of {LIMIT}: pre-pulls use what is theirs");
    // A pod that waits has the reserve.
    let wanted = upstream.image(REPOSITORY, "demand", [Layer::random(999_999, 100)]).await;
    if let Some(signer) = &signer {
        upstream.sign_simple(REPOSITORY, &wanted.digest, signer).await;
    }
    let answer = agents[0].get(&manifest_path(REPOSITORY, &wanted.digest)).await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_away_or_generous_gives_no_more_than_a_nodes_own_rule() {
    let with = |manner| async move {
        let upstream = FakeUpstream::start().await;
        images(&upstream, 1, 40).await;
        upstream.throttle(Some((40, Duration::from_hours(1))));
        // The agent ranks last for this registry under one of these names.
        let places: Vec<_> =
            ["z", "y", "x", "w", "v", "u"].into_iter().map(|name| Place::reserve(name, "")).collect();
        let _others: Vec<_> = places[1..].iter().map(|place| BadPeer::start(place, manner)).collect();
        let _agent = Agent::start(&config(&upstream, &places[0], &places, (0, 40), "")).await;
        (manner, settled(&upstream).await)
    };
    let manners = [Manner::Stalls, Manner::Foreign, Manner::Busy, Manner::Generous];
    for (manner, spent) in futures_util::future::join_all(manners.map(with)).await {
        // 28 until 12 are left, and what is under way at that moment.
        assert!((25..=33).contains(&spent), "{manner:?}: {spent} of 40");
    }
}
