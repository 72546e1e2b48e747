//! Agents among themselves: real agents in this process, on loopback, in front of one upstream.

mod budget;
mod burst;
mod corrupt;
pub(crate) mod issued;
mod membership;
mod misbehaviour;
mod outage;
mod slow;
mod tls;
mod trust;
mod vectors;
mod view;

use futures_util::future::join_all;
use kit::{
    agent::{Agent, AgentConfig, REGISTRY, assert_store_is_right},
    pull::Puller,
    registry::{FakeUpstream, Layer},
};

const REPOSITORY: &str = "team/app";

/// Bytes of the layer in most tests: a few stripes, the last piece not full.
const SIZE: u64 = 30_000_000;

/// An upstream with an image `v1` of one large and one small layer, and the bytes of its blobs.
async fn upstream() -> (FakeUpstream, u64) {
    let upstream = FakeUpstream::start().await;
    upstream.image(REPOSITORY, "v1", [Layer::random(1, SIZE), Layer::random(2, 3_000)]).await;
    let size = upstream.size_of(REPOSITORY, "v1");
    (upstream, size)
}

fn config(upstream: &FakeUpstream) -> AgentConfig {
    AgentConfig::for_upstream(upstream)
}

async fn try_pull(agent: &Agent) -> anyhow::Result<()> {
    Puller::new(&agent.url(), Some(REGISTRY)).pull(REPOSITORY, "v1", |_| ()).await?;
    assert_store_is_right(&agent.data());
    Ok(())
}

async fn pull(agent: &Agent) {
    try_pull(agent).await.expect("the pull succeeds with the right bytes");
}

async fn pull_all(agents: &[Agent]) {
    join_all(agents.iter().map(pull)).await;
}

/// Body bytes that upstream sent for blobs.
fn sent(upstream: &FakeUpstream) -> u64 {
    upstream.log().blob_gets().bytes()
}

/// Sums a counter over agents.
async fn sum(agents: &[Agent], name: &str, labels: &[(&str, &str)]) -> f64 {
    let mut sum = 0.0;
    for agent in agents {
        sum += agent.metrics().await.sum(name, labels);
    }
    sum
}
