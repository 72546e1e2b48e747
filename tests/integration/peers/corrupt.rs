//! Peers that send wrong bytes: every pull has the right ones, the registry is not read again for it, and nobody is
//! blamed but the peer that altered them.

use futures_util::future::join_all;
use kit::{
    agent::{Agent, AgentConfig},
    cluster::{Place, peer_config, places},
    peer::AlteringRelay,
    registry::{FakeUpstream, Fault, On, Where},
};

use super::{config, pull, pull_all, sent, sum, try_pull, upstream};

/// Agents at all places. The last `altering` send pieces through a relay that changes a byte of each.
struct Cluster {
    agents: Vec<Agent>,
    honest: usize,
    _relays: Vec<AlteringRelay>,
}

impl Cluster {
    async fn start(upstream: &FakeUpstream, count: usize, altering: usize) -> Self {
        let places = places(count);
        let (mut agents, mut relays) = (Vec::new(), Vec::new());
        for (at, place) in places.iter().enumerate() {
            if at < count - altering {
                agents.push(Agent::start(&peer_config(&config(upstream), place, &places, "")).await);
                continue;
            }
            let behind = Place::reserve(&place.name, "");
            agents.push(Agent::start(&peer_config(&config(upstream), &behind, &places, "")).await);
            relays.push(AlteringRelay::start(place, behind.address));
        }
        Self { agents, honest: count - altering, _relays: relays }
    }

    /// How often honest peers were blamed, and others.
    async fn blamed(&self) -> (f64, f64) {
        let honest = &self.agents[..self.honest];
        let all = sum(honest, "hearth_peer_wrong_pieces_total", &[]).await;
        let mut others = 0.0;
        for at in self.honest..self.agents.len() {
            let name = format!("node-{at:02}");
            others += sum(honest, "hearth_peer_wrong_pieces_total", &[("peer", &name)]).await;
        }
        (all - others, others)
    }
}

async fn altered(count: usize, altering: usize, most: f64) {
    let (upstream, size) = upstream().await;
    upstream.rate_per_connection(8_000_000);
    let cluster = Cluster::start(&upstream, count, altering).await;
    let pulls = join_all(cluster.agents.iter().map(try_pull)).await;
    let failed: Vec<_> = pulls.iter().filter_map(|pull| pull.as_ref().err()).collect();
    assert!(failed.is_empty(), "every first pull succeeds: {failed:?}");
    let (honest, others) = cluster.blamed().await;
    assert!(honest == 0.0 && others >= 1.0, "blamed: honest {honest}, others {others}");
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let ratio = sent(&upstream) as f64 / size as f64;
    assert!(ratio <= most, "{ratio}: {}", upstream.log().blob_gets().describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_alters_pieces_is_blamed_alone_and_every_first_pull_succeeds() {
    // What it was to read from the registry for others, another peer reads instead.
    altered(8, 1, 1.4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_peers_that_alter_pieces_are_blamed_alone_and_every_first_pull_succeeds() {
    altered(12, 3, 2.0).await;
}

/// Seven peers with the right registry, and one whose registry sends wrong bytes: it passes them on, with hashes to match.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_reads_wrong_bytes_from_the_registry_costs_a_second_read_at_most() {
    let (upstream, size) = upstream().await;
    let (wrong, _) = super::upstream().await;
    wrong.fault(On::blob().get(), Fault::Corrupt(Where::Middle));
    let places = places(8);
    let mut agents = Vec::new();
    for (at, place) in places.iter().enumerate() {
        let base: AgentConfig = config(if at < 7 { &upstream } else { &wrong });
        agents.push(Agent::start(&peer_config(&base, place, &places, "")).await);
    }
    let bad = agents.split_off(7);
    // Clients see wrong bytes themselves and pull again.
    let (first, _) = tokio::join!(join_all(agents.iter().map(try_pull)), try_pull(&bad[0]));
    pull_all(&agents).await;
    pull(&agents[0]).await;
    assert!(first.iter().any(Result::is_err), "the bad peer reads a segment");
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let ratio = sent(&upstream) as f64 / size as f64;
    assert!(ratio <= 2.1, "{ratio}: {}", upstream.log().blob_gets().describe());
    for at in 0..7 {
        let name = format!("node-{at:02}");
        let blamed = sum(&agents, "hearth_peer_wrong_pieces_total", &[("peer", &name)]).await;
        assert!(blamed == 0.0, "{name} is honest");
    }
}
