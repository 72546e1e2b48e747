//! `ImageSet`s: brought to the nodes that they select, summed up, followed, let go.

use std::time::Duration;

use hearth_agent::prepull::crd::{ImageSet, NodeCache};
use k8s_openapi::api::core::v1::{Node, Secret, ServiceAccount};
use kit::{
    agent::{Agent, REGISTRY},
    registry::Access,
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{World, condition, eventually, image_name};
use crate::cli::{command, stdout};

fn is_ready(set: &Value, nodes: u64) -> bool {
    set["status"]["nodesReady"] == nodes && set["status"]["nodesDesired"] == nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_comes_to_the_nodes_that_it_selects_and_its_status_says_so() {
    let world = World::start().await;
    let made = world.image("3.5", 1).await;
    let pool = world.prefix.clone();
    let one = world.node("one", json!({"pool": pool}), json!([])).await;
    let two =
        world.node("two", json!({"pool": pool}), json!([{"key": "dedicated", "effect": "NoSchedule"}])).await;
    let three = world.node("three", json!({"pool": "another"}), json!([])).await;
    let agents = [world.agent(&one).await, world.agent(&two).await, world.agent(&three).await];
    let tolerant = json!([{"key": "dedicated", "operator": "Exists"}]);
    let set =
        world.set("s", &["3.5"], json!({"nodeSelector": {"pool": pool}, "tolerations": tolerant})).await;
    let summed = world.until::<ImageSet>(&set, |set| is_ready(set, 2)).await;
    assert_eq!(condition(&summed, "Ready"), ("True".into(), "Complete".into()));
    assert_eq!(condition(&summed, "Degraded").0, "False");
    let status = &summed["status"];
    assert_eq!(
        (&status["progress"], &status["images"][0]["digests"][0]["digest"]),
        (&json!(100), &json!(made.digest))
    );
    let stored = agents[0].stored();
    assert!(made.blobs().all(|digest| stored.iter().any(|one| one == digest)), "{stored:?}");
    assert!(agents[2].stored().is_empty(), "another pool's node has nothing");
    let cache = world.until::<NodeCache>(&one, |cache| cache["status"]["imagesReady"] == 1).await;
    assert_eq!(cache["metadata"]["ownerReferences"][0]["name"], one.as_str());
    assert_eq!(cache["status"]["sets"][0]["images"][0]["digest"], made.digest.as_str());
    world.until::<NodeCache>(&three, |cache| cache["status"]["imagesDesired"] == 0).await;
    eventually("events", || async {
        let events = world.events_about(&set).await;
        if events.iter().any(|reason| reason == "Complete") { Ok(()) } else { Err(events) }
    })
    .await;

    // A label that goes takes the node out of the set, and the set's hold of the images with it.
    assert!(stdout(&command(&agents[0], &["ls"])).contains("pinned"));
    world.all::<ImageSet>().delete(&set, &DeleteParams::default()).await.expect("the set goes");
    eventually("let go", || async {
        let listed = stdout(&command(&agents[0], &["ls"]));
        if listed.contains("pinned") { Err(listed) } else { Ok(()) }
    })
    .await;
    world.until::<NodeCache>(&one, |cache| cache["status"]["imagesDesired"] == 0).await;
    for agent in agents {
        agent.stop().await;
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_told_with_node_image_and_reason() {
    let world = World::start().await;
    let pool = json!({"nodeSelector": {"pool": world.prefix}});
    let node = world.node("one", json!({"pool": world.prefix}), json!([])).await;
    let agent = world.agent(&node).await;
    let set = world.set("s", &["missing"], pool).await;
    let summed = world.until::<ImageSet>(&set, |set| set["status"]["nodesFailed"] == 1).await;
    let failure = &summed["status"]["failures"][0];
    assert_eq!(
        (failure["node"].as_str(), failure["image"].as_str(), failure["reason"].as_str()),
        (Some(node.as_str()), Some(image_name("missing").as_str()), Some("NotFound"))
    );
    assert_eq!(condition(&summed, "Degraded"), ("True".into(), "ImagesFailed".into()));
    world.image("missing", 1).await;
    world.until::<ImageSet>(&set, |set| is_ready(set, 1)).await;
    agent.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_tag_is_brought_to_as_many_nodes_at_once_as_the_set_allows() {
    let world = World::start().await;
    let old = world.image("3.5", 1).await;
    let mut agents = Vec::new();
    for n in 0..3 {
        let node = world.node(&format!("n{n}"), json!({"pool": world.prefix}), json!([])).await;
        agents.push(world.agent(&node).await);
    }
    let more = json!({"nodeSelector": {"pool": world.prefix}, "maxParallelNodes": 1});
    let set = world.set("s", &["3.5"], more).await;
    let summed = world.until::<ImageSet>(&set, |set| is_ready(set, 3)).await;
    assert_eq!(summed["status"]["images"][0]["digests"][0]["digest"], old.digest.as_str());
    // The agents hear a moment later that the others are not to look for changes.
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Long enough that nodes which did not wait for each other would meet.
    world.upstream.rate_per_connection(1 << 20);
    let new = world.image("3.5", 9).await;
    world
        .until::<ImageSet>(&set, |set| {
            is_ready(set, 3)
                && set["status"]["images"][0]["digests"][0] == json!({"digest": new.digest, "nodes": 3})
        })
        .await;
    let gets = world.upstream.log().blob_gets().reference(&new.layers[0].0);
    let spans: Vec<_> = gets.iter().map(|entry| (entry.at, entry.last_byte_at())).collect();
    assert_eq!(spans.len(), 3, "{}", gets.describe());
    assert!(spans.is_sorted_by(|before, after| before.1 <= after.0), "one after the other: {spans:?}");
    for agent in agents {
        agent.stop().await;
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_with_a_time_to_live_goes_when_it_is_over() {
    let world = World::start().await;
    world.image("3.5", 1).await;
    let node = world.node("one", json!({"pool": world.prefix}), json!([])).await;
    let agent = world.agent(&node).await;
    let set =
        world.set("s", &["3.5"], json!({"nodeSelector": {"pool": world.prefix}, "ttlSeconds": 20})).await;
    world.until::<ImageSet>(&set, |set| is_ready(set, 1)).await;
    world.until::<ImageSet>(&set, Value::is_null).await;
    agent.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_refuses_sets_that_make_no_sense() {
    let world = World::start().await;
    let sets = world.all::<ImageSet>();
    for (spec, problem) in [
        (json!({}), "images"),
        (json!({"images": []}), "images"),
        (json!({"images": ["a b"]}), "images"),
        (json!({"images": ["a"], "pullPolicy": "Always"}), "pullPolicy"),
        (json!({"images": ["a"], "schedule": "daily"}), "schedule"),
        (json!({"images": ["a"], "maxParallelNodes": 0}), "maxParallelNodes"),
        (json!({"images": ["a"], "bandwidth": "fast"}), "bandwidth"),
        (json!({"images": ["a"], "platforms": ["linux"]}), "platforms"),
    ] {
        let name = world.name("wrong");
        let object = json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "ImageSet", "metadata": {"name": name}, "spec": spec});
        let parameters = PatchParams::apply("test").force();
        let refused = sets.patch(&name, &parameters, &Patch::Apply(object)).await;
        let message = refused.map(|_| ()).expect_err(problem).to_string();
        assert!(message.contains(problem), "{spec}: {message}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_chosen_by_the_labels_that_it_has() {
    let world = World::start().await;
    world.image("3.5", 1).await;
    let node = world.node("one", json!({}), json!([])).await;
    let set = world.set("s", &["3.5"], json!({"nodeSelector": {"pool": world.prefix}})).await;
    let label = json!({"metadata": {"labels": {"pool": world.prefix}}});
    world.all::<Node>().patch(&node, &PatchParams::default(), &Patch::Merge(label)).await.expect("labelled");
    let agent = world.agent(&node).await;
    world.until::<ImageSet>(&set, |set| is_ready(set, 1)).await;
    agent.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_secret_that_a_set_names_opens_the_registry() {
    let world = World::start().await;
    let secret = json!([{"namespace": world.prefix, "name": "pull"}]);
    private_images_come_with(world, json!({"pullSecrets": secret})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pull_secrets_of_a_service_account_open_the_registry() {
    let world = World::start().await;
    let account: ServiceAccount = serde_json::from_value(json!({
        "metadata": {"name": "spark"}, "imagePullSecrets": [{"name": "pull"}],
    }))
    .expect("an account");
    let accounts: Api<ServiceAccount> = Api::namespaced(world.client.clone(), &world.prefix);
    accounts.create(&PostParams::default(), &account).await.expect("the account is made");
    let account = json!([{"namespace": world.prefix, "name": "spark"}]);
    private_images_come_with(world, json!({"serviceAccounts": account})).await;
}

/// Of a registry that wants credentials, once the secret `pull` is there.
async fn private_images_come_with(world: World, credentials: Value) {
    world.image("3.5", 1).await;
    world.upstream.access(Access::Basic("user".into(), "word".into()));
    let node = world.node("one", json!({"pool": world.prefix}), json!([])).await;
    let agent = Agent::start(&world.private_config(&node)).await;
    let mut more = json!({"nodeSelector": {"pool": world.prefix}});
    more.as_object_mut().expect("it is one").extend(credentials.as_object().cloned().unwrap_or_default());
    let set = world.set("s", &["3.5"], more.clone()).await;
    let summed = world.until::<ImageSet>(&set, |set| set["status"]["nodesFailed"] == 1).await;
    assert_eq!(summed["status"]["failures"][0]["reason"], "Denied");
    let login = json!({"auths": {REGISTRY: {"username": "user", "password": "word"}}}).to_string();
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": "pull"}, "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": login},
    }))
    .expect("a secret");
    let secrets: Api<Secret> = Api::namespaced(world.client.clone(), &world.prefix);
    secrets.create(&PostParams::default(), &secret).await.expect("the secret is made");
    // The set is looked at again when it changes.
    more["reason"] = "again".into();
    world.set("s", &["3.5"], more).await;
    world.until::<ImageSet>(&set, |set| is_ready(set, 1)).await;
    agent.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_secret_that_no_role_lets_agents_read_is_named() {
    let world = World::start().await;
    let Some(fake) = &world.fake else { return };
    fake.role("", super::shipped_rules_without_secrets());
    world.image("3.5", 1).await;
    world.upstream.access(Access::Basic("user".into(), "word".into()));
    let node = world.node("one", json!({"pool": world.prefix}), json!([])).await;
    let agent = Agent::start(&world.private_config(&node)).await;
    let more = json!({"nodeSelector": {"pool": world.prefix}, "pullSecrets": [{"namespace": world.prefix, "name": "pull"}]});
    let set = world.set("s", &["3.5"], more).await;
    let expected = format!("Secret `{}/pull` cannot be read: forbidden", world.prefix);
    world
        .until::<ImageSet>(&set, |set| {
            let message = set["status"]["failures"][0]["message"].as_str().unwrap_or_default();
            message.contains(&expected)
        })
        .await;
    agent.stop().await;
    world.end().await;
}
