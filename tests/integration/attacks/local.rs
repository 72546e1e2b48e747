//! Processes of the node's network, against what its tags resolve to and against names that may be secrets.

use std::{os::unix::fs::PermissionsExt as _, time::Duration};

use kit::{
    agent::{Agent, AgentConfig, REGISTRY, manifest_path},
    pull::Puller,
    registry::{FakeUpstream, Image, Layer},
    wire,
};

use crate::cli::{command, stdout};

const REPOSITORY: &str = "team/app";

fn name() -> String {
    format!("{REGISTRY}/{REPOSITORY}:v1")
}

async fn image(upstream: &FakeUpstream, seed: u64) -> Image {
    upstream.image(REPOSITORY, "v1", [Layer::random(seed, 50_000)]).await
}

/// An archive with another image under the same name.
async fn archive(home: &std::path::Path) -> (String, Image) {
    let other = FakeUpstream::start().await;
    let wrong = image(&other, 2).await;
    let agent = Agent::start(&AgentConfig::for_upstream(&other)).await;
    Puller::new(&agent.url(), Some(REGISTRY))
        .pull(REPOSITORY, "v1", |_| ())
        .await
        .expect("the pull succeeds");
    let path = home.join("wrong.tar").display().to_string();
    let exported = async {
        while !command(&agent, &["export", &name(), "--to", &path]).status.success() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), exported).await.expect("the image is exported");
    (path, wrong)
}

async fn digest(agent: &Agent) -> Option<String> {
    let answer = agent.head(&manifest_path(REPOSITORY, "v1")).await;
    answer.headers().get("docker-content-digest")?.to_str().ok().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_changed_over_tcp_not_even_from_the_node_itself() {
    let upstream = FakeUpstream::start().await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    for (method, path) in [
        ("POST", "images".to_owned()),
        ("DELETE", format!("images?name={}", name())),
        ("PUT", format!("pins?name={}", name())),
        ("DELETE", format!("pins?name={}", name())),
        ("GET", "images".to_owned()),
        ("GET", format!("archive?name={}", name())),
    ] {
        let request = format!(
            "{method} /api/v1/{path} HTTP/1.1\r\nhost: localhost\r\nx-hearth-command: 1\r\ncontent-length: 0\r\n\r\n"
        );
        for address in [agent.addresses.admin, agent.addresses.mirror] {
            let answer = wire::exchange(address, &request, Duration::from_secs(10)).await.expect("an answer");
            assert!(matches!(answer.status(), 403..=405), "{method} {path}: {}", answer.head);
        }
    }
    let socket = agent.data().join("agent.sock");
    let mode = std::fs::metadata(&socket).expect("the socket is in the data directory").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mode = std::fs::metadata(agent.data()).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert!(stdout(&command(&agent, &["ls"])).starts_with("IMAGE"));
    agent.stop().await;
    assert!(!socket.exists(), "a stopped agent leaves no socket behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_does_not_replace_what_the_registry_says() {
    let home = tempfile::tempdir().expect("temporary folders are available");
    let (path, wrong) = archive(home.path()).await;
    let upstream = FakeUpstream::start().await;
    let right = image(&upstream, 1).await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    assert_eq!(digest(&agent).await.as_ref(), Some(&right.digest));
    stdout(&command(&agent, &["import", &path]));
    // Within the time for which a confirmed tag is used without asking.
    assert_eq!(digest(&agent).await.as_ref(), Some(&right.digest));
    upstream.stop().await;
    assert_eq!(digest(&agent).await.as_ref(), Some(&right.digest), "the registry's last word stays");
    // Imported where the registry cannot be asked, it is what there is.
    let closed = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    stdout(&command(&closed, &["import", &path]));
    assert_eq!(digest(&closed).await.as_ref(), Some(&wrong.digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_on_the_network_names_no_image() {
    let upstream = FakeUpstream::start().await;
    image(&upstream, 1).await;
    let set = format!("prepull: {{ sets: [{{ name: s, images: [\"{}\"] }}] }}", name());
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream).with(&set)).await;
    let ready = async {
        while !stdout(&command(&agent, &["status"])).contains("Ready") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ready).await.expect("the set is pulled");
    assert!(stdout(&command(&agent, &["status"])).contains(REPOSITORY));
    let get = wire::get("/api/v1/status", "");
    let answer =
        wire::exchange(agent.addresses.admin, &get, Duration::from_secs(10)).await.expect("an answer");
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status(), 200);
    assert!(!body.contains(REPOSITORY) && !body.contains("sha256"), "{body}");
    let document: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert!(document["store"]["blobs"].is_u64(), "{document}");
    assert_eq!(document["prepull"]["ready"], 1, "{document}");
}
