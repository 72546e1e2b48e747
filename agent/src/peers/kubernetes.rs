//! Members from the `EndpointSlices` of a headless Kubernetes service: one list, then a watch from where it ended.
//!
//! ```text
//! list --resourceVersion--> watch --events, bookmarks--> ... --ended by the server--> watch from the last version
//!   ^                         |
//!   +---- 410 Expired, -------+   an error waits 1 s, 2 s, ... 30 s first; the last list stays in force
//!         anything wrong
//! ```
//!
//! A member's name is its node's, its zone the endpoint's. The API server is asked with the pod's own token, read again
//! for every request because it is rotated. Two requests of one kind need no client library.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use bytes::BytesMut;
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{
    Member,
    client::cause,
    directory::{Directory, Publisher},
};

/// Where a pod finds what it needs to talk to the API server.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The label that ties a slice to its service.
const LABEL: &str = "kubernetes.io/service-name";

/// Port of the slices that is meant when they have several.
const PORT: &str = "peer";

/// After so long the server ends a watch, in seconds.
const WATCH_SECONDS: u64 = 290;

/// Longest silence of a watch: longer than the server keeps one.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS + 20);

/// Longest wait for an answer's header and for a list.
const ANSWER: Duration = Duration::from_secs(20);

/// Slices in one page of a list.
const PAGE: &str = "500";

/// Largest event: a slice has at most 1,000 endpoints.
const MAX_EVENT: usize = 4 * 1024 * 1024;

/// Largest page.
const MAX_PAGE: usize = 64 * 1024 * 1024;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A service to watch.
pub(super) struct Slices {
    client: Client,
    url: Url,
    known: HashMap<String, Vec<Member>>,
}

