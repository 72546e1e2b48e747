//! Blobs that go bad on disk: found, taken out, fetched again.

use std::{
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use kit::{
    agent::{AgentConfig, REGISTRY, assert_store_is_right, stored_blobs},
    metrics::Metrics,
    process::{AgentProcess, binary},
    pull::Puller,
    registry::{FakeUpstream, Layer},
};
use serde_json::Value;

use super::{REPOSITORY, restart::home};

async fn pull(agent: &AgentProcess) {
    let puller = Puller::new(&format!("http://{}", agent.addresses.mirror), Some(REGISTRY));
    puller.pull(REPOSITORY, "v1", |_| ()).await.expect("the pull succeeds");
}

fn stored_path(data: &Path, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    data.join("blobs-v1/sha256").join(&hex[..2]).join(hex)
}

/// Turns a bit of a stored blob.
fn damage(data: &Path, digest: &str) {
    let path = stored_path(data, digest);
    let mut bytes = std::fs::read(&path).expect("stored");
    bytes[7] ^= 1;
    // Stored blobs are read-only; rot does not ask.
    std::fs::remove_file(&path).expect("removable");
    std::fs::write(&path, bytes).expect("writable");
}

fn verify(config: &Path) -> Output {
    let output = std::process::Command::new(binary("hearth-agent").expect("the binary is built"))
        .args(["verify", "--output", "json", "--config"])
        .arg(config)
        .output();
    output.expect("it runs")
}

#[tokio::test]
async fn verify_names_bad_blobs_and_takes_them_out_beside_a_running_agent_too() {
    let upstream = FakeUpstream::start().await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 300_000)]).await;
    let (home, config) = (home(), AgentConfig::for_upstream(&upstream).with("tags: { freshness: 1h }"));
    let (file, data) = (config.write(home.path()).expect("writable"), home.path().join("data"));
    let mut agent = Some(AgentProcess::start(&file).await.expect("it starts"));
    for running in [true, false] {
        let fresh = match agent.take() {
            Some(agent) => agent,
            None => AgentProcess::start(&file).await.expect("it starts"),
        };
        pull(&fresh).await;
        let all = async {
            while stored_blobs(&data).len() < 3 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all).await.expect("it is stored");
        if running {
            agent = Some(fresh);
        } else {
            fresh.kill().await.expect("it dies");
        }
        let (layer, _) = &image.layers[0];
        damage(&data, layer);
        let output = verify(&file);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        let verdict: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!((&verdict["blobs"], &verdict["bad"][0]["digest"]), (&3.into(), &layer.as_str().into()));
        assert_eq!(verdict["bad"].as_array().map(Vec::len), Some(1));
        assert_eq!(verify(&file).status.code(), Some(0), "nothing bad is left");
    }
    let asked = upstream.log().len();
    let agent = AgentProcess::start(&file).await.expect("it starts");
    pull(&agent).await;
    let log = upstream.log().since(asked);
    assert_eq!((log.len(), log.blob_gets().len()), (1, 1), "{}", log.describe());
}

#[tokio::test]
async fn the_slow_check_finds_a_bad_blob_by_itself() {
    let upstream = FakeUpstream::start().await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 300_000), Layer::random(2, 10)]).await;
    let home = home();
    let config = AgentConfig::for_upstream(&upstream)
        .with("store: { minFree: \"0\", scrubRate: 1GiB }\ntags: { freshness: 1h }");
    let mut agent = config.start_process(home.path()).await.expect("it starts");
    pull(&agent).await;
    agent.terminate().expect("it runs");
    agent.wait().await.expect("it ends");
    let (layer, _) = &image.layers[0];
    damage(&home.path().join("data"), layer);
    let agent = config.start_process(home.path()).await.expect("it starts");
    let found = async {
        loop {
            let metrics = Metrics::scrape(agent.addresses.admin).await.expect("the admin listener answers");
            if metrics.sum("hearth_store_bad_blobs_total", &[]) > 0.0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), found).await.expect("it is found");
    let taken_out = async {
        while stored_blobs(&home.path().join("data")).contains(layer) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), taken_out).await.expect("it is taken out");
    pull(&agent).await;
    assert_store_is_right(&home.path().join("data"));
}

/// Every read of one stored blob fails, for real calls of a real process.
#[tokio::test]
async fn a_blob_that_the_disk_cannot_read_any_more_is_served_all_the_same_and_fetched_again() {
    let upstream = FakeUpstream::start().await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 300_000), Layer::random(2, 10)]).await;
    let (home, config) = (home(), AgentConfig::for_upstream(&upstream).with("tags: { freshness: 1h }"));
    let (file, data) = (config.write(home.path()).expect("writable"), home.path().join("data"));
    let mut agent = AgentProcess::start(&file).await.expect("it starts");
    pull(&agent).await;
    agent.terminate().expect("it runs");
    agent.wait().await.expect("it ends");
    let (layer, _) = &image.layers[0];
    let mut command = std::process::Command::new("strace");
    // `-D`: the agent is the process that this test ends.
    command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=pread64,preadv2", "-P"]);
    command.arg(stored_path(&data, layer)).args(["-e", "inject=pread64,preadv2:error=EIO"]);
    command.arg(binary("hearth-agent").expect("the binary is built")).args(["run", "--config"]).arg(&file);
    let agent = AgentProcess::start_by(command).await.expect("it starts");
    let asked = upstream.log().len();
    pull(&agent).await;
    let log = upstream.log().since(asked);
    assert_eq!(log.blob_gets().len(), 1, "only this one comes from upstream: {}", log.describe());
    let taken_out = async {
        while stored_blobs(&data).contains(layer) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), taken_out).await.expect("it is taken out");
    let metrics = Metrics::scrape(agent.addresses.admin).await.expect("the admin listener answers");
    assert!(metrics.sum("hearth_store_bad_blobs_total", &[]) >= 1.0);
    agent.kill().await.expect("it dies");
    let agent = AgentProcess::start(&file).await.expect("it starts");
    pull(&agent).await;
    let stored = async {
        while !stored_blobs(&data).contains(layer) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), stored).await.expect("it is stored anew");
    assert_store_is_right(&data);
}
