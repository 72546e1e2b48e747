//! The API server gone, slow, refusing, forgetful: the cache goes on, and nothing restarts in a loop.

use std::time::Duration;

use futures_util::StreamExt as _;
use hearth_agent::prepull::crd::{ImageSet, NodeCache};
use kit::{
    agent::{Agent, AgentConfig, REGISTRY},
    kubernetes::{ApiFault, FakeApi},
    pull::Puller,
    registry::FakeUpstream,
};
use serde_json::json;

use super::{REPOSITORY, World, eventually};
use crate::cli::{command, stdout};

fn is_ready(set: &serde_json::Value) -> bool {
    set["status"]["nodesReady"] == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_server_gone_the_cache_goes_on_and_what_sets_keep_is_kept_over_a_restart() {
    let mut world = World::start().await;
    if world.fake.is_none() {
        return;
    }
    world.image("3.5", 1).await;
    let node = world.node("one", json!({}), json!([])).await;
    let config = world.config(&node, "");
    let agent = world.agent(&node).await;
    let set = world.set("s", &["3.5"], json!({})).await;
    world.until::<ImageSet>(&set, is_ready).await;
    world.fake.as_mut().expect("the kit's").stop().await;
    let puller = Puller::new(&agent.url(), Some(REGISTRY));
    puller.pull(REPOSITORY, "3.5", |_| ()).await.expect("pulls go on");
    let home = agent.stop().await;
    let agent = Agent::start_in(&config, home).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(
        stdout(&command(&agent, &["ls"])).contains("pinned"),
        "nothing is let go before the sets are known"
    );
    world.image("4.0", 5).await;
    world.fake.as_mut().expect("the kit's").restart().await;
    world.set("t", &["4.0"], json!({})).await;
    world.until::<ImageSet>(&world.name("t"), is_ready).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_conflicts_and_expired_watches_are_got_over_without_a_storm() {
    let world = World::start().await;
    let Some(fake) = &world.fake else { return };
    world.image("3.5", 1).await;
    let node = world.node("one", json!({}), json!([])).await;
    let agent = world.agent(&node).await;
    let set = world.set("s", &["3.5"], json!({})).await;
    world.until::<ImageSet>(&set, is_ready).await;
    for (status, verbs) in [
        (429, &["patch"][..]),
        (409, &["patch", "update"]),
        (500, &["list", "watch", "get"]),
        (410, &["watch"]),
    ] {
        fake.fault(ApiFault { verbs, plural: "", times: None, status, delay: Duration::ZERO });
        if verbs.contains(&"watch") {
            fake.compact();
        }
        let before = fake.log().len();
        tokio::time::sleep(Duration::from_secs(4)).await;
        let asked = fake.log().len() - before;
        assert!(asked < 60, "{asked} requests in 4 s while {verbs:?} are answered with {status}");
        fake.heal();
    }
    world.image("4.0", 7).await;
    world.set("s", &["4.0"], json!({})).await;
    let name = super::image_name("4.0");
    world
        .until::<NodeCache>(&node, |cache| {
            let image = &cache["status"]["sets"][0]["images"][0];
            image["image"] == name.as_str() && image["state"] == "Ready"
        })
        .await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_slows_no_pull() {
    let world = World::start().await;
    let Some(fake) = &world.fake else { return };
    world.image("3.5", 1).await;
    let node = world.node("one", json!({}), json!([])).await;
    fake.fault(ApiFault { verbs: &[], plural: "", times: None, status: 0, delay: Duration::from_secs(20) });
    let agent = world.agent(&node).await;
    let pull = Puller::new(&agent.url(), Some(REGISTRY));
    let pulled = tokio::time::timeout(Duration::from_secs(10), pull.pull(REPOSITORY, "3.5", |_| ())).await;
    pulled.expect("the server is not waited for").expect("pulls go on");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_server_is_one_line_in_the_log_and_so_is_its_return() {
    let mut world = World::start().await;
    if world.fake.is_none() {
        return;
    }
    world.image("3.5", 1).await;
    let node = world.node("one", json!({}), json!([])).await;
    let home = tempfile::tempdir().expect("a temporary folder");
    let agent = world.config(&node, ", heartbeat: 1s").start_process(home.path()).await.expect("it starts");
    let set = world.set("s", &["3.5"], json!({})).await;
    world.until::<ImageSet>(&set, is_ready).await;
    let lines = |log: &str, text: &str| log.lines().filter(|line| line.contains(text)).count();
    let url = world.fake.as_ref().expect("the kit's").url();
    world.fake.as_mut().expect("the kit's").stop().await;
    // Many requests fail: heartbeats, watches, reads of the Node.
    eventually("failed requests", || async {
        let log = agent.log();
        let failed = lines(&log, "the API server cannot be reached");
        if failed >= 8 { Ok(()) } else { Err(failed) }
    })
    .await;
    world.fake.as_mut().expect("the kit's").restart().await;
    eventually("the return", || async {
        let log = agent.log();
        if log.contains("answers again") { Ok(()) } else { Err(log) }
    })
    .await;
    let log = agent.log();
    let warnings: Vec<_> = log
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .map(str::to_owned)
        .collect();
    let [line] = warnings.as_slice() else { panic!("one line is expected: {warnings:#?}") };
    assert!(
        line.contains(&url) && (line.contains("Connection re") || line.contains("connection closed")),
        "the URL and the cause (refused, reset, or closed): {line}"
    );
    assert_eq!(lines(&log, "answers again"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_made_between_two_pages_of_a_list_is_heard_of() {
    let fake = FakeApi::start().await;
    fake.install_hearth();
    let make = |name: &str| {
        fake.seed(json!({
            "apiVersion": "hearth.dev/v1alpha1", "kind": "ImageSet", "metadata": {"name": name}, "spec": {"images": ["a"]},
        }))
    };
    make("m");
    make("n");
    let sets: kube::Api<ImageSet> = kube::Api::all(fake.client());
    let pages = kube::api::ListParams::default().limit(1);
    let first = sets.list(&pages).await.expect("the first page");
    // Before the place where the second page begins, and in its midst.
    make("a");
    fake.remove("ImageSet", "", "n");
    let token = first.metadata.continue_.as_deref().expect("there is a second page");
    let second = sets.list(&pages.continue_token(token)).await.expect("the second page");
    let names = |list: &kube::core::ObjectList<ImageSet>| {
        list.items.iter().filter_map(|set| set.metadata.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!((names(&first), names(&second)), (vec!["m".to_owned()], vec!["n".to_owned()]));
    let version = second.metadata.resource_version.expect("a list has a version");
    let events = sets.watch(&kube::api::WatchParams::default().timeout(5), &version).await.expect("a watch");
    let heard: Vec<_> = events
        .take(2)
        .map(|event| match event.expect("an event") {
            kube::api::WatchEvent::Added(set) => format!("+{}", set.metadata.name.unwrap_or_default()),
            kube::api::WatchEvent::Deleted(set) => format!("-{}", set.metadata.name.unwrap_or_default()),
            other => format!("{other:?}"),
        })
        .collect()
        .await;
    assert_eq!(heard, ["+a", "-n"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_that_are_not_installed_are_listed_ever_less_often() {
    let (upstream, api) = (FakeUpstream::start().await, FakeApi::start().await);
    let kubernetes = format!("kubernetes: {{ imageSets: true, api: \"{}\", node: one }}", api.url());
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream).with(&kubernetes)).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let log = api.log();
    let lists = log.iter().filter(|record| record.verb == "list" && record.plural == "imagesets").count();
    // After 1, 2, 4 and 8 s at most; once a second would be ten.
    assert!((3..=6).contains(&lists), "{lists}");
    api.install_hearth();
    eventually("it is found later", async || {
        let log = api.log();
        log.iter()
            .any(|record| record.verb == "watch" && record.plural == "imagesets")
            .then_some(())
            .ok_or("no watch")
    })
    .await;
    agent.stop().await;
}
