//! Writes the status of every set, publishes Events about changes, and removes expired sets.
//!
//! [`kube::runtime::Controller`] calls [`reconcile`] for a set that has changed, for all of them when nodes have reported, and
//! again after a failure. All agents watch the sets and so receive each write of a set's status: it is written only when it
//! has changed, and less often with more nodes.

use std::{collections::HashMap, pin::pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api, Client, Resource as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::{
        Controller as Runtime,
        controller::{Action, Config as Running, Error as Failure},
        events::{Event, EventType, Recorder, Reporter},
        reflector::Store,
    },
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::{Config, MANAGER, Watched, aggregate::aggregate, nodes::selected, renewals::Renewals};
use crate::{
    kubernetes::{has_code, log_failure, log_watch_failure, within},
    metrics::ControllerMetrics,
    prepull::crd::{ImageSet, ImageSetStatus},
};

/// The interval between two writes of a status grows by one second per this many nodes.
const NODES_A_SECOND: u32 = 100;

/// Sets that are worked on at once.
const AT_ONCE: u16 = 4;

/// Pause before a set is worked on again after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Runs until the caller stops it.
pub(super) async fn write(
    config: &Config,
    metrics: &ControllerMetrics,
    client: &Client,
    identity: &str,
    watched: &Watched,
    sets: Runtime<ImageSet>,
) {
    let context = Arc::new(StatusWriter::new(config, metrics, client, identity, watched));
    let rounds = rounds(context.clone(), sets.store());
    let running = Running::default().concurrency(AT_ONCE);
    let mut outcomes =
        pin!(sets.with_config(running).reconcile_all_on(rounds).run(reconcile, again, context));
    let mut known = false;
    while let Some(outcome) = outcomes.next().await {
        known = match outcome {
            Ok(_) => false,
            Err(Failure::QueueError(error)) => log_watch_failure::<ImageSet>(&error, known),
            // Failures with a set are logged where they are retried.
            Err(_) => known,
        };
    }
}

/// An item each time when all sets are to be looked at again.
fn rounds(context: Arc<StatusWriter>, sets: Store<ImageSet>) -> impl Stream<Item = ()> + Send + 'static {
    stream::unfold((context, sets), |(context, sets)| async move {
        loop {
            tokio::time::sleep(context.pause()).await;
            context.note_sets(&sets.state());
            if context.note_renewals() {
                return Some(((), (context, sets)));
            }
        }
    })
}

/// Brings one set's status up to date.
async fn reconcile(set: Arc<ImageSet>, context: Arc<StatusWriter>) -> Result<Action, kube::Error> {
    if is_over(&set, Timestamp::now()) {
        remove(&context.client, &set).await?;
    } else if let Some(status) = context.status_of(&set) {
        context.tell(&set, status).await?;
    }
    // The next round comes without a request.
    Ok(Action::await_change())
}

/// When a set that failed is worked on again.
#[expect(clippy::needless_pass_by_value, reason = "the signature that kube's controller asks for")]
fn again(set: Arc<ImageSet>, error: &kube::Error, context: Arc<StatusWriter>) -> Action {
    context.metrics.failed_writes.inc();
    let name = set.metadata.name.as_deref().unwrap_or_default();
    log_failure(error, &format!("cannot write the status of the ImageSet `{name}`"));
    Action::requeue(RETRY)
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

/// Computes statuses, writes changed ones, and publishes Events about changes.
struct StatusWriter {
    client: Client,
    config: Config,
    metrics: ControllerMetrics,
    watched: Watched,
    recorder: Recorder,
    renewals: Mutex<Renewals>,
    /// The status written last, by the set's uid: the watch may lag behind.
    written: Mutex<HashMap<String, Written>>,
}

struct Written {
    status: ImageSetStatus,
    at: Instant,
}

impl StatusWriter {
    fn new(
        config: &Config,
        metrics: &ControllerMetrics,
        client: &Client,
        identity: &str,
        watched: &Watched,
    ) -> Self {
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(identity.to_owned()) };
        Self {
            client: client.clone(),
            config: config.clone(),
            metrics: metrics.clone(),
            watched: watched.clone(),
            recorder: Recorder::new(client.clone(), reporter),
            renewals: Mutex::new(Renewals::new(config.heartbeat)),
            written: Mutex::default(),
        }
    }

    fn pause(&self) -> Duration {
        let nodes = u32::try_from(self.watched.nodes.borrow().objects.len()).unwrap_or(u32::MAX);
        self.config.interval.max(Duration::from_secs(1) * nodes / NODES_A_SECOND)
    }

    fn note_sets(&self, sets: &[Arc<ImageSet>]) {
        let mut written = self.written.lock();
        written.retain(|uid, _| sets.iter().any(|set| set.metadata.uid.as_deref() == Some(uid)));
        let ready =
            sets.iter().filter(|set| set.status.as_ref().is_some_and(|status| holds(status, "Ready")));
        let ready = ready.count();
        self.metrics.image_sets.set(i64::try_from(sets.len()).unwrap_or(i64::MAX));
        self.metrics.ready_image_sets.set(i64::try_from(ready).unwrap_or(i64::MAX));
    }

    /// Notes which agents report. Returns whether nodes and reports are known.
    fn note_renewals(&self) -> bool {
        let (caches, nodes) = (self.watched.caches.borrow(), self.watched.nodes.borrow());
        let mut renewals = self.renewals.lock();
        renewals.keep_only(|node| caches.objects.contains_key(node));
        for (node, reported) in &caches.objects {
            let updated = reported.status.updated.as_ref().map(|updated| updated.0);
            renewals.note(node, updated, reported.arrived, reported.arrived_at);
        }
        let now = Instant::now();
        let silent = nodes.objects.keys().filter(|node| !renewals.is_current(node, now)).count();
        self.metrics.nodes.set(i64::try_from(nodes.objects.len()).unwrap_or(i64::MAX));
        self.metrics.silent_nodes.set(i64::try_from(silent).unwrap_or(i64::MAX));
        caches.synced && nodes.synced
    }

    /// `None` before nodes and reports are known.
    fn status_of(&self, set: &ImageSet) -> Option<ImageSetStatus> {
        if !self.note_renewals() {
            return None;
        }
        let (nodes, caches) = (self.watched.nodes.borrow(), self.watched.caches.borrow());
        let (renewals, now) = (self.renewals.lock(), Instant::now());
        let is_current = |node: &str| renewals.is_current(node, now);
        let selected = selected(set, &nodes.objects, &caches.objects, &self.config.taint, is_current);
        Some(aggregate(set, &selected, &Time(Timestamp::now())))
    }

    async fn tell(&self, set: &ImageSet, status: ImageSetStatus) -> Result<(), kube::Error> {
        let uid = set.metadata.uid.clone().unwrap_or_default();
        let known = self.written.lock().get(&uid).map(|written| (written.status.clone(), written.at));
        let before = known.as_ref().map(|(status, _)| status).or(set.status.as_ref());
        // Each write comes back as a change of the set: the next one is for the next round.
        let too_soon = known.as_ref().is_some_and(|(_, at)| at.elapsed() < self.pause() / 2);
        if too_soon || before.is_some_and(|before| same(before, &status)) {
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
        self.written.lock().insert(uid, Written { status, at: Instant::now() });
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
