//! This node's part: which sets select it, and its own `NodeCache`.
//!
//! The `NodeCache` is written when it has changed, at most once per interval, at times that differ by node, so
//! that thousands of nodes do not write together. When nothing changes, its time alone is renewed, so that the controller
//! knows that this agent runs. The node owns it, so that both are removed together.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time},
};
use kube::{
    Api,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::json;
use tokio::time::Instant;

use super::{
    MANAGER, Shared,
    select::selects,
    translate::{self, Wanted},
};
use crate::{
    kubernetes::{has_code, log_failure, within},
    prepull::{
        crd::{DiskStatus, NodeCache, NodeCacheSpec, NodeCacheStatus},
        jitter::{around, fraction},
        set::Set,
    },
    runtime::{RuntimeError, Stopped},
    store::Excess,
    types::format_size,
};

/// How often the node's labels and taints are read.
const NODE_AGE: Duration = Duration::from_mins(5);

/// First wait after a failed write or read; doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// Longest wait.
const LONGEST_PAUSE: Duration = Duration::from_mins(2);

/// Granularity of reported sizes.
const STEP: u64 = 64 << 20;

pub(super) async fn run(shared: &Arc<Shared>) {
    tokio::join!(follow_node(shared), write(shared));
}

/// Reads the node regularly and publishes the sets that select it.
async fn follow_node(shared: &Shared) {
    let nodes: Api<Node> = Api::all(shared.client.clone());
    let name = &shared.config.node;
    let (mut sets, mut node, mut pause) = (shared.sets.subscribe(), None::<Node>, FIRST_PAUSE);
    let mut read_at = Instant::now();
    loop {
        if read_at <= Instant::now() {
            match within(nodes.get(name)).await {
                Ok(found) => {
                    node = Some(found);
                    (pause, read_at) = (FIRST_PAUSE, Instant::now() + around(NODE_AGE, fraction(name)));
                }
                Err(error) => {
                    log_failure(&error, &format!("cannot read the Node `{name}`"));
                    read_at = Instant::now() + around(pause, fraction(name));
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        if let Some(node) = &node {
            let wanted = wanted(shared, node);
            if let Some(wanted) = wanted {
                hand_on(shared, wanted);
            }
        }
        tokio::select! {
            changed = sets.changed() => {
                if changed.is_err() {
                    return;
                }
                sets.mark_unchanged();
            }
            () = tokio::time::sleep_until(read_at) => {}
        }
    }
}

fn wanted(shared: &Shared, node: &Node) -> Option<Vec<Wanted>> {
    let known = shared.sets.borrow();
    known.synced.then(|| {
        let selected = known.objects.values().filter(|set| {
            set.metadata.deletion_timestamp.is_none() && selects(&set.spec, node, &shared.config.taint)
        });
        selected.map(|set| translate::wanted(set, &shared.config.node)).collect()
    })
}

fn hand_on(shared: &Shared, wanted: Vec<Wanted>) {
    let changed = shared.wanted.send_if_modified(|before| {
        let changed = before.as_ref() != Some(&wanted);
        if changed {
            *before = Some(wanted.clone());
        }
        changed
    });
    if changed {
        for (name, problem) in wanted.iter().filter_map(|one| Some((&one.name, one.set.as_ref().err()?))) {
            tracing::warn!(set = name, problem, "cannot use an ImageSet");
        }
        let sets: Vec<Set> = wanted.into_iter().filter_map(|one| one.set.ok()).collect();
        shared.prepuller.follow_cluster(sets);
    }
}

/// Keeps the `NodeCache` up to date.
async fn write(shared: &Shared) {
    let part = fraction(&format!("write {}", shared.config.node));
    shared.checked().await;
    let (mut wanted, mut reports) = (shared.wanted.subscribe(), shared.prepuller.changes());
    let mut unreadable = shared.unreadable.subscribe();
    let (mut written, mut made) = (None::<NodeCacheStatus>, false);
    let (mut renewed, heartbeat) = (Instant::now(), around(shared.config.heartbeat, part));
    let (mut pause, mut told) = (FIRST_PAUSE, false);
    loop {
        let status = wanted.borrow_and_update().as_deref().map(|wanted| status(shared, wanted));
        reports.mark_unchanged();
        unreadable.mark_unchanged();
        let due = match status {
            Some(status) if written.as_ref() != Some(&status) => Some((status, Written::Whole)),
            Some(status) if renewed.elapsed() >= heartbeat => Some((status, Written::Renewed)),
            _ => None,
        };
        let rest = match due {
            None => None,
            Some((status, how)) => match put(shared, &status, how, &mut made).await {
                Ok(()) => {
                    tell_of_runtime(shared, &status, &mut told).await;
                    (written, renewed) = (Some(status), Instant::now());
                    pause = FIRST_PAUSE;
                    Some(shared.config.interval.mul_f64(0.5 + part))
                }
                Err(error) => {
                    log_failure(&error, "cannot write the NodeCache");
                    let rest = around(pause, part);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    Some(rest)
                }
            },
        };
        // Collects further changes for the same write.
        if let Some(rest) = rest {
            tokio::time::sleep(rest).await;
            continue;
        }
        let changed = async {
            tokio::select! {
                changed = wanted.changed() => changed.is_ok(),
                changed = reports.changed() => changed.is_ok(),
                changed = unreadable.changed() => changed.is_ok(),
                () = tokio::time::sleep_until(renewed + heartbeat), if written.is_some() => true,
            }
        };
        if !changed.await {
            return;
        }
        // Waits for further changes before the first write.
        tokio::time::sleep(shared.config.interval.mul_f64(part / 4.0)).await;
    }
}

fn status(shared: &Shared, wanted: &[Wanted]) -> NodeCacheStatus {
    let used = shared.store.totals().bytes.next_multiple_of(STEP);
    let disk = DiskStatus {
        used_bytes: used,
        used: format_size(used),
        trouble: shared.store.trouble().map(|trouble| trouble.kind.as_str().to_owned()),
    };
    let agent_version = env!("CARGO_PKG_VERSION").to_owned();
    let runtime = shared.prepuller.runtime_stopped().map(runtime_stopped);
    let conditions = runtime.into_iter().chain(shared.store.excess().map(store_too_small)).collect();
    NodeCacheStatus {
        agent_version,
        disk,
        conditions,
        ..translate::status(wanted, &shared.prepuller.report(), &shared.unreadable.borrow())
    }
}

/// The condition's type and reason, and the Event's reason.
const RUNTIME_USABLE: &str = "RuntimeUsable";
const RUNTIME_STOPPED: &str = "RuntimeStopped";

fn runtime_stopped(stopped: Stopped) -> Condition {
    Condition {
        type_: RUNTIME_USABLE.to_owned(),
        status: "False".to_owned(),
        reason: RUNTIME_STOPPED.to_owned(),
        message: RuntimeError::Stopped(stopped).to_string(),
        last_transition_time: Time(stopped.since),
        observed_generation: None,
    }
}

/// The condition's type and reason.
const STORE_LARGE_ENOUGH: &str = "StoreLargeEnough";
const PINNED_EXCEED: &str = "PinnedImagesExceedLimit";

fn store_too_small(excess: Excess) -> Condition {
    let bytes = format_size(excess.bytes.next_multiple_of(STEP));
    Condition {
        type_: STORE_LARGE_ENOUGH.to_owned(),
        status: "False".to_owned(),
        reason: PINNED_EXCEED.to_owned(),
        message: format!(
            "pinned images, and images in use, exceed what the store may hold by {bytes} (`store.limit`, `store.minFree`)"
        ),
        last_transition_time: Time(excess.since),
        observed_generation: None,
    }
}

/// Publishes one Event when the agent stops calling the container runtime of this node.
async fn tell_of_runtime(shared: &Shared, status: &NodeCacheStatus, told: &mut bool) {
    let Some(condition) = status.conditions.iter().find(|one| one.type_ == RUNTIME_USABLE) else { return };
    if *told {
        return;
    }
    let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(shared.config.node.clone()) };
    let event = Event {
        type_: EventType::Warning,
        reason: RUNTIME_STOPPED.to_owned(),
        note: Some(condition.message.clone()),
        action: "LoadImage".to_owned(),
        secondary: None,
    };
    // About the node: that is where administrators look when its runtime fails.
    let node = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(shared.config.node.clone()),
        uid: Some(shared.config.node.clone()),
        ..ObjectReference::default()
    };
    let recorder = Recorder::new(shared.client.clone(), reporter);
    match within(recorder.publish(&event, &node)).await {
        Ok(()) => *told = true,
        Err(error) => {
            log_failure(&error, "cannot publish an Event about the container runtime");
        }
    }
}

/// How a `NodeCache` is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// The whole status, because it has changed.
    Whole,
    /// Its time alone.
    Renewed,
}

async fn put(
    shared: &Shared,
    status: &NodeCacheStatus,
    how: Written,
    made: &mut bool,
) -> Result<(), kube::Error> {
    let caches: Api<NodeCache> = Api::all(shared.client.clone());
    let name = &shared.config.node;
    let parameters = PatchParams::apply(MANAGER).force();
    // A new object has no status to renew.
    let how = if *made { how } else { Written::Whole };
    if !*made {
        let object = make(shared).await?;
        within(caches.patch(name, &parameters, &Patch::Apply(&object))).await?;
        *made = true;
    }
    let updated = Time(Timestamp::now());
    let patch = match how {
        Written::Whole => {
            let status = NodeCacheStatus { updated: Some(updated), ..status.clone() };
            Patch::Apply(json!({
                "apiVersion": "hearth.dev/v1alpha1", "kind": "NodeCache", "metadata": {"name": name}, "status": status,
            }))
        }
        Written::Renewed => Patch::Merge(json!({"status": {"updated": updated}})),
    };
    let parameters =
        if how == Written::Whole { parameters } else { PatchParams { force: false, ..parameters } };
    let written = within(caches.patch_status(name, &parameters, &patch)).await;
    // The object was removed: the next attempt creates it again.
    *made = !written.as_ref().is_err_and(|error| has_code(error, &[404]));
    written.map(drop)
}

/// Creates the object without a status; owned by the node, when the node can be read.
async fn make(shared: &Shared) -> Result<NodeCache, kube::Error> {
    let nodes: Api<Node> = Api::all(shared.client.clone());
    let name = &shared.config.node;
    let mut object = NodeCache::new(name, NodeCacheSpec { node_name: name.clone() });
    let node = within(nodes.get_opt(name)).await?;
    object.metadata.owner_references = node.and_then(|node| node.metadata.uid).map(|uid| {
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.clone(),
            uid,
            ..OwnerReference::default()
        };
        vec![owner]
    });
    Ok(object)
}
