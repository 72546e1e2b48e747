//! The state of every image of the sets, and what to pull next. Pure: time and outcomes are passed in.
//!
//! ```text
//! Waiting --its turn--> Pulling --complete--> Ready --changed tag, evicted--> Pulling
//!                          |                                                    |
//!                          +------------ Failed, retried later <----------------+   (a complete image stays meanwhile)
//! ```
//!
//! A missing image is pulled at once. Afterwards its tag is resolved again at the times of its set's schedule,
//! or once per interval; with `Once`, and for a digest, never.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    jitter::{around, fraction},
    progress::Progress,
    pull::{Problem, Pulled},
    report::{ImageReport, SetReport, State},
    set::{PullPolicy, Set, SetName},
};
use crate::{
    store::{RefFact, RefName},
    types::{Digest, ImageName, Platform, Reference},
};

/// First wait after a failure; doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

/// Longest wait after a failure without a time from the registry.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// An image of a set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) set: SetName,
    pub(super) image: String,
}

/// An image to pull.
#[derive(Clone, Debug)]
pub(super) struct PullTask {
    pub(super) key: Key,
    pub(super) image: ImageName,
    /// The tag or digest to request; the recorded digest when the tag is not to be resolved.
    pub(super) reference: Reference,
    pub(super) platforms: Vec<Platform>,
    pub(super) bandwidth: Option<u64>,
    pub(super) runtime: bool,
    /// Only what anyone may read, and at most so many bytes.
    pub(super) public: Option<u64>,
    pub(super) progress: Arc<Progress>,
}

/// The result of a task, for logs and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PullEvent {
    /// The image is complete for the first time, or again.
    Cached(Digest),
    /// The tag resolved to another digest before; the new image is complete.
    Changed { from: Digest, to: Digest },
    /// Nothing has changed.
    Same,
    /// The pull failed.
    Failed(Problem),
    /// The set was removed.
    Gone,
}

/// The part of the queue that is kept over restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Remembered {
    images: Vec<RememberedImage>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RememberedImage {
    set: String,
    image: String,
    digest: String,
}

#[derive(Clone, Debug)]
struct Entry {
    image: ImageName,
    /// Digest of the last complete image.
    digest: Option<Digest>,
    bytes: u64,
    /// When this process last found it complete.
    checked: Option<Timestamp>,
    failures: u32,
    not_before: Option<Timestamp>,
    problem: Option<Problem>,
    running: Option<Arc<Progress>>,
    since: Timestamp,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct PullQueue {
    sets: Vec<Set>,
    entries: BTreeMap<Key, Entry>,
    remembered: BTreeMap<(String, String), Digest>,
    interval: Duration,
    /// This node's name: its waits differ from those of other nodes.
    node: String,
}

/// What the applications of a namespace use.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    bytes: u64,
    busy: bool,
}

/// When a pull is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Now,
    At(Timestamp),
    Never,
}

impl PullQueue {
    pub(super) fn new(interval: Duration, node: &str, remembered: Remembered) -> Self {
        let remembered = remembered
            .images
            .into_iter()
            .filter_map(|one| Some(((one.set, one.image), one.digest.parse().ok()?)))
            .collect();
        Self { sets: Vec::new(), entries: BTreeMap::new(), remembered, interval, node: node.to_owned() }
    }

    /// Replaces the sets. Images that are in none of them are forgotten.
    pub(super) fn accept(&mut self, sets: Vec<Set>, now: Timestamp) {
        let mut entries = BTreeMap::new();
        for set in &sets {
            for image in &set.images {
                let key = Key { set: set.name.clone(), image: image.to_string() };
                let before = self.entries.remove(&key);
                let changed = self.set(&key.set).is_some_and(|old| old.platforms != set.platforms);
                let mut entry = before.unwrap_or_else(|| self.fresh(&key, image, now));
                if changed {
                    (entry.checked, entry.not_before) = (None, None);
                }
                entries.insert(key, entry);
            }
        }
        (self.sets, self.entries) = (sets, entries);
    }

    fn fresh(&self, key: &Key, image: &ImageName, now: Timestamp) -> Entry {
        let digest = self.remembered.get(&(key.set.to_string(), key.image.clone())).copied();
        Entry {
            image: image.clone(),
            digest,
            bytes: 0,
            checked: None,
            failures: 0,
            not_before: None,
            problem: None,
            running: None,
            since: now,
        }
    }

    fn set(&self, name: &SetName) -> Option<&Set> {
        self.sets.iter().find(|set| set.name == *name)
    }

    /// What the applications of each namespace have brought here, and whether one of their images is under way.
    fn application_shares(&self) -> HashMap<String, Share> {
        let mut shares: HashMap<String, Share> = HashMap::new();
        for (key, entry) in &self.entries {
            let Some(of) = self.set(&key.set).and_then(|set| set.application.as_ref()) else { continue };
            let share = shares.entry(of.namespace.clone()).or_default();
            share.bytes += entry.bytes;
            share.busy |= entry.running.is_some();
        }
        shares
    }

