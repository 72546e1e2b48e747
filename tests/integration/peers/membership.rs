//! Who is here, and what happens when peers do not agree about it.

use std::time::Duration;

use kit::{
    agent::Agent,
    cluster::{Cluster, Place, peer_config, places},
    kubernetes::FakeApi,
};

use super::{config, pull, pull_all, sent, upstream};

#[tokio::test(flavor = "multi_thread")]
async fn members_with_different_views_all_finish() {
    let (upstream, size) = upstream().await;
    let places = places(6);
    let mut agents = Vec::new();
    for (at, place) in places.iter().enumerate() {
        // Each knows itself and the three after it.
        let known = (0..4).map(|next| &places[(at + next) % 6]);
        agents.push(Agent::start(&peer_config(&config(&upstream), place, known, "")).await);
    }
    pull_all(&agents).await;
    // Every view has a fetcher of its own at worst.
    assert!(sent(&upstream) <= 4 * size, "{}", upstream.log().blob_gets().describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_heals() {
    let (upstream, size) = upstream().await;
    let places = places(6);
    let (left, right) = places.split_at(3);
    let mut agents = Vec::new();
    for (side, place) in
        left.iter().map(|place| (left, place)).chain(right.iter().map(|place| (right, place)))
    {
        agents.push(Agent::start(&peer_config(&config(&upstream), place, side, "")).await);
    }
    pull_all(&agents).await;
    assert_eq!(sent(&upstream), 2 * size, "each side by itself: {}", upstream.log().blob_gets().describe());
    // Healed: everyone knows everyone, and a newcomer gets all from both sides.
    let mut homes = Vec::new();
    for agent in agents {
        homes.push(agent.stop().await);
    }
    let newcomer = Place::reserve("node-99", "");
    let all: Vec<_> = places.iter().chain([&newcomer]).collect();
    let mut agents = Vec::new();
    for (place, home) in places.iter().zip(homes) {
        let known = all.iter().copied();
        agents.push(Agent::start_in(&peer_config(&config(&upstream), place, known, ""), home).await);
    }
    let late = Agent::start(&peer_config(&config(&upstream), &newcomer, all.iter().copied(), "")).await;
    pull(&late).await;
    assert_eq!(sent(&upstream), 2 * size, "{}", upstream.log().blob_gets().describe());
}

/// Waits until an agent knows so many peers, itself among them.
pub(super) async fn knows(agent: &Agent, count: usize) {
    let known = async {
        loop {
            #[expect(clippy::cast_precision_loss, reason = "a few")]
            let all = count as f64;
            if (agent.metrics().await.sum("hearth_peers", &[]) - all).abs() < 0.5 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), known)
        .await
        .unwrap_or_else(|_| panic!("never {count} peers"));
}

/// An agent at a place, with its peers from a source.
async fn peer(upstream: &kit::registry::FakeUpstream, place: &Place, source: &str) -> Agent {
    let peer = format!("peer: {{ listen: \"{}\", name: {}, {source} }}", place.address, place.name);
    Agent::start(&config(upstream).with(&peer)).await
}

/// The same for every source of peers: both know each other, and what one has the other gets from it.
async fn two_share(upstream: &kit::registry::FakeUpstream, size: u64, agents: [&Agent; 2]) {
    for agent in agents {
        knows(agent, 2).await;
    }
    pull_all_of(agents).await;
    assert_eq!(sent(upstream), size, "{}", upstream.log().blob_gets().describe());
}

async fn pull_all_of(agents: [&Agent; 2]) {
    tokio::join!(pull(agents[0]), pull(agents[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_list_makes_a_cluster() {
    let (upstream, size) = upstream().await;
    let cluster = Cluster::start(&config(&upstream), 2, "").await;
    two_share(&upstream, size, [&cluster.agents[0], &cluster.agents[1]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_behind_a_name_make_a_cluster_once_they_say_who_they_are() {
    let (upstream, size) = upstream().await;
    let places = places(2);
    // One port for all behind a name: here each agent's name leads to the other one.
    let source = |place: &Place| format!("dns: \"localhost:{}\"", place.address.port());
    let first = peer(&upstream, &places[0], &source(&places[1])).await;
    let second = peer(&upstream, &places[1], &source(&places[0])).await;
    two_share(&upstream, size, [&first, &second]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_slices_make_a_cluster() {
    let (upstream, size) = upstream().await;
    let (api, places) = (FakeApi::start().await, places(2));
    let source = format!("service: hearth/peers, api: \"{}\"", api.url());
    // Ports differ on one loopback address, and a slice has one: a slice for each.
    api.put("peers-1", &[&places[0]]);
    api.put("peers-2", &[&places[1]]);
    let first = peer(&upstream, &places[0], &source).await;
    let second = peer(&upstream, &places[1], &source).await;
    two_share(&upstream, size, [&first, &second]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_slices_are_followed_through_changes_ends_of_watches_and_lost_history() {
    let (upstream, _) = upstream().await;
    let (api, places) = (FakeApi::start().await, places(4));
    let agent = peer(&upstream, &places[0], &format!("service: hearth/peers, api: \"{}\"", api.url())).await;
    knows(&agent, 1).await;
    api.put("peers-1", &[&places[0], &places[1]]);
    knows(&agent, 2).await;
    api.put("peers-2", &[&places[2]]);
    knows(&agent, 3).await;
    api.end_watches();
    api.delete("peers-2");
    knows(&agent, 2).await;
    let (lists, _) = api.asked();
    assert_eq!(lists, 1, "an ended watch goes on from where it was");
    api.put("peers-3", &[&places[2]]);
    api.compact();
    api.put("peers-4", &[&places[3]]);
    knows(&agent, 4).await;
    assert!(api.asked().0 >= 2, "what was missed needs a new list");
}
