//! The real binary: starting, draining, dying, and coming back on the same data.

use std::{path::Path, time::Duration};

use kit::{
    agent::{AgentConfig, REGISTRY, assert_store_is_right, blob_path, stored_blobs},
    process::AgentProcess,
    pull::{Progress, Puller},
    registry::{FakeUpstream, Fault, Layer, On, random_bytes, sha256},
    wire::{Ending, Exchange, get},
};
use tempfile::TempDir;

use super::REPOSITORY;

const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn home() -> TempDir {
    tempfile::Builder::new().prefix("kit-agent-").tempdir().expect("temporary folders are available")
}

fn puller(agent: &AgentProcess) -> Puller {
    Puller::new(&format!("http://{}", agent.addresses.mirror), Some(REGISTRY))
}

/// A client is done a moment before the last blob has been synced to disk under its name.
async fn stored(home: &TempDir, count: usize) -> Vec<String> {
    let data = home.path().join("data");
    let all = async {
        while stored_blobs(&data).len() < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, all).await.unwrap_or_else(|_| panic!("stored: {:?}", stored_blobs(&data)));
    stored_blobs(&data)
}

async fn admin(agent: &AgentProcess, path: &str) -> (u16, String) {
    let response = reqwest::get(format!("http://{}{path}", agent.addresses.admin))
        .await
        .expect("the admin listener answers");
    (response.status().as_u16(), response.text().await.expect("a body"))
}

#[tokio::test]
async fn probes_and_metrics_answer_and_sigterm_ends_with_zero() {
    let upstream = FakeUpstream::start().await;
    upstream.image(REPOSITORY, "v1", [Layer::random(1, 100_000)]).await;
    let home = home();
    let mut agent = AgentConfig::for_upstream(&upstream).start_process(home.path()).await.expect("it starts");
    puller(&agent).pull(REPOSITORY, "v1", |_| ()).await.expect("the pull succeeds");
    stored(&home, 3).await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(admin(&agent, path).await.0, 200, "{path}");
    }
    let (_, metrics) = admin(&agent, "/metrics").await;
    for series in [
        "hearth_http_requests_total{route=\"blob\",status=\"200\"} 2",
        "hearth_content_total{kind=\"tag\",result=\"miss\"} 1",
        "hearth_upstream_bytes_total{registry=\"registry.test\"} ",
        "hearth_served_bytes_total ",
        "hearth_store_blobs 3",
        "hearth_store_bytes ",
    ] {
        assert!(metrics.lines().any(|line| line.starts_with(series)), "{series}\n{metrics}");
    }
    agent.terminate().expect("it runs");
    let status = agent.wait().await.expect("it ends");
    assert_eq!(status.code(), Some(0), "{}", agent.log());
}

#[tokio::test]
async fn sigterm_lets_a_body_that_is_under_way_finish_and_takes_no_new_connection() {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.random_blob(REPOSITORY, 1, 2_000_000).await;
    upstream.fault(On::blob().get(), Fault::Rate(1_000_000));
    let home = home();
    let mut agent = AgentConfig::for_upstream(&upstream).start_process(home.path()).await.expect("it starts");
    let request = get(&blob_path(REPOSITORY, &digest), "");
    let mut reader =
        Exchange::open(agent.addresses.mirror, request.as_bytes(), LIMIT).await.expect("connected");
    reader.head().await.expect("a head");
    agent.terminate().expect("it runs");
    tokio::time::sleep(Duration::from_millis(300)).await;
    // The admin port too: a probe then reaches the new process of an update, or nothing.
    for address in [agent.addresses.mirror, agent.addresses.admin] {
        let refused = tokio::net::TcpStream::connect(address).await;
        assert_eq!(refused.expect_err("no new connections").kind(), std::io::ErrorKind::ConnectionRefused);
    }
    let body = reader.read(2_000_000).await.expect("the body is finished");
    assert_eq!(sha256(&body), digest);
    assert_eq!(reader.ending().await, Ending::Fin);
    assert_eq!(agent.wait().await.expect("it ends").code(), Some(0), "{}", agent.log());
}

#[tokio::test]
async fn sigterm_ends_a_body_that_does_not_finish_with_fin_and_the_part_is_resumed() {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.random_blob(REPOSITORY, 2, 3_000_000).await;
    upstream.fault(On::blob().get().whole(), Fault::Stall(1_000_000, Duration::from_mins(1)));
    let home = home();
    let config = AgentConfig::for_upstream(&upstream).with("limits: { shutdownGrace: 1s }");
    let mut agent = config.start_process(home.path()).await.expect("it starts");
    let request = get(&blob_path(REPOSITORY, &digest), "");
    let mut reader =
        Exchange::open(agent.addresses.mirror, request.as_bytes(), LIMIT).await.expect("connected");
    reader.head().await.expect("a head");
    let first = reader.read(900_000).await.expect("what is there");
    assert!(first == random_bytes(2, 3_000_000)[..900_000]);
    agent.terminate().expect("it runs");
    assert_eq!(reader.ending().await, Ending::Fin);
    assert_eq!(agent.wait().await.expect("it ends").code(), Some(0), "{}", agent.log());
    let agent = config.start_process(home.path()).await.expect("it starts again");
    let url = format!("http://{}{}", agent.addresses.mirror, blob_path(REPOSITORY, &digest));
    let body = reqwest::get(url).await.expect("an answer").bytes().await.expect("a whole body");
    assert_eq!(sha256(&body), digest);
    let sent = upstream.log().blob_gets().bytes();
    assert!(sent <= 3_000_000, "what was on disk is fetched again: {sent}\n{}", upstream.log().describe());
}

