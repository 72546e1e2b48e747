//! `kubectl apply && kubectl wait --for=condition=Ready` is safe: a set is ready when every node that it selects has said so.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use hearth_agent::prepull::crd::{ImageSet, NodeCache};
use k8s_openapi::api::core::v1::Node;
use kit::agent::Agent;
use kube::{Api, api::DeleteParams, runtime::WatchStreamExt as _, runtime::watcher};
use serde_json::{Value, json};

use super::{World, condition, eventually};

/// Every state of the objects of a kind that a watch hears of.
fn record<K>(api: Api<K>, name: &str) -> (Arc<Mutex<Vec<Value>>>, tokio::task::JoinHandle<()>)
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + serde::Serialize
        + Send
        + 'static,
{
    let heard = Arc::new(Mutex::new(Vec::new()));
    let into = heard.clone();
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let task = tokio::spawn(async move {
        let events = watcher(api, config).default_backoff().applied_objects();
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            if let Ok(object) = event {
                into.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(serde_json::to_value(object).expect("objects are JSON"));
            }
        }
    });
    (heard, task)
}

fn all(heard: &Mutex<Vec<Value>>) -> Vec<Value> {
    heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn ready(set: &Value) -> String {
    condition(set, "Ready").0
}

/// As `kubectl wait` reads it: a condition of an earlier generation does not count.
fn holds(set: &Value) -> bool {
    let conditions = set["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|one| {
        one["type"] == "Ready"
            && one["status"] == "True"
            && one["observedGeneration"] == set["metadata"]["generation"]
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_is_ready_only_when_every_node_has_reported_its_generation() {
    let world = World::start().await;
    let pool = json!({"nodeSelector": {"pool": world.prefix}});
    for (tag, seed) in [("1", 1), ("2", 2)] {
        world.image(tag, seed).await;
    }
    let one = world.node("one", json!({"pool": world.prefix}), json!([])).await;
    let two = world.node("two", json!({"pool": world.prefix}), json!([])).await;
    let first = world.agent(&one).await;
    let name = world.name("s");
    let (heard, task) = record(world.all::<ImageSet>(), &name);
    let set = world.set("s", &["1"], pool.clone()).await;
    // One node's agent is not there yet.
    let waiting = world.until::<ImageSet>(&set, |set| set["status"]["nodesReady"] == 1).await;
    assert_eq!(waiting["status"]["nodesDesired"], 2);
    assert_eq!(condition(&waiting, "Ready"), ("Unknown".into(), "NodesUnknown".into()));
    let second = world.agent(&two).await;
    world.until::<ImageSet>(&set, holds).await;
    // A changed set.
    world.set("s", &["1", "2"], pool).await;
    world.until::<ImageSet>(&set, |set| holds(set) && set["metadata"]["generation"] == 2).await;
    task.abort();
    for state in all(&heard).iter().filter(|state| holds(state)) {
        let status = &state["status"];
        assert_eq!((&status["nodesDesired"], &status["nodesReady"]), (&json!(2), &json!(2)), "{state}");
        let images = status["images"].as_array().expect("images are listed");
        assert_eq!(images.len(), state["spec"]["images"].as_array().expect("images").len(), "{state}");
        assert!(images.iter().all(|image| image["nodesReady"] == 2), "{state}");
    }
    first.stop().await;
    second.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_ready_or_whose_agent_is_silent_is_not_counted_as_ready() {
    let world = World::start_with(", heartbeat: 3s").await;
    world.image("1", 1).await;
    let pool = json!({"nodeSelector": {"pool": world.prefix}});
    let one = world.node("one", json!({"pool": world.prefix}), json!([])).await;
    let two = world.node("two", json!({"pool": world.prefix}), json!([])).await;
    let first = Agent::start(&world.config(&one, ", heartbeat: 3s")).await;
    let second = Agent::start(&world.config(&two, ", heartbeat: 3s")).await;
    let set = world.set("s", &["1"], pool).await;
    world.until::<ImageSet>(&set, holds).await;
    let home = second.stop().await;
    let silent = world.until::<ImageSet>(&set, |set| ready(set) == "Unknown").await;
    let counts = &silent["status"];
    assert_eq!(
        (&counts["nodesDesired"], &counts["nodesReady"], &counts["nodesUnknown"]),
        (&json!(2), &json!(1), &json!(1))
    );
    let message = silent["status"]["conditions"][0]["message"].as_str().unwrap_or_default();
    assert!(message.contains(&two), "the node is named: {message}");
    let second = Agent::start_in(&world.config(&two, ", heartbeat: 3s"), home).await;
    world.until::<ImageSet>(&set, holds).await;
    world.node_is_ready(&two, "Unknown").await;
    world.until::<ImageSet>(&set, |set| ready(set) == "Unknown").await;
    // A node that is gone is not waited for.
    second.stop().await;
    world.all::<Node>().delete(&two, &DeleteParams::default()).await.expect("the node goes");
    let left = world.until::<ImageSet>(&set, holds).await;
    assert_eq!(left["status"]["nodesDesired"], 1);
    first.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_of_the_agent_reports_nothing_that_is_not_so() {
    let world = World::start().await;
    world.image("1", 1).await;
    let pool = json!({"nodeSelector": {"pool": world.prefix}});
    let node = world.node("one", json!({"pool": world.prefix}), json!([])).await;
    let config = world.config(&node, "").with("store: { minFree: \"0\", lockWait: 1m }");
    let mut agent = Agent::start(&config).await;
    let set = world.set("s", &["1"], pool).await;
    world.until::<ImageSet>(&set, holds).await;
    world.until::<Node>(&node, |node| condition(node, "HearthImagesReady").1 == "Warm").await;
    let (sets, of_sets) = record(world.all::<ImageSet>(), &set);
    let (caches, of_caches) = record(world.all::<NodeCache>(), &node);
    let (nodes, of_nodes) = record(world.all::<Node>(), &node);
    let events = world.events_about(&set).await;
    for _ in 0..3 {
        // The new one serves beside the old one until that ends.
        let next = Agent::start_in(&config, agent.home()).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        agent.stop().await;
        agent = next;
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    for task in [of_sets, of_caches, of_nodes] {
        task.abort();
    }
    let sets = all(&sets);
    assert!(sets.iter().all(holds), "{sets:#?}");
    for cache in all(&caches) {
        assert_eq!(
            (&cache["status"]["imagesDesired"], &cache["status"]["imagesReady"]),
            (&json!(1), &json!(1)),
            "{cache:#}"
        );
    }
    for node in all(&nodes) {
        assert_eq!(condition(&node, "HearthImagesReady").1, "Warm", "{node:#}");
    }
    assert_eq!(world.events_about(&set).await, events, "no further Event");
    eventually("heartbeats of the last agent", || async {
        let cache = world.all::<NodeCache>().get(&node).await.map_err(|error| error.to_string())?;
        cache.status.and_then(|status| status.updated).map(drop).ok_or_else(|| "none".to_owned())
    })
    .await;
    agent.stop().await;
    world.end().await;
}
