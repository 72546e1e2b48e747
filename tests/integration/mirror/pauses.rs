//! What must not make the agent read a byte twice: a registry that pauses, a queue, clients that request a blob in chunks.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use kit::{
    agent::{Agent, AgentConfig, REGISTRY, blob_path},
    registry::{FakeUpstream, Fault, On, random_bytes},
};
use reqwest::Method;

use super::REPOSITORY;

const MIB: u64 = 1 << 20;

/// As an index.
fn at(position: u64) -> usize {
    usize::try_from(position).expect("a few MiB")
}

/// The most that may be sent of a blob beyond its size: what lies in buffers of a connection that is aborted.
fn assert_read_once(upstream: &FakeUpstream, size: u64) {
    let log = upstream.log().blob_gets();
    assert!(log.bytes() * 100 <= size * 102, "{} of {size} bytes\n{}", log.bytes(), log.describe());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_is_read_once_when_the_registry_pauses() {
    for (pauses, what) in [(1, "one connection"), (usize::MAX, "every connection")] {
        let upstream = FakeUpstream::start().await;
        let digest = upstream.random_blob(REPOSITORY, 1, 24 * MIB).await;
        upstream.rate_per_connection(8 * MIB);
        upstream
            .fault(On::blob().get().whole(), Fault::Stall(MIB, Duration::from_millis(2_600)))
            .times(pauses);
        let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
        let response = agent.get(&blob_path(REPOSITORY, &digest)).await;
        assert_eq!(response.bytes().await.expect("the blob").len() as u64, 24 * MIB, "{what} pauses");
        assert_read_once(&upstream, 24 * MIB);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_waits_for_a_connection_is_read_once() {
    let upstream = FakeUpstream::start().await;
    let config = AgentConfig::default().registry(REGISTRY, &[&upstream.url()], "connections: 2");
    let agent = Agent::start(&config).await;
    let mut digests = Vec::new();
    for seed in 0..3 {
        digests.push(upstream.random_blob(REPOSITORY, seed, 9 * MIB).await);
    }
    upstream.rate_per_connection(3 * MIB);
    let read = |digest: String| {
        let request = agent.request(Method::GET, &blob_path(REPOSITORY, &digest));
        async move { request.send().await.expect("an answer").bytes().await.expect("the blob").len() as u64 }
    };
    let lengths: Vec<_> = stream::iter(digests).map(read).buffered(3).collect().await;
    assert_eq!(lengths, [9 * MIB; 3]);
    assert_read_once(&upstream, 27 * MIB);
}

/// containerd 2.x and SOCI request a layer by several connections: `bytes=N-` or `bytes=N-M`, dropped after one chunk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_is_requested_in_chunks_by_many_connections_is_read_once() {
    const CHUNK: u64 = 4 * MIB;
    const CHUNKS: u64 = 24;
    for bounded in [false, true] {
        let upstream = FakeUpstream::start().await;
        let content = Arc::new(random_bytes(1, at(CHUNKS * CHUNK)));
        let digest = upstream.blob(REPOSITORY, &content).await;
        upstream.rate_per_connection(24 * MIB);
        let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
        let chunk = |number: u64| {
            let (first, last) = (number * CHUNK, (number + 1) * CHUNK - 1);
            let range = if bounded { format!("bytes={first}-{last}") } else { format!("bytes={first}-") };
            let request = agent.request(Method::GET, &blob_path(REPOSITORY, &digest)).header("range", range);
            let content = content.clone();
            async move {
                let mut response = request.send().await.expect("an answer");
                assert_eq!(response.status(), 206);
                let mut have = Vec::new();
                while (have.len() as u64) < CHUNK {
                    have.extend_from_slice(&response.chunk().await.expect("it goes on").expect("bytes"));
                }
                have.truncate(at(CHUNK));
                let wanted = at(first)..=at(last);
                assert!(have[..] == content[wanted], "chunk {number}");
            }
        };
        stream::iter(0..CHUNKS).map(chunk).buffer_unordered(20).collect::<Vec<()>>().await;
        assert_read_once(&upstream, CHUNKS * CHUNK);
    }
}

/// podman requests the chunks of a zstd:chunked layer so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_ranges_are_answered_in_parts_and_read_once() {
    let upstream = FakeUpstream::start().await;
    let content = random_bytes(1, at(12 * MIB));
    let digest = upstream.blob(REPOSITORY, &content).await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    let ranges = [(0, 99), (5_000_000, 5_000_009), (3_000_000, 3_999_999), (12 * MIB - 5, 12 * MIB - 1)];
    let header = ranges.map(|(first, last)| format!("{first}-{last}")).join(",");
    for state in ["cold", "warm"] {
        let request = agent.request(Method::GET, &blob_path(REPOSITORY, &digest));
        let response = request.header("range", format!("bytes={header}")).send().await.expect("an answer");
        assert_eq!(response.status(), 206, "{state}");
        let media_type = response.headers()["content-type"].to_str().expect("text").to_owned();
        let boundary = media_type.strip_prefix("multipart/byteranges; boundary=").expect("parts").to_owned();
        let length = response.content_length();
        let body = response.bytes().await.expect("the parts");
        assert_eq!(length, Some(body.len() as u64), "{state}");
        let mut expected = Vec::new();
        for (first, last) in ranges {
            let head = format!(
                "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {first}-{last}/{}\r\n\r\n",
                12 * MIB
            );
            expected.extend_from_slice(head.as_bytes());
            expected.extend_from_slice(&content[at(first)..=at(last)]);
        }
        expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        assert!(body[..] == expected[..], "{state}");
        assert_read_once(&upstream, 12 * MIB);
    }
}
