//! The admin side. On its TCP listener, which the network may reach: `/livez`, `/readyz`, `/metrics`, the status
//! page, and `/api/v1/status` and `/api/v1/cluster` with numbers alone; to a client with the token (`token`) with
//! names, the list of images and explanations. On the Unix socket (`local`) the status with names, and the calls of
//! `api`.

use std::sync::{Arc, Weak};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;

use super::{
    api::{self, Api},
    body::{self, Body},
    cluster::ClusterView,
    page,
    report::Report,
    token::Token,
};
use crate::{
    explain::Explainer,
    journal::Journal,
    metrics::{self, Metrics},
    store::Store,
    task::Tasks,
    upstream::Upstream,
};

/// Ready as soon as every latch is dropped.
#[derive(Clone, Debug)]
pub struct Readiness(Weak<()>);

/// Keeps the agent from being ready.
#[derive(Clone, Debug)]
pub struct Latch(#[expect(dead_code, reason = "only its life counts")] Arc<()>);

impl Readiness {
    /// Not ready until the latch and all its clones are gone.
    pub fn new() -> (Self, Latch) {
        let latch = Arc::new(());
        (Self(Arc::downgrade(&latch)), Latch(latch))
    }

    fn is_ready(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// A part of the status document that another part of the agent knows of. Cheap to clone.
#[derive(Clone)]
pub struct Section {
    name: &'static str,
    /// With names, or numbers alone.
    make: Arc<dyn Fn(Detail) -> serde_json::Value + Send + Sync>,
}

/// How much the status contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Numbers, to the network.
    Numbers,
    /// Names of images and registries too, to programs of this node.
    Names,
}

impl Section {
    /// Under a name; made anew for every answer.
    pub fn new(
        name: &'static str,
        make: impl Fn(Detail) -> serde_json::Value + Send + Sync + 'static,
    ) -> Self {
        Self { name, make: Arc::new(make) }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn make(&self, detail: Detail) -> serde_json::Value {
        (self.make)(detail)
    }
}

impl std::fmt::Debug for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Section").field(&self.name).finish()
    }
}

/// Answers the admin side. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admin {
    readiness: Readiness,
    metrics: Metrics,
    store: Store,
    api: Api,
    report: Report,
    view: ClusterView,
    journal: Journal,
    token: Token,
    stopping: tokio_util::sync::CancellationToken,
}

impl Admin {
    /// Puts the parts together; not ready once `stopping` is cancelled.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part of its own, and one caller puts them together"
    )]
    pub fn new(
        readiness: Readiness,
        metrics: Metrics,
        store: Store,
        upstream: Arc<Upstream>,
        report: Report,
        view: ClusterView,
        explainer: Explainer,
        journal: Journal,
        token: Token,
        tasks: Tasks,
        stopping: tokio_util::sync::CancellationToken,
    ) -> Self {
        let api = Api::new(store.clone(), upstream, explainer, tasks, stopping.clone());
        Self { readiness, metrics, store, api, report, view, journal, token, stopping }
    }

    /// Answers a request that came over the Unix socket.
    pub(super) async fn answer_local(self, request: Request<Incoming>) -> Response<Body> {
        match request.uri().path() {
            "/api/v1/status" if matches!(*request.method(), Method::GET | Method::HEAD) => {
                self.status(Detail::Names)
            }
            "/api/v1/cluster" if matches!(*request.method(), Method::GET | Method::HEAD) => {
                document(&self.view.document(Detail::Names).await)
            }
            "/api/v1/peers" if matches!(*request.method(), Method::GET | Method::HEAD) => {
                document(&self.report.probe_peers().await)
            }
            path if path.starts_with("/api/v1/") => self.api.answer(request).await,
            _ => self.answer(request).await,
        }
    }

    /// Answers a request of the TCP listener.
    pub(super) async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let is_open = matches!(path, "/api/v1/status" | "/api/v1/cluster");
        if path.starts_with("/api/v1/") && (reads || !is_open) {
            let named = reads && self.token.is_shown(request.headers()).await;
            let detail = if named { Detail::Names } else { Detail::Numbers };
            return match (named, path) {
                (true, "/api/v1/images" | "/api/v1/explain") => self.api.answer(request).await,
                (_, "/api/v1/status") => self.status(detail),
                (_, "/api/v1/cluster") => document(&self.view.document(detail).await),
                _ => api::only_local(),
            };
        }
        if reads { self.read(path, request.headers()) } else { api::read_only() }
    }

    fn read(&self, path: &str, headers: &http::HeaderMap) -> Response<Body> {
        match path {
            "/readyz" if self.stopping.is_cancelled() => text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
            "/readyz" if !self.readiness.is_ready() => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => text(StatusCode::OK, self.detail()),
            "/metrics" => self.metrics(headers),
            path => page::file(path).unwrap_or_else(|| {
                text(
                    StatusCode::NOT_FOUND,
                    "served here: / /livez /readyz /metrics /api/v1/status /api/v1/cluster\n",
                )
            }),
        }
    }

    /// The agent is ready without its disk too: then it streams through.
    fn detail(&self) -> String {
        self.store.trouble().map_or_else(
            || "ok\n".to_owned(),
            |trouble| {
                format!(
                    "ok; store {}, content is streamed through: {}\n",
                    trouble.kind.as_str(),
                    trouble.what
                )
            },
        )
    }

    fn status(&self, detail: Detail) -> Response<Body> {
        document(&self.report.document(detail))
    }

    fn metrics(&self, headers: &http::HeaderMap) -> Response<Body> {
        let totals = self.store.totals();
        self.metrics.store_blobs.set(i64::try_from(totals.blobs).unwrap_or(i64::MAX));
        self.metrics.store_bytes.set(i64::try_from(totals.bytes).unwrap_or(i64::MAX));
        self.metrics.store_writable.set(i64::from(self.store.trouble().is_none()));
        let last = self.journal.requests().1.unwrap_or(0);
        self.metrics.last_request.set(i64::try_from(last).unwrap_or(i64::MAX));
        self.metrics.index_rebuilt.set(i64::from(self.store.was_index_rebuilt()));
        exposition(headers, self.metrics.open_metrics())
    }
}

/// Metrics in OpenMetrics for clients that accept it (Prometheus does), otherwise in the format that every tool reads.
pub(super) fn exposition(headers: &http::HeaderMap, open_metrics: String) -> Response<Body> {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (format, body) = if accepted.flat_map(|value| value.split(',')).any(is_open_metrics) {
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", open_metrics)
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", metrics::plain(&open_metrics))
    };
    let mut response = text(StatusCode::OK, body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(format));
    response
}

fn is_open_metrics(accepted: &str) -> bool {
    accepted.split(';').next().is_some_and(|media| media.trim() == "application/openmetrics-text")
}

/// A JSON document.
pub(super) fn document(document: &serde_json::Value) -> Response<Body> {
    let mut response = text(StatusCode::OK, document.to_string());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn text(status: StatusCode, text: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(body::full(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
