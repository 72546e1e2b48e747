//! The work of one agent for all: aggregates the status of sets, removes expired sets, publishes Events,
//! creates sets for Spark applications.
//!
//! All agents watch the sets and so receive each write of a set's status: it is written only when it has
//! changed, and less often with more nodes.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api, Resource as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::{
        events::{Event, EventType, Recorder, Reporter},
        watcher,
    },
};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Shared, aggregate::aggregate, lease::RENEW};
use crate::{
    kubernetes::{Known, follow, has_code, within},
    prepull::{
        crd::{ImageSet, ImageSetStatus, NodeCache, NodeCacheStatus},
        jitter::fraction,
        spark,
    },
};

/// Name of the lease.
pub(super) const LEASE: &str = "hearth-leader";

/// Field manager of the status of sets.
const MANAGER: &str = "hearth-leader";

/// The interval between two writes of a status grows by one second per this many nodes.
const NODES_A_SECOND: u32 = 100;

/// Failed renewals after which another agent may be the leader.
const MISSED: u32 = 2;

type Nodes = watch::Sender<Known<NodeCacheStatus>>;

pub(super) async fn run(shared: &Arc<Shared>, stop: &CancellationToken) {
    let part = fraction(&format!("lead {}", shared.config.node));
    let mut elector = shared.elector();
    let mut pause = RENEW;
    while !stop.is_cancelled() {
        match within(elector.look(0)).await {
            Ok(None) => {
                pause = RENEW;
                tracing::info!(node = shared.config.node, "this agent became the leader");
                shared.leads.store(true, Ordering::Relaxed);
                Box::pin(lead(shared, &mut elector)).await;
                shared.leads.store(false, Ordering::Relaxed);
                tracing::info!(node = shared.config.node, "lost the lease: another agent becomes the leader");
            }
            Ok(Some(rest)) => {
                pause = RENEW;
                tokio::time::sleep(rest).await;
            }
            Err(error) => {
                tracing::debug!(%error, "cannot read the lease: retrying");
                tokio::time::sleep(pause.mul_f64(0.5 + part)).await;
                pause = (pause * 2).min(Duration::from_mins(2));
            }
        }
    }
}

