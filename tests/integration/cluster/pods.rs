//! Pods that wait for an image say how far it is.

use std::time::Duration;

use k8s_openapi::api::{core::v1::Pod, events::v1::Event};
use kit::{
    agent::{Agent, REGISTRY},
    pull::Puller,
    registry::{Fault, Layer, On},
};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{REPOSITORY, World, eventually, image_name, rules_of};

/// A pod on a node that waits for an image.
async fn pending_pod(world: &World, name: &str, node: &str, tag: &str) {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), &world.prefix);
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": image_name(tag)}]},
    }))
    .expect("a pod");
    pods.create(&PostParams::default(), &pod).await.expect("the pod is made");
    let status = json!({"status": {"phase": "Pending"}});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await
        .expect("its status is written");
}

/// The notes of the Events on a pod.
async fn notes(world: &World, pod: &str) -> Vec<String> {
    let events: Api<Event> = Api::namespaced(world.client.clone(), &world.prefix);
    let list = events.list(&ListParams::default()).await.expect("events can be listed");
    let about = |event: &Event| {
        event.regarding.as_ref().is_some_and(|regarding| regarding.name.as_deref() == Some(pod))
            && event.reason.as_deref() == Some("PullingViaHearth")
    };
    list.items.into_iter().filter(about).filter_map(|event| event.note).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_waits_for_an_image_has_few_events_with_its_progress() {
    let world = World::start().await;
    let Some(fake) = &world.fake else { return };
    fake.role("", rules_of(&["base/rbac.yaml", "components/pod-events/rbac.yaml"], "hearth-agent"));
    let image = world.upstream.image(REPOSITORY, "3.5", [Layer::random(1, 24 << 20)]).await;
    world.upstream.fault(On::blob().reference(&image.layers[0].0), Fault::Rate(1 << 20));
    let node = world.node("one", json!({}), json!([])).await;
    for (pod, node) in [("waiting", &*node), ("elsewhere", "another")] {
        pending_pod(&world, pod, node, "3.5").await;
    }
    pending_pod(&world, "other-image", &node, "4.0").await;
    let config = world.config(&node, ", podEvents: true").with("fetch: { blobConnections: 1 }");
    let agent = Agent::start(&config).await;
    let url = agent.url();
    let pulling = tokio::spawn(async move {
        Puller::new(&url, Some(REGISTRY)).pull(REPOSITORY, "3.5", |_| ()).await.expect("it pulls");
    });
    let seen = eventually("an Event on the pod", || async {
        let notes = notes(&world, "waiting").await;
        notes.first().cloned().ok_or(notes)
    })
    .await;
    let start = format!("pulling {} via hearth: ", image_name("3.5"));
    assert!(seen.starts_with(&start) && seen.ends_with("/s from the registry"), "{seen}");
    pulling.await.expect("it ends");
    // At least 24 s at one Event in 15 s, and none after the pull.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let after = notes(&world, "waiting").await;
    assert!((1..=3).contains(&after.len()), "{after:?}");
    for pod in ["elsewhere", "other-image"] {
        assert_eq!(notes(&world, pod).await, [""; 0], "{pod}");
    }
    agent.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_not_watched_unless_that_is_asked_for() {
    let world = World::start().await;
    let Some(fake) = &world.fake else { return };
    let node = world.node("one", json!({}), json!([])).await;
    let agent = world.agent(&node).await;
    world.until::<hearth_agent::prepull::crd::NodeCache>(&node, |cache| cache["status"].is_object()).await;
    let own = |record: &&kit::kubernetes::Record| record.plural == "pods" && record.client.is_empty();
    assert_eq!(fake.log().iter().filter(own).count(), 0);
    agent.stop().await;
    world.end().await;
}
