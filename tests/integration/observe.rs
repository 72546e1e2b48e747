//! What an operator sees: a line and an id for every failed request, `explain`, `doctor`, the status page and its token.

use std::{fs, path::Path, time::Duration};

use kit::{
    agent::{Agent, AgentConfig, REGISTRY, blob_path, manifest_path},
    process::AgentProcess,
    pull::Puller,
    registry::{FakeUpstream, Fault, Image, Layer, On},
};
use reqwest::header::AUTHORIZATION;
use serde_json::Value;

use crate::cli::{agent as hearth_agent, command, complaint, stdout};

const REPOSITORY: &str = "team/app";
const TOKEN: &str = "0123456789abcdef";

async fn image(upstream: &FakeUpstream) -> Image {
    upstream.image(REPOSITORY, "v1", [Layer::random(1, 1 << 20), Layer::random(2, 1 << 20)]).await
}

async fn pull(agent: &Agent) {
    Puller::new(&agent.url(), Some(REGISTRY))
        .pull(REPOSITORY, "v1", |_| ())
        .await
        .expect("the pull succeeds");
}

fn name() -> String {
    format!("{REGISTRY}/{REPOSITORY}:v1")
}

fn explain(agent: &Agent) -> Value {
    serde_json::from_str(&stdout(&command(agent, &["explain", &name(), "--output", "json"]))).expect("JSON")
}

/// The log's entries with a message.
fn entries(log: &str, message: &str) -> Vec<Value> {
    let all = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    all.filter(|entry| entry["fields"]["message"] == message).collect()
}

