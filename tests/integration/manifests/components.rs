//! Components: what each adds, that they combine with every runtime, and that all of it moves to another namespace.

use std::fs;

use hearth_agent::{config::Config, peers::Source};
use serde_json::Value;

use super::{folder, objects, overlays, pods, render};

/// Renders a kustomization of somebody's own in the place of an overlay.
pub(super) fn own(text: &str) -> Vec<Value> {
    let work = tempfile::Builder::new().prefix("hearth-").tempdir_in(folder().join("overlays"));
    let work = work.expect("the overlays are in a working copy");
    fs::write(work.path().join("kustomization.yaml"), text).expect("writable");
    let documents = render::kustomize(work.path());
    let wrong: Vec<_> = documents.iter().flat_map(objects::wrong).collect();
    assert!(wrong.is_empty(), "{text}:\n{}", wrong.join("\n"));
    documents
}

/// An overlay with components on top.
fn with(overlay: &str, components: &[&str]) -> Vec<Value> {
    let components: Vec<_> = components.iter().map(|name| format!("../../components/{name}")).collect();
    own(&format!("resources: [../{overlay}]\ncomponents: [{}]\n", components.join(", ")))
}

fn peers(config: &Config) -> Option<(&str, &str)> {
    match &config.peers.source {
        Source::Service { namespace, name, .. } => Some((namespace, name)),
        _ => None,
    }
}

const RUNTIMES: [&str; 4] = ["containerd", "crio", "k3s", "rke2"];

#[test]
fn every_runtime_combines_with_every_component() {
    for runtime in RUNTIMES {
        let documents = with(
            runtime,
            &["mtls", "runtime-images", "pull-secrets", "pod-events", "network-policies", "undo-node-setup"],
        );
        let config = pods::config(&documents, "hearth");
        assert_eq!(peers(&config), Some(("hearth", "hearth-peers")), "{runtime}");
        assert!(config.peers.tls.is_some(), "{runtime}");
        assert!(config.kubernetes.expect("it follows image sets").pod_events, "{runtime}");
        let daemon_set = pods::daemon_set(&documents);
        let setup = pods::pod(&daemon_set).init_containers.iter().flatten().find(|one| one.name == "setup");
        let arguments = setup.and_then(|container| container.args.clone()).unwrap_or_default();
        assert!(
            arguments.ends_with(&[runtime.to_owned(), "--uninstall".to_owned()]),
            "{runtime}: {arguments:?}"
        );

        let documents = with(runtime, &["no-peers"]);
        assert_eq!(peers(&pods::config(&documents, "hearth")), None, "{runtime}");
        assert!(documents.iter().all(|one| one["kind"] != "Service"), "{runtime}");
    }
}

#[test]
fn images_are_loaded_through_the_socket_of_the_runtime() {
    for (runtime, directory, socket) in [
        ("containerd", "/run/containerd", "/run/containerd/containerd.sock"),
        ("k3s", "/run/k3s/containerd", "/run/k3s/containerd/containerd.sock"),
        ("rke2", "/run/k3s/containerd", "/run/k3s/containerd/containerd.sock"),
        ("crio", "/run/crio", "/run/crio/crio.sock"),
    ] {
        // On top of an overlay, and beside the runtime's component.
        let beside = format!(
            "resources: [../../base]\ncomponents: [../../components/{runtime}, ../../components/runtime-images]\n"
        );
        for documents in [with(runtime, &["runtime-images"]), own(&beside)] {
            let daemon_set = pods::daemon_set(&documents);
            let pod = pods::pod(&daemon_set);
            let volumes = pod.volumes.iter().flatten().filter_map(|one| one.host_path.as_ref());
            let mounted: Vec<_> =
                volumes.map(|one| &*one.path).filter(|path| path.starts_with("/run")).collect();
            assert_eq!(mounted, [directory], "{runtime}");
            let mounts = pod.containers[0].volume_mounts.iter().flatten();
            assert_eq!(mounts.filter(|one| one.mount_path == directory).count(), 1, "{runtime}");
            let environment = pods::environment(&pod.containers[0], "hearth");
            assert_eq!(environment["HEARTH_RUNTIME_SOCKET"], socket, "{runtime}");
        }
    }
}

