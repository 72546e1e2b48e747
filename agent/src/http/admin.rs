//! The admin side. On its TCP listener, which the network may reach: `/livez`, `/readyz`, `/metrics`, and `/api/v1/status`
//! with numbers alone. On the Unix socket (`local`) the status with names, and the calls of `api`.

use std::sync::{Arc, Weak};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;

use super::{
    api::{self, Api},
    body::{self, Body},
};
use crate::{download::Fetcher, metrics::Metrics, store::Store, task::Tasks, upstream::Upstream};

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

/// How much of the status is told.
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
    upstream: Arc<Upstream>,
    fetcher: Fetcher,
    section: Section,
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
        fetcher: Fetcher,
        section: Section,
        tasks: Tasks,
        stopping: tokio_util::sync::CancellationToken,
    ) -> Self {
        let api = Api::new(store.clone(), upstream.clone(), tasks, stopping.clone());
        Self { readiness, metrics, store, api, upstream, fetcher, section, stopping }
    }

    /// Answers a request that came over the Unix socket.
    pub(super) async fn answer_local(self, request: Request<Incoming>) -> Response<Body> {
        match request.uri().path() {
            "/api/v1/status" if matches!(*request.method(), Method::GET | Method::HEAD) => {
                self.status(Detail::Names)
            }
            path if path.starts_with("/api/v1/") => self.api.answer(request).await,
            _ => self.answer(&request),
        }
    }

    /// Answers a request of the TCP listener.
    pub(super) fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        if path.starts_with("/api/v1/") && path != "/api/v1/status" {
            return api::only_local();
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return api::read_only();
        }
        match request.uri().path() {
            "/readyz" if self.stopping.is_cancelled() => text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
            "/readyz" if !self.readiness.is_ready() => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => text(StatusCode::OK, self.detail()),
            "/metrics" => self.metrics(request.headers()),
            "/api/v1/status" => self.status(Detail::Numbers),
            _ => text(StatusCode::NOT_FOUND, "served here: /livez /readyz /metrics /api/v1/status\n"),
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

    /// What the agent does and how its registries stand, for people and scripts.
    fn status(&self, detail: Detail) -> Response<Body> {
        // In this order: what is said to be counted is counted.
        let counted = self.store.is_counted();
        let totals = self.store.totals();
        let trouble = self.store.trouble();
        let (downloads, registries) = (self.fetcher.status(), self.upstream.status());
        let names = detail == Detail::Names;
        let mut document = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "store": {
                "blobs": totals.blobs,
                "bytes": totals.bytes,
                "counted": counted,
                "trouble": trouble.map(|trouble| if names { trouble.what } else { trouble.kind.as_str().to_owned() }),
            },
            "transfers": if names { serde_json::json!(downloads) } else { downloads.len().into() },
            "registries": if names { serde_json::json!(registries) } else { registries.len().into() },
        });
        document[self.section.name] = (self.section.make)(detail);
        self::document(&document)
    }

    /// In OpenMetrics for clients that ask for it (Prometheus does), otherwise in the format that every tool reads.
    fn metrics(&self, headers: &http::HeaderMap) -> Response<Body> {
        let totals = self.store.totals();
        self.metrics.store_blobs.set(i64::try_from(totals.blobs).unwrap_or(i64::MAX));
        self.metrics.store_bytes.set(i64::try_from(totals.bytes).unwrap_or(i64::MAX));
        self.metrics.store_writable.set(i64::from(self.store.trouble().is_none()));
        self.metrics.index_rebuilt.set(i64::from(self.store.was_index_rebuilt()));
        let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let (format, body) = if accepted.flat_map(|value| value.split(',')).any(is_open_metrics) {
            ("application/openmetrics-text; version=1.0.0; charset=utf-8", self.metrics.open_metrics())
        } else {
            ("text/plain; version=0.0.4; charset=utf-8", self.metrics.plain_text())
        };
        let mut response = text(StatusCode::OK, body);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(format));
        response
    }
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
