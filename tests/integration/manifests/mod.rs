//! The manifests as a cluster would get them: rendered by the real `kubectl kustomize`, every object held against the API's
//! types strictly, every configuration read by the agent's own loader, and the rules that keep the agent harmless.

mod examples;
mod objects;
mod policy;
pub(crate) mod render;

use std::{fs, path::PathBuf};

use hearth_agent::config::Config;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Container, PodSpec},
};
use serde_json::Value;

/// The folder `manifests/`.
pub(crate) fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

fn overlays() -> Vec<String> {
    let entries = fs::read_dir(folder().join("overlays")).expect("the overlays are readable");
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.expect("the overlays are readable").file_name().into_string().expect("names are text")
    };
    let mut names: Vec<_> = entries.map(name).collect();
    // Another test's, for a moment.
    names.retain(|name| !name.starts_with("hearth-"));
    names.sort();
    names
}

fn daemon_set(documents: &[Value]) -> DaemonSet {
    render::one(documents, "DaemonSet", "hearth-agent")
}

fn pod(daemon_set: &DaemonSet) -> &PodSpec {
    daemon_set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()).expect("it has a pod")
}

fn is_root(container: &Container) -> bool {
    let context = container.security_context.as_ref().expect("every container has one");
    context.run_as_user == Some(0) || context.run_as_non_root != Some(true)
}

#[test]
fn every_overlay_renders_to_objects_that_the_api_knows_in_every_field() {
    let all = overlays();
    assert!(all.len() >= 8, "{all:?}");
    for name in all {
        let documents = render::overlay(&name);
        let wrong: Vec<_> = documents.iter().flat_map(objects::wrong).collect();
        assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
    }
}

#[test]
fn the_definitions_of_our_objects_are_what_the_code_says() {
    let written = fs::read_to_string(folder().join("base/crds.yaml")).expect("the file is there");
    let current = hearth_agent::prepull::crd::definitions();
    assert!(written == current, "not current: `hearth-agent crds > manifests/base/crds.yaml`:\n{current}");
}

