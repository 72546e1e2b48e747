//! Agents in a Kubernetes cluster: every reconciler, against the API server of the kit; with `KUBECONFIG` and
//! `HEARTH_TEST_KUBERNETES=1` the same stories against a real one, under names of their own that are removed again.

mod controller;
mod node;
mod outage;
mod pods;
mod proof;
mod ready;
mod rights;
mod set;
pub(crate) mod spark;

use std::{fmt::Debug, fs, future::Future, time::Duration};

use hearth_agent::prepull::crd::{ImageSet, NodeCache};
use k8s_openapi::{
    api::core::v1::{Namespace, Node},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kit::{
    agent::{Agent, AgentConfig, REGISTRY},
    controller::Controller,
    kubernetes::{FakeApi, Rule},
    registry::{FakeUpstream, Image, Layer},
};
use kube::{
    Api, Client, CustomResourceExt as _, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::manifests;

/// Longest wait for anything here.
const SOON: Duration = Duration::from_mins(1);

const REPOSITORY: &str = "team/spark";

/// An API server, a registry, a controller, and a prefix for names.
pub(crate) struct World {
    pub(crate) controller: Option<Controller>,
    pub(crate) fake: Option<FakeApi>,
    pub(crate) client: Client,
    pub(crate) upstream: FakeUpstream,
    pub(crate) prefix: String,
}

/// What the roles that we ship let an account do: every scenario here runs under them.
pub(crate) fn shipped_rules(account: &str) -> Vec<Rule> {
    rules_of(&["base/rbac.yaml", "base/controller.yaml", "components/pull-secrets/rbac.yaml"], account)
}

/// The same for agents without the component `pull-secrets`.
fn shipped_rules_without_secrets() -> Vec<Rule> {
    rules_of(&["base/rbac.yaml"], "hearth-agent")
}

fn rules_of(files: &[&str], account: &str) -> Vec<Rule> {
    let read =
        |file: &str| fs::read_to_string(manifests::folder().join(file)).expect("the roles are readable");
    let documents: Vec<_> = files.iter().flat_map(|file| manifests::render::documents(&read(file))).collect();
    let bound = documents.iter().filter(|one| {
        let subjects = one["subjects"].as_array().into_iter().flatten();
        subjects.into_iter().any(|subject| subject["name"] == account)
    });
    let roles = bound.map(|binding| &binding["roleRef"]["name"]);
    let documents = &documents;
    let role = |name: &Value| {
        let is_it = |one: &&Value| {
            one["kind"].as_str().is_some_and(|kind| kind.ends_with("Role"))
                && one["metadata"]["name"] == *name
        };
        documents.iter().filter(is_it).flat_map(Rule::of_role).collect::<Vec<_>>()
    };
    roles.flat_map(role).collect()
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// With further keys of `kubernetes` for the controller.
    pub(crate) async fn start_with(more: &str) -> Self {
        let upstream = FakeUpstream::start().await;
        let prefix = format!("t{:08x}", rand());
        let real = std::env::var("HEARTH_TEST_KUBERNETES").is_ok_and(|value| value == "1");
        let (fake, client) = if real {
            (None, Client::try_default().await.expect("`KUBECONFIG` names a cluster"))
        } else {
            let fake = FakeApi::start().await;
            fake.role("", shipped_rules("hearth-agent"));
            fake.role("controller", shipped_rules("hearth-controller"));
            let client = fake.client();
            (Some(fake), client)
        };
        let mut world = Self { controller: None, fake, client, upstream, prefix };
        let definitions: Api<CustomResourceDefinition> = Api::all(world.client.clone());
        for definition in [ImageSet::crd(), NodeCache::crd()] {
            let name = definition.metadata.name.clone().expect("a definition has a name");
            let parameters = PatchParams::apply("test").force();
            definitions
                .patch(&name, &parameters, &Patch::Apply(&definition))
                .await
                .expect("the definitions are valid");
        }
        let namespaces: Api<Namespace> = Api::all(world.client.clone());
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": world.prefix}});
        namespaces
            .patch(&world.prefix, &PatchParams::apply("test").force(), &Patch::Apply(namespace))
            .await
            .expect("a namespace of our own");
        let ready = async {
            while world.all::<ImageSet>().list(&kube::api::ListParams::default()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(SOON, ready).await.expect("the definitions are served");
        world.controller = Some(world.start_controller(more));
        world
    }

    pub(crate) fn start_controller(&self, more: &str) -> Controller {
        let api = self.fake.as_ref().map(|fake| format!("api: \"{}\", ", fake.url_for("controller")));
        let api = api.unwrap_or_default();
        let config = AgentConfig::for_upstream(&self.upstream).with(&format!(
            "kubernetes: {{ imageSets: true, {api}namespace: \"{}\", statusInterval: 300ms{more} }}",
            self.prefix
        ));
        Controller::start(&config)
    }

    pub(crate) fn all<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>,
    {
        Api::all(self.client.clone())
    }

    fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    pub(crate) async fn image(&self, tag: &str, seed: u64) -> Image {
        self.upstream.image(REPOSITORY, tag, [Layer::random(seed, 1 << 20)]).await
    }

    /// A node with labels and taints, as a kubelet makes it.
    pub(crate) async fn node(&self, name: &str, mut labels: Value, taints: Value) -> String {
        let name = self.name(name);
        labels["kubernetes.io/os"] = "linux".into();
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels}, "spec": {"taints": taints},
        }))
        .expect("a node");
        self.all::<Node>().create(&PostParams::default(), &node).await.expect("the node is made");
        self.node_is_ready(&name, "True").await;
        name
    }

    /// What a kubelet, or the control plane for it, says of a node.
    async fn node_is_ready(&self, name: &str, status: &str) {
        let condition = json!({"type": "Ready", "status": status, "reason": "Test", "message": "by a test"});
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        let nodes = self.all::<Node>();
        nodes
            .patch_status(name, &PatchParams::default(), &patch)
            .await
            .expect("the node's status is written");
    }

    /// A set of images, by their tags in the registry, for the nodes of this world that `selector` names.
    async fn set(&self, name: &str, images: &[&str], more: Value) -> String {
        let name = self.name(name);
        let mut spec = json!({"images": images.iter().map(|tag| image_name(tag)).collect::<Vec<_>>()});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let object = json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "ImageSet", "metadata": {"name": name}, "spec": spec});
        self.all::<ImageSet>()
            .patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(object))
            .await
            .expect("the set is valid");
        name
    }

    /// The configuration of an agent on a node.
    pub(crate) fn config(&self, node: &str, more: &str) -> AgentConfig {
        let api = self.fake.as_ref().map(|fake| format!("api: \"{}\", ", fake.url())).unwrap_or_default();
        AgentConfig::for_upstream(&self.upstream).with(&format!(
            "tags: {{ freshness: 0s, negative: 0s }}\nprepull: {{ interval: 1s }}\n\
             kubernetes: {{ imageSets: true, {api}node: \"{node}\", namespace: \"{}\", statusInterval: 300ms{more} }}",
            self.prefix
        ))
    }

    /// The same, for a registry that wants credentials.
    fn private_config(&self, node: &str) -> AgentConfig {
        let api = self.fake.as_ref().map(|fake| format!("api: \"{}\", ", fake.url())).unwrap_or_default();
        AgentConfig::default().registry(REGISTRY, &[&self.upstream.url()], "private: agent").with(&format!(
            "kubernetes: {{ imageSets: true, {api}node: \"{node}\", namespace: \"{}\", statusInterval: 300ms }}",
            self.prefix
        ))
    }

    async fn agent(&self, node: &str) -> Agent {
        Agent::start(&self.config(node, "")).await
    }

    /// Waits until an object of the cluster looks as wanted.
    pub(crate) async fn until<K>(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value
    where
        K: Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + serde::Serialize,
    {
        let api = self.all::<K>();
        eventually(name, || async {
            let object = api.get_opt(name).await.ok().flatten();
            let value = serde_json::to_value(object).expect("objects are JSON");
            if wanted(&value) { Ok(value) } else { Err(value) }
        })
        .await
    }

    /// Reasons of the events about an object.
    pub(crate) async fn events_about(&self, name: &str) -> Vec<String> {
        let events: Api<k8s_openapi::api::events::v1::Event> = Api::all(self.client.clone());
        let list = events.list(&kube::api::ListParams::default()).await.expect("events can be listed");
        let about = |event: &k8s_openapi::api::events::v1::Event| {
            event.regarding.as_ref().is_some_and(|regarding| regarding.name.as_deref() == Some(name))
        };
        list.items.into_iter().filter(about).filter_map(|event| event.reason).collect()
    }

    /// Removes what was made in a real cluster.
    pub(crate) async fn end(self) {
        if self.fake.is_some() {
            return;
        }
        let delete = DeleteParams::default();
        let mine = |name: &Option<String>| name.as_deref().is_some_and(|name| name.starts_with(&self.prefix));
        let list = kube::api::ListParams::default();
        for set in self.all::<ImageSet>().list(&list).await.expect("sets").items {
            if mine(&set.metadata.name) {
                let _ = self.all::<ImageSet>().delete(&set.metadata.name.unwrap_or_default(), &delete).await;
            }
        }
        for cache in self.all::<NodeCache>().list(&list).await.expect("caches").items {
            if mine(&cache.metadata.name) {
                let _ =
                    self.all::<NodeCache>().delete(&cache.metadata.name.unwrap_or_default(), &delete).await;
            }
        }
        for node in self.all::<Node>().list(&list).await.expect("nodes").items {
            if mine(&node.metadata.name) {
                let _ = self.all::<Node>().delete(&node.metadata.name.unwrap_or_default(), &delete).await;
            }
        }
        let _ = self.all::<Namespace>().delete(&self.prefix, &delete).await;
    }
}

/// The name of an image as pods have it.
pub(crate) fn image_name(tag: &str) -> String {
    if tag.contains('/') { tag.to_owned() } else { format!("{REGISTRY}/{REPOSITORY}:{tag}") }
}

/// Random state of the standard library: different in every test.
fn rand() -> u32 {
    use std::hash::{BuildHasher as _, RandomState};
    let [.., a, b, c, d] = RandomState::new().hash_one(0).to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// Tries until something is as wanted; says what it was otherwise.
pub(crate) async fn eventually<T, E: Debug, F: Future<Output = Result<T, E>>>(
    what: &str,
    attempt: impl Fn() -> F,
) -> T {
    let last = std::sync::Mutex::new(None);
    let trying = async {
        loop {
            match attempt().await {
                Ok(found) => return found,
                Err(other) => *last.lock().expect("no one panics holding it") = Some(other),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let found = tokio::time::timeout(SOON, trying).await.ok();
    let last = last.lock().expect("no one panics holding it");
    found.unwrap_or_else(|| panic!("`{what}` not within {SOON:?}; at last {last:#?}"))
}

fn condition(object: &Value, name: &str) -> (String, String) {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == name);
    let text =
        |field: &str| found.and_then(|condition| condition[field].as_str()).unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}