#[tokio::test]
async fn after_kill_9_at_any_moment_only_right_bytes_are_served() {
    let upstream = FakeUpstream::start().await;
    let image =
        upstream.image(REPOSITORY, "v1", [Layer::random(1, 6_000_000), Layer::random(2, 2_000_000)]).await;
    upstream.rate_per_connection(20_000_000);
    let home = home();
    let config = AgentConfig::for_upstream(&upstream);
    // One kill for each step of the pull, by the bytes that the client has seen.
    for seen in [0, 1, 500_000, 1_500_000, 3_000_000, 5_000_000, 7_000_000, 7_990_000] {
        let agent = config.start_process(home.path()).await.expect("it starts");
        let (reached, mut reaching) = tokio::sync::mpsc::channel(1);
        let received = std::sync::atomic::AtomicU64::new(0);
        let progress = move |news| {
            let count = if let Progress::Received(count) = news { count } else { 0 };
            if received.fetch_add(count, std::sync::atomic::Ordering::Relaxed) + count >= seen {
                let _ = reached.try_send(());
            }
        };
        let puller = puller(&agent);
        let pull = tokio::spawn(async move { puller.pull(REPOSITORY, "v1", progress).await });
        reaching.recv().await;
        agent.kill().await.expect("it dies");
        pull.abort();
        assert_store_is_right(&home.path().join("data"));
    }
    let agent = config.start_process(home.path()).await.expect("it starts");
    puller(&agent).pull(REPOSITORY, "v1", |_| ()).await.expect("the pull succeeds");
    assert_store_is_right(&home.path().join("data"));
    let stored = stored(&home, 4).await;
    assert!(image.blobs().all(|digest| stored.iter().any(|one| one == digest)), "{stored:?}");
}

fn break_index(data: &Path, how: &str) {
    let index = data.join("index-v1");
    match how {
        "lost" => std::fs::remove_dir_all(&index).expect("there is an index"),
        "a file" => {
            std::fs::remove_dir_all(&index).expect("there is an index");
            std::fs::write(&index, b"not an index").expect("writable");
        }
        "overwritten" | "cut" => {
            for entry in std::fs::read_dir(&index)
                .expect("there is an index")
                .flatten()
                .filter(|entry| entry.path().is_file())
            {
                let length = entry.metadata().expect("a file").len();
                let file = std::fs::OpenOptions::new().write(true).open(entry.path()).expect("writable");
                if how == "cut" {
                    file.set_len(length / 2).expect("writable");
                } else {
                    let rubbish = random_bytes(9, usize::try_from(length).expect("small"));
                    std::io::Write::write_all(&mut &file, &rubbish).expect("writable");
                }
            }
        }
        other => unreachable!("{other}"),
    }
}

#[tokio::test]
async fn a_lost_or_damaged_index_is_rebuilt_and_nothing_is_fetched_again() {
    let upstream = FakeUpstream::start().await;
    upstream.image(REPOSITORY, "v1", [Layer::random(1, 300_000)]).await;
    let home = home();
    let config = AgentConfig::for_upstream(&upstream).with("tags: { freshness: 1h }");
    let pull = async |agent: &AgentProcess| {
        puller(agent).pull(REPOSITORY, "v1", |_| ()).await.expect("the pull succeeds")
    };
    let agent = config.start_process(home.path()).await.expect("it starts");
    pull(&agent).await;
    stored(&home, 3).await;
    agent.kill().await.expect("it dies");
    let asked = upstream.log().len();
    for how in ["lost", "a file", "overwritten", "cut"] {
        break_index(&home.path().join("data"), how);
        let mut agent =
            config.start_process(home.path()).await.unwrap_or_else(|error| panic!("{how}: {error:#}"));
        pull(&agent).await;
        let log = upstream.log().since(asked);
        assert!(log.is_empty(), "{how}: {}", log.describe());
        // Hits are served while the files are counted.
        let counted = async {
            while !admin(&agent, "/metrics").await.1.contains("hearth_store_blobs 3") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let counted = tokio::time::timeout(Duration::from_secs(30), counted).await;
        assert!(counted.is_ok(), "{how}:\n{}", admin(&agent, "/metrics").await.1);
        agent.terminate().expect("it runs");
        assert!(agent.wait().await.expect("it ends").success(), "{how}: {}", agent.log());
    }
}

/// Bit rot: what lies on disk is no longer what its name says.
#[tokio::test]
async fn a_damaged_manifest_on_disk_is_fetched_again_and_repaired() {
    let upstream = FakeUpstream::start().await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 1000)]).await;
    let home = home();
    let agent = AgentConfig::for_upstream(&upstream).start_process(home.path()).await.expect("it starts");
    puller(&agent).pull(REPOSITORY, "v1", |_| ()).await.expect("the pull succeeds");
    let hex = image.digest.trim_start_matches("sha256:");
    let path = home.path().join("data/blobs-v1/sha256").join(&hex[..2]).join(hex);
    let mut bytes = std::fs::read(&path).expect("stored");
    bytes[5] ^= 1;
    // Stored blobs are read-only; rot does not ask.
    std::fs::remove_file(&path).expect("removable");
    std::fs::write(&path, bytes).expect("writable");
    for _ in 0..3 {
        puller(&agent).pull(REPOSITORY, "v1", |_| ()).await.expect("the pull succeeds");
        assert_eq!(upstream.log().manifest_gets().len(), 2, "{}", upstream.log().describe());
    }
    upstream.stop().await;
    puller(&agent).pull(REPOSITORY, "v1", |_| ()).await.expect("it is on disk");
}
