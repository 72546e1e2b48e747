//! Peers that lie, stall, are busy for ever, or die: right bytes all the same, and upstream is not stormed.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use kit::{
    agent::{Agent, AgentConfig, REGISTRY, assert_store_is_right},
    cluster::{Place, peer_config, places},
    peer::{BadPeer, Manner},
    process::AgentProcess,
    pull::Puller,
    registry::FakeUpstream,
};

use super::{REPOSITORY, config, pull_all, sent, sum, upstream};

/// The default of `peer.wait`.
const WAIT: Duration = Duration::from_secs(3);

/// Real peers at all places but the last, which is someone else's.
async fn beside(upstream: &FakeUpstream, places: &[Place]) -> Vec<Agent> {
    let mut agents = Vec::new();
    for place in &places[..places.len() - 1] {
        agents.push(Agent::start(&peer_config(&config(upstream), place, places, "")).await);
    }
    agents
}

/// How long everyone takes without peers.
async fn without_peers(count: usize) -> Duration {
    let (upstream, _) = upstream().await;
    let mut agents = Vec::new();
    for _ in 0..count {
        agents.push(Agent::start(&config(&upstream)).await);
    }
    let started = Instant::now();
    pull_all(&agents).await;
    started.elapsed()
}

async fn bad_peer(manner: Manner, most: u64) {
    let alone = without_peers(5).await;
    let (upstream, size) = upstream().await;
    let places = places(6);
    let _bad = BadPeer::start(&places[5], manner);
    let agents = beside(&upstream, &places).await;
    let started = Instant::now();
    pull_all(&agents).await;
    // No slower than without peers by more than `peer.wait` and what a machine with other work takes.
    let most_time = 3 * alone + 2 * WAIT;
    assert!(started.elapsed() <= most_time, "{manner:?}: {:?}, alone {alone:?}", started.elapsed());
    assert!(sent(&upstream) <= most * size, "{manner:?}: {}", upstream.log().blob_gets().describe());
    if manner == Manner::Lies {
        let name = [("peer", "node-05")];
        assert!(sum(&agents, "hearth_peer_wrong_pieces_total", &name).await >= 1.0, "the liar is named");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lies_is_found_out_named_and_left_out() {
    bad_peer(Manner::Lies, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_stalls_is_stepped_over() {
    bad_peer(Manner::Stalls, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_busy_for_ever_is_stepped_over() {
    bad_peer(Manner::Busy, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_holds_requests_for_ever_is_stepped_over() {
    bad_peer(Manner::Holds, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_breaks_off_is_stepped_over() {
    bad_peer(Manner::Cuts, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn something_else_on_a_members_port_is_stepped_over() {
    bad_peer(Manner::Foreign, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_not_there_costs_next_to_nothing() {
    let (upstream, size) = upstream().await;
    let places = places(6);
    let agents = beside(&upstream, &places).await;
    pull_all(&agents).await;
    assert_eq!(sent(&upstream), size, "{}", upstream.log().blob_gets().describe());
}

/// Eight real processes pull; `dead` of them are killed in the middle.
async fn killed(dead: usize) {
    let (upstream, size) = upstream().await;
    upstream.rate_per_connection(4_000_000);
    let (places, homes) = (places(8), (0..8).map(|_| home()).collect::<Vec<_>>());
    let mut agents: Vec<Option<AgentProcess>> = Vec::new();
    for (place, home) in places.iter().zip(&homes) {
        let config: AgentConfig = peer_config(&config(&upstream), place, &places, "");
        agents.push(Some(config.start_process(home.path()).await.expect("it starts")));
    }
    let addresses: Vec<_> =
        agents.iter().flatten().map(|agent| format!("http://{}", agent.addresses.mirror)).collect();
    let pulls = addresses.iter().map(|address| async move {
        Puller::new(address, Some(REGISTRY)).pull(REPOSITORY, "v1", |_| ()).await
    });
    let killing = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        for agent in &mut agents[..dead] {
            if let Some(agent) = agent.take() {
                agent.kill().await.expect("it runs");
            }
        }
    };
    let (pulled, ()) = tokio::join!(join_all(pulls), killing);
    for (at, outcome) in pulled.into_iter().enumerate().skip(dead) {
        outcome.unwrap_or_else(|error| panic!("survivor {at}: {error:#}"));
        assert_store_is_right(&homes[at].path().join("data"));
    }
    // What the dead had read and not passed on is read again.
    let most = size + size * u64::try_from(dead + 1).expect("a few");
    assert!(sent(&upstream) <= most, "{}", upstream.log().blob_gets().describe());
}

fn home() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("kit-agent-").tempdir().expect("temporary folders are available")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_eight_is_killed_in_the_middle_and_the_others_finish() {
    killed(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_of_eight_are_killed_in_the_middle_and_the_others_finish() {
    killed(4).await;
}
