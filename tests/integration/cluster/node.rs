//! A node that joins is warmed first.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hearth_agent::prepull::crd::NodeCache;
use k8s_openapi::api::core::v1::Node;
use kit::agent::Agent;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::{World, condition, eventually};

const TAINT: &str = "hearth.dev/warming";

fn taint_keys(node: &Value) -> Vec<&str> {
    let taints = node["spec"]["taints"].as_array().map(Vec::as_slice).unwrap_or_default();
    // A control plane puts its own on a node without a kubelet.
    let keys = taints.iter().filter_map(|taint| taint["key"].as_str());
    keys.filter(|key| !key.starts_with("node.kubernetes.io/")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_start_up_taint_goes_when_the_pinned_images_are_here_and_again_when_it_comes_back() {
    let world = World::start().await;
    let taints =
        json!([{"key": TAINT, "effect": "NoSchedule"}, {"key": "dedicated", "effect": "NoSchedule"}]);
    let node = world.node("one", json!({"pool": world.prefix}), taints.clone()).await;
    let more = json!({"nodeSelector": {"pool": world.prefix}, "tolerations": [{"operator": "Exists"}]});
    world.set("s", &["3.5"], more).await;
    let agent = world.agent(&node).await;
    let waiting =
        world.until::<Node>(&node, |node| condition(node, "HearthImagesReady").1 == "Warming").await;
    assert_eq!(taint_keys(&waiting), [TAINT, "dedicated"], "the image is not there yet");
    world.image("3.5", 1).await;
    let warm = world.until::<Node>(&node, |node| taint_keys(node) == ["dedicated"]).await;
    assert_eq!(condition(&warm, "HearthImagesReady"), ("True".into(), "Warm".into()));

    let again = json!({"spec": {"taints": taints}});
    let nodes = world.all::<Node>();
    nodes.patch(&node, &PatchParams::default(), &Patch::Strategic(again)).await.expect("tainted again");
    world.until::<Node>(&node, |node| taint_keys(node) == ["dedicated"]).await;
    agent.stop().await;
    world.end().await;
}

/// A container runtime that ends at every call, as containerd did at a record without `target`; its supervisor starts it
/// again. Counts its starts.
async fn crashing_runtime(socket: std::path::PathBuf, starts: Arc<AtomicUsize>) {
    loop {
        let _ = std::fs::remove_file(&socket);
        let listener = tokio::net::UnixListener::bind(&socket).expect("a socket in a temporary folder");
        let (mut stream, _) = listener.accept().await.expect("a connection");
        starts.fetch_add(1, Ordering::SeqCst);
        let mut request = [0; 24];
        let _ = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut request).await;
        drop((stream, listener));
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runtime_that_ends_at_our_calls_is_not_called_again_and_people_are_told() {
    let world = World::start().await;
    let home = tempfile::tempdir().expect("a temporary folder");
    let (socket, starts) = (home.path().join("runtime.sock"), Arc::new(AtomicUsize::new(0)));
    let fake = tokio::spawn(crashing_runtime(socket.clone(), starts.clone()));
    let node = world.node("one", json!({"pool": world.prefix}), json!([])).await;
    let image = world.image("3.5", 1).await;
    assert!(!image.digest.is_empty());
    let set =
        world.set("s", &["3.5"], json!({"nodeSelector": {"pool": world.prefix}, "runtime": true})).await;
    let config = world.config(&node, "").with(&format!("runtime: {{ socket: \"{}\" }}", socket.display()));
    let agent = Agent::start(&config).await;
    let cache = world
        .until::<NodeCache>(&node, |cache| {
            condition(cache, "RuntimeUsable") == ("False".into(), "RuntimeStopped".into())
        })
        .await;
    let conditions = cache["status"]["conditions"].as_array().expect("a list");
    let usable = conditions.iter().find(|one| one["type"] == "RuntimeUsable").expect("it is there");
    let message = usable["message"].as_str().unwrap_or_default();
    assert!(message.contains("PullImage"), "the call is named: {message}");
    eventually("an Event", || async {
        let events = world.events_about(&node).await;
        if events.iter().any(|reason| reason == "RuntimeStopped") { Ok(()) } else { Err(events) }
    })
    .await;
    let starts = starts.load(Ordering::SeqCst);
    assert!((2..=3).contains(&starts), "twice is enough, and once for the runtime's version: {starts}");
    fake.abort();
    agent.stop().await;
    drop(set);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_lets_pods_in_whatever_is_missing() {
    let world = World::start().await;
    let taints = json!([{"key": TAINT, "effect": "NoSchedule"}]);
    let node = world.node("one", json!({"pool": world.prefix}), taints).await;
    world.set("s", &["missing"], json!({"nodeSelector": {"pool": world.prefix}})).await;
    let agent = Agent::start(&world.config(&node, ", warmDeadline: 3s")).await;
    let released = world.until::<Node>(&node, |node| taint_keys(node).is_empty()).await;
    assert_eq!(condition(&released, "HearthImagesReady"), ("False".into(), "DeadlinePassed".into()));
    agent.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn taints_that_others_put_on_meanwhile_are_kept() {
    let world = World::start().await;
    let taints = json!([{"key": TAINT, "effect": "NoSchedule"}]);
    let node = world.node("one", json!({"pool": world.prefix}), taints).await;
    let agent = world.agent(&node).await;
    // Others write the list again and again while the agent takes its own taint out.
    let nodes = world.all::<Node>();
    for n in 0..20 {
        let current = nodes.get(&node).await.expect("the node");
        let mut list = current.spec.and_then(|spec| spec.taints).unwrap_or_default();
        list.retain(|taint| taint.key != "busy" && !taint.key.starts_with("node.kubernetes.io/"));
        let mut list = serde_json::to_value(list).expect("taints are JSON");
        list.as_array_mut()
            .expect("a list")
            .push(json!({"key": "busy", "value": n.to_string(), "effect": "NoSchedule"}));
        let version = current.metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": list}});
        // Refused when the agent was quicker.
        let _ = nodes.patch(&node, &PatchParams::default(), &Patch::Merge(patch)).await;
    }
    world.until::<Node>(&node, |node| taint_keys(node) == ["busy"]).await;
    agent.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_too_small_for_pinned_images_is_a_condition_a_metric_and_one_line() {
    let world = World::start().await;
    world.image("3.5", 1).await;
    let node = world.node("one", json!({"pool": world.prefix}), json!([])).await;
    world.set("s", &["3.5"], json!({"nodeSelector": {"pool": world.prefix}})).await;
    let agent = world.agent(&node).await;
    world.until::<NodeCache>(&node, |cache| cache["status"]["imagesReady"] == 1).await;
    let home = agent.stop().await;
    // The operator lowers the limit below what is pinned.
    let config = world.config(&node, ", heartbeat: 1s").with("store: { minFree: \"0\", limit: 100KiB }");
    let agent = config.start_process(home.path()).await.expect("it starts");
    let cache = world
        .until::<NodeCache>(&node, |cache| {
            condition(cache, "StoreLargeEnough") == ("False".into(), "PinnedImagesExceedLimit".into())
        })
        .await;
    assert_eq!(cache["status"]["disk"]["used"], "64.0 MiB", "{cache}");
    let metrics = kit::metrics::Metrics::scrape(agent.addresses.admin).await.expect("metrics");
    assert!(metrics.sum("hearth_store_excess_bytes", &[]) > 500_000.0, "{}", metrics.text());
    // Three more rounds of eviction.
    tokio::time::sleep(Duration::from_secs(16)).await;
    let log = agent.log();
    let lines: Vec<_> =
        log.lines().filter(|line| line.contains("above its limit") || line.contains("evicted to")).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    world.end().await;
}

fn warm(node: &Value) -> Vec<String> {
    let labels = node["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let keys = labels.into_iter().filter(|(key, _)| key.starts_with("hearth.dev/warm."));
    keys.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_the_labels_of_its_warm_sets_and_of_no_others() {
    let world = World::start().await;
    world.image("3.5", 1).await;
    let mut labels = json!({"pool": world.prefix, "hearth.dev/other": "x"});
    labels["hearth.dev/warm.of-an-earlier-agent"] = "true".into();
    let node = world.node("one", labels, json!([])).await;
    let selector = json!({"nodeSelector": {"pool": world.prefix}});
    let set = world.set("s", &["3.5"], selector.clone()).await;
    world.set("cold", &["3.5", "missing"], selector.clone()).await;
    let agent = Agent::start(&world.config(&node, ", warmLabels: true")).await;
    let expected = [format!("hearth.dev/warm.{set}=true")];
    let labelled = world.until::<Node>(&node, |node| warm(node) == expected).await;
    assert_eq!(labelled["metadata"]["labels"]["hearth.dev/other"], "x");
    // An image more: the set is cold until that has arrived.
    world.set("s", &["3.5", "4.0"], selector).await;
    world.until::<Node>(&node, |node| warm(node).is_empty()).await;
    world.image("4.0", 2).await;
    world.until::<Node>(&node, |node| warm(node) == expected).await;
    let sets = world.all::<hearth_agent::prepull::crd::ImageSet>();
    sets.delete(&set, &kube::api::DeleteParams::default()).await.expect("the set goes");
    world.until::<Node>(&node, |node| warm(node).is_empty()).await;
    agent.stop().await;
    world.end().await;
}
