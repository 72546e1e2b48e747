//! What a node makes of the agent's pod: its environment, with the names of other variables replaced as the kubelet does it,
//! and the configuration that the agent reads from both.

use std::{collections::BTreeMap, fs, path::Path};

use hearth_agent::config::{self, Config, Purpose};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Container, PodSpec},
};
use kit::certificates::Authority;
use serde_json::Value;

use super::render;

pub(super) fn daemon_set(documents: &[Value]) -> DaemonSet {
    render::one(documents, "DaemonSet", "hearth-agent")
}

pub(super) fn pod(daemon_set: &DaemonSet) -> &PodSpec {
    daemon_set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()).expect("it has a pod")
}

/// The variables of a container. A name is replaced only where an earlier variable has it.
pub(super) fn environment(container: &Container, namespace: &str) -> BTreeMap<String, String> {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for variable in container.env.iter().flatten() {
        let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
        let mut value = match field.map(|field| &*field.field_path) {
            Some("metadata.namespace") => namespace.to_owned(),
            Some("spec.nodeName") => "node-1".to_owned(),
            Some("metadata.name") => "pod-1".to_owned(),
            Some(other) => panic!("`{other}` is not known to this test"),
            None => variable.value.clone().unwrap_or_default(),
        };
        for (name, earlier) in &known {
            value = value.replace(&format!("$({name})"), earlier);
        }
        assert!(
            !value.contains("$("),
            "{}: `{value}` names a variable that is not set before it",
            variable.name
        );
        known.insert(variable.name.clone(), value);
    }
    known
}

/// The text of the ConfigMap that the pod mounts.
pub(super) fn configuration(documents: &[Value]) -> String {
    let daemon_set = daemon_set(documents);
    let volume = pod(&daemon_set).volumes.iter().flatten().find(|volume| volume.name == "config");
    let wanted = volume.and_then(|volume| volume.config_map.as_ref()).expect("a ConfigMap is mounted");
    let map: ConfigMap = render::one(documents, "ConfigMap", &wanted.name);
    map.data.and_then(|mut data| data.remove("agent.yaml")).expect("it is `agent.yaml`")
}

/// What the agent reads from its file and its environment.
pub(super) fn config(documents: &[Value], namespace: &str) -> Config {
    let daemon_set = daemon_set(documents);
    let home = tempfile::tempdir().expect("temporary folders are available");
    make_files(home.path());
    let here = |text: &str| {
        ["/etc/eks/image-credential-provider", "/etc/hearth-credentials", "/etc/hearth-peers"]
            .iter()
            .fold(text.to_owned(), |text, there| text.replace(there, &home.path().to_string_lossy()))
    };
    let file = home.path().join("agent.yaml");
    fs::write(&file, here(&configuration(documents))).expect("writable");
    let environment = environment(&pod(&daemon_set).containers[0], namespace);
    let variable = |name: &str| environment.get(name).map(|value| here(value));
    config::load(Some(file), variable, |_| None, Purpose::Serve).unwrap_or_else(|error| panic!("{error}"))
}

/// Files of a node and of secrets that a configuration names.
fn make_files(home: &Path) {
    let provider = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n  - name: helper\n    apiVersion: credentialprovider.kubelet.k8s.io/v1\n    defaultCacheDuration: 1h\n    matchImages: [registry.example.com]\n";
    fs::write(home.join("config.json"), provider).expect("writable");
    let plugin = home.join("helper");
    fs::write(&plugin, "#!/bin/sh\n").expect("writable");
    fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");
    let secret = r#"{"auths": {"registry.example.com": {"auth": "dTpw"}}}"#;
    fs::write(home.join(".dockerconfigjson"), secret).expect("writable");
    let authority = Authority::new(home, "authority").expect("openssl is installed");
    authority
        .sign("peer", "DNS:hearth-peers.hearth.svc,DNS:hearth-peers.other.svc")
        .expect("openssl is installed");
    for (from, to) in [("peer.pem", "tls.crt"), ("peer.key", "tls.key"), ("authority.pem", "ca.crt")] {
        fs::copy(home.join(from), home.join(to)).expect("writable");
    }
}