    /// The tasks to start now, at most `room`, and when to check again.
    pub(super) fn begin(&mut self, now: Timestamp, room: usize) -> (Vec<PullTask>, Option<Timestamp>) {
        let (mut tasks, mut next) = (Vec::new(), None::<Timestamp>);
        let mut keys: Vec<_> = self.entries.keys().cloned().collect();
        // Missing images come before checks for changed tags.
        keys.sort_by_key(|key| self.entries[key].digest.is_some());
        let mut shares = self.application_shares();
        for key in keys {
            let Some(set) = self.sets.iter().find(|set| set.name == key.set) else { continue };
            let used = set.application.as_ref().and_then(|of| shares.get_mut(&of.namespace));
            // One image of a namespace after the other: what the first takes is known when the second begins.
            if used.as_ref().is_some_and(|used| used.busy) {
                continue;
            }
            let entry = self.entries.get_mut(&key).expect("the keys are those of the entries");
            match due(set, entry, self.interval, now, share(&self.node, &key)) {
                Due::At(at) => next = Some(next.map_or(at, |next| next.min(at))),
                Due::Now if tasks.len() < room => {
                    let progress = Arc::new(Progress::default());
                    entry.running = Some(progress.clone());
                    entry.since = now;
                    let limit = set.application.as_ref().map_or(0, |of| of.limit);
                    let public = used.map(|used| {
                        used.busy = true;
                        limit.saturating_sub(used.bytes - entry.bytes)
                    });
                    tasks.push(PullTask {
                        public,
                        image: entry.image.clone(),
                        reference: wanted(set, entry),
                        platforms: set.platforms.clone(),
                        bandwidth: set.bandwidth,
                        runtime: set.runtime,
                        key,
                        progress,
                    });
                }
                // When a running task ends, waiting tasks start.
                Due::Never | Due::Now => {}
            }
        }
        (tasks, next)
    }

    /// Records the outcome of a task.
    pub(super) fn finished(
        &mut self,
        key: &Key,
        outcome: Result<Pulled, Problem>,
        now: Timestamp,
    ) -> PullEvent {
        let part = share(&self.node, key);
        let Some(entry) = self.entries.get_mut(key) else { return PullEvent::Gone };
        entry.running = None;
        entry.since = now;
        match outcome {
            Ok(pulled) => {
                let first = entry.checked.is_none() || entry.failures > 0;
                let before = entry.digest.replace(pulled.digest);
                entry.bytes = pulled.bytes;
                (entry.checked, entry.failures, entry.problem, entry.not_before) = (Some(now), 0, None, None);
                self.remembered.insert((key.set.to_string(), key.image.clone()), pulled.digest);
                match before {
                    Some(from) if from != pulled.digest => PullEvent::Changed { from, to: pulled.digest },
                    Some(_) if !first => PullEvent::Same,
                    _ => PullEvent::Cached(pulled.digest),
                }
            }
            Err(problem) => {
                if problem.counts() {
                    entry.failures = entry.failures.saturating_add(1);
                }
                entry.not_before = now.checked_add(pause(entry.failures, problem.retry_after, part)).ok();
                entry.problem = Some(problem.clone());
                PullEvent::Failed(problem)
            }
        }
    }

    /// Whether a set keeps a reference: the tags in pinned sets, and the images that were pulled for them.
    pub(super) fn holds(&self) -> impl Fn(&RefFact) -> bool + use<> {
        let (mut tags, mut digests) = (HashSet::new(), HashSet::new());
        for (key, entry) in &self.entries {
            if !self.set(&key.set).is_some_and(|set| set.pin) {
                continue;
            }
            let repository = &entry.image.repository;
            if let Reference::Tag(tag) = entry.image.reference() {
                tags.insert((repository.clone(), tag));
            }
            if let Some(digest) = entry.digest {
                digests.insert((repository.clone(), digest));
            }
        }
        move |fact| match &fact.name {
            RefName::Tag(tag) => tags.contains(&(fact.repository.clone(), tag.clone())),
            RefName::Digest => digests.contains(&(fact.repository.clone(), fact.digest)),
        }
    }

    /// Names of images that are to be in the container runtime.
    pub(super) fn loaded(&self) -> BTreeSet<String> {
        let wanted = |key: &Key| self.set(&key.set).is_some_and(|set| set.runtime);
        let entries = self.entries.iter().filter(|(key, _)| wanted(key));
        entries.map(|(_, entry)| entry.image.to_string()).collect()
    }

