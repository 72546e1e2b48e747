//! Traces: one shows a pull across peers, and a collector that is away costs nothing but the spans.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use kit::{
    agent::{AgentConfig, blob_path},
    cluster::{peer_config, places},
    process::AgentProcess,
    registry::{FakeUpstream, Image, Layer},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value, resource::v1::Resource,
    trace::v1::Span,
};
use prost::Message as _;
use tokio::net::TcpListener;

const REPOSITORY: &str = "team/app";
const SIZE: u64 = 30_000_000;

/// The trace that the client names, as W3C Trace Context writes it.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT: &str = "b7ad6b7169203331";

/// Spans with the name of the node that sent them.
type Spans = Arc<Mutex<Vec<(String, Span)>>>;

/// A collector that takes OTLP over HTTP.
async fn collector() -> (SocketAddr, Spans) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback ports are available");
    let (address, spans) = (listener.local_addr().expect("it is bound"), Spans::default());
    let kept = spans.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let kept = kept.clone();
            let service = service_fn(move |request: Request<Incoming>| take(kept.clone(), request));
            tokio::spawn(async move {
                let connection = hyper::server::conn::http1::Builder::new();
                let _ = connection.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (address, spans)
}

async fn take(kept: Spans, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.uri().path(), "/v1/traces");
    let body = request.into_body().collect().await.expect("the agent sends all").to_bytes();
    let batch = ExportTraceServiceRequest::decode(body).expect("spans");
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    for of_resource in batch.resource_spans {
        let node = of_resource.resource.as_ref().map(node).unwrap_or_default();
        let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        kept.extend(spans.map(|span| (node.clone(), span)));
    }
    Ok(Response::new(Full::default()))
}

fn node(resource: &Resource) -> String {
    let attribute = resource.attributes.iter().find(|attribute| attribute.key == "host.name");
    match attribute.and_then(|attribute| attribute.value.clone()).and_then(|value| value.value) {
        Some(Value::StringValue(name)) => name,
        _ => String::new(),
    }
}

fn of_client(spans: &Spans) -> Vec<(String, Span)> {
    let trace = hex::decode(TRACE).expect("hexadecimal");
    let spans = spans.lock().unwrap_or_else(PoisonError::into_inner);
    spans.iter().filter(|(_, span)| span.trace_id == trace).cloned().collect()
}

/// A blob by a client that traces.
async fn fetch(agent: &AgentProcess, image: &Image) -> u64 {
    let path = blob_path(REPOSITORY, &image.layers[0].0);
    let url = format!("http://{}{path}", agent.addresses.mirror);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let request = client.get(url).header("traceparent", format!("00-{TRACE}-{CLIENT}-01"));
    let answer = request.send().await.expect("it answers");
    assert_eq!(answer.status(), 200);
    answer.bytes().await.expect("a body").len() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_shows_a_pull_across_peers() {
    let upstream = FakeUpstream::start().await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, SIZE)]).await;
    let (address, spans) = collector().await;
    let places = places(2);
    // None of their own: the client decides.
    let base = AgentConfig::for_upstream(&upstream)
        .with(&format!("traces: {{ endpoint: \"http://{address}\", ratio: 0 }}"));
    let mut agents = Vec::new();
    let home = tempfile::tempdir().expect("temporary folders are available");
    for place in &places {
        let directory = home.path().join(&place.name);
        std::fs::create_dir(&directory).expect("writable");
        let config = peer_config(&base, place, &places, "");
        agents.push(config.start_process(&directory).await.expect("it starts"));
    }
    assert_eq!(fetch(&agents[0], &image).await, SIZE);
    let until = Instant::now() + Duration::from_mins(1);
    let all = loop {
        let all = of_client(&spans);
        let has = |node: &str, name: &str| all.iter().any(|(from, span)| from == node && span.name == name);
        if has("node-00", "download")
            && has("node-01", "answer to peer")
            && has("node-01", "registry request")
        {
            break all;
        }
        let names: Vec<_> = all.iter().map(|(node, span)| (node, &span.name)).collect();
        assert!(Instant::now() < until, "{names:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let parent = |name: &str, from: &str| {
        let (_, span) =
            all.iter().find(|(node, span)| node == from && span.name == name).expect("it is there");
        all.iter()
            .find(|(_, other)| other.span_id == span.parent_span_id)
            .map(|(_, other)| other.name.clone())
    };
    let root = all.iter().find(|(_, span)| span.name == "mirror request").expect("the client's request");
    assert_eq!(hex::encode(&root.1.parent_span_id), CLIENT, "it is the client's child");
    assert_eq!(parent("download", "node-00").as_deref(), Some("mirror request"));
    assert_eq!(parent("answer to peer", "node-01").as_deref(), Some("peer request"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_one_line_and_no_pull() {
    let upstream = FakeUpstream::start().await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, SIZE)]).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("loopback ports are available");
    let address = closed.local_addr().expect("it is bound");
    drop(closed);
    let config = AgentConfig::for_upstream(&upstream)
        .with(&format!("traces: {{ endpoint: \"http://{address}\", ratio: 1 }}"))
        .with_log("info");
    let home = tempfile::tempdir().expect("temporary folders are available");
    let agent = config.start_process(home.path()).await.expect("it starts");
    let until = Instant::now() + Duration::from_mins(1);
    let lines = |log: &str| log.lines().filter(|line| line.contains("traces cannot be sent")).count();
    while lines(&agent.log()) == 0 {
        assert_eq!(fetch(&agent, &image).await, SIZE);
        assert!(Instant::now() < until, "{}", agent.log());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // Two more batches fail.
    for _ in 0..2 {
        assert_eq!(fetch(&agent, &image).await, SIZE);
        tokio::time::sleep(Duration::from_millis(5_500)).await;
    }
    assert_eq!(lines(&agent.log()), 1, "{}", agent.log());
    assert!(!agent.log().contains("opentelemetry"), "no line of a library: {}", agent.log());
}
