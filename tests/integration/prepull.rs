//! Sets of the configuration file: brought, kept, followed and let go, without any API server.

use std::time::Duration;

use kit::{
    agent::{Agent, AgentConfig, REGISTRY},
    pull::Puller,
    registry::{FakeUpstream, Image, Layer},
};
use serde_json::Value;

use crate::cli::{command, complaint, stdout};

const REPOSITORY: &str = "team/spark";
const MIB: u64 = 1 << 20;

/// Longest wait for anything here.
const SOON: Duration = Duration::from_secs(30);

fn name(tag: &str) -> String {
    format!("{REGISTRY}/{REPOSITORY}:{tag}")
}

fn with_set(upstream: &FakeUpstream, set: &str) -> AgentConfig {
    AgentConfig::for_upstream(upstream).with(&format!(
        "tags: {{ freshness: 0s, negative: 0s }}\nprepull: {{ interval: 1s, sets: [{{ name: s, {set} }}] }}"
    ))
}

async fn image(upstream: &FakeUpstream, tag: &str, seed: u64) -> Image {
    upstream.image(REPOSITORY, tag, [Layer::random(seed, MIB), Layer::random(seed + 1, MIB)]).await
}

async fn status(agent: &Agent) -> Value {
    let client =
        reqwest::Client::builder().no_proxy().unix_socket(agent.socket()).build().expect("a plain client");
    let answer = client.get("http://agent/api/v1/status").send().await.expect("the socket answers");
    serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON")
}

