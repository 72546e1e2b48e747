//! What the registry was asked and what it answered, request by request.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderMap, Method, Uri, header};

use super::path::{Kind, Target};

/// One request. Counters move while the answer is being sent.
#[derive(Debug)]
pub struct Entry {
    /// Request method.
    pub method: Method,
    /// Path and query as sent.
    pub uri: Uri,
    /// What the path means.
    pub target: Target,
    /// All request headers.
    pub headers: HeaderMap,
    /// Which TCP connection carried it; counts from 0 over the life of the server.
    pub connection: u64,
    /// When its head had been read.
    pub at: Instant,
    status: AtomicU16,
    sent: AtomicU64,
    finished: AtomicBool,
    last_byte_nanos: AtomicU64,
}

impl Entry {
    pub(super) fn new(method: Method, uri: Uri, target: Target, headers: HeaderMap, connection: u64) -> Self {
        Self {
            method,
            uri,
            target,
            headers,
            connection,
            at: Instant::now(),
            status: AtomicU16::new(0),
            sent: AtomicU64::new(0),
            finished: AtomicBool::new(false),
            last_byte_nanos: AtomicU64::new(0),
        }
    }

    /// The status sent, or 0 while (or if) none was.
    pub fn status(&self) -> u16 {
        self.status.load(Ordering::Relaxed)
    }

    /// Body bytes handed to the connection so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Whether the whole answer was handed to the connection.
    pub fn finished(&self) -> bool {
        self.finished.load(Ordering::Relaxed)
    }

    /// When the last body byte so far was handed to the connection.
    pub fn last_byte_at(&self) -> Instant {
        self.at + Duration::from_nanos(self.last_byte_nanos.load(Ordering::Relaxed))
    }

    /// A request header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The `Authorization` header, if one was sent.
    pub fn authorization(&self) -> Option<&str> {
        self.header(header::AUTHORIZATION.as_str())
    }

    /// The `Range` header, if one was sent.
    pub fn range(&self) -> Option<&str> {
        self.header(header::RANGE.as_str())
    }

    pub(super) fn set_status(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    pub(super) fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        let nanos = u64::try_from(self.at.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last_byte_nanos.store(nanos, Ordering::Relaxed);
    }

    pub(super) fn set_finished(&self) {
        self.finished.store(true, Ordering::Relaxed);
    }
}

/// The live record inside the server.
#[derive(Debug, Default)]
pub(super) struct Recorder(Mutex<Vec<Arc<Entry>>>);

impl Recorder {
    pub(super) fn push(&self, entry: Entry) -> Arc<Entry> {
        let entry = Arc::new(entry);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&entry));
        entry
    }

    pub(super) fn snapshot(&self) -> Log {
        Log(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// A selection of requests, oldest first. Every filter gives a smaller selection.
#[derive(Clone, Debug, Default)]
pub struct Log(Vec<Arc<Entry>>);

impl Log {
    /// Requests for one kind of resource.
    #[must_use]
    pub fn kind(&self, kind: Kind) -> Self {
        self.filter(|entry| entry.target.kind == kind)
    }

    /// Requests with one method.
    #[must_use]
    pub fn method(&self, method: &Method) -> Self {
        self.filter(|entry| entry.method == method)
    }

    /// `GET` requests for blobs.
    #[must_use]
    pub fn blob_gets(&self) -> Self {
        self.kind(Kind::Blob).method(&Method::GET)
    }

    /// `GET` requests for manifests, by tag or digest: what public registries count.
    #[must_use]
    pub fn manifest_gets(&self) -> Self {
        self.kind(Kind::Manifest).method(&Method::GET)
    }

    /// Requests whose reference (tag or digest) is this one.
    #[must_use]
    pub fn reference(&self, reference: &str) -> Self {
        self.filter(|entry| entry.target.reference == reference)
    }

    /// Requests answered with this status.
    #[must_use]
    pub fn status(&self, status: u16) -> Self {
        self.filter(|entry| entry.status() == status)
    }

    /// Requests after the first `count`: with [`Log::len`] as a mark, what happened since.
    #[must_use]
    pub fn since(&self, count: usize) -> Self {
        Self(self.0.iter().skip(count).cloned().collect())
    }

    /// Requests that satisfy a condition.
    #[must_use]
    pub fn filter(&self, keep: impl Fn(&Entry) -> bool) -> Self {
        Self(self.0.iter().filter(|entry| keep(entry)).cloned().collect())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Body bytes sent in answer to all of them.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|entry| entry.sent()).sum()
    }

    /// The requests.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter().map(AsRef::as_ref)
    }

    /// One line per request, for the message of a failed assertion.
    pub fn describe(&self) -> String {
        let line = |entry: &Arc<Entry>| {
            let range = entry.range().map(|range| format!(" [{range}]")).unwrap_or_default();
            format!("{} {}{range} -> {} ({} bytes)", entry.method, entry.uri, entry.status(), entry.sent())
        };
        self.0.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}
