//! Connections that do nothing, against the listeners that a network reaches. What they cost is theirs alone: the mirror
//! goes on, and so do probes from the node itself.

use std::{net::SocketAddr, process::Command, sync::Arc, time::Duration};

use kit::{
    agent::REGISTRY,
    cluster::{Place, peer_config},
    process::{AgentProcess, binary},
    pull::Puller,
    registry::{FakeUpstream, Layer},
    wire,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::Barrier,
    task::JoinSet,
};

const REPOSITORY: &str = "team/app";

/// Most descriptors of the agent: a quarter of the connections below would use all of them.
const DESCRIPTORS: usize = 512;

/// Connections of each kind to each listener.
const CONNECTIONS: usize = 500;

/// Addresses that the attackers come from, beside the node's own.
const ADDRESSES: u8 = 40;

/// Longest wait for anything that a client of the node wants. Reached only if it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent of this hard limit that finds peers, so that it listens for them; its soft limit is lower still.
async fn limited(upstream: &FakeUpstream, home: &std::path::Path) -> (AgentProcess, SocketAddr) {
    let places = [Place::reserve("node-0", ""), Place::reserve("node-1", "")];
    let config = kit::agent::AgentConfig::for_upstream(upstream);
    let config = peer_config(&config, &places[0], &places, "").with_log("warn,hearth_agent=info");
    let file = config.write(home).expect("the folder is writable");
    let script = format!("ulimit -Sn 128 && ulimit -Hn {DESCRIPTORS} && exec \"$0\" run --config \"$1\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(binary("hearth-agent").expect("it is built")).arg(file);
    (AgentProcess::start_by(command).await.expect("the agent starts"), places[0].address)
}

/// A connection from one of the attackers' addresses.
async fn connect(to: SocketAddr, at: usize) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let last = u8::try_from(at % usize::from(ADDRESSES)).unwrap_or_default() + 2;
    socket.bind(([127, 0, 0, last], 0).into())?;
    tokio::time::timeout(PATIENCE, socket.connect(to)).await?
}

/// Opens it again as soon as it ends.
async fn hold(to: SocketAddr, at: usize, begun: Arc<Barrier>) {
    let mut first = true;
    loop {
        let stream = connect(to, at).await;
        if std::mem::take(&mut first) {
            begun.wait().await;
        }
        if let Ok(mut stream) = stream {
            let mut rest = Vec::new();
            if at.is_multiple_of(2) {
                // Idle.
                let _ = stream.read_to_end(&mut rest).await;
            } else {
                // A header that never ends.
                let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n").await;
                while stream.write_all(b"x-slow: 1\r\n").await.is_ok() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_slow_and_reconnecting_connections_delay_no_pull_and_no_probe_of_the_node() {
    let upstream = FakeUpstream::start().await;
    let layers = |seed| [Layer::random(seed, 2 << 20), Layer::random(seed + 1, 1 << 20)];
    for at in 0..4 {
        upstream.image(REPOSITORY, &format!("v{at}"), layers(at * 2)).await;
    }
    let home = tempfile::tempdir().expect("temporary folders are available");
    let (agent, peers) = limited(&upstream, home.path()).await;
    let (mirror, admin) = (agent.addresses.mirror, agent.addresses.admin);
    let begun = Arc::new(Barrier::new(2 * CONNECTIONS + 1));
    let mut attack = JoinSet::new();
    for at in 0..CONNECTIONS {
        attack.spawn(hold(peers, at, begun.clone()));
        attack.spawn(hold(admin, at, begun.clone()));
    }
    tokio::time::timeout(PATIENCE * 2, begun.wait()).await.expect("every attacker has tried to connect");
    for at in 0..4 {
        let puller = Puller::new(&format!("http://{mirror}"), Some(REGISTRY));
        let tag = format!("v{at}");
        let pull = tokio::time::timeout(PATIENCE, puller.pull(REPOSITORY, &tag, |_| ())).await;
        pull.expect("the pull does not hang").unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
        for path in ["/livez", "/readyz"] {
            let answer = wire::exchange(admin, &wire::get(path, ""), PATIENCE).await.expect("it connects");
            assert_eq!(answer.status(), 200, "{path}\n{}", agent.log());
        }
    }
    attack.shutdown().await;
    assert!(!agent.log().contains("cannot accept a connection"), "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_does_not_end_is_cut_on_every_listener() {
    let upstream = FakeUpstream::start().await;
    let home = tempfile::tempdir().expect("temporary folders are available");
    let (agent, peers) = limited(&upstream, home.path()).await;
    let begun = std::time::Instant::now();
    let mut waits = JoinSet::new();
    for address in [agent.addresses.mirror, agent.addresses.admin, peers] {
        waits.spawn(async move {
            let begin = b"GET /v2/ HTTP/1.1\r\nhost: a\r\n";
            let mut exchange = wire::Exchange::open(address, begin, 2 * PATIENCE).await.expect("it listens");
            (address, exchange.ending().await)
        });
    }
    while let Some(ended) = waits.join_next().await {
        let (address, ending) = ended.expect("no attacker panics");
        assert_ne!(ending, wire::Ending::Silent, "{address}");
    }
    // Far below the minute that it was; the limit is 5 s.
    assert!(begun.elapsed() < PATIENCE * 2);
}
