//! `/livez`, `/readyz` and `/metrics` of a process that serves nothing else.

use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use super::{
    admin::{exposition, text},
    api,
    body::Body,
};

/// Answers probes and Prometheus. Cheap to clone.
#[derive(Clone)]
pub struct Probes {
    /// Why the process is not ready, if so.
    not_ready: Arc<dyn Fn() -> Option<&'static str> + Send + Sync>,
    /// All series in OpenMetrics 1.0.
    metrics: Arc<dyn Fn() -> String + Send + Sync>,
    stopping: CancellationToken,
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probes").finish_non_exhaustive()
    }
}

impl Probes {
    /// Not ready once `stopping` is cancelled.
    pub fn new(
        not_ready: impl Fn() -> Option<&'static str> + Send + Sync + 'static,
        metrics: impl Fn() -> String + Send + Sync + 'static,
        stopping: CancellationToken,
    ) -> Self {
        Self { not_ready: Arc::new(not_ready), metrics: Arc::new(metrics), stopping }
    }

    pub(super) fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return api::read_only();
        }
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match (self.stopping.is_cancelled(), (self.not_ready)()) {
                (true, _) => text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
                (false, Some(why)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
                (false, None) => text(StatusCode::OK, "ok\n"),
            },
            "/metrics" => exposition(request.headers(), (self.metrics)()),
            _ => text(StatusCode::NOT_FOUND, "served here: /livez /readyz /metrics\n"),
        }
    }
}