/// Waits until the set's first image looks as wanted, and gives what it looks like.
async fn until(agent: &Agent, wanted: impl Fn(&Value) -> bool) -> Value {
    let waiting = async {
        loop {
            let image = status(agent).await["prepull"][0]["images"][0].clone();
            if wanted(&image) {
                return image;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if let Ok(image) = tokio::time::timeout(SOON, waiting).await {
        return image;
    }
    panic!("not within {SOON:?}: {}", status(agent).await["prepull"])
}

fn is_ready(image: &Value) -> bool {
    image["state"] == "Ready"
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_a_set_is_brought_whole_and_served_without_upstream() {
    let upstream = FakeUpstream::start().await;
    let made = image(&upstream, "single", 1).await;
    let index = upstream.index("3.5", &made);
    let set = format!("images: [\"{}\"], platforms: [linux/amd64]", name("3.5"));
    let agent = Agent::start(&with_set(&upstream, &set)).await;
    let ready = until(&agent, is_ready).await;
    assert_eq!((&ready["digest"], &ready["progress"]), (&Value::from(index), &Value::from(100)));
    assert_eq!(status(&agent).await["prepull"][0]["set"], "file/s");
    let shown = stdout(&command(&agent, &["status"]));
    assert!(shown.contains("file/s") && shown.contains("Ready") && shown.contains("100 %"), "{shown}");
    let stored = agent.stored();
    assert!(made.blobs().all(|digest| stored.iter().any(|one| one == digest)), "{stored:?}");
    upstream.stop().await;
    let puller = Puller::new(&agent.url(), Some(REGISTRY));
    puller.pull(REPOSITORY, "3.5", |_| ()).await.expect("upstream is not needed any more");
    let pulled = agent.metrics().await.sum("hearth_prepulls_total", &[("outcome", "here")]);
    assert!((pulled - 1.0).abs() < 0.5, "{pulled}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_tag_is_followed_or_left_alone_by_the_policy_and_what_is_kept_is_not_evicted_by_hand() {
    for (policy, follows) in [("IfChanged", true), ("Once", false)] {
        let upstream = FakeUpstream::start().await;
        let old = image(&upstream, "3.5", 1).await;
        let set = format!("images: [\"{}\"], pullPolicy: {policy}", name("3.5"));
        let config = with_set(&upstream, &set);
        let agent = Agent::start(&config).await;
        until(&agent, |image| is_ready(image) && image["digest"] == old.digest.as_str()).await;
        let refused = complaint(&command(&agent, &["rm", &name("3.5")]));
        assert!(refused.contains("kept by a pre-pull set"), "{refused}");
        let new = image(&upstream, "3.5", 9).await;
        if follows {
            until(&agent, |image| is_ready(image) && image["digest"] == new.digest.as_str()).await;
            let stored = agent.stored();
            assert!(new.blobs().all(|digest| stored.iter().any(|one| one == digest)));
            continue;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        let home = agent.stop().await;
        let agent = Agent::start_in(&config, home).await;
        let image = until(&agent, is_ready).await;
        assert_eq!(image["digest"], old.digest.as_str(), "once is once over restarts too");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_is_gone_lets_its_images_go() {
    let upstream = FakeUpstream::start().await;
    image(&upstream, "3.5", 1).await;
    let set = format!("images: [\"{}\"]", name("3.5"));
    let agent = Agent::start(&with_set(&upstream, &set)).await;
    until(&agent, is_ready).await;
    let listed = stdout(&command(&agent, &["ls"]));
    assert!(listed.contains("complete, pinned"), "{listed}");
    let home = agent.stop().await;
    let agent = Agent::start_in(&AgentConfig::for_upstream(&upstream), home).await;
    let let_go = async {
        while stdout(&command(&agent, &["ls"])).contains("pinned") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(SOON, let_go).await.expect("what no set names is let go");
    stdout(&command(&agent, &["rm", &name("3.5")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_says_why_and_comes_when_it_can() {
    let upstream = FakeUpstream::start().await;
    let set = format!("images: [\"{}\"]", name("3.5"));
    let agent = Agent::start(&with_set(&upstream, &set)).await;
    let failed = until(&agent, |image| image["state"] == "Failed").await;
    assert_eq!(failed["reason"], "NotFound");
    assert!(failed["message"].as_str().is_some_and(|text| text.contains(REGISTRY)), "{failed}");
    assert!(failed["retryAt"].is_string(), "{failed}");
    image(&upstream, "3.5", 1).await;
    until(&agent, is_ready).await;

    let upstream = FakeUpstream::start().await;
    let made = image(&upstream, "single", 1).await;
    upstream.index("3.5", &made);
    let set = format!("images: [\"{}\"], platforms: [linux/amd64, linux/s390x]", name("3.5"));
    let agent = Agent::start(&with_set(&upstream, &set)).await;
    let failed = until(&agent, |image| image["state"] == "Failed").await;
    assert_eq!(failed["reason"], "PlatformMissing");
    assert!(failed["message"].as_str().is_some_and(|text| text.contains("linux/s390x")), "{failed}");
    let stored = agent.stored();
    assert!(made.blobs().all(|digest| stored.iter().any(|one| one == digest)), "what there is has come");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paced_set_takes_no_more_than_its_bandwidth() {
    let upstream = FakeUpstream::start().await;
    upstream.image(REPOSITORY, "3.5", [Layer::random(1, 9 * MIB)]).await;
    let set = format!("images: [\"{}\"], bandwidth: 9MiB", name("3.5"));
    let agent = Agent::start(&with_set(&upstream, &set)).await;
    let mut most = 0;
    let watched = async {
        loop {
            let image = status(&agent).await["prepull"][0]["images"][0].clone();
            if is_ready(&image) {
                return;
            }
            most = most.max(image["progress"].as_u64().unwrap_or(0).min(98));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(SOON, watched).await.expect("it ends");
    assert!(most > 0, "it was seen on its way");
    // It comes alone and has all of the rate: three slices of 3 MiB, a third of a second each.
    let gets = upstream.log().blob_gets();
    let slices = gets.filter(|entry| entry.range().is_some()).len();
    assert!(slices >= 2, "{}", gets.describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_allows_little_more_is_left_to_waiting_pods_until_it_has_refilled() {
    const LIMIT: u64 = 10;
    let upstream = FakeUpstream::start().await;
    let mut images = Vec::new();
    for seed in 0..12_u64 {
        let tag = format!("n{seed}");
        upstream.image(REPOSITORY, &tag, [Layer::random(seed, 1000)]).await;
        images.push(format!("\"{}\"", name(&tag)));
    }
    image(&upstream, "demand", 100).await;
    upstream.throttle(Some((LIMIT, Duration::from_secs(12))));
    // One at a time: of several that look at the budget at once each may take one more.
    let config = AgentConfig::for_upstream(&upstream).with(&format!(
        "tags: {{ freshness: 0s }}\nprepull: {{ interval: 1s, parallel: 1, sets: [{{ name: s, images: [{}] }}] }}",
        images.join(", ")
    ));
    let agent = Agent::start(&config).await;
    let count = async |state: &str, reason: Option<&str>| {
        let status = status(&agent).await;
        let images = status["prepull"][0]["images"].as_array().map(Vec::as_slice).unwrap_or_default();
        let like =
            |image: &&Value| image["state"] == state && reason.is_none_or(|reason| image["reason"] == reason);
        images.iter().filter(like).count()
    };
    let all = async |state: &str, reason: Option<&str>, wanted: usize| {
        let waiting = async {
            while count(state, reason).await < wanted {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let waited = tokio::time::timeout(SOON, waiting).await;
        assert!(waited.is_ok(), "{wanted} {state} {reason:?}: {}", status(&agent).await["prepull"]);
    };
    // Of ten, three are left to others.
    all("Waiting", Some("RateLimited"), 5).await;
    all("Ready", Some("RateLimited"), 7).await;
    assert_eq!(upstream.log().manifest_gets().len(), 7, "{}", upstream.log().describe());
    let puller = Puller::new(&agent.url(), Some(REGISTRY));
    puller.pull(REPOSITORY, "demand", |_| ()).await.expect("what is left is for those who wait");
    all("Ready", None, 12).await;
    let refused = upstream.log().filter(|entry| entry.status() == 429).len();
    assert_eq!(refused, 0, "{}", upstream.log().describe());
}
