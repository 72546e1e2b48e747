//! The controller: one of its processes leads, and it does what agents may not.

use hearth_agent::prepull::crd::ImageSet;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use serde_json::{Value, json};

use super::{World, eventually};

async fn leader(world: &World, other_than: &str) -> String {
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), &world.prefix);
    eventually("a leader", || async {
        let lease = leases.get_opt("hearth-controller").await.ok().flatten();
        let holder = lease.and_then(|lease| lease.spec?.holder_identity).unwrap_or_default();
        if holder.is_empty() || holder == other_than { Err(holder) } else { Ok(holder) }
    })
    .await
}

fn is_ready(set: &Value) -> bool {
    set["status"]["nodesReady"] == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_leads_when_the_leader_ends_or_crashes() {
    let mut world = World::start().await;
    world.image("3.5", 1).await;
    let first = leader(&world, "").await;
    let second = world.start_controller("");
    let ready = format!("http://{}/readyz", second.admin);
    eventually("a second process that is ready", || async {
        let answer = reqwest::get(&ready).await.map_err(|error| error.to_string())?;
        if answer.status().is_success() { Ok(()) } else { Err(answer.status().to_string()) }
    })
    .await;
    let leads = async |controller: &kit::controller::Controller| {
        controller.metrics().await.sum("hearth_controller_leader", &[])
    };
    let leader_now = world.controller.take().expect("it runs");
    assert_eq!((leads(&leader_now).await, leads(&second).await), (1.0, 0.0));
    leader_now.stop().await;
    let next = leader(&world, &first).await;
    let third = world.start_controller("");
    // Ends without releasing the lease.
    drop(second);
    leader(&world, &next).await;
    let node = world.node("one", json!({"pool": world.prefix}), json!([])).await;
    let agent = world.agent(&node).await;
    let set = world.set("s", &["3.5"], json!({"nodeSelector": {"pool": world.prefix}})).await;
    world.until::<ImageSet>(&set, is_ready).await;
    eventually("metrics of the leader", || async {
        let metrics = third.metrics().await;
        let of = |name: &str| metrics.sum(name, &[]);
        let found = (of("hearth_controller_leader"), of("hearth_controller_image_sets_ready"));
        if found == (1.0, 1.0) { Ok(()) } else { Err(found) }
    })
    .await;
    agent.stop().await;
    third.stop().await;
    world.end().await;
}
