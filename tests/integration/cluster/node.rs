//! A node that joins is warmed first.

use k8s_openapi::api::core::v1::Node;
use kit::agent::Agent;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::{World, condition};

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
