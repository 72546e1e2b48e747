//! Everyone wants the same at once.

use futures_util::future::join_all;
use kit::{
    agent::{Agent, AgentConfig, REGISTRY, assert_store_is_right},
    cluster::Cluster,
    pull::Puller,
    registry::{FakeUpstream, Layer},
};

const REPOSITORY: &str = "team/app";

async fn pull(agent: &Agent) {
    let puller = Puller::new(&agent.url(), Some(REGISTRY));
    puller.pull(REPOSITORY, "v1", |_| ()).await.expect("the pull succeeds");
    assert_store_is_right(&agent.data());
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_that_pull_at_once_read_every_byte_upstream_once() {
    let upstream = FakeUpstream::start().await;
    upstream.image(REPOSITORY, "v1", [Layer::random(1, 50_000_000), Layer::random(2, 3_000)]).await;
    let size = upstream.size_of(REPOSITORY, "v1");
    let cluster = Cluster::start(&AgentConfig::for_upstream(&upstream), 3, "").await;
    join_all(cluster.agents.iter().map(pull)).await;
    let sent = upstream.log().blob_gets().bytes();
    assert_eq!(sent, size, "{}", upstream.log().blob_gets().describe());
}
