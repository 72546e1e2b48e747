//! Each node says whether its container runtime pulls through the agent, how that was proved, or what to do.

use std::{fs, path::Path, process::Command};

use hearth_agent::prepull::crd::NodeCache;
use kit::{
    agent::{Agent, AgentConfig, REGISTRY},
    cri::{FakeCri, Pulls},
    pull::Puller,
};
use kube::CustomResourceExt as _;
use serde_json::{Value, json};

use super::{REPOSITORY, World, condition, eventually};

const TYPE: &str = "RuntimeUsesAgent";

fn message(cache: &Value) -> String {
    let conditions = cache["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|one| one["type"] == TYPE);
    found.and_then(|one| one["message"].as_str()).unwrap_or_default().to_owned()
}

async fn until(world: &World, node: &str, status: &str, reason: &str) -> Value {
    let expected = (status.to_owned(), reason.to_owned());
    world.until::<NodeCache>(node, |cache| condition(cache, TYPE) == expected).await
}

async fn until_event(world: &World, node: &str, reason: &str) {
    eventually("an Event", || async {
        let events = world.events_about(node).await;
        if events.iter().any(|one| one == reason) { Ok(()) } else { Err(events) }
    })
    .await;
}

fn with_socket(world: &World, node: &str, cri: &FakeCri) -> AgentConfig {
    world
        .config(node, ", heartbeat: 1s")
        .with(&format!("runtime: {{ socket: \"{}\" }}", cri.socket().display()))
}

/// What `kubectl get` shows in a column.
fn column<'a>(object: &'a Value, path: &str) -> &'a Value {
    let mut at = object;
    for part in path.trim_start_matches('.').split('.').filter(|part| !part.starts_with("type==")) {
        at = match part.split_once("[?(@") {
            Some((list, _)) => {
                let wanted = path.split('"').nth(1).expect("the filter names a type");
                let list = at[list].as_array().expect("it is a list");
                list.iter().find(|one| one["type"] == wanted).unwrap_or(&Value::Null)
            }
            None => &at[part],
        };
    }
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_has_pulled_a_test_image_is_the_proof_and_an_update_keeps_it() {
    let world = World::start().await;
    let node = world.node("one", json!({}), json!([])).await;
    let cri = FakeCri::start("v2.1.9", Pulls::Hang);
    let agent = Agent::start(&with_socket(&world, &node, &cri)).await;
    cri.set(Pulls::Through(agent.url()));
    let cache = until(&world, &node, "True", "Pulled").await;
    assert_eq!(message(&cache), "containerd 2.1.9 pulls through this agent (proved by a pull)");
    until_event(&world, &node, "Pulled").await;
    let columns =
        serde_json::json!(NodeCache::crd())["spec"]["versions"][0]["additionalPrinterColumns"].clone();
    let shown = |name: &str| {
        let columns = columns.as_array().expect("there are columns");
        let found = columns.iter().find(|one| one["name"] == name).expect("the column is there");
        column(&cache, found["jsonPath"].as_str().expect("it has a path")).clone()
    };
    assert_eq!((shown("Runtime"), shown("Proof")), (json!("containerd 2.1.9"), json!("Pulled")));
    assert!(
        shown("Version").is_string() && shown("Renewed").is_string() && shown("Trouble").is_null(),
        "{cache}"
    );
    // The test image does not stay.
    eventually("an empty store", || async {
        let stored = agent.stored();
        if stored.is_empty() { Ok(()) } else { Err(stored) }
    })
    .await;
    let home = agent.stop().await;

    // The next process of this node cannot ask the runtime yet.
    let events = world.events_about(&node).await.len();
    cri.set(Pulls::Hang);
    let before = world.until::<NodeCache>(&node, |_| true).await["status"]["updated"].clone();
    let agent = Agent::start_in(&with_socket(&world, &node, &cri), home).await;
    let renewed = world.until::<NodeCache>(&node, |cache| cache["status"]["updated"] != before).await;
    assert_eq!(condition(&renewed, TYPE), ("True".into(), "Pulled".into()));
    assert_eq!(world.events_about(&node).await.len(), events, "nothing is new");
    // What it finds counts more than what an earlier one found.
    let failed = until(&world, &node, "False", "PullFailed").await;
    assert!(message(&failed).contains("no answer within 5s"), "{}", message(&failed));
    agent.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_does_not_reach_the_agent_or_hangs_costs_the_proof_alone() {
    let world = World::start().await;
    world.image("3.5", 1).await;
    for (name, pulls, expected) in
        [("one", Pulls::Past, "not found"), ("two", Pulls::Hang, "no answer within 5s")]
    {
        let node = world.node(name, json!({"pool": world.prefix, "name": name}), json!([])).await;
        let cri = FakeCri::start("2.1.9", pulls);
        let agent = Agent::start(&with_socket(&world, &node, &cri)).await;
        world.set(name, &["3.5"], json!({"nodeSelector": {"pool": world.prefix, "name": name}})).await;
        world.until::<NodeCache>(&node, |cache| cache["status"]["imagesReady"] == 1).await;
        let cache = until(&world, &node, "False", "PullFailed").await;
        assert!(message(&cache).contains(expected), "{}", message(&cache));
        until_event(&world, &node, "PullFailed").await;
        agent.stop().await;
    }
    world.end().await;
}

/// `hearth-agent setup` in an init container for a node with this containerd configuration.
fn set_up(root: &Path, report: Option<&Path>, containerd: &str) -> std::process::ExitStatus {
    fs::create_dir_all(root.join("etc/containerd")).expect("writable");
    fs::write(root.join("etc/containerd/config.toml"), containerd).expect("writable");
    let config = root.join("agent.yaml");
    fs::write(&config, format!("registries: [{{ host: {REGISTRY} }}]\n")).expect("writable");
    let mut setup = Command::new(kit::process::binary("hearth-agent").expect("the agent is built"));
    setup.args(["setup", "--runtime", "containerd", "--config"]).arg(&config).arg("--root").arg(root);
    if let Some(report) = report {
        setup.env("HEARTH_RUNTIME_SETUP_REPORT", report);
    }
    setup.output().expect("it runs").status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_that_setup_found_and_its_remedy_are_told_until_a_request_arrives() {
    let world = World::start().await;
    world.image("3.5", 1).await;
    let node = world.node("one", json!({}), json!([])).await;
    let home = tempfile::tempdir().expect("temporary folders are available");
    let report = home.path().join("setup.json");
    let list = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d:/etc/docker/certs.d'\n";
    assert!(!set_up(home.path(), None, list).success(), "without an agent that reports it, `setup` fails");
    assert!(set_up(home.path(), Some(&report), list).success(), "the agent must be able to start");
    let config =
        world.config(&node, "").with(&format!("runtime: {{ setupReport: \"{}\" }}", report.display()));
    let agent = Agent::start(&config).await;
    let cache = until(&world, &node, "False", "Trap").await;
    let remedy = "set `config_path = \"/etc/containerd/certs.d\"`";
    assert!(
        message(&cache).contains(remedy) && message(&cache).contains("restart containerd"),
        "{}",
        message(&cache)
    );
    assert_eq!(cache["status"]["runtime"], "containerd");
    until_event(&world, &node, "Trap").await;

    Puller::new(&agent.url(), Some(REGISTRY)).pull(REPOSITORY, "3.5", |_| ()).await.expect("it pulls");
    let cache = until(&world, &node, "True", "Requested").await;
    assert_eq!(message(&cache), "containerd 2.1.9 pulls through this agent (proved by its requests)");
    assert_eq!(cache["status"]["runtime"], "containerd 2.1.9");
    until_event(&world, &node, "Requested").await;
    agent.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_be_set_up_says_so_and_one_without_requests_says_that() {
    let world = World::start().await;
    let (broken, quiet) =
        (world.node("one", json!({}), json!([])).await, world.node("two", json!({}), json!([])).await);
    let home = tempfile::tempdir().expect("temporary folders are available");
    let report = home.path().join("setup.json");
    assert!(set_up(home.path(), Some(&report), "version = \n").success());
    let config =
        world.config(&broken, "").with(&format!("runtime: {{ setupReport: \"{}\" }}", report.display()));
    let agents = [Agent::start(&config).await, world.agent(&quiet).await];
    let cache = until(&world, &broken, "False", "SetupFailed").await;
    assert!(message(&cache).contains("/etc/containerd/config.toml"), "{}", message(&cache));
    until_event(&world, &broken, "SetupFailed").await;
    let cache = until(&world, &quiet, "Unknown", "NoRequestYet").await;
    assert!(message(&cache).contains("hearth-agent setup --check"), "{}", message(&cache));
    until_event(&world, &quiet, "NoRequestYet").await;
    for agent in agents {
        agent.stop().await;
    }
    world.end().await;
}
