//! Everyone wants the same, at once or one after the other.

use std::time::Duration;

use futures_util::future::join_all;
use kit::{
    agent::Agent,
    cluster::{Cluster, Place, peer_config},
    registry::{FakeUpstream, Fault, Layer, On},
};

use super::{REPOSITORY, SIZE, config, pull, pull_all, sent, sum, upstream};

#[tokio::test(flavor = "multi_thread")]
async fn eight_nodes_that_pull_at_once_read_every_byte_and_the_manifest_upstream_once() {
    let (upstream, size) = upstream().await;
    let cluster = Cluster::start(&config(&upstream), 8, "").await;
    pull_all(&cluster.agents).await;
    assert_eq!(sent(&upstream), size, "{}", upstream.log().describe());
    assert_eq!(upstream.log().manifest_gets().len(), 1, "{}", upstream.log().describe());
    let received = sum(&cluster.agents, "hearth_peer_received_bytes_total", &[]).await;
    #[expect(clippy::cast_precision_loss, reason = "some hundred million")]
    let most = 8.0 * size as f64;
    assert!(received <= most, "{received} bytes between peers, no piece arrives twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_send_slowly_are_waited_for_as_long_as_bytes_come() {
    let upstream = FakeUpstream::start().await;
    upstream.image(REPOSITORY, "v1", [Layer::random(1, 4_000_000)]).await;
    // Two pieces at once, half of the rate each: what is gathered before a write takes longer than the wait.
    let cluster = Cluster::start(&config(&upstream), 2, "uploadRate: 300KiB, wait: 1500ms").await;
    pull_all(&cluster.agents).await;
    let size = upstream.size_of(REPOSITORY, "v1");
    assert_eq!(sent(&upstream), size, "{}", upstream.log().describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_that_begin_one_after_the_other_read_every_byte_once() {
    let (upstream, size) = upstream().await;
    upstream.rate_per_connection(8_000_000);
    let cluster = Cluster::start(&config(&upstream), 5, "").await;
    join_all(cluster.agents.iter().enumerate().map(async |(at, agent)| {
        tokio::time::sleep(Duration::from_millis(400) * u32::try_from(at).expect("a few")).await;
        pull(agent).await;
    }))
    .await;
    assert_eq!(sent(&upstream), size, "{}", upstream.log().describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_when_all_is_over_costs_upstream_nothing() {
    let (upstream, size) = upstream().await;
    let cluster = Cluster::start(&config(&upstream), 6, "").await;
    pull_all(&cluster.agents[..5]).await;
    pull(&cluster.agents[5]).await;
    assert_eq!(sent(&upstream), size, "{}", upstream.log().describe());
    assert_eq!(upstream.log().manifest_gets().len(), 1, "{}", upstream.log().describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_join_a_cluster_read_nothing_upstream() {
    let (upstream, size) = upstream().await;
    let places: Vec<_> = (0..6).map(|at| Place::reserve(&format!("node-{at}"), "")).collect();
    let start =
        async |place: &Place| Agent::start(&peer_config(&config(&upstream), place, &places, "")).await;
    let mut before = Vec::new();
    for place in &places[..4] {
        before.push(start(place).await);
    }
    pull_all(&before).await;
    let read = sent(&upstream);
    let late = [start(&places[4]).await, start(&places[5]).await];
    pull_all(&late).await;
    assert_eq!(sent(&upstream), read, "of {size} bytes: {}", upstream.log().describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_of_six_pulls_and_the_others_carry_only_what_passes_through_them() {
    let (upstream, size) = upstream().await;
    let cluster = Cluster::start(&config(&upstream), 6, "").await;
    pull(&cluster.agents[2]).await;
    assert_eq!(sent(&upstream), size, "{}", upstream.log().describe());
    for (at, agent) in cluster.agents.iter().enumerate().filter(|(at, _)| *at != 2) {
        assert!(agent.stored().len() <= 1, "a bystander keeps at most a manifest: {at} {:?}", agent.stored());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_have_carried_pieces_and_pull_much_later_read_nothing_upstream() {
    let (upstream, size) = upstream().await;
    let cluster = Cluster::start(&config(&upstream), 6, "wait: 500ms").await;
    pull(&cluster.agents[0]).await;
    // What they carried for it is still under way there, and silent for longer than `wait`.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    pull_all(&cluster.agents[1..]).await;
    assert_eq!(sent(&upstream), size, "{}", upstream.log().describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_relay_still_gets_and_gives_its_own() {
    let (upstream, size) = upstream().await;
    let cluster = Cluster::start(&config(&upstream), 4, "relay: false").await;
    pull(&cluster.agents[0]).await;
    assert_eq!(sent(&upstream), size, "nobody reads for it: {}", upstream.log().describe());
    assert!(sum(&cluster.agents[1..], "hearth_peer_sent_bytes_total", &[]).await < 1.0, "they gave nothing");
    pull_all(&cluster.agents[1..]).await;
    assert!(sent(&upstream) <= 4 * size, "{}", upstream.log().describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_ranges_upstream_one_member_reads_everything_for_all() {
    let (upstream, size) = upstream().await;
    upstream.fault(On::blob().get().ranged(), Fault::IgnoreRange);
    // Without a rate the loopback's buffers take megabytes of an answer that nobody reads.
    upstream.rate_per_connection(8_000_000);
    let cluster = Cluster::start(&config(&upstream), 6, "").await;
    pull_all(&cluster.agents).await;
    // Each of the eight stripes may have been tried with a range once; such an answer is given up after its header, with
    // what was on the wire by then.
    let whole = upstream.log().blob_gets().filter(|entry| entry.finished() && entry.sent() >= SIZE).len();
    assert!(whole == 1 && sent(&upstream) <= 2 * size, "{}", upstream.log().blob_gets().describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn members_in_zones_bring_a_piece_into_each_zone_once() {
    let (upstream, size) = upstream().await;
    let places: Vec<_> = (0..6).map(|at| Place::reserve(&format!("node-{at}"), ["a", "b"][at % 2])).collect();
    let cluster = Cluster::start_at(&config(&upstream), places, "").await;
    pull_all(&cluster.agents).await;
    assert_eq!(sent(&upstream), size, "{}", upstream.log().describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_alone_in_its_cluster_is_as_one_without() {
    let (upstream, size) = upstream().await;
    let place = Place::reserve("only", "");
    let agent = Agent::start(&peer_config(&config(&upstream), &place, [&place], "")).await;
    pull(&agent).await;
    assert_eq!(sent(&upstream), size);
    assert_eq!(
        upstream.log().blob_gets().filter(|entry| entry.range().is_some()).len(),
        0,
        "one plain request"
    );
}
