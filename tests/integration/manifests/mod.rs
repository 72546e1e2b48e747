//! The manifests as a cluster would get them: rendered by the real `kubectl kustomize`, every object held against the API's
//! types strictly, every configuration read by the agent's own loader, and the rules that keep the agent harmless.

mod chart;
mod components;
mod controller;
mod examples;
mod monitoring;
mod objects;
mod pods;
mod policy;
mod readme;
pub(crate) mod render;

use std::{fs, path::PathBuf};

use hearth_agent::prepull::{Schedule, crd};
use k8s_openapi::api::core::v1::Container;
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
    let current = crd::definitions();
    let written = fs::read_to_string(folder().join("crds/crds.yaml")).expect("the file is there");
    assert!(written == current, "not current: `hearth-agent crds > manifests/crds/crds.yaml`:\n{current}");
    // Formats that the API server does not know are warnings at every `kubectl apply`.
    assert!(!current.contains("format: uint"), "{current}");
}

/// The schema of one field of an image set's specification.
fn field(name: &str) -> Value {
    let definitions = render::documents(&crd::definitions());
    let version = &definitions[0]["spec"]["versions"][0];
    version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"][name].clone()
}

#[test]
fn the_api_server_refuses_schedules_that_agents_would() {
    let schema = field("schedule");
    let pattern = schema["pattern"].as_str().expect("schedules have a pattern");
    let pattern = regex::Regex::new(pattern).expect("it is a pattern");
    for cron in [
        "0 3 * * *",
        "*/15 * * * *",
        "5/20 * * * *",
        "0 22 * * 1-5",
        "0 0 13 * fri",
        "0 0 * * 7",
        "0 0 29 2 *",
        "30 1,13 1 JAN,jul ?",
        "59 23 31 12 sat",
        "@daily",
        "@annually",
        "05 09 01 01 00",
        "1-5/2,7 * * * *",
        "",
        "* * * *",
        "0 0 3 * * *",
        "60 * * * *",
        "0 24 * * *",
        "0 25 * * *",
        "* * 0 * *",
        "* * 32 * *",
        "* * * 13 *",
        "* * * 0 *",
        "* * * * 8",
        "*/0 * * * *",
        "+1 * * * *",
        "* * * foo *",
        "@reboot",
        "1- * * * *",
        "-1 * * * *",
        "1,,2 * * * *",
        "*-5 * * * *",
        "0 3 * * mon-friday",
        "a b c d e",
    ] {
        assert_eq!(pattern.is_match(cron), Schedule::new(cron, None).is_ok(), "{cron}");
    }
    // What a pattern cannot compare is left to the agent.
    assert!(pattern.is_match("5-1 * * * *") && Schedule::new("5-1 * * * *", None).is_err());
}

#[test]
fn the_api_server_refuses_operators_that_no_agent_knows() {
    for expressions in ["matchExpressions", "matchFields"] {
        let operator = &field("nodeSelectorTerms")["items"]["properties"][expressions]["items"]["properties"]
            ["operator"];
        let known = serde_json::json!(["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]);
        assert_eq!(operator["enum"], known, "{expressions}");
    }
}

#[test]
fn every_agent_reads_its_configuration() {
    for name in overlays() {
        let documents = render::overlay(&name);
        let daemon_set = pods::daemon_set(&documents);
        let pod = pods::pod(&daemon_set);
        let config = pods::config(&documents, "hearth");
        assert!(config.mirror_listen.ip().is_loopback(), "{name}: the mirror is for this node alone");
        assert!(config.lock_wait.as_secs() >= 600, "{name}: the new agent waits for the old one's end");
        // Credentials are shared with peers that are known only.
        let shares = config.peers.source != hearth_agent::peers::Source::Off && config.peers.tls.is_none();
        assert!(
            !shares || !pods::configuration(&documents).contains("private: agent"),
            "{name}: peers without TLS"
        );
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

#[test]
fn a_changed_configuration_is_rolled_out() {
    for name in overlays() {
        let documents = render::overlay(&name);
        let map = documents.iter().find(|one| one["kind"] == "ConfigMap").expect("there is a configuration");
        // Its name changes with its content.
        let text = map["metadata"]["name"].as_str().unwrap_or_default();
        assert!(text.len() > "hearth-agent-".len(), "{name}: {text}");
        // By this label old ones are found and removed.
        assert_eq!(map["metadata"]["labels"]["app.kubernetes.io/name"], "hearth-agent", "{name}");
    }
}

#[test]
fn an_update_leaves_no_gap_and_the_agent_may_do_nothing_to_the_node() {
    for name in overlays() {
        let documents = render::overlay(&name);
        let daemon_set = pods::daemon_set(&documents);
        let pod = pods::pod(&daemon_set);
        let spec = serde_json::to_value(&daemon_set).expect("it is JSON");
        let rolling = &spec["spec"]["updateStrategy"]["rollingUpdate"];
        assert_eq!((&rolling["maxSurge"], &rolling["maxUnavailable"]), (&"10%".into(), &0.into()), "{name}");
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
            // `/tmp` is the pod's own, for the report.
            let own = mount.name == "tmp" && mount.mount_path == "/tmp";
            let fine = mount.read_only == Some(true) || mount.mount_path.starts_with("/host/etc") || own;
            assert!(fine, "{name}: {}", mount.mount_path);
        }
    }
}

#[test]
fn arguments_of_every_container_are_understood() {
    for name in overlays() {
        let documents = render::overlay(&name);
        let daemon_set = pods::daemon_set(&documents);
        let pod = pods::pod(&daemon_set);
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
fn roles_grant_nothing_by_wildcard_and_no_secrets() {
    for document in render::overlay("containerd") {
        let kind = document["kind"].as_str().unwrap_or_default();
        for rule in document["rules"].as_array().into_iter().flatten().filter(|_| kind.ends_with("Role")) {
            let text = rule.to_string();
            // The controller's own, with the keys of the authorities of peers.
            let own = rule["resourceNames"] == serde_json::json!(["hearth-peer-authority"]);
            let secrets = text.contains("secrets") && !own;
            assert!(!text.contains("\"*\"") && !secrets && !text.contains("exec"), "{text}");
        }
    }
}
