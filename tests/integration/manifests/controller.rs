//! The controller's Deployment and account, and that agents have lost what is its alone.

use std::collections::BTreeSet;

use hearth_agent::config::{self, Purpose};
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::Value;

use super::{chart::chart, components::own, overlays, pods, render};

fn deployment(documents: &[Value]) -> Deployment {
    render::one(documents, "Deployment", "hearth-controller")
}

/// `verb group/resource`, with the names of the only objects, of all roles that are bound to an account.
fn rights(documents: &[Value], account: &str) -> BTreeSet<String> {
    let bound = documents.iter().filter(|one| {
        one["subjects"].as_array().into_iter().flatten().any(|subject| subject["name"] == account)
    });
    let names: Vec<_> = bound.map(|binding| binding["roleRef"]["name"].clone()).collect();
    let roles = documents.iter().filter(|one| {
        one["kind"].as_str().is_some_and(|kind| kind.ends_with("Role"))
            && names.contains(&one["metadata"]["name"])
    });
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
    };
    let mut all = BTreeSet::new();
    for rule in roles.flat_map(|role| role["rules"].as_array().into_iter().flatten()) {
        for (verb, group) in texts(&rule["verbs"])
            .iter()
            .flat_map(|verb| texts(&rule["apiGroups"]).into_iter().map(move |group| (verb, group)))
        {
            let names =
                texts(&rule["resourceNames"]).iter().fold(String::new(), |names, name| names + " " + name);
            let right = |resource: &String| format!("{verb} {group}/{resource}{names}");
            all.extend(texts(&rule["resources"]).iter().map(right));
        }
    }
    all
}

#[test]
fn an_agent_reads_sets_and_writes_what_is_its_nodes_and_nothing_else() {
    let documents = render::overlay("containerd");
    let expected = [
        "create certificates.k8s.io/certificatesigningrequests",
        "create events.k8s.io/events",
        "create hearth.dev/nodecaches",
        "get /configmaps hearth-peer-authority",
        "get /nodes",
        "get certificates.k8s.io/certificatesigningrequests",
        "list discovery.k8s.io/endpointslices",
        "list hearth.dev/imagesets",
        "patch /nodes",
        "patch /nodes/status",
        "patch events.k8s.io/events",
        "patch hearth.dev/nodecaches",
        "patch hearth.dev/nodecaches/status",
        "watch discovery.k8s.io/endpointslices",
        "watch hearth.dev/imagesets",
    ];
    let found = rights(&documents, "hearth-agent");
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    let controllers = rights(&documents, "hearth-controller");
    let authority = |right: &str| right == "create /configmaps" || right.ends_with(" hearth-peer-authority");
    for right in controllers.iter().filter(|right| !authority(right)) {
        assert!(
            !right.contains("secrets") && !right.contains("patch /") && !right.contains("exec"),
            "{right}"
        );
    }
    assert!(controllers.contains("patch hearth.dev/imagesets/status") && controllers.contains("list /pods"));
    // Without Spark awareness no pods are read.
    let without = rights(&chart("hearth", r#"{"spark": {"enabled": false}}"#), "hearth-controller");
    assert!(
        without
            .iter()
            .all(|right| authority(right) || !right.contains("pods") && !right.contains("configmaps")),
        "{without:?}"
    );
}

#[test]
fn the_controller_reads_its_configuration_from_the_agents_file_without_their_secrets() {
    for overlay in overlays() {
        let documents = own(&format!("namespace: other\nresources: [../{overlay}]\n"));
        let deployment = deployment(&documents);
        let pod =
            deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()).expect("it has a pod");
        assert_ne!(pod.host_network, Some(true), "{overlay}");
        assert!(
            pod.volumes.iter().flatten().all(|volume| volume.host_path.is_none() && volume.secret.is_none()),
            "{overlay}"
        );
        let container = &pod.containers[0];
        assert_eq!(
            container.image,
            pods::pod(&pods::daemon_set(&documents)).containers[0].image,
            "{overlay}"
        );
        let home = tempfile::tempdir().expect("temporary folders are available");
        let file = home.path().join("agent.yaml");
        std::fs::write(&file, pods::configuration(&documents)).expect("writable");
        let environment = pods::environment(container, "other");
        let variable = |name: &str| environment.get(name).cloned();
        // No file that the configuration names is there.
        let config = config::load(Some(file), variable, |_| None, Purpose::Control);
        let controller =
            config.unwrap_or_else(|error| panic!("{overlay}: {error}")).controller.expect("a cluster");
        assert_eq!(
            (controller.namespace.as_str(), controller.name.as_str()),
            ("other", "pod-1"),
            "{overlay}"
        );
        let arguments = container.args.clone().expect("the container names its command");
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let output = crate::cli::agent(&arguments, &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(2) && said.contains("/etc/hearth/agent.yaml"),
            "{overlay}: {said}"
        );
    }
}

#[test]
fn the_controller_waits_for_the_nodes_that_have_agents() {
    let nodes = |values: &str| {
        let documents = chart("hearth", values);
        let config = pods::config(&documents, "hearth");
        config.controller.expect("a cluster").nodes
    };
    assert_eq!(nodes("{}"), "kubernetes.io/os=linux,type!=virtual-kubelet");
    assert_eq!(nodes(r#"{"nodeSelector": {"pool": "spark"}}"#), "kubernetes.io/os=linux,pool=spark");
    let documents =
        chart("hearth", r#"{"imageSets": {"enabled": false}, "peers": {"tls": {"source": "none"}}}"#);
    assert!(documents.iter().all(|one| one["kind"] != "Deployment"), "nothing to control");
}

#[test]
fn a_controller_without_a_cluster_is_a_configuration_error() {
    let output = crate::cli::agent(&["controller", "--admin-listen", "127.0.0.1:0"], &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("`kubernetes.imageSets` is off"), "{said}");
    let help = crate::cli::agent(&["controller", "--help"], &[]);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("Examples:") && help.contains("hearth-agent controller --config"), "{help}");
}