/// The agent's log once it has the message, or after five seconds: a line may come a moment after the answer that it is about.
async fn log_with(agent: &AgentProcess, message: &str) -> String {
    for _ in 0..100 {
        if !entries(&agent.log(), message).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    agent.log()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failed_request_is_one_line_with_the_id_that_the_client_got_and_the_first_cause() {
    let upstream = FakeUpstream::start().await;
    image(&upstream).await;
    upstream.fault(On::any(), Fault::Reset);
    let home = tempfile::tempdir().expect("temporary folders are available");
    let config = AgentConfig::for_upstream(&upstream).with("limits: { firstHeader: 3s }").with_log("info");
    let agent = config.start_process(home.path()).await.expect("it starts");
    let url = format!("http://{}{}", agent.addresses.mirror, manifest_path(REPOSITORY, "v1"));
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let (mut ids, mut last) = (Vec::new(), String::new());
    // Enough to open the circuit of the registry's only endpoint.
    for _ in 0..6 {
        let answer = client.get(&url).send().await.expect("it answers");
        assert_eq!(answer.status(), 503);
        ids.push(answer.headers()["x-request-id"].to_str().expect("text").to_owned());
        last = answer.text().await.expect("a body");
    }
    let log = agent.log();
    let failed = entries(&log, "request failed");
    let logged: Vec<_> = failed
        .iter()
        .map(|entry| entry["fields"]["request"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(logged, ids, "{log}");
    for entry in &failed {
        assert_eq!(entry["level"], "WARN", "{entry}");
        assert_eq!(entry["fields"]["subject"], name(), "{entry}");
        assert_eq!(entry["fields"]["status"], 503, "{entry}");
        assert!(
            entry["fields"]["next"].as_str().is_some_and(|next| next.contains("registry itself")),
            "{entry}"
        );
    }
    // The circuit is open by now, and the answer still says what happened first.
    assert!(last.contains("the last error") && last.contains("127.0.0.1"), "{last}");
    let reason = failed.last().and_then(|entry| entry["fields"]["reason"].as_str()).unwrap_or_default();
    assert!(reason.contains("the last error"), "{reason}");
    for line in log.lines() {
        assert!(!has_twice(line, "\"message\":") && !has_twice(line, "\"name\":\"store\""), "{line}");
    }
}

fn has_twice(line: &str, key: &str) -> bool {
    line.matches(key).count() > 1
}

#[tokio::test(flavor = "multi_thread")]
async fn each_manifest_that_is_sent_is_one_line_with_its_source() {
    let upstream = FakeUpstream::start().await;
    let image = image(&upstream).await;
    let home = tempfile::tempdir().expect("temporary folders are available");
    let agent = AgentConfig::for_upstream(&upstream)
        .with_log("info")
        .start_process(home.path())
        .await
        .expect("it starts");
    let url = format!("http://{}", agent.addresses.mirror);
    for _ in 0..2 {
        Puller::new(&url, Some(REGISTRY)).pull(REPOSITORY, "v1", |_| ()).await.expect("the pull succeeds");
    }
    let log = agent.log();
    let sent = entries(&log, "manifest sent");
    let sources: Vec<_> =
        sent.iter().map(|entry| entry["fields"]["source"].as_str().unwrap_or_default()).collect();
    assert_eq!((sources.first(), sources.last()), (Some(&"registry"), Some(&"disk")), "{log}");
    assert!(
        sent.iter().all(|entry| entry["fields"]["digest"] == image.digest && entry["level"] == "INFO"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_ends_early_names_its_request_and_its_blob() {
    let upstream = FakeUpstream::start().await;
    let image = image(&upstream).await;
    upstream.fault(On::blob(), Fault::Cut(1000));
    let home = tempfile::tempdir().expect("temporary folders are available");
    let agent = AgentConfig::for_upstream(&upstream)
        .with_log("info")
        .start_process(home.path())
        .await
        .expect("it starts");
    let url = format!("http://{}{}", agent.addresses.mirror, blob_path(REPOSITORY, &image.layers[0].0));
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = client.get(&url).send().await.expect("it answers");
    let (status, id) = (answer.status(), answer.headers()["x-request-id"].to_str().expect("text").to_owned());
    let whole = answer.bytes().await;
    let log = log_with(&agent, "answer ended early").await;
    assert!(status == 200 && whole.is_err(), "the body was cut: {status}");
    let lines = entries(&log, "answer ended early");
    assert_eq!(lines.len(), 1, "{log}");
    assert_eq!(lines[0]["fields"]["request"], id, "{log}");
    assert!(
        lines[0]["fields"]["subject"].as_str().is_some_and(|what| what.contains(&image.layers[0].0)),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_what_stands_in_the_way_and_what_to_do() {
    let upstream = FakeUpstream::start().await;
    let image = image(&upstream).await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    let before = explain(&agent);
    assert!(before["advice"].as_str().is_some_and(|said| said.contains("No request for it")), "{before}");
    assert_eq!(before["cached"], Value::Null);
    pull(&agent).await;
    let after = explain(&agent);
    assert!(after["advice"].as_str().is_some_and(|said| said.contains("complete on this node")), "{after}");
    assert_eq!(after["cached"]["digest"], image.digest);
    assert_eq!(after["cached"]["image"]["complete"], true);
    assert_eq!(after["policy"]["credentials"], "notUsed");
    let downloads = after["lastDownloads"].as_array().expect("a list");
    assert!(downloads.len() >= 3, "two layers and the configuration: {after}");
    assert!(
        downloads.iter().all(|one| one["fromRegistry"] == one["size"] && one["fromPeers"] == 0),
        "{after}"
    );
    assert_eq!(after["lastPulls"].as_array().map(Vec::len).expect("a list"), 1, "{after}");
    upstream.fault(On::any(), Fault::Status(429, vec![("retry-after", "90".to_owned())], "slow down".into()));
    let path = manifest_path(REPOSITORY, "other");
    assert_eq!(agent.get(&path).await.status(), 503);
    let shown = stdout(&command(&agent, &["explain", &format!("{REGISTRY}/{REPOSITORY}:other")]));
    assert!(shown.contains("takes no requests for") && shown.contains("failures"), "{shown}");
    assert!(
        shown.trim_end().lines().last().is_some_and(|line| line.contains("limits the rate of requests")),
        "{shown}"
    );
    let foreign = stdout(&command(&agent, &["explain", "elsewhere.test/a:1"]));
    assert!(foreign.contains("This agent does not serve `elsewhere.test`"), "{foreign}");
}

/// A node's root with containerd that reads `certs.d`, or with one that does not.
fn node(root: &Path, reads: bool) {
    fs::create_dir_all(root.join("etc/containerd")).expect("writable");
    let path = if reads { "/etc/containerd/certs.d" } else { "" };
    let config =
        format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{path}\"\n");
    fs::write(root.join("etc/containerd/config.toml"), config).expect("writable");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_what_keeps_a_node_from_using_its_agent() {
    let upstream = FakeUpstream::start().await;
    image(&upstream).await;
    let home = tempfile::tempdir().expect("temporary folders are available");
    let config = AgentConfig::for_upstream(&upstream);
    let file = config.write(home.path()).expect("writable").display().to_string();
    let agent = Agent::start(&config).await;
    let (root, socket) = (home.path().join("root"), agent.socket().display().to_string());
    let root_text = root.display().to_string();
    let common = ["--config", file.as_str(), "--root", root_text.as_str()];
    let doctor = |more: &[&str]| {
        hearth_agent(&[&["doctor", "--no-pull", "--agent", socket.as_str()], &common[..], more].concat(), &[])
    };
    node(&root, false);
    let setup = complaint(&hearth_agent(&[&["setup"], &common[..]].concat(), &[]));
    assert!(setup.contains("no container runtime of this node sends its requests to the agent"), "{setup}");
    let trapped = doctor(&["--output", "json"]);
    assert_eq!(trapped.status.code(), Some(1));
    let checks: Value = serde_json::from_slice(&trapped.stdout).expect("JSON");
    let failed = |name: &str| {
        let all = checks["checks"].as_array().expect("a list");
        all.iter().any(|check| check["check"] == name && check["outcome"] == "failed")
    };
    assert!(failed("setup") && !failed("disk") && !failed("agent"), "{checks}");
    node(&root, true);
    stdout(&hearth_agent(&[&["setup"], &common[..]].concat(), &[]));
    let idle = stdout(&doctor(&[]));
    assert!(idle.contains("WARN  requests: no container runtime has sent a request"), "{idle}");
    pull(&agent).await;
    let well = stdout(&doctor(&[]));
    assert!(
        !well.contains("FAIL") && well.contains("ok    requests") && well.contains("ok    clock"),
        "{well}"
    );
    agent.stop().await;
    let stopped = doctor(&[]);
    assert_eq!(stopped.status.code(), Some(1));
    let said = String::from_utf8_lossy(&stopped.stdout).into_owned();
    assert!(said.contains("FAIL  agent: it does not answer"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_shown_to_the_token_alone() {
    let upstream = FakeUpstream::start().await;
    image(&upstream).await;
    let home = tempfile::tempdir().expect("temporary folders are available");
    let file = home.path().join("token");
    fs::write(&file, format!("{TOKEN}\n")).expect("writable");
    let admin = format!("admin: {{ listen: 127.0.0.1:0, tokenFile: {} }}", file.display());
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream).with(&admin)).await;
    pull(&agent).await;
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let get = async |path: &str, token: Option<&str>| {
        let mut request = client.get(format!("http://{}{path}", agent.addresses.admin));
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let answer = request.send().await.expect("it answers");
        (answer.status().as_u16(), answer.text().await.expect("a body"))
    };
    for token in [None, Some("0123456789abcdeX"), Some("")] {
        let (status, body) = get("/api/v1/status", token).await;
        assert_eq!(status, 200);
        assert!(!body.contains(REPOSITORY) && !body.contains(REGISTRY), "{body}");
        assert_eq!(get("/api/v1/images", token).await.0, 403);
    }
    let (_, body) = get("/api/v1/status", Some(TOKEN)).await;
    assert!(body.contains(&format!("{REGISTRY}/{REPOSITORY}@sha256:")), "{body}");
    let explain = format!("/api/v1/explain?name={}", name());
    assert_eq!(get(&explain, None).await.0, 403);
    assert!(get(&explain, Some(TOKEN)).await.1.contains("advice"));
    let (status, images) = get("/api/v1/images", Some(TOKEN)).await;
    assert!(status == 200 && images.contains(&name()), "{images}");
    // It reads, and changes nothing.
    let remove = client.delete(format!("http://{}/api/v1/images?name={}", agent.addresses.admin, name()));
    let answer = remove.header(AUTHORIZATION, format!("Bearer {TOKEN}")).send().await.expect("it answers");
    assert_eq!(answer.status(), 403);
    fs::write(&file, "another-token-of-someone").expect("writable");
    assert_eq!(get("/api/v1/images", Some(TOKEN)).await.0, 403, "a new token counts at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_loads_nothing_from_elsewhere() {
    let upstream = FakeUpstream::start().await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    let client =
        reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().expect("a client");
    for (path, media_type) in [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")]
    {
        let answer =
            client.get(format!("http://{}{path}", agent.addresses.admin)).send().await.expect("it answers");
        assert_eq!(answer.status(), 200, "{path}");
        let header = |name: &str| answer.headers()[name].to_str().expect("text").to_owned();
        assert!(header("content-type").starts_with(media_type), "{path}");
        assert!(header("content-security-policy").contains("default-src 'none'"), "{path}");
        let body = answer.text().await.expect("a body");
        assert!(!body.contains("http://") && !body.contains("https://"), "{path}");
    }
    let metrics = agent.metrics().await;
    assert_eq!(metrics.sum("hearth_last_request_timestamp_seconds", &[]).to_bits(), 0, "no request has come");
}
