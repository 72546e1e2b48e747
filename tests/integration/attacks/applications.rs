//! Tenants who may create pods and Spark applications, against other tenants' applications, images and disks.

use hearth_agent::prepull::crd::{ImageSet, NodeCache};
use kit::{
    agent::{Agent, AgentConfig, REGISTRY},
    kubernetes::FakeApi,
    registry::{Access, FakeUpstream, Layer},
};
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::cluster::{
    World, eventually, image_name,
    spark::{create, definition, opt_in, set_for},
};

async fn world(more: &str) -> Option<World> {
    let world = World::start_with(more).await;
    world.fake.as_ref()?.install(&definition("v1beta2", "SparkApplication", "sparkapplications"));
    opt_in(&world, "true").await;
    Some(world)
}

async fn submit(world: &World, name: &str, spec: Value) {
    create(world, "v1beta2", "SparkApplication", "sparkapplications", name, json!({"spec": spec})).await;
}

fn of_image(image: &str) -> Value {
    json!({"image": image, "driver": {}, "executor": {}})
}

async fn sets(world: &World) -> Vec<ImageSet> {
    world.all::<ImageSet>().list(&ListParams::default()).await.expect("sets").items
}

/// What the node says of an image of any set.
async fn image_status(world: &World, node: &str, image: &str, state: &str) -> Value {
    let of = |cache: &Value| {
        let sets = cache["status"]["sets"].as_array().cloned().unwrap_or_default();
        let images = sets.iter().flat_map(|set| set["images"].as_array().cloned().unwrap_or_default());
        images.into_iter().find(|one| one["image"] == image && one["state"] == state)
    };
    let cache = world.until::<NodeCache>(node, |cache| of(cache).is_some()).await;
    of(&cache).expect("it was there a moment ago")
}

async fn has_event(world: &World, about: &str, reason: &str) {
    eventually(about, || async {
        let events = world.events_about(about).await;
        if events.iter().any(|event| event == reason) { Ok(()) } else { Err(events) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_image_name_costs_only_its_own_application() {
    let Some(world) = world("").await else { return };
    world.image("good-7", 1).await;
    let node = world.node("one", json!({}), json!([])).await;
    let agent = Agent::start(&world.config(&node, "")).await;
    for (name, image) in
        [("typo-1", "bad image name x"), ("typo-2", "r.test/UPPER:1"), ("typo-3", "r.test/a@sha256:1")]
    {
        submit(&world, name, of_image(image)).await;
    }
    // A selector that the API server refuses.
    let refused = json!({"key": "k", "operator": "Sometimes"});
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [refused]}, 7],
    }}});
    let executor = json!({"affinity": affinity, "tolerations": [{"key": 7}]});
    submit(&world, "odd", json!({"image": image_name("odd"), "driver": {}, "executor": executor})).await;
    // The order in which sets are written follows their names' hashes: one of many comes after the refused ones.
    for at in 0..8 {
        submit(&world, &format!("good-{at}"), of_image(&image_name(&format!("good-{at}")))).await;
    }
    // The valid image of an application whose sidecar is misspelt.
    let executor = json!({"sidecars": [{"name": "s", "image": "no such name"}]});
    submit(&world, "half", json!({"image": image_name("half"), "driver": {}, "executor": executor})).await;
    for at in 0..8 {
        set_for(&world, &format!("good-{at}:")).await;
    }
    let half = set_for(&world, "/half:").await;
    assert_eq!(half.spec.images, [image_name("half")]);
    for name in ["typo-1", "typo-2", "typo-3", "half"] {
        has_event(&world, name, "ImagesNotWarm").await;
    }
    image_status(&world, &node, &image_name("good-7"), "Ready").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_of_a_namespace_that_did_not_opt_in_make_nodes_pull_nothing() {
    let Some(world) = world("").await else { return };
    opt_in(&world, "false").await;
    let node = world.node("one", json!({}), json!([])).await;
    let agent = Agent::start(&world.config(&node, "")).await;
    submit(&world, "first", of_image(&image_name("first"))).await;
    // Long enough for several rounds: the set of an opted-in application is there within one or two.
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    assert_eq!(sets(&world).await.len(), 0);
    opt_in(&world, "true").await;
    set_for(&world, "/first:").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_gets_nothing_with_the_agents_credentials_and_pins_nothing() {
    let Some(world) = world("").await else { return };
    let public = FakeUpstream::start().await;
    world.image("private", 1).await;
    world.upstream.access(Access::Basic("user".to_owned(), "word".to_owned()));
    public.image("team/spark", "open", [Layer::random(2, 1 << 20)]).await;
    let node = world.node("one", json!({}), json!([])).await;
    let file = tempfile::NamedTempFile::new().expect("temporary files are available");
    let logins = json!({"auths": {
        REGISTRY: {"username": "user", "password": "word"}, "public.test": {"username": "user", "password": "word"},
    }});
    std::fs::write(file.path(), logins.to_string()).expect("writable");
    let api = world.fake.as_ref().map(FakeApi::url).unwrap_or_default();
    let config = AgentConfig::default()
        .registry(REGISTRY, &[&world.upstream.url()], "private: agent")
        .registry("public.test", &[&public.url()], "private: agent")
        .with(&format!(
            "credentials: {{ dockerConfig: {} }}\n\
             kubernetes: {{ imageSets: true, api: \"{api}\", node: \"{node}\", namespace: \"{}\", statusInterval: 300ms }}",
            file.path().display(),
            world.prefix
        ));
    let agent = Agent::start(&config).await;
    submit(&world, "thief", of_image(&image_name("private"))).await;
    submit(&world, "honest", of_image("public.test/team/spark:open")).await;
    let denied = image_status(&world, &node, &image_name("private"), "Failed").await;
    assert_eq!(denied["reason"], "Denied", "{denied}");
    image_status(&world, &node, "public.test/team/spark:open", "Ready").await;
    let log = world.upstream.log();
    assert!(log.iter().all(|entry| entry.authorization().is_none()), "{}", log.describe());
    for set in sets(&world).await {
        assert!(!set.spec.pin, "{set:?}");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_gets_so_many_images_and_bytes_and_no_more() {
    let Some(world) = world(", sparkImages: 2, sparkBytes: 1500KiB").await else { return };
    for (at, tag) in ["a", "b", "c"].into_iter().enumerate() {
        world.image(tag, at as u64 + 1).await;
    }
    let node = world.node("one", json!({}), json!([])).await;
    let agent = Agent::start(&world.config(&node, "")).await;
    for tag in ["a", "b", "c"] {
        submit(&world, &format!("app-{tag}"), of_image(&image_name(tag))).await;
    }
    has_event(&world, "app-c", "ImagesNotWarm").await;
    let names: Vec<_> = sets(&world).await.into_iter().flat_map(|set| set.spec.images).collect();
    assert!(!names.contains(&image_name("c")), "{names:?}");
    // Each image is 1 MiB: one fits, whichever comes first.
    eventually("one image of two", || async {
        let cache = world.all::<NodeCache>().get(&node).await.expect("it is there");
        let status = serde_json::to_value(cache).expect("JSON")["status"].clone();
        let sets = status["sets"].as_array().cloned().unwrap_or_default();
        let images: Vec<_> =
            sets.iter().flat_map(|set| set["images"].as_array().cloned().unwrap_or_default()).collect();
        let ready = images.iter().filter(|image| image["state"] == "Ready").count();
        let refused = images.iter().filter(|image| image["reason"] == "OverLimit").count();
        if (ready, refused) == (1, 1) { Ok(()) } else { Err(status) }
    })
    .await;
    agent.stop().await;
}