/// Every namespace that an object names: its own, and those of the accounts in bindings.
pub(super) fn namespaces(documents: &[Value]) -> Vec<String> {
    let own = documents.iter().map(|one| &one["metadata"]["namespace"]);
    let subjects = documents.iter().flat_map(|one| one["subjects"].as_array().into_iter().flatten());
    let name = documents.iter().filter(|one| one["kind"] == "Namespace").map(|one| &one["metadata"]["name"]);
    let all = own.chain(subjects.map(|one| &one["namespace"])).chain(name);
    all.filter_map(Value::as_str).map(str::to_owned).collect()
}

#[test]
fn another_namespace_takes_everything_with_it() {
    for overlay in overlays() {
        let documents = own(&format!(
            "namespace: other\nresources: [../{overlay}]\ncomponents: [../../components/pull-secrets, ../../components/pod-events]\n"
        ));
        let named = namespaces(&documents);
        assert!(named.len() > 8 && named.iter().all(|name| name == "other"), "{overlay}: {named:?}");
        let config = pods::config(&documents, "other");
        let expected = (overlay != "no-peers").then_some(("other", "hearth-peers"));
        assert_eq!(peers(&config), expected, "{overlay}");
        assert_eq!(config.controller.expect("it follows image sets").namespace, "other", "{overlay}");
        for document in &documents {
            let text = document.to_string();
            assert!(
                !text.contains("serviceaccount:hearth:") && !text.contains("hearth.svc"),
                "{overlay}: {text}"
            );
        }
    }
}

#[test]
fn a_thousand_nodes_are_updated_in_minutes() {
    for name in overlays() {
        let daemon_set = serde_json::to_value(pods::daemon_set(&render::overlay(&name))).expect("it is JSON");
        let spec = &daemon_set["spec"];
        let surge = spec["updateStrategy"]["rollingUpdate"]["maxSurge"]
            .as_str()
            .and_then(|one| one.strip_suffix('%'));
        let surge: u64 =
            surge.and_then(|one| one.parse().ok()).unwrap_or_else(|| panic!("{name}: a share is expected"));
        let steps = 1000_u64.div_ceil((1000 * surge).div_ceil(100));
        // A step takes the new pod's start and the old one's end.
        let step = spec["minReadySeconds"].as_u64().unwrap_or(0)
            + spec["template"]["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
        assert!(steps * step <= 1800, "{name}: {steps} steps of {step} s");
    }
}

#[test]
fn objects_carry_the_labels_that_tools_expect() {
    let label = |object: &Value, name: &str| {
        object["metadata"]["labels"][format!("app.kubernetes.io/{name}")].clone()
    };
    for name in overlays() {
        let documents = render::overlay(&name);
        for document in &documents {
            let at = format!("{name}: {} {}", document["kind"], document["metadata"]["name"]);
            assert_eq!(label(document, "part-of"), "hearth", "{at}");
            assert_eq!(label(document, "managed-by"), "kustomize", "{at}");
            assert_eq!(label(document, "version"), env!("CARGO_PKG_VERSION"), "{at}");
        }
        let daemon_set = documents.iter().find(|one| one["kind"] == "DaemonSet").expect("there is one");
        for object in [daemon_set, &daemon_set["spec"]["template"]] {
            assert_eq!(label(object, "component"), "agent", "{name}");
            assert_eq!(label(object, "name"), "hearth-agent", "{name}");
            assert_eq!(label(object, "version"), env!("CARGO_PKG_VERSION"), "{name}");
        }
        let selected =
            daemon_set["spec"]["selector"]["matchLabels"].as_object().expect("labels are selected");
        // It cannot be changed once it is there, so nothing that an upgrade changes may be in it.
        assert_eq!(selected.keys().collect::<Vec<_>>(), ["app.kubernetes.io/name"], "{name}");
    }
}

#[test]
fn deleting_an_overlay_keeps_the_definitions_and_with_them_every_image_set() {
    for name in overlays() {
        let documents = render::overlay(&name);
        assert!(documents.iter().all(|one| one["kind"] != "CustomResourceDefinition"), "{name}");
    }
    let definitions = render::kustomize(&folder().join("crds"));
    let kinds: Vec<_> = definitions.iter().map(|one| one["kind"].clone()).collect();
    assert_eq!(kinds, ["CustomResourceDefinition"; 2]);
}
