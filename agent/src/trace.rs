//! Traces: spans of a pull for an OpenTelemetry collector, sent by OTLP over HTTP. Off unless `traces.endpoint` is set.
//!
//! ```text
//! mirror request -> download -> peer request -> (on the peer) answer to peer -> ...
//!                            -> registry request
//! ```
//!
//! The span of a request continues the trace that its client names in `traceparent` (W3C Trace Context; containerd sends
//! it when its own tracing is on), and requests to peers carry it on, so that one trace shows a pull across nodes.
//! Registries are not told. Spans wait in a bounded queue: a collector that is slow or away costs spans, never a pull.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    KeyValue,
    propagation::{Extractor, Injector, TextMapPropagator as _},
    trace::{TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanExporter},
};
use tracing::{Id, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::types::chain;

/// The target of all spans for traces: other layers leave them out.
pub const TARGET: &str = "hearth_trace";

/// Longest wait for the collector.
const EXPORT: Duration = Duration::from_secs(5);

/// Longest time in which the last spans are sent when the process ends.
const FLUSH: Duration = Duration::from_secs(2);

/// Where spans go, and how many.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Base URL of the collector; spans go to `v1/traces` below it.
    pub endpoint: reqwest::Url,
    /// Share of pulls that are traced, from 0 to 1, where the client has not decided.
    pub ratio: f64,
    /// Name of this node.
    pub node: String,
}

/// Sends spans until it is dropped.
#[derive(Debug)]
pub struct Exporter(SdkTracerProvider);

/// Why spans cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up traces")]
pub struct SetupError(#[from] opentelemetry_otlp::ExporterBuildError);

impl Exporter {
    /// Starts a thread that sends what [`Self::tracer`] is given.
    pub fn start(config: &Config) -> Result<Self, SetupError> {
        let url = format!("{}/v1/traces", config.endpoint.as_str().trim_end_matches('/'));
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_endpoint(&url)
            .with_timeout(EXPORT)
            .build()?;
        let resource = Resource::builder()
            .with_service_name("hearth-agent")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("host.name", config.node.clone()),
            ])
            .build();
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.ratio)));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(Reported { exporter, url, failing: AtomicBool::new(false) })
            .with_sampler(sampler)
            .with_resource(resource)
            .build();
        Ok(Self(provider))
    }

    /// For the layer of the subscriber.
    pub fn tracer(&self) -> SdkTracer {
        self.0.tracer("hearth-agent")
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // What cannot be sent in time is lost, as it may be.
        let _ = self.0.shutdown_with_timeout(FLUSH);
    }
}

/// Says once that the collector takes no spans, and once that it does again.
#[derive(Debug)]
struct Reported<E> {
    exporter: E,
    url: String,
    failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Reported<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let outcome = self.exporter.export(batch).await;
        let failed = self.failing.swap(outcome.is_err(), Ordering::Relaxed);
        match &outcome {
            Err(error) if !failed => {
                tracing::warn!(url = self.url, error = %chain(error), "traces cannot be sent: spans are dropped until the collector answers");
            }
            Ok(()) if failed => tracing::info!(url = self.url, "traces are sent again"),
            _ => {}
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (key.parse::<HeaderName>(), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

tokio::task_local! {
    /// The span that the work of this task belongs to; none while traces are off.
    static CURRENT: Option<Span>;
}

/// The parent of the next span of this task. Spans are not entered: in a task of its own a span of the log would hide it.
pub fn current() -> Option<Id> {
    CURRENT.try_with(|span| span.as_ref().and_then(Span::id)).ok().flatten()
}

/// Work that belongs to a span, which ends with it.
pub fn within<F: Future>(span: Span, work: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(Some(span).filter(|span| !span.is_disabled()), work)
}

/// Work of a new task, which belongs to the span of the task that starts it.
pub fn inherited<F: Future>(work: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(CURRENT.try_with(Clone::clone).ok().flatten(), work)
}

/// The span of a request to a registry: the path alone, because what a redirect signs is in the query.
pub fn registry_request(method: &http::Method, url: &reqwest::Url) -> Span {
    tracing::info_span!(
        target: TARGET, parent: current(), "registry request", otel.kind = "client", %method, host = url.host_str(),
        path = url.path(),
    )
}

/// Makes a span part of the trace that a request's headers name, if they name one. Nothing while traces are off.
pub fn continue_from(span: &Span, headers: &HeaderMap) {
    if span.is_disabled() || !headers.contains_key("traceparent") {
        return;
    }
    let context = TraceContextPropagator::new().extract(&Headers(headers));
    if context.span().span_context().is_valid() {
        // It fails only for a span that was entered before, and this one is new.
        let _ = span.set_parent(context);
    }
}

/// The headers that make a request part of this span's trace; none while traces are off.
pub fn headers(span: &Span) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if !span.is_disabled() {
        TraceContextPropagator::new().inject_context(&span.context(), &mut HeadersMut(&mut headers));
    }
    headers
}
