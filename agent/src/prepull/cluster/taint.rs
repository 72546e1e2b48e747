//! Removes the start-up taint of a new node when the pinned images of its sets are cached, or after a deadline
//! in any case, and keeps the condition `HearthImagesReady` and the labels of warm sets.
//!
//! The API treats a node's taints as one value, and others change them too: a JSON patch tests the old list
//! before it replaces it, and on a conflict the node is read again. The taint may come back (a node group is
//! reconfigured, a kubelet registers again), so the node is checked as long as the agent runs.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{GetParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use super::{Readiness, labels};
use crate::kubernetes::{forbidden, within};

/// The condition's type.
pub(crate) const CONDITION: &str = "HearthImagesReady";

/// How often the node is read until its images are cached.
const WARMING: Duration = Duration::from_secs(3);

/// Conflicts in a row that are retried at once; after that the next check decides.
const ATTEMPTS: u32 = 5;

/// First wait after a conflict; grows by half with each further conflict.
const PAUSE: Duration = Duration::from_millis(250);

/// What the node is to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) readiness: Readiness,
    /// The labels of warm sets.
    pub(crate) labels: BTreeSet<String>,
}

/// The state of the images, and for how long the node has had the taint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) readiness: Readiness,
    pub(crate) tainted_for: Duration,
    pub(crate) deadline: Duration,
}

/// What to change on a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    /// The remaining taints; `None` when nothing changes.
    pub(crate) taints: Option<Vec<Taint>>,
    /// The condition, when it is to be written.
    pub(crate) condition: Option<(bool, &'static str, String)>,
}

/// Decides what to change. Pure.
pub(crate) fn decide(node: &Node, key: &str, view: View) -> Change {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let tainted = taints.iter().any(|taint| taint.key == key);
    let late = view.tainted_for >= view.deadline;
    let kept = || taints.iter().filter(|taint| taint.key != key).cloned().collect();
    let release = tainted && (view.readiness.is_ready() || late);
    let wanted = condition(view.readiness, tainted && late && !view.readiness.is_ready());
    let written = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let same = written.clone().any(|now: &NodeCondition| {
        now.type_ == CONDITION
            && now.status == if wanted.0 { "True" } else { "False" }
            && now.reason.as_deref() == Some(wanted.1)
            && now.message.as_deref() == Some(wanted.2.as_str())
    });
    // A missed deadline stays in the condition until all images are cached.
    let passed = !view.readiness.is_ready()
        && !tainted
        && written.into_iter().any(|now| now.type_ == CONDITION && now.reason.as_deref() == Some(DEADLINE));
    Change { taints: release.then(kept), condition: (!same && !passed).then_some(wanted) }
}

const DEADLINE: &str = "DeadlinePassed";

fn condition(readiness: Readiness, given_up: bool) -> (bool, &'static str, String) {
    let Readiness { here, wanted, known } = readiness;
    if !known {
        return (false, "SetsUnknown", "the ImageSets have not been read yet".to_owned());
    }
    let count = format!("{here} of {wanted} pinned images are cached");
    match (readiness.is_ready(), given_up) {
        (true, _) => (true, "Warm", count),
        (false, true) => (false, DEADLINE, format!("{count}; the taint was removed after the deadline")),
        (false, false) => (false, "Warming", count),
    }
}

/// Applies the changes until the caller stops it.
pub(crate) struct TaintController {
    pub(crate) client: Client,
    pub(crate) node: String,
    pub(crate) taint: String,
    pub(crate) deadline: Duration,
    pub(crate) idle: Duration,
}