#[test]
fn every_agent_reads_its_configuration() {
    for name in overlays() {
        let documents = render::overlay(&name);
        let daemon_set = daemon_set(&documents);
        let pod = pod(&daemon_set);
        let volume = pod.volumes.iter().flatten().find(|volume| volume.name == "config");
        let wanted = volume.and_then(|volume| volume.config_map.as_ref()).expect("a ConfigMap is mounted");
        // Its name changes with its content: a changed configuration is rolled out.
        assert!(wanted.name.len() > "hearth-agent-".len(), "{name}: {}", wanted.name);
        let map: ConfigMap = render::one(&documents, "ConfigMap", &wanted.name);
        let text = map.data.as_ref().and_then(|data| data.get("agent.yaml")).expect("it is `agent.yaml`");
        let home = tempfile::tempdir().expect("temporary folders are available");
        let text = with_files(text, home.path());
        let config = Config::from_yaml(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(config.mirror_listen.ip().is_loopback(), "{name}: the mirror is for this node alone");
        assert!(config.lock_wait.as_secs() >= 600, "{name}: the new agent waits for the old one's end");
        let grace = config.limits.grace.as_secs();
        let termination = pod.termination_grace_period_seconds.unwrap_or(30);
        assert!(
            i64::try_from(grace).expect("seconds") + 10 < termination,
            "{name}: {grace} of {termination}"
        );
        let probes = pod.containers.iter().flat_map(|one| [&one.readiness_probe, &one.liveness_probe]);
        for probe in probes.flatten() {
            let port = probe.http_get.as_ref().map(|get| get.port.clone()).expect("probes ask over HTTP");
            assert_eq!(
                port,
                k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(
                    config.admin_listen.port().into()
                )
            );
        }
        for variable in pod.containers.iter().flat_map(|container| container.env.iter().flatten()) {
            let known = hearth_agent::config::KEYS.iter().any(|key| key.variable() == variable.name);
            assert!(known, "{name}: `{}` is no variable of the agent's", variable.name);
        }
    }
}

/// Files of a node that a configuration names, made in `home`, with contents that say nothing.
fn with_files(text: &str, home: &std::path::Path) -> String {
    let provider = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n  - name: helper\n    apiVersion: credentialprovider.kubelet.k8s.io/v1\n    defaultCacheDuration: 1h\n    matchImages: [registry.example.com]\n";
    fs::write(home.join("config.json"), provider).expect("writable");
    let plugin = home.join("helper");
    fs::write(&plugin, "#!/bin/sh\n").expect("writable");
    fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");
    text.replace("/etc/eks/image-credential-provider", &home.to_string_lossy())
}

#[test]
fn an_update_leaves_no_gap_and_the_agent_may_do_nothing_to_the_node() {
    for name in overlays() {
        let documents = render::overlay(&name);
        let daemon_set = daemon_set(&documents);
        let pod = pod(&daemon_set);
        let spec = serde_json::to_value(&daemon_set).expect("it is JSON");
        let rolling = &spec["spec"]["updateStrategy"]["rollingUpdate"];
        assert_eq!((&rolling["maxSurge"], &rolling["maxUnavailable"]), (&1.into(), &0.into()), "{name}");
        assert_eq!(pod.host_network, Some(true), "{name}");
        assert_eq!(pod.dns_policy.as_deref(), Some("ClusterFirstWithHostNet"), "{name}");
        assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"), "{name}");
        let tolerates = pod.tolerations.iter().flatten().any(|one| {
            one.operator.as_deref() == Some("Exists") && one.key.is_none() && one.effect.is_none()
        });
        assert!(tolerates, "{name}: it runs on every node");
        let prepared: Vec<_> = pod.init_containers.iter().flatten().collect();
        for container in pod.containers.iter().chain(prepared.iter().copied()) {
            let place = format!("{name}: {}", container.name);
            assert!(container.ports.is_none(), "{place}: declared ports are the node's and cannot surge");
            let context = container.security_context.as_ref().expect("every container has one");
            assert_eq!(context.read_only_root_filesystem, Some(true), "{place}");
            assert_eq!(context.allow_privilege_escalation, Some(false), "{place}");
            assert_ne!(context.privileged, Some(true), "{place}");
            let dropped = context.capabilities.as_ref().and_then(|all| all.drop.clone()).unwrap_or_default();
            assert_eq!(dropped, ["ALL"], "{place}");
            let resources = container.resources.as_ref().expect("every container asks for what it needs");
            assert!(resources.requests.is_some() && resources.limits.is_some(), "{place}");
            assert!(container.image.as_ref().is_some_and(|image| image.contains("hearth-agent:")), "{place}");
        }
        assert!(pod.containers.iter().all(|container| !is_root(container)), "{name}: the agent is not root");
        let writable = pod.containers.iter().flat_map(|one| one.volume_mounts.iter().flatten());
        let writable: Vec<_> =
            writable.filter(|mount| mount.read_only != Some(true)).map(|mount| &*mount.mount_path).collect();
        let allowed = ["/var/lib/hearth", "/tmp", "/run/containerd"];
        assert!(writable.iter().all(|path| allowed.contains(path)), "{name}: {writable:?}");
        let setup = prepared.iter().find(|container| container.name == "setup");
        for mount in setup.iter().flat_map(|one| one.volume_mounts.iter().flatten()) {
            let fine = mount.read_only == Some(true) || mount.mount_path.starts_with("/host/etc");
            assert!(fine, "{name}: {}", mount.mount_path);
        }
    }
}

#[test]
fn arguments_of_every_container_are_understood() {
    for name in overlays() {
        let documents = render::overlay(&name);
        let daemon_set = daemon_set(&documents);
        let pod = pod(&daemon_set);
        for container in pod.containers.iter().chain(pod.init_containers.iter().flatten()) {
            let arguments = container.args.clone().expect("every container names its command");
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            // Without its file each of them ends before it does anything, and with another complaint when a flag is unknown.
            let output = crate::cli::agent(&arguments, &[]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.code() == Some(2) && said.contains("/etc/hearth/agent.yaml"),
                "{name}: {}: {said}",
                container.name
            );
        }
    }
}

#[test]
fn components_add_what_they_say_to_an_overlay() {
    let work = tempfile::Builder::new().prefix("hearth-").tempdir_in(folder().join("overlays"));
    let work = work.expect("the overlays are in a working copy");
    let text = "resources: [../containerd]\ncomponents: [../../components/undo-node-setup, ../../components/runtime-images, ../../components/pull-secrets]\n";
    fs::write(work.path().join("kustomization.yaml"), text).expect("writable");
    let documents = render::kustomize(work.path());
    let wrong: Vec<_> = documents.iter().flat_map(objects::wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let daemon_set = daemon_set(&documents);
    let pod = pod(&daemon_set);
    let setup = pod.init_containers.iter().flatten().find(|container| container.name == "setup");
    let arguments = setup.and_then(|container| container.args.clone()).unwrap_or_default();
    assert_eq!(arguments.last().map(String::as_str), Some("--uninstall"));
    let variables: Vec<_> = pod.containers[0].env.iter().flatten().map(|one| one.name.as_str()).collect();
    assert!(variables.contains(&"HEARTH_RUNTIME_SOCKET"), "{variables:?}");
    let binding: k8s_openapi::api::rbac::v1::RoleBinding =
        render::one(&documents, "RoleBinding", "hearth-agent-pull-secrets");
    assert_eq!(binding.metadata.namespace.as_deref(), Some("hearth"));
}

#[test]
fn roles_grant_nothing_by_wildcard_and_no_secrets() {
    for document in render::overlay("containerd") {
        let kind = document["kind"].as_str().unwrap_or_default();
        for rule in document["rules"].as_array().into_iter().flatten().filter(|_| kind.ends_with("Role")) {
            let text = rule.to_string();
            assert!(!text.contains("\"*\"") && !text.contains("secrets") && !text.contains("exec"), "{text}");
        }
    }
}
