//! Says once that the API server cannot be reached, then once a minute how many requests failed, and at last that it answers
//! again: a line for each failed request would be dozens a minute on each node.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use kube::client::Body;
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

use crate::types::chain;

/// How often a continuing outage is logged.
const SUMMARY: Duration = Duration::from_mins(1);

/// A request that is aborted after this long counts as not answered; one that is aborted earlier says nothing.
const NO_ANSWER: Duration = Duration::from_secs(10);

/// One for each server; a process may have several clients of it.
static REPORTERS: Mutex<BTreeMap<String, Arc<Reporter>>> = Mutex::new(BTreeMap::new());

/// What to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Began,
    Lasts { failed: u64, lasted: Duration },
    Over { failed: u64, lasted: Duration },
}

/// The requests since the last answer. Pure: times are passed in.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
    failed: u64,
    logged: Option<Instant>,
    begun: bool,
}

impl Outage {
    fn failed(&mut self, now: Instant) -> Option<Line> {
        let since = *self.since.get_or_insert(now);
        self.failed += 1;
        if self.logged.is_some_and(|logged| now.saturating_duration_since(logged) < SUMMARY) {
            return None;
        }
        self.logged = Some(now);
        let lasts = Line::Lasts { failed: self.failed, lasted: now.saturating_duration_since(since) };
        Some(if std::mem::replace(&mut self.begun, true) { lasts } else { Line::Began })
    }

    fn answered(&mut self, now: Instant) -> Option<Line> {
        let since = self.since.take()?;
        let over = Line::Over {
            failed: std::mem::take(&mut self.failed),
            lasted: now.saturating_duration_since(since),
        };
        std::mem::take(&mut self.begun).then_some(over)
    }
}

#[derive(Debug)]
struct Reporter {
    server: String,
    outage: Mutex<Outage>,
}

impl Reporter {
    fn failed(&self, cause: &str) {
        let line = self.outage.lock().failed(Instant::now());
        let server = &self.server;
        match line {
            Some(Line::Lasts { failed, lasted }) => {
                tracing::warn!(server, cause, failed, ?lasted, "the API server still cannot be reached");
            }
            Some(_) => {
                tracing::warn!(
                    server,
                    cause,
                    "the API server cannot be reached: the last known objects stay in force; a summary follows once a minute"
                );
            }
            None => tracing::debug!(server, cause, "the API server cannot be reached"),
        }
    }

    fn answered(&self) {
        let line = self.outage.lock().answered(Instant::now());
        if let Some(Line::Over { failed, lasted }) = line {
            tracing::info!(server = self.server, failed, ?lasted, "the API server answers again");
        }
    }
}

/// Observes every request of a client.
#[derive(Clone, Debug)]
pub(super) struct Observe(Arc<Reporter>);

impl Observe {
    /// `server` is its URL.
    pub(super) fn new(server: &str) -> Self {
        let mut reporters = REPORTERS.lock();
        let reporter = reporters
            .entry(server.to_owned())
            .or_insert_with(|| Arc::new(Reporter { server: server.to_owned(), outage: Mutex::default() }));
        Self(reporter.clone())
    }
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Observed { inner, reporter: self.0.clone() }
    }
}

/// The observed client.
#[derive(Clone, Debug)]
pub(super) struct Observed<S> {
    inner: S,
    reporter: Arc<Reporter>,
}

impl<S, B> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let asked = Asked { reporter: self.reporter.clone(), since: Some(Instant::now()) };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            asked.answered(answer.as_ref().map(drop));
            answer
        })
    }
}

/// A request without an answer.
struct Asked {
    reporter: Arc<Reporter>,
    since: Option<Instant>,
}

impl Asked {
    fn answered(mut self, answer: Result<(), &BoxError>) {
        self.since = None;
        match answer {
            Ok(()) => self.reporter.answered(),
            Err(error) => self.reporter.failed(&chain(&**error)),
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if self.since.is_some_and(|since| since.elapsed() >= NO_ANSWER) {
            self.reporter.failed("it did not answer in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_outage_is_one_line_then_one_a_minute_and_one_at_its_end() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut outage = Outage::default();
        let mut lines = Vec::new();
        assert_eq!(outage.answered(start), None);
        for at in 0..150 {
            lines.extend(outage.failed(start + at * second));
        }
        lines.extend(outage.answered(start + 150 * second));
        let lasts = |failed, lasted| Line::Lasts { failed, lasted: lasted * second };
        let over = Line::Over { failed: 150, lasted: 150 * second };
        assert_eq!(lines, [Line::Began, lasts(61, 60), lasts(121, 120), over]);
        assert_eq!(outage.answered(start + 151 * second), None);
        // A server that answers now and then is not reported with each change.
        assert_eq!(outage.failed(start + 160 * second), None);
        assert_eq!(outage.answered(start + 161 * second), None);
        assert_eq!(outage.failed(start + 181 * second), Some(Line::Began));
    }
}
