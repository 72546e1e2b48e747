//! The conditions of a `NodeCache`, and the Events about them.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use super::{MANAGER, Shared};
use crate::{
    kubernetes::{log_failure, within},
    proof::{CHECKING, Proof},
    runtime::{RuntimeError, Stopped},
    store::Excess,
    types::format_size,
};

/// Granularity of reported sizes.
pub(super) const STEP: u64 = 64 << 20;

/// The condition's type; its reasons are those of the proof.
pub(super) const USES_AGENT: &str = "RuntimeUsesAgent";

pub(super) fn uses_agent(proof: &Proof) -> Condition {
    Condition {
        type_: USES_AGENT.to_owned(),
        status: proof.verdict.holds.as_str().to_owned(),
        reason: proof.verdict.reason.to_owned(),
        message: proof.verdict.message.clone(),
        last_transition_time: Time(proof.since),
        observed_generation: None,
    }
}

/// The condition's type and reason, and the Event's reason.
const RUNTIME_USABLE: &str = "RuntimeUsable";
const RUNTIME_STOPPED: &str = "RuntimeStopped";

pub(super) fn runtime_stopped(stopped: Stopped) -> Condition {
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

pub(super) fn store_too_small(excess: Excess) -> Condition {
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

/// Longest text of an Event.
const LONGEST_NOTE: usize = 1_000;

/// The Event about a condition: its action. Other conditions have none.
fn action(condition: &Condition) -> Option<&'static str> {
    match condition.type_.as_str() {
        RUNTIME_USABLE => Some("LoadImage"),
        USES_AGENT if condition.reason != CHECKING => Some("Prove"),
        _ => None,
    }
}

/// Publishes one Event for each state of the container runtime that is new: `told` are those of this process, and an earlier
/// process has told of what it has written.
pub(super) async fn tell(
    shared: &Shared,
    conditions: &[Condition],
    earlier: Option<&Condition>,
    told: &mut BTreeSet<(String, String)>,
) {
    for condition in conditions {
        let Some(action) = action(condition) else { continue };
        let state = (condition.type_.clone(), condition.reason.clone());
        if told.contains(&state) {
            continue;
        }
        if earlier.is_some_and(|earlier| says_the_same(earlier, condition)) {
            told.insert(state);
            continue;
        }
        match within(publish(shared, condition, action)).await {
            Ok(()) => drop(told.insert(state)),
            Err(error) => log_failure(&error, "cannot publish an Event about the container runtime"),
        }
    }
}

async fn publish(shared: &Shared, condition: &Condition, action: &str) -> Result<(), kube::Error> {
    let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(shared.config.node.clone()) };
    let event = Event {
        type_: if condition.status == "False" { EventType::Warning } else { EventType::Normal },
        reason: condition.reason.clone(),
        note: Some(condition.message.chars().take(LONGEST_NOTE).collect()),
        action: action.to_owned(),
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
    Recorder::new(shared.client.clone(), reporter).publish(&event, &node).await
}

fn says_the_same(one: &Condition, other: &Condition) -> bool {
    (&one.type_, &one.status, &one.reason, &one.message)
        == (&other.type_, &other.status, &other.reason, &other.message)
}
