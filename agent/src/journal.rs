//! What happened lately, for people: requests for manifests, downloads of blobs, failures. `explain` and the status page
//! read it. In memory only and bounded; logs and metrics have the rest.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde::Serialize;

use crate::types::Digest;

/// Entries of each kind.
const KEPT: usize = 128;

/// Where content came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// This node's disk.
    Disk,
    /// Other nodes.
    Peers,
    /// The registry.
    Registry,
}

impl Source {
    /// The word for it in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Peers => "peers",
            Self::Registry => "registry",
        }
    }
}

/// A manifest that was sent to a client: the beginning of a pull.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pull {
    /// Second since 1970.
    pub at: u64,
    /// Id of the request, as in logs and in the answer's `x-request-id`.
    pub request: String,
    /// `registry/repository:tag` or `registry/repository@digest`.
    pub image: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Where it came from.
    pub source: Source,
    /// Milliseconds until it was there.
    pub millis: u64,
    /// The client's `User-Agent`.
    pub client: Option<String>,
}

/// A download of a blob that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Download {
    /// Second since 1970 at which it ended.
    pub at: u64,
    /// Digest of the blob.
    pub digest: String,
    /// `registry/repository` for which it was downloaded.
    pub repository: Option<String>,
    /// Size in bytes, if it was learned.
    pub size: Option<u64>,
    /// Bytes that came from the registry.
    pub from_registry: u64,
    /// Bytes that came from peers.
    pub from_peers: u64,
    /// Milliseconds in the queue for a registry that already sends as much as it may.
    pub waited_millis: u64,
    /// Milliseconds from the start until the last byte had arrived.
    pub transfer_millis: u64,
    /// Milliseconds for the check of the digest and the commit to disk.
    pub commit_millis: u64,
    /// Why it failed, with causes.
    pub error: Option<String>,
}

/// A request that failed, with later ones that failed for the same reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Second since 1970 of the last one.
    pub at: u64,
    /// Id of the last one.
    pub request: String,
    /// What was requested.
    pub subject: String,
    /// Status of the answer.
    pub status: u16,
    /// Why, with causes.
    pub reason: String,
    /// How often in a row.
    pub times: u64,
}

/// Remembers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    requests: AtomicU64,
    /// Second since 1970 of the last one; 0 before the first.
    last_request: AtomicU64,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    pulls: VecDeque<Pull>,
    downloads: VecDeque<Download>,
    failures: VecDeque<Failure>,
    /// Manifests that were fetched and not sent yet.
    fetched: VecDeque<(Digest, Source)>,
}

impl Journal {
    /// A client has sent a request to the mirror.
    pub fn note_request(&self) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        self.0.last_request.store(now(), Ordering::Relaxed);
    }

    /// How many requests there were, and the second since 1970 of the last one.
    pub fn requests(&self) -> (u64, Option<u64>) {
        let last = self.0.last_request.load(Ordering::Relaxed);
        (self.0.requests.load(Ordering::Relaxed), (last > 0).then_some(last))
    }

    /// A manifest has come from elsewhere.
    pub fn note_fetched(&self, digest: &Digest, source: Source) {
        keep(&mut self.0.entries.lock().fetched, (*digest, source));
    }

    /// Where a manifest came from that is sent now. A pull begins with a HEAD request for its tag, which may have fetched it:
    /// what was fetched counts for the first request that gets it.
    pub fn take_source(&self, digest: &Digest) -> Source {
        let mut entries = self.0.entries.lock();
        let fetched = entries.fetched.iter().rposition(|(known, _)| known == digest);
        fetched.and_then(|at| entries.fetched.remove(at)).map_or(Source::Disk, |(_, source)| source)
    }

    /// A manifest was sent.
    pub fn note_pull(&self, pull: Pull) {
        keep(&mut self.0.entries.lock().pulls, pull);
    }

    /// A download has ended.
    pub fn note_download(&self, download: Download) {
        keep(&mut self.0.entries.lock().downloads, download);
    }

    /// A request failed. The same failure again, of whatever request id, counts up and does not push out others.
    pub fn note_failure(&self, failure: Failure) {
        let mut entries = self.0.entries.lock();
        let same = |known: &Failure| {
            (&known.subject, known.status, &known.reason)
                == (&failure.subject, failure.status, &failure.reason)
        };
        let before = entries.failures.iter().position(same).and_then(|at| entries.failures.remove(at));
        let times = before.map_or(0, |before| before.times) + failure.times;
        keep(&mut entries.failures, Failure { times, ..failure });
    }

    /// The last requests for manifests that `wanted` accepts, newest first.
    pub fn pulls(&self, wanted: impl Fn(&Pull) -> bool) -> Vec<Pull> {
        self.0.entries.lock().pulls.iter().rev().filter(|entry| wanted(entry)).cloned().collect()
    }

    /// The last downloads, likewise.
    pub fn downloads(&self, wanted: impl Fn(&Download) -> bool) -> Vec<Download> {
        self.0.entries.lock().downloads.iter().rev().filter(|entry| wanted(entry)).cloned().collect()
    }

    /// The last failures, likewise.
    pub fn failures(&self, wanted: impl Fn(&Failure) -> bool) -> Vec<Failure> {
        self.0.entries.lock().failures.iter().rev().filter(|entry| wanted(entry)).cloned().collect()
    }
}

fn keep<T>(entries: &mut VecDeque<T>, entry: T) {
    if entries.len() >= KEPT {
        entries.pop_front();
    }
    entries.push_back(entry);
}

/// Now, as a second since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(subject: &str, reason: &str) -> Failure {
        let (subject, reason) = (subject.to_owned(), reason.to_owned());
        Failure { at: now(), request: "r".into(), subject, status: 503, reason, times: 1 }
    }

    #[test]
    fn a_failure_that_repeats_is_one_entry_and_pushes_out_nothing() {
        let journal = Journal::default();
        journal.note_failure(failure("a", "other"));
        for _ in 0..1_000 {
            journal.note_failure(failure("b", "same"));
        }
        let all = journal.failures(|_| true);
        assert_eq!(
            all.iter().map(|one| (one.subject.as_str(), one.times)).collect::<Vec<_>>(),
            [("b", 1_000), ("a", 1)]
        );
    }

    #[test]
    fn the_newest_entries_are_kept() {
        let journal = Journal::default();
        for number in 0..KEPT + 10 {
            journal.note_failure(failure(&number.to_string(), "x"));
        }
        let all = journal.failures(|_| true);
        assert_eq!((all.len(), all[0].subject.as_str()), (KEPT, "137"));
    }

    #[test]
    fn a_manifest_that_was_fetched_comes_from_elsewhere_once() {
        let (journal, digest) = (Journal::default(), Digest::of(b"x"));
        journal.note_fetched(&digest, Source::Peers);
        assert_eq!(journal.take_source(&Digest::of(b"y")), Source::Disk);
        assert_eq!(journal.take_source(&digest), Source::Peers);
        assert_eq!(journal.take_source(&digest), Source::Disk);
    }
}
