//! Writes the status of every set, publishes Events about changes, and removes expired sets.
//!
//! All agents watch the sets and so receive each write of a set's status: it is written only when it has
//! changed, and less often with more nodes.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api, Client, Resource as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::json;
use tokio::time::Instant;

use super::{Config, MANAGER, Watched, aggregate::aggregate, nodes::selected, renewals::Renewals};
use crate::{
    kubernetes::{has_code, within},
    metrics::ControllerMetrics,
    prepull::crd::{ImageSet, ImageSetStatus},
};

/// The interval between two writes of a status grows by one second per this many nodes.
const NODES_A_SECOND: u32 = 100;

/// Failed requests after which a round ends: then the API server has trouble, and not one set.
const MOST_ERRORS: u32 = 3;

/// Runs until the caller stops it.
pub(super) async fn write(
    config: &Config,
    metrics: &ControllerMetrics,
    client: &Client,
    identity: &str,
    watched: &Watched,
) {
    let mut writer = StatusWriter::new(client, identity);
    let mut renewals = Renewals::new(config.heartbeat);
    loop {
        let count = u32::try_from(watched.nodes.borrow().objects.len()).unwrap_or(u32::MAX);
        tokio::time::sleep(config.interval.max(Duration::from_secs(1) * count / NODES_A_SECOND)).await;
        if !watched.sets.borrow().synced || !watched.nodes.borrow().synced || !watched.caches.borrow().synced
        {
            continue;
        }
        let sets: Vec<ImageSet> = watched.sets.borrow().objects.values().cloned().collect();
        writer.forget_all_but(&sets);
        note_renewals(watched, &mut renewals, metrics);
        let (mut errors, mut ready) = (0, 0);
        for set in &sets {
            let outcome = if is_over(set, Timestamp::now()) {
                remove(client, set).await
            } else {
                let status = status_of(set, config, watched, &renewals);
                ready += i64::from(holds(&status, "Ready"));
                writer.tell(set, status).await
            };
            if let Err(error) = outcome {
                metrics.failed_writes.inc();
                tracing::warn!(set = set.metadata.name, %error, "cannot write the status of an ImageSet: retrying");
                errors += 1;
                if errors == MOST_ERRORS {
                    break;
                }
            }
        }
        if errors == 0 {
            metrics.image_sets.set(i64::try_from(sets.len()).unwrap_or(i64::MAX));
            metrics.ready_image_sets.set(ready);
        }
    }
}

fn note_renewals(watched: &Watched, renewals: &mut Renewals, metrics: &ControllerMetrics) {
    let (caches, nodes) = (watched.caches.borrow(), watched.nodes.borrow());
    renewals.keep_only(|node| caches.objects.contains_key(node));
    for (node, reported) in &caches.objects {
        let updated = reported.status.updated.as_ref().map(|updated| updated.0);
        renewals.note(node, updated, reported.arrived, reported.arrived_at);
    }
    let now = Instant::now();
    let silent = nodes.objects.keys().filter(|node| !renewals.is_current(node, now)).count();
    metrics.nodes.set(i64::try_from(nodes.objects.len()).unwrap_or(i64::MAX));
    metrics.silent_nodes.set(i64::try_from(silent).unwrap_or(i64::MAX));
}

fn status_of(set: &ImageSet, config: &Config, watched: &Watched, renewals: &Renewals) -> ImageSetStatus {
    let (nodes, caches) = (watched.nodes.borrow(), watched.caches.borrow());
    let now = Instant::now();
    let selected =
        selected(set, &nodes.objects, &caches.objects, &config.taint, |node| renewals.is_current(node, now));
    aggregate(set, &selected, &Time(Timestamp::now()))
}

/// Whether a set has expired. Pure.
fn is_over(set: &ImageSet, now: Timestamp) -> bool {
    let created = set.metadata.creation_timestamp.as_ref().map(|created| created.0);
    let end = created
        .zip(set.spec.ttl_seconds)
        .and_then(|(created, seconds)| created.checked_add(Duration::from_secs(u64::from(seconds))).ok());
    end.is_some_and(|end| end <= now)
}

async fn remove(client: &Client, set: &ImageSet) -> Result<(), kube::Error> {
    let sets: Api<ImageSet> = Api::all(client.clone());
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
    client: &'a Client,
    recorder: Recorder,
    /// The status written last, by the set's uid: the watch may lag behind.
    written: HashMap<String, ImageSetStatus>,
}

impl<'a> StatusWriter<'a> {
    fn new(client: &'a Client, identity: &str) -> Self {
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(identity.to_owned()) };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, recorder, written: HashMap::new() }
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
        let sets: Api<ImageSet> = Api::all(self.client.clone());
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

fn holds(status: &ImageSetStatus, name: &str) -> bool {
    status.conditions.iter().any(|condition| condition.type_ == name && condition.status == "True")
}

/// The Events for a change of a status. Pure.
fn news(before: Option<&ImageSetStatus>, now: &ImageSetStatus) -> Vec<Event> {
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
        events.push(event(EventType::Normal, "Pulling", message("Progressing")));
    }
    if began("Degraded") {
        events.push(event(EventType::Warning, "ImagesFailed", message("Degraded")));
    }
    if began("Ready") {
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
        let idle = status(json!({"conditions": [condition("Ready", false, at)]}));
        assert_eq!(reasons(None, &idle), [""; 0], "a set without nodes");
        assert_eq!(
            reasons(Some(&idle), &ready),
            ["Complete"],
            "the first node was ready before the next round"
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
