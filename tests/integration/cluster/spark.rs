//! Images of Spark applications are warmed before their executors ask for them.

use hearth_agent::prepull::crd::ImageSet;
use k8s_openapi::{
    api::core::v1::{ConfigMap, Namespace, Pod},
    jiff::{SignedDuration, Timestamp},
};
use kit::agent::Agent;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

use super::{World, eventually, image_name};

/// A definition without rules, as far as the real one's kinds are needed here.
pub(crate) fn definition(version: &str, kind: &str, plural: &str) -> Value {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.sparkoperator.k8s.io")},
        "spec": {
            "group": "sparkoperator.k8s.io", "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")},
            "versions": [{"name": version, "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "properties": {"spec": open, "status": open}}}}],
        },
    })
}

pub(crate) async fn create(world: &World, version: &str, kind: &str, plural: &str, name: &str, rest: Value) {
    let resource = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("sparkoperator.k8s.io", version, kind),
        plural,
    );
    let api: Api<DynamicObject> = Api::namespaced_with(world.client.clone(), &world.prefix, &resource);
    let mut object = json!({"apiVersion": format!("sparkoperator.k8s.io/{version}"), "kind": kind, "metadata": {"name": name}});
    for (key, value) in rest.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    let object: DynamicObject = serde_json::from_value(object).expect("an object");
    api.create(&PostParams::default(), &object).await.expect("the application is made");
}

/// Sets the label by which a namespace has the images of its applications pre-pulled.
pub(crate) async fn opt_in(world: &World, value: &str) {
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let object = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": world.prefix, "labels": {"hearth.dev/prepull": value}},
    });
    let parameters = PatchParams::apply("test").force();
    namespaces
        .patch(&world.prefix, &parameters, &Patch::Apply(object))
        .await
        .expect("the namespace is labelled");
}

/// The set that was made for an application, by the reason that it gives.
pub(crate) async fn set_for(world: &World, reason: &str) -> ImageSet {
    eventually(reason, || async {
        let sets =
            world.all::<ImageSet>().list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        let reasons: Vec<_> = sets.items.iter().filter_map(|set| set.spec.reason.clone()).collect();
        sets.items
            .into_iter()
            .find(|set| set.spec.reason.as_deref().is_some_and(|text| text.contains(reason)))
            .ok_or(format!("{reasons:?}"))
    })
    .await
}

async fn is_warm(world: &World, set: &ImageSet) {
    let name = set.metadata.name.clone().expect("a set has a name");
    world.until::<ImageSet>(&name, |set| set["status"]["nodesReady"].as_u64() >= Some(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_schedules_and_plain_drivers_have_their_images_warmed_and_are_told() {
    let world = World::start_with(", sparkLead: 10m").await;
    let Some(fake) = &world.fake else { return };
    for tag in ["app", "sidecar", "nightly", "later", "executor"] {
        world.image(tag, tag.len() as u64 * 31).await;
    }
    let node = world.node("one", json!({"pool": "spark"}), json!([])).await;
    let agent = Agent::start(&world.config(&node, "")).await;
    opt_in(&world, "true").await;
    // The operator is installed later than the controller.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    fake.install(&definition("v1beta2", "SparkApplication", "sparkapplications"));
    fake.install(&definition("v1beta2", "ScheduledSparkApplication", "scheduledsparkapplications"));

    // A driver that `spark-submit` started.
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), &world.prefix);
    let properties =
        format!("spark.kubernetes.executor.container.image={}\n", image_name("executor").replace(':', "\\:"));
    let map: ConfigMap = serde_json::from_value(json!({
        "metadata": {"name": "spark-drv-1-conf-map"}, "data": {"spark.properties": properties},
    }))
    .expect("a map");
    maps.create(&PostParams::default(), &map).await.expect("the properties are made");
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), &world.prefix);
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "pi-driver", "labels": {"spark-role": "driver", "spark-app-selector": "spark-1"}},
        "spec": {
            "containers": [{"name": "spark-kubernetes-driver", "image": image_name("app")}],
            "volumes": [{"name": "spark-conf-volume-driver", "configMap": {"name": "spark-drv-1-conf-map"}}],
        },
    }))
    .expect("a pod");
    pods.create(&PostParams::default(), &pod).await.expect("the driver is made");
    let set = set_for(&world, "pi-driver").await;
    assert_eq!(set.spec.images, [image_name("executor")]);
    is_warm(&world, &set).await;

    let spec = json!({
        "image": image_name("app"), "nodeSelector": {"pool": "spark"},
        "driver": {}, "executor": {"instances": 8, "sidecars": [{"name": "logs", "image": image_name("sidecar")}]},
    });
    create(&world, "v1beta2", "SparkApplication", "sparkapplications", "spark-pi", json!({"spec": spec}))
        .await;
    let set = set_for(&world, "spark-pi").await;
    assert_eq!(set.spec.images, [image_name("app"), image_name("sidecar")]);
    assert_eq!(set.spec.node_selector.get("pool").map(String::as_str), Some("spark"));
    assert_eq!(set.spec.ttl_seconds, Some(3_600));
    is_warm(&world, &set).await;
    eventually("events", || async {
        let events = world.events_about("spark-pi").await;
        let told =
            ["ImagesWarming", "ImagesWarm"].iter().all(|reason| events.iter().any(|event| event == reason));
        if told { Ok(()) } else { Err(events) }
    })
    .await;

    // One that runs in five minutes, and one that runs tomorrow.
    for (tag, ahead) in [("nightly", SignedDuration::from_mins(5)), ("later", SignedDuration::from_hours(24))]
    {
        let next = (Timestamp::now() + ahead).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let rest = json!({
            "spec": {"schedule": "0 3 * * *", "template": {"image": image_name(tag), "driver": {}, "executor": {}}},
            "status": {"nextRun": next},
        });
        create(&world, "v1beta2", "ScheduledSparkApplication", "scheduledsparkapplications", tag, rest).await;
    }
    is_warm(&world, &set_for(&world, "/nightly:").await).await;
    let sets = world.all::<ImageSet>().list(&ListParams::default()).await.expect("sets").items;
    assert!(!sets.iter().any(|set| set.spec.images.contains(&image_name("later"))), "not yet");
    agent.stop().await;
    world.end().await;
}