/// Why a list or a watch ended.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Ended {
    /// Go on from the last version.
    #[error("the server ended the watch")]
    Watch,
    /// What was known is too old to continue from: list again, now.
    #[error("the version is too old to watch from")]
    Expired,
    /// List again after a while.
    #[error("{0}")]
    Wrong(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: String,
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

#[derive(Debug, Deserialize)]
struct List {
    metadata: Meta,
    #[serde(default)]
    items: Vec<Slice>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Slice {
    metadata: Meta,
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<Port>>,
    /// Of a status object, in an event of type `ERROR`.
    code: u16,
    message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Endpoint {
    addresses: Vec<String>,
    conditions: Option<Conditions>,
    node_name: Option<String>,
    zone: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    serving: Option<bool>,
    ready: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Port {
    name: Option<String>,
    port: Option<u16>,
}

#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Slice,
}

impl Slices {
    /// Of a service, at an API server.
    pub(super) fn new(api: &Url, namespace: &str, name: &str) -> Result<Self, String> {
        let mut url = api.clone();
        url.set_path(&format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"));
        url.query_pairs_mut().append_pair("labelSelector", &format!("{LABEL}={name}"));
        let mut client = Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(5))
            .tcp_keepalive(Duration::from_secs(30))
            .redirect(reqwest::redirect::Policy::none());
        if let Some(pem) = account_file("ca.crt") {
            let authorities = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|error| format!("`{ACCOUNT}/ca.crt` is not usable: {error}"))?;
            client = client.tls_certs_merge(authorities);
        }
        let client = client.build().map_err(|error| format!("no client for the API server: {error}"))?;
        Ok(Self { client, url, known: HashMap::new() })
    }

    async fn send(&self, more: &[(&str, &str)]) -> Result<Response, Ended> {
        let mut url = self.url.clone();
        url.query_pairs_mut().extend_pairs(more);
        let mut request = self.client.get(url);
        let token = account_file("token").and_then(|token| String::from_utf8(token).ok());
        if let Some(token) = token {
            request = request.bearer_auth(token.trim());
        }
        let sent = tokio::time::timeout(ANSWER, request.send()).await;
        let response = sent.map_err(|_| wrong(format!("no answer within {ANSWER:?}")))?;
        let response = response.map_err(|error| wrong(format!("it cannot be reached: {}", cause(&error))))?;
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::GONE => Err(Ended::Expired),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Err(wrong(format!(
                "{}: the agent's role must allow `list` and `watch` on `endpointslices`",
                response.status()
            ))),
            other => Err(wrong(format!("the API server answered {other}"))),
        }
    }

    /// All slices; the version from which to watch.
    async fn list(&mut self) -> Result<String, Ended> {
        let (mut found, mut next) = (HashMap::new(), String::new());
        loop {
            let response = self.send(&[("limit", PAGE), ("continue", &next)]).await?;
            let page: List = read_page(response).await?;
            found.extend(page.items.into_iter().map(|slice| (slice.metadata.name.clone(), members(&slice))));
            if page.metadata.next.is_empty() {
                self.known = found;
                return Ok(page.metadata.resource_version);
            }
            next = page.metadata.next;
        }
    }

    /// Follows changes from `version` on, and moves it along.
    async fn watch(&mut self, version: &mut String, publish: &Publisher) -> Ended {
        let seconds = WATCH_SECONDS.to_string();
        let parameters = [
            ("watch", "1"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", seconds.as_str()),
            ("resourceVersion", version.as_str()),
        ];
        let mut response = match self.send(&parameters).await {
            Ok(response) => response,
            Err(ended) => return ended,
        };
        let mut buffer = BytesMut::new();
        loop {
            match tokio::time::timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(bytes))) if buffer.len() + bytes.len() <= MAX_EVENT => {
                    buffer.extend_from_slice(&bytes);
                }
                Ok(Ok(Some(_))) => return wrong(format!("an event of more than {MAX_EVENT} bytes")),
                Ok(Ok(None) | Err(_)) | Err(_) => return Ended::Watch,
            }
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end + 1);
                match self.apply(&line) {
                    Ok(at) => *version = at,
                    Err(ended) => return ended,
                }
            }
            self.publish(publish);
        }
    }

    /// Takes one event; gives the version after it.
    fn apply(&mut self, line: &[u8]) -> Result<String, Ended> {
        let event: Event =
            serde_json::from_slice(line).map_err(|error| wrong(format!("not an event: {error}")))?;
        let slice = event.object;
        match event.kind.as_str() {
            "ADDED" | "MODIFIED" => {
                self.known.insert(slice.metadata.name.clone(), members(&slice));
            }
            "DELETED" => {
                self.known.remove(&slice.metadata.name);
            }
            "BOOKMARK" => {}
            "ERROR" if slice.code == StatusCode::GONE.as_u16() => return Err(Ended::Expired),
            _ => return Err(wrong(format!("event `{}` {}: {}", event.kind, slice.code, slice.message))),
        }
        Ok(slice.metadata.resource_version)
    }

    fn publish(&self, publish: &Publisher) {
        publish.publish(self.known.values().flatten().cloned());
    }

    /// One list and its watches, until something is wrong. Says whether it came as far as watching.
    async fn follow(&mut self, publish: &Publisher) -> (bool, Ended) {
        let mut version = match self.list().await {
            Ok(version) => version,
            Err(ended) => return (false, ended),
        };
        self.publish(publish);
        loop {
            match self.watch(&mut version, publish).await {
                // A server that ends every watch at once is not to be asked in a tight loop.
                Ended::Watch => tokio::time::sleep(FIRST_PAUSE).await,
                ended => return (true, ended),
            }
        }
    }
}

