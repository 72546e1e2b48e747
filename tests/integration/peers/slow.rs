//! One node with a slow link: it gets its image over that link, from its peers, and other nodes do not wait for it.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use kit::{
    agent::{Agent, AgentConfig, REGISTRY, blob_path},
    cluster::{Place, places},
    link::Link,
    registry::{FakeUpstream, Layer},
};

use super::{REPOSITORY, pull, sent};

/// Each node has a link of its own; the first one's is ten times slower when there is a slow one.
const NODES: usize = 8;
const FAST: u32 = 6_000_000;
const SLOW: u32 = FAST / 10;
/// Two layers, as a client fetches several at once.
const LAYER: u64 = 9_000_000;

/// Longer than a client of a usual node waits while nothing arrives (`limits.firstHeader`: 5 s).
const PAUSE: Duration = Duration::from_secs(7);

/// Agents behind links.
struct Cluster {
    agents: Vec<Agent>,
    links: Vec<Link>,
}

impl Cluster {
    async fn start(upstream: &FakeUpstream, rate_of: impl Fn(usize) -> u32) -> Self {
        let places = places(NODES);
        let (mut agents, mut links) = (Vec::new(), Vec::new());
        for (at, place) in places.iter().enumerate() {
            let (mut link, behind) = (Link::new(rate_of(at)), Place::reserve(&place.name, ""));
            let registry = format!("http://{}", link.to(upstream.address()).await);
            let mut members = Vec::new();
            for (other, there) in places.iter().enumerate() {
                let address = if other == at { there.address } else { link.to(there.address).await };
                members.push(format!("{}={address}", there.name));
            }
            let (listen, name, members) = (behind.address, &place.name, members.join(","));
            let config = AgentConfig::default()
                .registry(REGISTRY, &[&registry], "")
                .with(&format!("peer: {{ listen: \"{listen}\", name: {name}, members: \"{members}\" }}"));
            agents.push(Agent::start(&config).await);
            link.serve(place, behind.address);
            links.push(link);
        }
        Self { agents, links }
    }

    /// All pull at once; how long each took.
    async fn pull(&self) -> Vec<Duration> {
        pull_timed(&self.agents).await
    }
}

async fn pull_timed(agents: &[Agent]) -> Vec<Duration> {
    let began = Instant::now();
    join_all(agents.iter().map(async |agent| {
        pull(agent).await;
        began.elapsed()
    }))
    .await
}

async fn image(seed: u64) -> (FakeUpstream, u64) {
    let upstream = FakeUpstream::start().await;
    let layers = [Layer::random(seed, LAYER), Layer::random(seed + 1, LAYER)];
    upstream.image(REPOSITORY, "v1", layers).await;
    let size = upstream.size_of(REPOSITORY, "v1");
    (upstream, size)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_slow_link_delays_no_other_node_and_reads_nothing_upstream_again() {
    let last = |pulls: &[Duration]| pulls.iter().max().copied().expect("several nodes");
    let (upstream, _) = image(1).await;
    let usual = last(&Cluster::start(&upstream, |_| FAST).await.pull().await);
    let (upstream, size) = image(3).await;
    let slow = Cluster::start(&upstream, |at| if at == 0 { SLOW } else { FAST }).await;
    let pulls = slow.pull().await;
    let others = last(&pulls[1..]);
    assert!(pulls[0] > 2 * others, "the slow link is much slower: {pulls:?}");
    assert!(others <= usual.mul_f64(1.5), "{others:?} beside a slow node, {usual:?} without: {pulls:?}");
    let read = sent(&upstream);
    assert!(read <= size + size / 20, "{read} of {size} bytes: {}", upstream.log().describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_a_node_with_a_slow_link_waits_while_the_link_catches_up() {
    let (upstream, _) = image(5).await;
    let other = upstream.image(REPOSITORY, "v2", [Layer::random(9, LAYER)]).await;
    let cluster = Cluster::start(&upstream, |at| if at == 0 { SLOW } else { FAST }).await;
    let (slow, others) = (&cluster.agents[..1], &cluster.agents[1..]);
    let while_it_pulls = async {
        pull_timed(others).await;
        cluster.links[0].pause(PAUSE).await;
        slow[0].get(&blob_path(REPOSITORY, &other.layers[0].0)).await.status()
    };
    let (_, status) = tokio::join!(pull_timed(slow), while_it_pulls);
    assert_eq!(status, 200, "the registry is behind the same link");
}
