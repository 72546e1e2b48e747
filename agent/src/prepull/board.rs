//! What every wished image stands at, and what is to be done next. Pure: time and outcomes are handed in.
//!
//! ```text
//! Waiting --its turn--> Pulling --whole--> Ready --changed tag, evicted--> Pulling
//!                          |                                                 |
//!                          +--------- Failed, tried again later <------------+   (what was whole stays meanwhile)
//! ```
//!
//! An image that is missing is pulled at once. Afterwards a tag is asked for again at the times of its set's schedule,
//! or every interval; under `Once`, and for a digest, never.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    progress::Progress,
    pull::{Problem, Pulled},
    report::{ImageReport, SetReport, State},
    set::{PullPolicy, Set, SetName},
    spread::{around, fraction},
};
use crate::{
    store::{RefFact, RefName},
    types::{Digest, ImageName, Platform, Reference},
};

/// First wait after a failure; doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

/// Longest wait after a failure that names no time.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// An image of a set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) set: SetName,
    pub(super) image: String,
}

/// Something to pull.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) key: Key,
    pub(super) image: ImageName,
    /// The tag or digest to ask for; the remembered digest where the tag is not to be asked for.
    pub(super) reference: Reference,
    pub(super) platforms: Vec<Platform>,
    pub(super) bandwidth: Option<u64>,
    pub(super) runtime: bool,
    pub(super) progress: Arc<Progress>,
}

/// What came of a job, worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It is here for the first time, or again.
    Here(Digest),
    /// The tag meant something else before; the new image is here.
    Changed { from: Digest, to: Digest },
    /// As before.
    Same,
    /// It could not be brought.
    Failed(Problem),
    /// The set is gone.
    Gone,
}

/// What is kept over restarts.
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
    /// The last one that was whole.
    digest: Option<Digest>,
    bytes: u64,
    /// When that was last seen to be so by this process.
    checked: Option<Timestamp>,
    failures: u32,
    not_before: Option<Timestamp>,
    problem: Option<Problem>,
    running: Option<Arc<Progress>>,
    since: Timestamp,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Board {
    sets: Vec<Set>,
    entries: BTreeMap<Key, Entry>,
    remembered: BTreeMap<(String, String), Digest>,
    interval: Duration,
    /// This node's name: its waits differ from those of others.
    node: String,
}

/// When something is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Now,
    At(Timestamp),
    Never,
}

impl Board {
    pub(super) fn new(interval: Duration, node: &str, remembered: Remembered) -> Self {
        let remembered = remembered
            .images
            .into_iter()
            .filter_map(|one| Some(((one.set, one.image), one.digest.parse().ok()?)))
            .collect();
        Self { sets: Vec::new(), entries: BTreeMap::new(), remembered, interval, node: node.to_owned() }
    }

    /// Takes the sets that hold from now on. What is not in them is forgotten.
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

    /// The jobs to start now, at most `room`, and when to look again.
    pub(super) fn begin(&mut self, now: Timestamp, room: usize) -> (Vec<Job>, Option<Timestamp>) {
        let (mut jobs, mut next) = (Vec::new(), None::<Timestamp>);
        let mut keys: Vec<_> = self.entries.keys().cloned().collect();
        // What is not here at all goes before a look for something new.
        keys.sort_by_key(|key| self.entries[key].digest.is_some());
        for key in keys {
            let Some(set) = self.sets.iter().find(|set| set.name == key.set) else { continue };
            let entry = self.entries.get_mut(&key).expect("the keys are those of the entries");
            match due(set, entry, self.interval, now, share(&self.node, &key)) {
                Due::At(at) => next = Some(next.map_or(at, |next| next.min(at))),
                Due::Now if jobs.len() < room => {
                    let progress = Arc::new(Progress::default());
                    entry.running = Some(progress.clone());
                    entry.since = now;
                    jobs.push(Job {
                        image: entry.image.clone(),
                        reference: wanted(set, entry),
                        platforms: set.platforms.clone(),
                        bandwidth: set.bandwidth,
                        runtime: set.runtime,
                        key,
                        progress,
                    });
                }
                // The end of a running job wakes whoever waits for room.
                Due::Never | Due::Now => {}
            }
        }
        (jobs, next)
    }

    /// Takes what came of a job.
    pub(super) fn finished(&mut self, key: &Key, outcome: Result<Pulled, Problem>, now: Timestamp) -> News {
        let part = share(&self.node, key);
        let Some(entry) = self.entries.get_mut(key) else { return News::Gone };
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
                    Some(from) if from != pulled.digest => News::Changed { from, to: pulled.digest },
                    Some(_) if !first => News::Same,
                    _ => News::Here(pulled.digest),
                }
            }
            Err(problem) => {
                if problem.counts() {
                    entry.failures = entry.failures.saturating_add(1);
                }
                entry.not_before = now.checked_add(pause(entry.failures, problem.retry_after, part)).ok();
                entry.problem = Some(problem.clone());
                News::Failed(problem)
            }
        }
    }

    /// Whether a reference is one that a set keeps: the tags that pinned sets name, and the images that they brought.
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

    /// What to keep over restarts; unless all sets are known, also what was remembered of others.
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

    /// How everything stands; `have` says how much of a blob that is under way has come.
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
        // A look for something new, or one that is put off, takes nothing from an image that is here.
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
        reason,
        message,
        since: entry.since,
        retry_at: entry.not_before,
    }
}

/// What is asked for: the tag, unless its first meaning is to stay or it is not yet time to ask.
fn wanted(set: &Set, entry: &Entry) -> Reference {
    let settled = set.policy == PullPolicy::Once || (set.schedule.is_some() && entry.checked.is_none());
    match entry.digest {
        Some(digest) if settled => Reference::Digest(digest),
        _ => entry.image.reference(),
    }
}

/// `part`, between 0 and 1, tells one image on one node from others.
fn due(set: &Set, entry: &Entry, interval: Duration, now: Timestamp, part: f64) -> Due {
    let failed = entry.problem.as_ref().is_some_and(Problem::counts);
    if entry.running.is_some() || !(if failed { set.retries } else { set.admitted }) {
        return Due::Never;
    }
    if let Some(at) = entry.not_before.filter(|at| *at > now) {
        return Due::At(at);
    }
    // Seen whole by this process, and the last attempt did not fail.
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

/// How long to wait after so many failures.
fn pause(failures: u32, named: Option<Duration>, part: f64) -> Duration {
    let own = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    let own = around(own.min(LONGEST_PAUSE), part);
    named.map_or(own, |named| named.saturating_add(around(Duration::from_secs(5), part)).max(own))
}

/// The same for one image on one node.
fn share(node: &str, key: &Key) -> f64 {
    fraction(&format!("{node} {} {}", key.set, key.image))
}

#[cfg(test)]
mod tests;
