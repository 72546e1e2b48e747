//! Slow clients, and more clients than there may be: what they cost, and what they are told.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use kit::{
    agent::{Agent, AgentConfig, blob_path},
    process::AgentProcess,
    registry::FakeUpstream,
    wire::{self, Ending, Exchange},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use super::REPOSITORY;

const MIB: u64 = 1 << 20;

/// Every wait of a client here.
const LIMIT: Duration = Duration::from_secs(30);

/// A client that has sent a request for a blob. Its kernel takes little that it does not read.
async fn reader(mirror: SocketAddr, digest: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(64 * 1024).expect("a small receive buffer");
    let mut stream = socket.connect(mirror).await.expect("the agent listens");
    stream
        .write_all(wire::get(&blob_path(REPOSITORY, digest), "").as_bytes())
        .await
        .expect("it takes requests");
    stream
}

/// Memory that a process has for itself, in bytes.
fn own_memory(agent: &AgentProcess) -> u64 {
    let id = agent.id().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("its status is readable");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a process has memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// Reads little by little until told to stop.
async fn trickle(mut stream: TcpStream, until: Instant) {
    let mut buffer = vec![0; 8 * 1024];
    while Instant::now() < until {
        assert!(stream.read(&mut buffer).await.expect("it is not cut") > 0, "the body is longer");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_slow_readers_of_a_blob_cost_little_memory_and_give_it_back() {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.random_blob(REPOSITORY, 1, 64 * MIB).await;
    let home = tempfile::tempdir().expect("temporary folders are available");
    let config = AgentConfig::for_upstream(&upstream).with_log("info");
    let agent = config.start_process(home.path()).await.expect("it starts");
    let mirror = agent.addresses.mirror;
    let whole = wire::exchange(mirror, &wire::get(&blob_path(REPOSITORY, &digest), ""), LIMIT).await;
    assert_eq!(whole.expect("it answers").ending, Ending::Complete);
    let before = own_memory(&agent);
    let most = AtomicU64::new(0);
    let until = Instant::now() + Duration::from_secs(6);
    let readers = join_all((0..500).map(|_| async { trickle(reader(mirror, &digest).await, until).await }));
    let watched = async {
        while Instant::now() < until {
            most.fetch_max(own_memory(&agent), Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(readers, watched);
    let most = most.into_inner();
    assert!(most < 128 * MIB, "before {}, most {} MiB", before / MIB, most / MIB);
    let end = Instant::now() + LIMIT;
    let mut left = own_memory(&agent);
    // What is left are small parts that the allocator keeps.
    while left > before + 40 * MIB {
        assert!(
            Instant::now() < end,
            "before {}, most {}, left {} MiB",
            before / MIB,
            most / MIB,
            left / MIB
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
        left = own_memory(&agent);
    }
}

/// An agent that ends connections whose client takes nothing for two seconds, with a blob in its store.
async fn impatient() -> (FakeUpstream, Agent, String) {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.random_blob(REPOSITORY, 1, 32 * MIB).await;
    let config = AgentConfig::for_upstream(&upstream).with("limits: { clientWrite: 2s }");
    let agent = Agent::start(&config).await;
    assert_eq!(
        agent.get(&blob_path(REPOSITORY, &digest)).await.bytes().await.expect("whole").len() as u64,
        32 * MIB
    );
    (upstream, agent, digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_that_reads_is_not_cut_though_the_kernel_still_has_much_for_it() {
    let (_upstream, agent, digest) = impatient().await;
    let mut stream = reader(agent.mirror(), &digest).await;
    // 200 KB a second: the kernel holds up to 2.5 MB for it unless told otherwise, and wakes a writer when a third of
    // that is free, which takes twice the limit.
    let until = Instant::now() + Duration::from_secs(8);
    let (mut buffer, mut read) = (vec![0; 32 * 1024], 0_u64);
    while Instant::now() < until {
        read += stream.read(&mut buffer).await.expect("it is not cut") as u64;
        tokio::time::sleep(Duration::from_millis(160)).await;
    }
    // A connection that was cut still has what lay in the kernel, and then ends.
    let rest = async {
        while read < 32 * MIB {
            let more = stream.read(&mut buffer).await.expect("it is not cut");
            assert!(more > 0, "cut after {read} bytes");
            read += more as u64;
        }
    };
    tokio::time::timeout(LIMIT, rest).await.expect("the rest comes at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_reads_nothing_is_ended() {
    let (_upstream, agent, digest) = impatient().await;
    let stream = reader(agent.mirror(), &digest).await;
    let open = || async { agent.metrics().await.sum("hearth_mirror_connections", &[]) };
    // The kit's own client has one as well.
    let began = Instant::now();
    let with_it = open().await;
    while open().await >= with_it {
        assert!(began.elapsed() < LIMIT, "it is never ended");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() > Duration::from_secs(1), "it has the time that it may take");
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_above_the_connection_limit_are_refused_at_once() {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.random_blob(REPOSITORY, 1, 1_000).await;
    let config = AgentConfig::for_upstream(&upstream).with("limits: { connections: 2 }");
    let agent = Agent::start(&config).await;
    let (base, blob) = (wire::get("/v2/", ""), wire::get(&blob_path(REPOSITORY, &digest), ""));
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut kept = Exchange::open(agent.mirror(), base.as_bytes(), LIMIT).await.expect("it listens");
        assert_eq!(kept.answer(false).await.status(), 200);
        open.push(kept);
    }
    for _ in 0..3 {
        let mut above = Exchange::open(agent.mirror(), blob.as_bytes(), LIMIT).await.expect("it listens");
        let answer = above.answer(false).await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!((answer.status(), &answer.ending), (503, &Ending::Complete), "{text}");
        assert!(
            answer.header("retry-after").is_some() && text.contains("limits.connections"),
            "{answer:?} {text}"
        );
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(above.ending().await, Ending::Fin);
    }
    let path = blob_path(REPOSITORY, &digest);
    let docker = format!("GET {path} HTTP/1.1\r\nhost: test\r\nuser-agent: docker/28.5.2\r\n\r\n");
    let answer = wire::exchange(agent.mirror(), &docker, LIMIT).await.expect("it listens");
    assert_eq!(answer.status(), 404, "Docker moves on at once at a 404 for a blob");
    assert!(agent.metrics().await.sum("hearth_mirror_connections_refused_total", &[]) >= 4.0);
    drop(open);
    let served = async {
        while wire::exchange(agent.mirror(), &blob, LIMIT).await.expect("it listens").status() != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, served).await.expect("there is room again");
}
