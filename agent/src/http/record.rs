//! What is written down about the mirror's requests: an id for each, a log line for each that failed and for each manifest
//! that was sent, and the journal.
//!
//! A flood of bad requests must not slow others down by its log lines: beyond [`LINES`] a second they are counted, and the
//! next line says how many there were.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use http::{HeaderName, HeaderValue, Response};
use parking_lot::Mutex;

use super::{body::Body, error::Refusal};
use crate::{
    journal::{self, Failure, Journal, Pull, Source},
    metrics::{Kind, Metrics},
    types::Digest,
};

/// Names a request in answers and log lines.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Log lines about failed requests in a second.
const LINES: u64 = 20;

/// One request.
#[derive(Clone, Debug)]
pub(super) struct RequestId {
    text: String,
    began: Instant,
}

impl RequestId {
    /// How it is written.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }
}

/// Writes down. One for each listener.
#[derive(Debug)]
pub(super) struct Record {
    journal: Journal,
    metrics: Metrics,
    /// The same for all requests of this process, so that ids of two processes differ.
    process: String,
    count: AtomicU64,
    pace: Mutex<Pace>,
}

impl Record {
    /// `process` tells this process from others.
    pub(super) fn new(journal: Journal, metrics: Metrics, process: &str) -> Self {
        let process = process.chars().take(8).collect();
        Self { journal, metrics, process, count: AtomicU64::new(0), pace: Mutex::default() }
    }

    /// A request has come.
    pub(super) fn begin(&self) -> RequestId {
        self.journal.note_request();
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        RequestId { text: format!("{}-{number:x}", self.process), began: Instant::now() }
    }

    /// A request is not answered with what was requested.
    pub(super) fn refused(
        &self,
        request: &RequestId,
        subject: &str,
        client: Option<&str>,
        refusal: &Refusal,
    ) {
        let Some(unlogged) = self.pace.lock().line(Instant::now()) else { return };
        let status = refusal.status().as_u16();
        tracing::warn!(
            request = request.as_str(),
            subject,
            client,
            status,
            reason = refusal.message(),
            next = refusal.next(),
            unlogged = (unlogged > 0).then_some(unlogged),
            "request failed"
        );
        self.journal.note_failure(Failure {
            at: journal::now(),
            request: request.text.clone(),
            subject: subject.to_owned(),
            status,
            reason: refusal.message().to_owned(),
            times: 1,
        });
    }

    /// A blob is ready to be sent, from the disk or while it arrives.
    pub(super) fn ready(&self, request: &RequestId, stored: bool) {
        let source = if stored { "disk" } else { "network" };
        self.metrics.durations.first_byte(Kind::blob, source, request.began.elapsed());
    }

    /// A manifest is sent.
    pub(super) fn sent(
        &self,
        request: &RequestId,
        image: &str,
        digest: &Digest,
        bytes: u64,
        client: Option<&str>,
    ) {
        let source: Source = self.journal.take_source(digest);
        self.metrics.durations.first_byte(Kind::manifest, source.as_str(), request.began.elapsed());
        let millis = journal::millis(request.began.elapsed());
        tracing::info!(request = request.as_str(), image, %digest, source = source.as_str(), bytes, millis, client, "manifest sent");
        self.journal.note_pull(Pull {
            at: journal::now(),
            request: request.text.clone(),
            image: image.to_owned(),
            digest: digest.to_string(),
            source,
            millis,
            client: client.map(ToOwned::to_owned),
        });
    }
}

/// Tells the client the id.
pub(super) fn with_id(mut response: Response<Body>, request: &RequestId) -> Response<Body> {
    if let Ok(id) = HeaderValue::from_str(&request.text) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// How many log lines there were in this second.
#[derive(Debug, Default)]
struct Pace {
    second: Option<Instant>,
    lines: u64,
    unlogged: u64,
}

impl Pace {
    /// Whether a line may be written now; if so, how many were not since the last one.
    fn line(&mut self, now: Instant) -> Option<u64> {
        if self.second.is_none_or(|second| now.saturating_duration_since(second) >= Duration::from_secs(1)) {
            (self.second, self.lines) = (Some(now), 0);
        }
        if self.lines >= LINES {
            self.unlogged += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_failures_writes_few_lines_and_says_how_many_there_were() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let lines = (0..1_000).filter(|_| pace.line(start).is_some()).count();
        assert_eq!(lines as u64, LINES);
        assert_eq!(pace.line(start + Duration::from_millis(999)), None);
        assert_eq!(pace.line(start + Duration::from_secs(1)), Some(1_001 - LINES));
        assert_eq!(pace.line(start + Duration::from_secs(1)), Some(0));
    }

    #[test]
    fn ids_of_requests_differ() {
        let record = Record::new(Journal::default(), Metrics::default(), "0123456789abcdef");
        assert_eq!((record.begin().as_str(), record.begin().as_str()), ("01234567-0", "01234567-1"));
    }
}