/// Runs until the lease is lost.
async fn lead(shared: &Arc<Shared>, elector: &mut super::lease::Elector) {
    let nodes: Nodes = watch::Sender::default();
    let follow = follow::<NodeCache, _>(
        Api::all(shared.client.clone()),
        watcher::Config::default(),
        |cache| cache.status.unwrap_or_default(),
        nodes.clone(),
    );
    let applications = async {
        match &shared.config.spark {
            Some(config) => Box::pin(spark::run(&shared.client, config, &shared.sets)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = follow => {}
        () = write_statuses(shared, &nodes) => {}
        () = applications => {}
        () = renew(elector, &nodes) => {}
    }
}

/// Ends when another agent is the leader, or when the API server has not answered for so long that another
/// agent may be.
async fn renew(elector: &mut super::lease::Elector, nodes: &Nodes) {
    let mut missed = 0;
    while missed <= MISSED {
        tokio::time::sleep(RENEW).await;
        let count = u32::try_from(nodes.borrow().objects.len()).unwrap_or(u32::MAX);
        match within(elector.look(count)).await {
            Ok(None) => missed = 0,
            Ok(Some(_)) => return,
            Err(error) => {
                tracing::debug!(%error, "cannot renew the lease: retrying");
                missed += 1;
            }
        }
    }
}

async fn write_statuses(shared: &Arc<Shared>, nodes: &Nodes) {
    let mut writer = StatusWriter::new(shared);
    loop {
        let count = u32::try_from(nodes.borrow().objects.len()).unwrap_or(u32::MAX);
        tokio::time::sleep(shared.config.interval.max(Duration::from_secs(1) * count / NODES_A_SECOND)).await;
        if !nodes.borrow().synced {
            continue;
        }
        let sets: Vec<ImageSet> = shared.sets.borrow().objects.values().cloned().collect();
        writer.forget_all_but(&sets);
        for set in sets {
            let outcome = if is_over(&set, Timestamp::now()) {
                remove(shared, &set).await
            } else {
                let status = {
                    let nodes = nodes.borrow();
                    let nodes = nodes.objects.iter().map(|(name, status)| (name.as_str(), status));
                    aggregate(&set, nodes, &Time(Timestamp::now()))
                };
                writer.tell(&set, status).await
            };
            if let Err(error) = outcome {
                tracing::warn!(set = set.metadata.name, %error, "cannot write the status of an ImageSet: retrying");
                // After an error the other sets wait for the next round.
                break;
            }
        }
    }
}

/// Whether a set has expired. Pure.
fn is_over(set: &ImageSet, now: Timestamp) -> bool {
    let created = set.metadata.creation_timestamp.as_ref().map(|created| created.0);
    let end = created
        .zip(set.spec.ttl_seconds)
        .and_then(|(created, seconds)| created.checked_add(Duration::from_secs(u64::from(seconds))).ok());
    end.is_some_and(|end| end <= now)
}

async fn remove(shared: &Shared, set: &ImageSet) -> Result<(), kube::Error> {
    let sets: Api<ImageSet> = Api::all(shared.client.clone());
    let name = set.metadata.name.as_deref().unwrap_or_default();
    // A new set with the same name is not removed.
    let preconditions = Preconditions { uid: set.metadata.uid.clone(), resource_version: None };
    let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match within(sets.delete(name, &parameters)).await {
        Err(error) if !has_code(&error, &[404, 409]) => Err(error),
        _ => {
            tracing::info!(set = name, "removed an expired ImageSet (`ttlSeconds`)");
            Ok(())
        }
    }
}

/// Writes changed statuses, and publishes Events about changes.
struct StatusWriter<'a> {
    shared: &'a Shared,
    recorder: Recorder,
    /// The status written last, by the set's uid: the watch may lag behind.
    written: HashMap<String, ImageSetStatus>,
}

impl<'a> StatusWriter<'a> {
    fn new(shared: &'a Shared) -> Self {
        let reporter =
            Reporter { controller: MANAGER.to_owned(), instance: Some(shared.config.node.clone()) };
        let recorder = Recorder::new(shared.client.clone(), reporter);
        Self { shared, recorder, written: HashMap::new() }
    }

    fn forget_all_but(&mut self, sets: &[ImageSet]) {
        self.written.retain(|uid, _| sets.iter().any(|set| set.metadata.uid.as_deref() == Some(uid)));
    }

    async fn tell(&mut self, set: &ImageSet, status: ImageSetStatus) -> Result<(), kube::Error> {
        let uid = set.metadata.uid.clone().unwrap_or_default();
        let before = self.written.get(&uid).or(set.status.as_ref());
        if before.is_some_and(|before| same(before, &status)) {
            return Ok(());
        }
        let events = news(before, &status);
        let sets: Api<ImageSet> = Api::all(self.shared.client.clone());
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({
            "apiVersion": "hearth.dev/v1alpha1", "kind": "ImageSet", "metadata": {"name": name}, "status": status,
        });
        let parameters = PatchParams::apply(MANAGER).force();
        match within(sets.patch_status(name, &parameters, &Patch::Apply(patch))).await {
            Err(error) if has_code(&error, &[404]) => return Ok(()),
            written => written?,
        };
        self.written.insert(uid, status);
        for event in events {
            // A lost Event is only logged.
            if let Err(error) = within(self.recorder.publish(&event, &set.object_ref(&()))).await {
                tracing::debug!(%error, "cannot publish an Event");
            }
        }
        Ok(())
    }
}

/// Whether two statuses are equal except for the times of conditions, which follow from the rest.
fn same(a: &ImageSetStatus, b: &ImageSetStatus) -> bool {
    let timeless = |status: &ImageSetStatus| {
        let mut status = status.clone();
        for condition in &mut status.conditions {
            condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
        }
        status
    };
    timeless(a) == timeless(b)
}

/// The Events for a change of a status. Pure.
fn news(before: Option<&ImageSetStatus>, now: &ImageSetStatus) -> Vec<Event> {
    let holds = |status: &ImageSetStatus, name: &str| {
        status.conditions.iter().any(|condition| condition.type_ == name && condition.status == "True")
    };
    let began = |name: &str| holds(now, name) && !before.is_some_and(|before| holds(before, name));
    let message = |name: &str| {
        now.conditions.iter().find(|condition| condition.type_ == name).map(|found| found.message.clone())
    };
    let event = |type_, reason: &str, note| Event {
        type_,
        reason: reason.to_owned(),
        note,
        action: "PrePull".to_owned(),
        secondary: None,
    };
    let mut events = Vec::new();
    if began("Progressing") {
        let note = format!("images are being pulled on {} nodes", now.nodes_desired - now.nodes_ready);
        events.push(event(EventType::Normal, "Pulling", Some(note)));
    }
    if began("Degraded") {
        events.push(event(EventType::Warning, "ImagesFailed", message("Degraded")));
    }
    // A set without nodes is ready, but not reported as complete; the first node may be ready before the next
    // check.
    let complete = |status: &ImageSetStatus| holds(status, "Ready") && status.nodes_desired > 0;
    if complete(now) && !before.is_some_and(complete) {
        events.push(event(EventType::Normal, "Complete", message("Ready")));
    }
    for image in &now.images {
        let old = before.and_then(|before| before.images.iter().find(|old| old.image == image.image));
        let first = |status: &crate::prepull::crd::ImageStatus| {
            status.digests.first().map(|first| first.digest.clone())
        };
        if let Some((from, to)) = old.and_then(first).zip(first(image)).filter(|(from, to)| from != to) {
            let note = format!("`{}` now resolves to `{to}` on most nodes, before to `{from}`", image.image);
            events.push(event(EventType::Normal, "TagChanged", Some(note)));
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: serde_json::Value) -> ImageSetStatus {
        serde_json::from_value(value).unwrap()
    }

    fn condition(name: &str, holds: bool, at: &str) -> serde_json::Value {
        let holds = if holds { "True" } else { "False" };
        json!({"type": name, "status": holds, "reason": "R", "message": "m", "lastTransitionTime": at})
    }

    #[test]
    fn an_event_is_published_once_when_something_begins() {
        let at = "2026-01-01T00:00:00Z";
        let of = |progressing, degraded, ready, digest: &str| {
            status(json!({
                "nodesDesired": 3, "nodesReady": 1,
                "images": [{"image": "a", "digests": [{"digest": digest, "nodes": 2}]}],
                "conditions": [condition("Progressing", progressing, at), condition("Degraded", degraded, at), condition("Ready", ready, at)],
            }))
        };
        let reasons = |before: Option<&ImageSetStatus>, now: &ImageSetStatus| {
            news(before, now).into_iter().map(|event| event.reason).collect::<Vec<_>>()
        };
        let (pulling, ready) = (of(true, false, false, "d1"), of(false, false, true, "d1"));
        assert_eq!(reasons(None, &pulling), ["Pulling"]);
        assert_eq!(reasons(Some(&pulling), &pulling), [""; 0]);
        assert_eq!(reasons(Some(&pulling), &ready), ["Complete"]);
        let idle = status(json!({"conditions": [condition("Ready", true, at)]}));
        assert_eq!(reasons(None, &idle), [""; 0], "a set without nodes");
        assert_eq!(
            reasons(Some(&idle), &ready),
            ["Complete"],
            "the first node was ready before the next check"
        );
        assert_eq!(reasons(Some(&ready), &of(true, true, false, "d1")), ["Pulling", "ImagesFailed"]);
        assert_eq!(reasons(Some(&ready), &of(false, false, true, "d2")), ["TagChanged"]);
        let later = status(json!({"conditions": [condition("Ready", true, "2027-01-01T00:00:00Z")]}));
        assert!(same(&later, &status(json!({"conditions": [condition("Ready", true, at)]}))));
    }

    #[test]
    fn a_set_with_a_time_to_live_expires_after_that_time() {
        let set = |ttl: Option<u32>| -> ImageSet {
            serde_json::from_value(json!({
                "apiVersion": "hearth.dev/v1alpha1", "kind": "ImageSet",
                "metadata": {"name": "s", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"images": ["a"], "ttlSeconds": ttl},
            }))
            .unwrap()
        };
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(!is_over(&set(Some(60)), at("2026-01-01T00:00:59Z")));
        assert!(is_over(&set(Some(60)), at("2026-01-01T00:01:00Z")));
        assert!(!is_over(&set(None), at("2036-01-01T00:00:00Z")));
    }
}