    /// What to keep over restarts. Unless all sets are known, this includes the records of unknown sets.
    pub(super) fn remember(&self, all_known: bool) -> Remembered {
        let of_others = self.remembered.iter().filter(|((set, image), _)| {
            !all_known && !self.entries.keys().any(|key| key.set.to_string() == *set && key.image == *image)
        });
        let of_others = of_others.map(|((set, image), digest)| RememberedImage {
            set: set.clone(),
            image: image.clone(),
            digest: digest.to_string(),
        });
        let images = self.entries.iter().filter_map(|(key, entry)| {
            let digest = entry.digest?.to_string();
            Some(RememberedImage { set: key.set.to_string(), image: key.image.clone(), digest })
        });
        Remembered { images: images.chain(of_others).collect() }
    }

    /// The state of all sets; `have` returns how many bytes of a running download have arrived.
    pub(super) fn report(&self, have: &dyn Fn(&Digest) -> u64) -> Vec<SetReport> {
        let of = |set: &Set| SetReport {
            name: set.name.clone(),
            images: set
                .images
                .iter()
                .filter_map(|image| {
                    let key = Key { set: set.name.clone(), image: image.to_string() };
                    Some(report(set, self.entries.get(&key)?, &key, have))
                })
                .collect(),
        };
        self.sets.iter().map(of).collect()
    }
}

fn report(set: &Set, entry: &Entry, key: &Key, have: &dyn Fn(&Digest) -> u64) -> ImageReport {
    let failed = entry.problem.as_ref().is_some_and(Problem::counts);
    let state = match (&entry.running, entry.checked) {
        // A check for a changed tag, or a postponed one, does not change the state of a complete image.
        (Some(running), Some(_)) if !failed && !running.lacks_any() => State::Ready,
        (Some(_), _) => State::Pulling,
        (None, _) if failed => State::Failed,
        (None, Some(_)) => State::Ready,
        (None, None) => State::Waiting,
    };
    let progress = match (&entry.running, state) {
        (_, State::Ready) => 100,
        (Some(running), _) => running.percent(have),
        _ => 0,
    };
    let turn = (state == State::Waiting && entry.problem.is_none() && !set.admitted)
        .then(|| ("OtherNodesFirst", "other nodes of the set come first".to_owned()));
    let problem = entry.problem.as_ref().map(|problem| (problem.reason, problem.message.clone()));
    let (reason, message) = problem.or(turn).unzip();
    ImageReport {
        image: key.image.clone(),
        state,
        digest: entry.digest.map(|digest| digest.to_string()),
        progress,
        bytes: entry.bytes,
        here: entry.checked.is_some(),
        unchecked: entry.digest.is_some()
            && entry.checked.is_none()
            && entry.problem.is_none()
            && !entry.running.as_ref().is_some_and(|running| running.lacks_any()),
        reason,
        message,
        since: entry.since,
        retry_at: entry.not_before,
    }
}

/// The reference to pull: the tag, unless its first digest is to be kept or the next check is not due.
fn wanted(set: &Set, entry: &Entry) -> Reference {
    let settled = set.policy == PullPolicy::Once || (set.schedule.is_some() && entry.checked.is_none());
    match entry.digest {
        Some(digest) if settled => Reference::Digest(digest),
        _ => entry.image.reference(),
    }
}

/// `part`, between 0 and 1, differs by image and node.
fn due(set: &Set, entry: &Entry, interval: Duration, now: Timestamp, part: f64) -> Due {
    let failed = entry.problem.as_ref().is_some_and(Problem::counts);
    if entry.running.is_some() || !(if failed { set.retries } else { set.admitted }) {
        return Due::Never;
    }
    if let Some(at) = entry.not_before.filter(|at| *at > now) {
        return Due::At(at);
    }
    // This process found the image complete, and the last attempt did not fail.
    let Some(checked) = entry.checked.filter(|_| entry.problem.is_none()) else { return Due::Now };
    if set.policy == PullPolicy::Once || matches!(entry.image.reference(), Reference::Digest(_)) {
        return Due::Never;
    }
    let at = match &set.schedule {
        Some(schedule) => schedule.next(checked),
        None => checked.checked_add(around(interval, part)).ok(),
    };
    match at {
        Some(at) if at > now => Due::At(at),
        Some(_) => Due::Now,
        None => Due::Never,
    }
}

/// How long to wait after this many failures.
fn pause(failures: u32, named: Option<Duration>, part: f64) -> Duration {
    let own = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    let own = around(own.min(LONGEST_PAUSE), part);
    named.map_or(own, |named| named.saturating_add(around(Duration::from_secs(5), part)).max(own))
}

/// A fraction that differs by image and node.
fn share(node: &str, key: &Key) -> f64 {
    fraction(&format!("{node} {} {}", key.set, key.image))
}

#[cfg(test)]
mod tests;