impl Directory for Slices {
    async fn run(mut self, publish: Publisher, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            let Some((watched, ended)) = stop.run_until_cancelled(self.follow(&publish)).await else {
                return;
            };
            pause = if watched { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            if ended != Ended::Expired {
                tracing::warn!(reason = %ended, "members cannot be watched: the last ones stay");
            }
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }
}

fn wrong(reason: String) -> Ended {
    Ended::Wrong(reason)
}

/// A small file that the kubelet mounts; none outside of a cluster.
fn account_file(name: &str) -> Option<Vec<u8>> {
    #[expect(clippy::disallowed_methods, reason = "a kilobyte in memory, mounted by the kubelet")]
    std::fs::read(Path::new(ACCOUNT).join(name)).ok()
}

async fn read_page(mut response: Response) -> Result<List, Ended> {
    let mut bytes = BytesMut::new();
    loop {
        let next = tokio::time::timeout(ANSWER, response.chunk()).await;
        let next = next.map_err(|_| wrong(format!("a list paused for {ANSWER:?}")))?;
        match next.map_err(|error| wrong(format!("a list broke off: {}", error.without_url())))? {
            Some(chunk) if bytes.len() + chunk.len() <= MAX_PAGE => bytes.extend_from_slice(&chunk),
            Some(_) => return Err(wrong(format!("a list of more than {MAX_PAGE} bytes"))),
            None => break,
        }
    }
    serde_json::from_slice(&bytes).map_err(|error| wrong(format!("not a list of slices: {error}")))
}

/// Members that a slice names: those that serve and are not on their way out. Pure.
fn members(slice: &Slice) -> Vec<Member> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let named = ports.iter().find(|port| port.name.as_deref() == Some(PORT)).or(ports.first());
    let Some(port) = named.and_then(|port| port.port) else { return Vec::new() };
    let endpoints = slice.endpoints.iter().flatten();
    let member = |endpoint: &Endpoint| {
        let conditions = endpoint.conditions.as_ref();
        let serving = conditions.and_then(|known| known.serving.or(known.ready)).unwrap_or(true);
        let leaving = conditions.and_then(|known| known.terminating).unwrap_or(false);
        let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        (serving && !leaving).then(|| Member {
            name: endpoint.node_name.clone().unwrap_or_else(|| address.to_string()),
            zone: endpoint.zone.clone().unwrap_or_default(),
            address: SocketAddr::new(address, port),
        })
    };
    endpoints.filter_map(member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slices() -> Slices {
        Slices::new(&Url::parse("http://127.0.0.1:1").unwrap(), "hearth", "peers").unwrap()
    }

    fn names(slices: &Slices) -> Vec<String> {
        let mut names: Vec<_> = slices.known.values().flatten().map(|member| member.name.clone()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_endpoints_that_serve_are_members() {
        let slice: Slice = serde_json::from_str(
            r#"{"metadata":{"name":"s"},"addressType":"IPv4","ports":[{"name":"x","port":1},{"name":"peer","port":5051}],
               "endpoints":[
                 {"addresses":["10.0.0.1"],"nodeName":"a","zone":"z1","conditions":{"ready":true,"serving":true,"terminating":false}},
                 {"addresses":["10.0.0.2"],"nodeName":"b","conditions":{"ready":false,"serving":true,"terminating":true}},
                 {"addresses":["10.0.0.3"],"nodeName":"c","conditions":{"ready":false,"serving":false}},
                 {"addresses":["10.0.0.4"],"nodeName":"d","conditions":{}},
                 {"addresses":["fd00::5"]},
                 {"addresses":["name.test"],"nodeName":"e"}]}"#,
        )
        .unwrap();
        let found: Vec<_> = members(&slice)
            .into_iter()
            .map(|member| (member.name, member.zone, member.address.to_string()))
            .collect();
        let expected =
            [("a", "z1", "10.0.0.1:5051"), ("d", "", "10.0.0.4:5051"), ("fd00::5", "", "[fd00::5]:5051")];
        assert_eq!(found, expected.map(|(name, zone, address)| (name.into(), zone.into(), address.into())));
        assert!(members(&Slice::default()).is_empty(), "a slice without ports or endpoints has null lists");
    }

    #[test]
    fn events_change_what_is_known_and_410_asks_for_a_new_list() {
        let mut slices = slices();
        let event = |kind: &str, slice: &str, node: &str, version: u32| {
            format!(
                r#"{{"type":"{kind}","object":{{"metadata":{{"name":"{slice}","resourceVersion":"{version}"}},"ports":[{{"port":1}}],
                   "endpoints":[{{"addresses":["10.0.0.1"],"nodeName":"{node}"}}]}}}}"#
            )
        };
        assert_eq!(slices.apply(event("ADDED", "s1", "a", 5).as_bytes()), Ok("5".to_owned()));
        slices.apply(event("ADDED", "s2", "b", 6).as_bytes()).unwrap();
        slices.apply(event("MODIFIED", "s1", "c", 7).as_bytes()).unwrap();
        assert_eq!(names(&slices), ["b", "c"]);
        slices.apply(event("DELETED", "s2", "b", 8).as_bytes()).unwrap();
        let bookmark =
            r#"{"type":"BOOKMARK","object":{"kind":"EndpointSlice","metadata":{"resourceVersion":"9"}}}"#;
        assert_eq!(slices.apply(bookmark.as_bytes()), Ok("9".to_owned()));
        assert_eq!(names(&slices), ["c"]);
        let expired = r#"{"type":"ERROR","object":{"kind":"Status","metadata":{},"code":410,"reason":"Expired","message":"too old"}}"#;
        assert_eq!(slices.apply(expired.as_bytes()), Err(Ended::Expired));
        assert!(matches!(slices.apply(b"nonsense"), Err(Ended::Wrong(_))));
        assert_eq!(names(&slices), ["c"], "what is known stays");
    }
}
