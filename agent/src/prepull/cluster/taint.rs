//! A node that joins is warmed first: the start-up taint goes when the node's pinned sets are here, or after a deadline
//! whatever happens; the condition `HearthImagesReady` says how it stands.
//!
//! The node's taints are one value to the server, and others change them too: the list goes back as a JSON patch that
//! tests the old one, and on a refusal the node is read again. The taint may come back (a node group that is
//! reconfigured, a kubelet that registers anew), so the node is looked at as long as the agent runs.

use std::time::Duration;

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
use tokio::time::Instant;

use super::Warmth;
use crate::kubernetes::{forbidden, within};

/// The condition's type.
pub(crate) const CONDITION: &str = "HearthImagesReady";

/// How often the node is looked at while it warms.
const WARMING: Duration = Duration::from_secs(3);

/// Refusals in a row that are answered at once; after that the next look decides.
const ATTEMPTS: u32 = 5;

/// First wait after a refusal; half as long again with each further one.
const PAUSE: Duration = Duration::from_millis(250);

/// What holds, and since when the taint has been there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) warmth: Warmth,
    pub(crate) tainted_for: Duration,
    pub(crate) deadline: Duration,
}

/// What is to become of a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    /// The taints that stay; nothing when they are right.
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
    let release = tainted && (view.warmth.is_warm() || late);
    let wanted = condition(view.warmth, tainted && late && !view.warmth.is_warm());
    let written = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let same = written.clone().any(|now: &NodeCondition| {
        now.type_ == CONDITION
            && now.status == if wanted.0 { "True" } else { "False" }
            && now.reason.as_deref() == Some(wanted.1)
            && now.message.as_deref() == Some(wanted.2.as_str())
    });
    // A deadline that has passed is remembered until the images are here.
    let passed = !view.warmth.is_warm()
        && !tainted
        && written.into_iter().any(|now| now.type_ == CONDITION && now.reason.as_deref() == Some(DEADLINE));
    Change { taints: release.then(kept), condition: (!same && !passed).then_some(wanted) }
}

const DEADLINE: &str = "DeadlinePassed";

fn condition(warmth: Warmth, given_up: bool) -> (bool, &'static str, String) {
    let Warmth { here, wanted, known } = warmth;
    if !known {
        return (false, "SetsUnknown", "the image sets were not read yet".to_owned());
    }
    let count = format!("{here} of {wanted} pinned images are here");
    match (warmth.is_warm(), given_up) {
        (true, _) => (true, "Warm", count),
        (false, true) => (false, DEADLINE, format!("{count}; pods are let in all the same")),
        (false, false) => (false, "Warming", count),
    }
}

/// Carries changes out until the caller stops it.
pub(crate) struct Warden {
    pub(crate) client: Client,
    pub(crate) node: String,
    pub(crate) taint: String,
    pub(crate) deadline: Duration,
    pub(crate) idle: Duration,
}

impl Warden {
    /// `warmth` is asked before every look.
    pub(crate) async fn run(self, warmth: impl Fn() -> Warmth) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let (mut tainted_since, mut denied) = (None::<Instant>, false);
        loop {
            let now = warmth();
            match self.look(&nodes, now, &mut tainted_since).await {
                Ok(()) => denied = false,
                Err(error) if forbidden(&error) => {
                    if !denied {
                        tracing::warn!(%error, "the agent may not change its node: start-up taint and condition are left alone");
                    }
                    denied = true;
                }
                Err(error) => tracing::debug!(%error, "the node was not looked at: tried again"),
            }
            let busy = !denied && (tainted_since.is_some() || !now.is_warm());
            tokio::time::sleep(if busy { WARMING.min(self.idle) } else { self.idle }).await;
        }
    }

    async fn look(
        &self,
        nodes: &Api<Node>,
        warmth: Warmth,
        since: &mut Option<Instant>,
    ) -> Result<(), kube::Error> {
        let mut pause = PAUSE;
        for attempt in 1..=ATTEMPTS {
            // The first look may be answered from the server's cache: the patch tests what was read.
            let how = if attempt == 1 { GetParams::any() } else { GetParams::default() };
            let node = within(nodes.get_with(&self.node, &how)).await?;
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
            let tainted = taints.iter().any(|taint| taint.key == self.taint);
            *since = if tainted { Some(since.unwrap_or_else(Instant::now)) } else { None };
            let tainted_for = since.map_or(Duration::ZERO, |since| since.elapsed());
            let change = decide(&node, &self.taint, View { warmth, tainted_for, deadline: self.deadline });
            if let Some((holds, reason, message)) = change.condition {
                self.set_condition(nodes, holds, reason, &message).await?;
            }
            let Some(kept) = change.taints else { return Ok(()) };
            match self.set_taints(nodes, &taints, &kept).await {
                Ok(()) => {
                    tracing::info!(taint = self.taint, warm = warmth.is_warm(), waited = ?tainted_for, "start-up taint removed");
                    *since = None;
                    return Ok(());
                }
                Err(error) if attempt < ATTEMPTS && !forbidden(&error) => {
                    tracing::debug!(%error, "the taints changed meanwhile: the node is read again");
                    tokio::time::sleep(pause).await;
                    pause = pause * 3 / 2;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
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
            json!([{"type": CONDITION, "status": status, "reason": reason, "message": "2 of 2 pinned images are here"}])
        };
        serde_json::from_value(json!({
            "metadata": {"name": "n"}, "spec": {"taints": taints}, "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    #[test]
    fn the_taint_goes_when_the_images_are_here_or_the_deadline_passed_and_others_stay() {
        let minute = Duration::from_mins(1);
        let warmth = |here, known| Warmth { here, wanted: 2, known };
        // taints, condition so far, images here, sets known, tainted for; taints that are written, condition's reason
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
            let view =
                View { warmth: warmth(here, known), tainted_for: minute * minutes, deadline: minute * 5 };
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
