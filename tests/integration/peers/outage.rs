//! Upstream is gone, for some or for all.

use std::time::Duration;

use futures_util::future::join_all;
use kit::{
    agent::{Agent, AgentConfig, REGISTRY, manifest_path},
    cluster::{Cluster, peer_config, places},
};

use super::{REPOSITORY, config, pull, pull_all, sent, try_pull, upstream};

#[tokio::test(flavor = "multi_thread")]
async fn members_that_cannot_reach_upstream_get_everything_from_those_that_can() {
    let (upstream, size) = upstream().await;
    let places = places(6);
    let cut_off = AgentConfig::default().registry(REGISTRY, &["http://127.0.0.1:9"], "");
    let mut agents = Vec::new();
    for (at, place) in places.iter().enumerate() {
        let base = if at < 2 { config(&upstream) } else { cut_off.clone() };
        // Two that can reach it are enough to say what a tag resolves to.
        agents.push(Agent::start(&peer_config(&base, place, &places, "tagQuorum: 2")).await);
    }
    pull_all(&agents).await;
    assert!(sent(&upstream) <= 2 * size, "{}", upstream.log().blob_gets().describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_enough_peers_know_of_a_tag_is_served_to_all_while_upstream_is_down() {
    let (upstream, _) = upstream().await;
    let cluster = Cluster::start(&config(&upstream), 5, "").await;
    pull_all(&cluster.agents[..3]).await;
    upstream.stop().await;
    for agent in &cluster.agents[3..] {
        let answer = agent.head(&manifest_path(REPOSITORY, "v1")).await;
        assert_eq!(answer.status(), 200, "the digest that three peers last knew");
    }
    pull_all(&cluster.agents[3..]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_any_peer_has_by_digest_is_served_to_all_while_upstream_is_down() {
    let (upstream, _) = upstream().await;
    let cluster = Cluster::start(&config(&upstream), 5, "").await;
    pull(&cluster.agents[0]).await;
    let digest = upstream.resolve(REPOSITORY, "v1").expect("it is there");
    upstream.stop().await;
    for agent in &cluster.agents[1..] {
        let answer = agent.head(&manifest_path(REPOSITORY, &digest)).await;
        assert_eq!(answer.status(), 200, "the digest protects the manifest");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_that_dies_in_the_middle_is_told_and_what_was_read_is_kept() {
    let (upstream, size) = upstream().await;
    upstream.rate_per_connection(3_000_000);
    let cluster = Cluster::start(&config(&upstream), 5, "").await;
    let dying = async {
        while sent(&upstream) < size * 3 / 10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        upstream.stop().await;
    };
    let (pulled, ()) = tokio::join!(join_all(cluster.agents.iter().map(try_pull)), dying);
    assert!(pulled.iter().all(Result::is_err), "nobody can have everything, and nobody hangs");
    upstream.restart().await;
    upstream.rate_per_connection(0);
    let again = async {
        for agent in &cluster.agents {
            while try_pull(agent).await.is_err() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    };
    tokio::time::timeout(Duration::from_mins(1), again).await.expect("it heals");
    // Transfers that had given up on peers by then go on alone.
    assert!(
        sent(&upstream) <= 5 * size,
        "never more than without members: {}",
        upstream.log().blob_gets().describe()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_gave_up_on_its_peers_returns_to_them_when_they_answer_again() {
    let (upstream, size) = upstream().await;
    let cluster = Cluster::start(&config(&upstream), 4, "").await;
    let Cluster { places, mut agents } = cluster;
    let late = agents.pop().expect("there are four");
    pull_all(&agents).await;
    let mut homes = Vec::new();
    for agent in agents {
        homes.push(agent.stop().await);
    }
    let before = sent(&upstream);
    upstream.rate_per_connection(1_000_000);
    let back = async {
        // It reads from the registry by now: nobody else is there.
        while sent(&upstream) - before < size / 20 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut agents = Vec::new();
        for (place, home) in places.iter().zip(homes) {
            agents.push(Agent::start_in(&peer_config(&config(&upstream), place, &places, ""), home).await);
        }
        agents
    };
    let (_agents, ()) = tokio::join!(back, pull(&late));
    let read = sent(&upstream) - before;
    assert!(
        read < size * 8 / 10,
        "{read} of {size} bytes were read from the registry although peers had them"
    );
}
