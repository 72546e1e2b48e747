//! The part of a Kubernetes API server that lists and watches `EndpointSlices`, over real HTTP.
//!
//! As the real one does: a list comes in pages and names a version; a watch from a version sends what came after it, one
//! JSON object a line, and bookmarks; from a version that is too old it is 200 and then an `ERROR` event with code 410;
//! watches are ended by the server now and then.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use crate::cluster::Place;

/// Slices in one page of a list: small, so that lists have several.
const PAGE: usize = 1;

#[derive(Debug, Default)]
struct State {
    version: u64,
    slices: BTreeMap<String, Value>,
    /// What happened after [`Self::oldest`].
    history: Vec<(u64, Value)>,
    oldest: u64,
    lists: usize,
    watches: usize,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Changes with the version, and when watches are to end.
    news: watch::Sender<(u64, u64)>,
}

/// The server. Dropping it ends it.
#[derive(Debug)]
pub struct FakeApi {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeApi {
    /// One without slices, on a free loopback port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(accept(listener, shared.clone()));
        Self { address, shared, task }
    }

    /// `http://<address>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes or replaces a slice with these members.
    pub fn put(&self, slice: &str, members: &[&Place]) {
        let endpoints: Vec<_> = members
            .iter()
            .map(|place| {
                json!({
                    "addresses": [place.address.ip()], "nodeName": place.name, "zone": place.zone,
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                })
            })
            .collect();
        let port = members.first().map_or(1, |place| place.address.port());
        self.change(slice, |version, old| {
            let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
            let object = json!({
                "metadata": {"name": slice, "resourceVersion": version.to_string()}, "addressType": "IPv4",
                "ports": [{"name": "peer", "port": port}], "endpoints": endpoints,
            });
            (kind, object.clone(), Some(object))
        });
    }

    /// Removes a slice.
    pub fn delete(&self, slice: &str) {
        self.change(slice, |version, old| {
            let mut object = old.cloned().unwrap_or_default();
            object["metadata"]["resourceVersion"] = version.to_string().into();
            ("DELETED", object, None)
        });
    }

    fn change(
        &self,
        slice: &str,
        make: impl FnOnce(u64, Option<&Value>) -> (&'static str, Value, Option<Value>),
    ) {
        let mut state = self.shared.state();
        state.version += 1;
        let version = state.version;
        let (kind, object, kept) = make(version, state.slices.get(slice));
        match kept {
            Some(kept) => state.slices.insert(slice.to_owned(), kept),
            None => state.slices.remove(slice),
        };
        state.history.push((version, json!({"type": kind, "object": object})));
        drop(state);
        self.shared.news.send_modify(|news| news.0 = version);
    }

    /// Forgets the past and ends all watches: whoever continues gets 410.
    pub fn compact(&self) {
        let mut state = self.shared.state();
        state.version += 1;
        state.oldest = state.version;
        state.history.clear();
        drop(state);
        self.end_watches();
    }

    /// Ends all watches, as the server does now and then.
    pub fn end_watches(&self) {
        self.shared.news.send_modify(|news| news.1 += 1);
    }

    /// How many lists (by their first page) and watches were asked for.
    pub fn asked(&self) -> (usize, usize) {
        let state = self.shared.state();
        (state.lists, state.watches)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, shared.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let target = head.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
    // The client closes or is closed on: one request a connection.
    let _ = if path != "/apis/discovery.k8s.io/v1/namespaces/hearth/endpointslices"
        || parameter("labelSelector") != Some("kubernetes.io%2Fservice-name%3Dpeers")
    {
        answer(&mut stream, "404 Not Found", &json!({"kind": "Status", "code": 404})).await
    } else if parameter("watch").is_some() {
        let from = parameter("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        watch(&mut stream, &shared, from).await
    } else {
        let page = page(&shared, parameter("continue").unwrap_or_default());
        answer(&mut stream, "200 OK", &page).await
    };
}

async fn answer(stream: &mut TcpStream, status: &str, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let mut text = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n");
    let _ = write!(text, "content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes()).await
}

fn page(shared: &Shared, next: &str) -> Value {
    let mut state = shared.state();
    if next.is_empty() {
        state.lists += 1;
    }
    let from: usize = next.parse().unwrap_or(0);
    let items: Vec<_> = state.slices.values().skip(from).take(PAGE).cloned().collect();
    let more = if from + PAGE < state.slices.len() { (from + PAGE).to_string() } else { String::new() };
    json!({"metadata": {"resourceVersion": state.version.to_string(), "continue": more}, "items": items})
}

async fn watch(stream: &mut TcpStream, shared: &Shared, mut version: u64) -> std::io::Result<()> {
    let mut news = shared.news.subscribe();
    let ends = news.borrow().1;
    shared.state().watches += 1;
    stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await?;
    loop {
        let (events, oldest, now) = {
            let state = shared.state();
            let events: Vec<_> = state
                .history
                .iter()
                .filter(|(at, _)| *at > version)
                .map(|(_, event)| event.clone())
                .collect();
            (events, state.oldest, state.version)
        };
        if version < oldest {
            let expired = json!({"type": "ERROR", "object": {
                "kind": "Status", "metadata": {}, "code": 410, "reason": "Expired", "message": "too old resource version",
            }});
            return stream.write_all(format!("{expired}\n").as_bytes()).await;
        }
        let bookmark =
            json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": now.to_string()}}});
        for event in events.iter().chain([&bookmark]) {
            stream.write_all(format!("{event}\n").as_bytes()).await?;
        }
        version = now;
        if news.changed().await.is_err() || news.borrow().1 != ends {
            return Ok(());
        }
    }
}
