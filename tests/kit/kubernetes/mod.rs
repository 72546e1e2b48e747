//! A Kubernetes API server over real HTTP on loopback: what agents need of it, with the behaviour of the real one.
//!
//! | part | owns |
//! | --- | --- |
//! | `kinds` | which kinds there are, with their schemas; custom ones come and go |
//! | `objects` | objects, versions, history, who owns which field |
//! | `patch` | merge, strategic merge, JSON patches, server-side apply |
//! | `schema` | validation, defaults and pruning by a definition's schema |
//! | `roles` | what a token may do |
//! | `lists` | lists in pages, watches |
//! | `serve` | HTTP: verbs, faults |
//!
//! As the real one does (measured against 1.36): the status subresource is written apart from the rest; a stale
//! `resourceVersion` is 409, so is an apply over another manager's field; node taints are one value under a strategic
//! merge; a request for a certificate says who sent it, and who approves or signs one needs that right for its signer; an object that no longer matches a watch's selector is `DELETED` there; a watch from a version that is too old
//! is 200 and then an `ERROR` event with code 410; watches are ended now and then; streaming lists are refused.

mod kinds;
mod lists;
mod objects;
mod patch;
mod roles;
mod schema;
mod selector;
mod serve;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hearth_agent::prepull::crd::{ImageSet, NodeCache};
use kube::CustomResourceExt as _;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::cluster::Place;
use kinds::Kind;
pub use objects::Failure;
pub use roles::Rule;
use serve::Shared;
pub use serve::{ApiFault, Record};

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

impl FakeApi {
    /// One without objects, on a free loopback port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(serve::accept(listener, shared.clone()));
        Self { address, shared, task }
    }

    /// `http://<address>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The URL for a client that has no token: what it may do is what [`Self::role`] says of `client`.
    pub fn url_for(&self, client: &str) -> String {
        format!("{}/as/{client}", self.url())
    }

    /// Ends it: connections break, and nobody answers until [`Self::restart`].
    pub async fn stop(&mut self) {
        self.task.abort();
        // An aborted task ends with an error.
        let _ = (&mut self.task).await;
    }

    /// Answers again at the same address, with the same objects.
    pub async fn restart(&mut self) {
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        self.task = tokio::spawn(serve::accept(listener, self.shared.clone()));
    }

    /// A client with every right.
    pub fn client(&self) -> kube::Client {
        let mut config = kube::Config::new(self.url().parse().expect("an address makes a URL"));
        config.auth_info.token = Some("test".to_owned().into());
        kube::Client::try_from(config).expect("a plain client")
    }

    /// From now on whoever comes with this token (empty: without one, as agents do) may do what the rules say and
    /// nothing else.
    pub fn role(&self, token: &str, rules: Vec<Rule>) {
        self.shared.roles().insert(token.to_owned(), rules);
    }

    /// From now on who comes with this token (or [`Self::url_for`]) is this service account, in a pod on this node.
    pub fn account(&self, token: &str, user: &str, node: &str) {
        self.shared.accounts().insert(token.to_owned(), (user.to_owned(), node.to_owned()));
    }

    /// Installs a `CustomResourceDefinition`.
    pub fn install(&self, definition: &Value) {
        let kind = Kind::of_definition(definition).expect("a definition with a served version");
        self.shared.objects().install(kind);
    }

    /// Installs the kinds of the agent.
    pub fn install_hearth(&self) {
        for definition in [ImageSet::crd(), NodeCache::crd()] {
            self.install(&serde_json::to_value(definition).expect("definitions are JSON"));
        }
    }

    /// Takes a kind away with all its objects.
    pub fn uninstall(&self, kind: &str) {
        self.shared.objects().uninstall(kind);
        self.end_watches();
    }

    /// Makes or replaces an object as it is, with its status.
    pub fn seed(&self, object: Value) -> Value {
        let kind = object["kind"].as_str().expect("an object has a kind").to_owned();
        self.shared.change(|objects| objects.seed(&kind, object))
    }

    /// An object.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.objects().find(kind, namespace, name)
    }

    /// All objects of a kind.
    pub fn list(&self, kind: &str) -> Vec<Value> {
        self.shared.objects().all(kind)
    }

    /// Removes an object, whatever its finalizers say.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) {
        self.shared.change(|objects| objects.remove(kind, namespace, name));
    }

    /// Makes requests fail.
    pub fn fault(&self, fault: ApiFault) {
        self.shared.faults().push(fault);
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.shared.faults().clear();
    }

    /// What was asked, in order.
    pub fn log(&self) -> Vec<Record> {
        self.shared.log().clone()
    }

    /// Bytes sent in watches of a kind so far, by its plural name.
    pub fn watched_bytes(&self, plural: &str) -> u64 {
        self.shared.watched().get(plural).copied().unwrap_or(0)
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
        self.seed(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": slice, "namespace": "hearth", "labels": {"kubernetes.io/service-name": "peers"}},
            "ports": [{"name": "peer", "port": port}], "endpoints": endpoints,
        }));
    }

    /// Removes a slice.
    pub fn delete(&self, slice: &str) {
        self.remove("EndpointSlice", "hearth", slice);
    }

    /// Forgets the past and ends all watches: whoever continues gets 410.
    pub fn compact(&self) {
        self.shared.objects().compact();
        self.end_watches();
    }

    /// Ends all watches, as the server does now and then.
    pub fn end_watches(&self) {
        self.shared.news.send_modify(|news| news.1 += 1);
    }

    /// How many lists (by their first page) and watches of slices were asked for.
    pub fn asked(&self) -> (usize, usize) {
        let log = self.shared.log();
        let of = |verb: &str| {
            log.iter()
                .filter(|record| {
                    record.plural == "endpointslices" && record.verb == verb && !record.continued
                })
                .count()
        };
        (of("list"), of("watch"))
    }
}
