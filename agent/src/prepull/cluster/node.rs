//! This node's part: which sets select it, and its own `NodeCache`.
//!
//! The `NodeCache` is written when it has changed, at most once per interval, at times that differ by node, so
//! that thousands of nodes do not write together. When nothing changes, its time alone is renewed, so that the controller
//! knows that this agent runs. The node owns it, so that both are removed together.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::Node,
    apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time},
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::Instant;

use super::{
    MANAGER, Shared,
    condition::{STEP, USES_AGENT, runtime_stopped, store_too_small, tell, uses_agent},
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
    proof::RESTORED,
    types::format_size,
};

/// How often the node's labels and taints are read.
const NODE_AGE: Duration = Duration::from_mins(5);

/// First wait after a failed write or read; doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// Longest wait.
const LONGEST_PAUSE: Duration = Duration::from_mins(2);

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
    let (mut unreadable, mut proof) = (shared.unreadable.subscribe(), shared.proof.clone());
    let (mut written, mut object) = (None::<NodeCacheStatus>, Object::default());
    let (mut renewed, heartbeat) = (Instant::now(), around(shared.config.heartbeat, part));
    let (mut pause, mut told) = (FIRST_PAUSE, BTreeSet::new());
    loop {
        let status = wanted.borrow_and_update().as_deref().map(|wanted| status(shared, wanted));
        reports.mark_unchanged();
        unreadable.mark_unchanged();
        proof.mark_unchanged();
        let due = match status {
            Some(status) if written.as_ref() != Some(&status) => Some((status, Written::Whole)),
            Some(status) if renewed.elapsed() >= heartbeat => Some((status, Written::Renewed)),
            _ => None,
        };
        let rest = match due {
            None => None,
            Some((status, how)) => match put(shared, &status, how, &mut object).await {
                Ok(()) => {
                    let conditions = object.with_earlier(&status).conditions;
                    tell(shared, &conditions, object.earlier.as_ref(), &mut told).await;
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
                Ok(()) = proof.changed() => true,
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
    let proof = shared.proof.borrow().clone();
    let stopped = shared.prepuller.runtime_stopped().map(runtime_stopped);
    let conditions = [Some(uses_agent(&proof)), stopped, shared.store.excess().map(store_too_small)];
    NodeCacheStatus {
        agent_version,
        runtime: proof.verdict.runtime,
        disk,
        conditions: conditions.into_iter().flatten().collect(),
        ..translate::status(wanted, &shared.prepuller.report(), &shared.unreadable.borrow())
    }
}

/// The `NodeCache` of this node, as far as known.
#[derive(Debug, Default)]
struct Object {
    /// It exists.
    made: bool,
    /// The proof of an earlier process, with the runtime's name and version.
    earlier: Option<Condition>,
    runtime: Option<String>,
}

impl Object {
    /// Keeps what an earlier process wrote, as it is read when the object is made.
    fn keep_earlier(&mut self, status: Option<NodeCacheStatus>) {
        let Some(status) = status else { return };
        self.earlier = status.conditions.into_iter().find(|one| one.type_ == USES_AGENT);
        self.runtime = status.runtime;
    }

    /// A proof of an earlier process stands until this process finds anything else: an update of the agent changes no status.
    fn with_earlier(&self, status: &NodeCacheStatus) -> NodeCacheStatus {
        let mut status = status.clone();
        let Some(earlier) = self.earlier.as_ref().filter(|earlier| earlier.status == "True") else {
            return status;
        };
        let unknown = |one: &&mut Condition| one.type_ == USES_AGENT && one.status == "Unknown";
        if let Some(condition) =
            status.conditions.iter_mut().find(unknown).filter(|one| one.reason != RESTORED)
        {
            *condition = earlier.clone();
            status.runtime = self.runtime.clone().or(status.runtime);
        }
        status
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
    object: &mut Object,
) -> Result<(), kube::Error> {
    let caches: Api<NodeCache> = Api::all(shared.client.clone());
    let name = &shared.config.node;
    let parameters = PatchParams::apply(MANAGER).force();
    // A new object has no status to renew.
    let how = if object.made { how } else { Written::Whole };
    if !object.made {
        let new = make(shared).await?;
        let found = within(caches.patch(name, &parameters, &Patch::Apply(&new))).await?;
        object.made = true;
        object.keep_earlier(found.status);
    }
    let updated = Time(Timestamp::now());
    let patch = match how {
        Written::Whole => {
            let status = NodeCacheStatus { updated: Some(updated), ..object.with_earlier(status) };
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
    object.made = !written.as_ref().is_err_and(|error| has_code(error, &[404]));
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