impl TaintController {
    /// `wish` is called before every check, and after each of `changes`.
    pub(crate) async fn run(self, mut changes: watch::Receiver<u64>, wish: impl Fn() -> Wish) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let (mut tainted_since, mut denied, mut unlabelled) = (None::<Instant>, false, false);
        loop {
            let now = wish();
            match self.look(&nodes, now.readiness, &mut tainted_since).await {
                Ok(node) => {
                    denied = false;
                    self.label(&nodes, &node, &now.labels, &mut unlabelled).await;
                }
                Err(error) if forbidden(&error) => {
                    if !denied {
                        tracing::warn!(%error, "the agent is not allowed to change its Node: start-up taint and condition stay as they are");
                    }
                    denied = true;
                }
                Err(error) => tracing::debug!(%error, "cannot read the Node: retrying"),
            }
            let busy = !denied && (tainted_since.is_some() || !now.readiness.is_ready());
            let rest = if busy { WARMING.min(self.idle) } else { self.idle };
            let until = Instant::now() + rest;
            tokio::time::sleep(WARMING.min(rest)).await;
            while wish() == now && Instant::now() < until {
                let change = tokio::time::timeout_at(until, changes.changed());
                if !matches!(change.await, Ok(Ok(()))) {
                    tokio::time::sleep_until(until).await;
                }
            }
        }
    }

    /// Labels differ from all other changes in that nothing depends on them: when they cannot be written, that is all.
    async fn label(&self, nodes: &Api<Node>, node: &Node, warm: &BTreeSet<String>, denied: &mut bool) {
        let now = node.metadata.labels.clone().unwrap_or_default();
        let changes = labels::changes(&now, warm);
        if changes.is_empty() {
            return;
        }
        let patch = Patch::Merge(json!({"metadata": {"labels": changes}}));
        match within(nodes.patch(&self.node, &PatchParams::default(), &patch)).await {
            Ok(_) => {
                *denied = false;
                tracing::info!(?changes, "labels of warm sets changed");
            }
            Err(error) if forbidden(&error) => {
                if !*denied {
                    tracing::warn!(%error, "the agent is not allowed to label its Node: update the admission policy");
                }
                *denied = true;
            }
            Err(error) => tracing::debug!(%error, "cannot label the Node: retrying"),
        }
    }

    async fn look(
        &self,
        nodes: &Api<Node>,
        readiness: Readiness,
        since: &mut Option<Instant>,
    ) -> Result<Node, kube::Error> {
        let (mut pause, mut attempt) = (PAUSE, 0);
        loop {
            attempt += 1;
            // The first read may come from the server's cache: the patch tests the old value.
            let how = if attempt == 1 { GetParams::any() } else { GetParams::default() };
            let node = within(nodes.get_with(&self.node, &how)).await?;
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
            let tainted = taints.iter().any(|taint| taint.key == self.taint);
            *since = if tainted { Some(since.unwrap_or_else(Instant::now)) } else { None };
            let tainted_for = since.map_or(Duration::ZERO, |since| since.elapsed());
            let change = decide(&node, &self.taint, View { readiness, tainted_for, deadline: self.deadline });
            if let Some((holds, reason, message)) = change.condition {
                self.set_condition(nodes, holds, reason, &message).await?;
            }
            let Some(kept) = change.taints else { return Ok(node) };
            match self.set_taints(nodes, &taints, &kept).await {
                Ok(()) => {
                    tracing::info!(taint = self.taint, warm = readiness.is_ready(), waited = ?tainted_for, "start-up taint removed");
                    *since = None;
                    return Ok(node);
                }
                Err(error) if attempt < ATTEMPTS && !forbidden(&error) => {
                    tracing::debug!(%error, "the taints changed meanwhile: reading the Node again");
                    tokio::time::sleep(pause).await;
                    pause = pause * 3 / 2;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn set_taints(&self, nodes: &Api<Node>, old: &[Taint], kept: &[Taint]) -> Result<(), kube::Error> {
        let operations = json!([
            {"op": "test", "path": "/spec/taints", "value": old},
            {"op": "replace", "path": "/spec/taints", "value": kept},
        ]);
        let patch: json_patch::Patch = serde_json::from_value(operations).map_err(kube::Error::SerdeError)?;
        let parameters = PatchParams::default();
        within(nodes.patch(&self.node, &parameters, &Patch::<Node>::Json(patch))).await.map(drop)
    }

    async fn set_condition(
        &self,
        nodes: &Api<Node>,
        holds: bool,
        reason: &str,
        message: &str,
    ) -> Result<(), kube::Error> {
        let now = Time(Timestamp::now());
        let patch = json!({"status": {"conditions": [{
            "type": CONDITION, "status": if holds { "True" } else { "False" }, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        }]}});
        let parameters = PatchParams::default();
        within(nodes.patch_status(&self.node, &parameters, &Patch::Strategic(patch))).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const KEY: &str = "hearth.dev/warming";

    fn node(taints: &[&str], reason: &str) -> Node {
        let taints: Vec<_> = taints.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
        let status = if reason == "Warm" { "True" } else { "False" };
        let conditions = if reason.is_empty() {
            Value::Null
        } else {
            json!([{"type": CONDITION, "status": status, "reason": reason, "message": "2 of 2 pinned images are cached"}])
        };
        serde_json::from_value(json!({
            "metadata": {"name": "n"}, "spec": {"taints": taints}, "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    #[test]
    fn the_taint_is_removed_when_the_images_are_cached_or_after_the_deadline_and_others_stay() {
        let minute = Duration::from_mins(1);
        let readiness = |here, known| Readiness { here, wanted: 2, known };
        // taints, condition before, cached images, sets known, tainted for; written taints, condition's reason
        for (taints, before, here, known, minutes, kept, reason) in [
            (&[KEY, "other"][..], "", 2, true, 0, Some(&["other"][..]), Some("Warm")),
            (&[KEY, KEY], "Warm", 2, true, 0, Some(&[]), None),
            (&[KEY], "", 1, true, 4, None, Some("Warming")),
            (&[KEY], "", 1, true, 5, Some(&[]), Some("DeadlinePassed")),
            (&[KEY], "", 2, false, 0, None, Some("SetsUnknown")),
            (&[KEY], "", 2, false, 9, Some(&[]), Some("SetsUnknown")),
            (&["other"], "Warm", 2, true, 0, None, None),
            (&[], "DeadlinePassed", 1, true, 0, None, None),
            (&[], "DeadlinePassed", 2, true, 0, None, Some("Warm")),
        ] {
            let view = View {
                readiness: readiness(here, known),
                tainted_for: minute * minutes,
                deadline: minute * 5,
            };
            let change = decide(&node(taints, before), KEY, view);
            let keys = change.taints.map(|kept| kept.into_iter().map(|taint| taint.key).collect::<Vec<_>>());
            assert_eq!(
                keys,
                kept.map(|kept| kept.iter().map(ToString::to_string).collect()),
                "{taints:?} {view:?}"
            );
            assert_eq!(change.condition.map(|condition| condition.1), reason, "{taints:?} {view:?}");
        }
    }
}
