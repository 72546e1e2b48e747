//! The Helm chart, rendered by the real `helm`, against what kustomize makes of the overlay or the components of the same name.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use serde_json::{Value, json};

use super::{components::own, folder, objects, pods, render};

/// A name, the kustomization, and the values of the chart that make the same.
const SAME: [(&str, &str, &str); 13] = [
    ("base", "resources: [../../base]", r#"{"runtime": {"name": "none"}}"#),
    ("containerd", "resources: [../containerd]", "{}"),
    ("crio", "resources: [../crio]", r#"{"runtime": {"name": "crio"}}"#),
    ("k3s", "resources: [../k3s]", r#"{"runtime": {"name": "k3s"}}"#),
    ("rke2", "resources: [../rke2]", r#"{"runtime": {"name": "rke2"}}"#),
    ("with-node-setup", "resources: [../with-node-setup]", r#"{"runtime": {"name": "auto"}}"#),
    ("no-peers", "resources: [../no-peers]", r#"{"peers": {"enabled": false}}"#),
    ("mtls", "resources: [../mtls]", r#"{"peers": {"tls": {"source": "secret"}}}"#),
    (
        "kind",
        "resources: [../kind]",
        r#"{"runtime": {"images": true}, "image": {"repository": "hearth-agent", "tag": "dev"}}"#,
    ),
    (
        "k3s without peers",
        "resources: [../k3s]\ncomponents: [../../components/no-peers, ../../components/runtime-images]",
        r#"{"runtime": {"name": "k3s", "images": true}, "peers": {"enabled": false}}"#,
    ),
    (
        "rke2 with every component",
        "resources: [../rke2]\ncomponents: [../../components/mtls, ../../components/runtime-images, ../../components/pull-secrets, ../../components/pod-events, ../../components/network-policies, ../../components/undo-node-setup]",
        r#"{"runtime": {"name": "rke2", "images": true, "restore": true}, "peers": {"tls": {"source": "secret"}}, "pullSecrets": {"enabled": true}, "podEvents": {"enabled": true}, "networkPolicy": {"enabled": true}}"#,
    ),
    (
        "eks",
        "resources: [../eks]",
        r#"{"credentials": {"kubeletDirectory": "/etc/eks/image-credential-provider"},
            "registries": [{"host": "docker.io"}, {"host": "registry.example.com", "private": "agent"}]}"#,
    ),
    (
        "several clouds",
        "resources: [../../examples/several-clouds]",
        r#"{"peers": {"tls": {"source": "secret"}}, "credentials": {"dockerConfigSecret": "hearth-credentials"},
            "registries": [{"host": "docker.io"}, {"host": "registry.example.com", "private": "agent", "endpoints":
            ["https://eu-west-1.registry.example.com", "https://europe-west4.registry.example.com", "https://westeurope.registry.example.com"]},
            {"host": "vendor.example.com", "private": "decline"}]}"#,
    ),
];

/// Runs `helm` on the chart; its output or its complaint.
pub(super) fn helm(command: &str, arguments: &[&str], values: &str) -> Result<String, String> {
    helm_on(&folder().join("helm/hearth"), command, arguments, values)
}

fn helm_on(chart: &Path, command: &str, arguments: &[&str], values: &str) -> Result<String, String> {
    let home = tempfile::tempdir().expect("temporary folders are available");
    let file = home.path().join("values.yaml");
    fs::write(&file, values).expect("writable");
    let mut helm = Command::new("helm");
    // Nothing of the machine's own configuration is read.
    helm.env("HELM_CONFIG_HOME", home.path())
        .env("HELM_CACHE_HOME", home.path())
        .env("HELM_DATA_HOME", home.path());
    helm.arg(command).args(arguments).arg(chart).arg("--values").arg(&file);
    let output = helm.output().expect("helm is installed: `tests/setup tests`");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(said);
    }
    assert!(said.is_empty(), "{values}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The objects that the chart installs with these values.
pub(super) fn chart(namespace: &str, values: &str) -> Vec<Value> {
    let text = helm("template", &["a-release", "--namespace", namespace], values);
    render::documents(&text.unwrap_or_else(|error| panic!("{values}: {error}")))
}

/// What both tools name in their own way is left out, and lists that are read by name are sorted by it.
fn normal(documents: Vec<Value>) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for mut object in documents {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        // Helm makes the namespace by a flag.
        if kind == "Namespace" {
            continue;
        }
        let metadata = &mut object["metadata"];
        let name = metadata["name"].as_str().unwrap_or_default().to_owned();
        // kustomize ends its name in a hash; Helm puts one on the pod.
        let name = if kind == "ConfigMap" { "hearth-agent".to_owned() } else { name };
        metadata["name"] = name.clone().into();
        // kustomize does not know all kinds that have no namespace.
        if kind.starts_with("Cluster") || kind.starts_with("Validating") {
            metadata.as_object_mut().expect("it is an object").remove("namespace");
        }
        plain(metadata);
        if kind == "ConfigMap" {
            let text = object["data"]["agent.yaml"].as_str().expect("it is `agent.yaml`").to_owned();
            object["data"]["agent.yaml"] = serde_saphyr::from_str(&text).expect("it is YAML");
        }
        if kind == "DaemonSet" || kind == "Deployment" {
            plain(&mut object["spec"]["template"]["metadata"]);
            sort(&mut object["spec"]["template"]["spec"]);
        }
        assert!(all.insert(format!("{kind} {name}"), object).is_none(), "{kind} `{name}` is there twice");
    }
    all
}

fn plain(metadata: &mut Value) {
    let own = [
        "app.kubernetes.io/managed-by",
        "app.kubernetes.io/instance",
        "helm.sh/chart",
        "checksum/config",
        "hearth.dev/runtime-directory",
        "hearth.dev/runtime-socket",
    ];
    let metadata = metadata.as_object_mut().expect("it is an object");
    for part in ["labels", "annotations"] {
        let Some(all) = metadata.get_mut(part).and_then(Value::as_object_mut) else { continue };
        all.retain(|name, _| !own.contains(&&**name));
        if all.is_empty() {
            metadata.remove(part);
        }
    }
}

fn sort(pod: &mut Value) {
    let by_name = |list: &mut Value| {
        if let Some(list) = list.as_array_mut() {
            list.sort_by_key(|one| one["name"].as_str().unwrap_or_default().to_owned());
        }
    };
    for volume in pod["volumes"].as_array_mut().into_iter().flatten() {
        if volume["name"] == "config" {
            volume["configMap"]["name"] = "hearth-agent".into();
        }
    }
    by_name(&mut pod["volumes"]);
    for part in ["containers", "initContainers"] {
        for container in pod[part].as_array_mut().into_iter().flatten() {
            let fields = container.as_object_mut().expect("it is an object");
            fields.get_mut("env").map(by_name);
            fields.get_mut("volumeMounts").map(by_name);
        }
    }
}

#[test]
fn the_chart_and_kustomize_install_the_same_objects() {
    for namespace in ["hearth", "other"] {
        for (name, kustomization, values) in SAME {
            let expected = normal(own(&format!("namespace: {namespace}\n{kustomization}\n")));
            let found = normal(chart(namespace, values));
            assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>(), "{name}");
            for (object, expected) in &expected {
                let found = &found[object];
                assert!(expected == found, "{name}: {object}:\nkustomize: {expected:#}\nchart: {found:#}");
            }
        }
    }
    // The comparison sees a difference.
    assert_ne!(normal(chart("hearth", "{}")), normal(chart("hearth", r#"{"store": {"limit": "10%"}}"#)));
}

/// Every switch of the chart that no kustomization has.
const MORE: &str = r#"{
    "image": {"digest": "sha256:0000000000000000000000000000000000000000000000000000000000000000", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "pull"}],
    "runtime": {"images": true, "socket": {"directory": "/run/x", "file": "/run/x/x.sock"}},
    "peers": {"zone": "z1"},
    "store": {"directory": "/data/hearth", "limit": "100GiB", "minFree": "10%"},
    "imageSets": {"sets": {"spark": {"images": ["registry.example.com/data/spark:3.5.9"], "nodeSelector": {"workload": "spark"}}}},
    "spark": {"enabled": false}, "controller": {"replicas": 3, "tolerations": [{"key": "infra"}]}, "admissionPolicy": {"enabled": false}, "resourceQuota": {"enabled": false},
    "config": {"limits": {"connections": 8192}, "store": {"limit": "200GiB"}},
    "updateStrategy": {"rollingUpdate": {"maxSurge": "20%"}},
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}},
    "podAnnotations": {"a": "b"}, "podLabels": {"c": "d"}, "serviceAccount": {"annotations": {"role": "r"}},
    "extraEnv": [{"name": "HEARTH_LOG_FILTER", "value": "debug"}],
    "extraVolumes": [{"name": "more", "emptyDir": {}}], "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}]
}"#;

#[test]
fn every_other_value_reaches_the_objects() {
    let documents = chart("hearth", MORE);
    let wrong: Vec<_> = documents.iter().flat_map(super::examples::wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let config = pods::config(&documents, "hearth");
    assert_eq!(config.limits.connections, 8192);
    let text = pods::configuration(&documents);
    for expected in ["limit: 200GiB", "minFree: 10%", "zone: z1", "dataDir: /data/hearth"] {
        assert!(text.contains(expected), "`{expected}` is missing in\n{text}");
    }
    let all = json!(documents).to_string();
    for expected in [
        "/hearth-agent:0.1.0@sha256:0000",
        "\"imagePullPolicy\":\"Always\"",
        "[{\"name\":\"pull\"}]",
        "\"/run/x/x.sock\"",
        "\"maxSurge\":\"20%\"",
        "\"replicas\":3",
        "[{\"key\":\"infra\"}]",
        "\"nodeAffinity\"",
        "\"a\":\"b\"",
        "\"c\":\"d\"",
        "\"role\":\"r\"",
        "\"mountPath\":\"/more\"",
    ] {
        assert!(all.contains(expected), "`{expected}` is missing in\n{all}");
    }
    let kinds: Vec<_> = documents.iter().filter_map(|one| one["kind"].as_str()).collect();
    assert!(kinds.contains(&"ImageSet") && !kinds.contains(&"ResourceQuota"), "{kinds:?}");
    assert!(
        !all.contains("ValidatingAdmissionPolicy") && !all.contains("hearth-controller-spark"),
        "{kinds:?}"
    );
}

#[test]
fn cert_manager_makes_the_certificates_that_peers_ask_for() {
    let documents = chart("other", r#"{"peers": {"tls": {"source": "cert-manager"}}}"#);
    let wrong: Vec<_> = documents.iter().flat_map(super::examples::wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let config = pods::config(&documents, "other");
    assert!(config.peers.tls.is_some());
    let made = documents
        .iter()
        .find(|one| one["kind"] == "Certificate" && one["metadata"]["name"] == "hearth-peers");
    let made = made.expect("there is a certificate");
    assert_eq!(made["spec"]["dnsNames"], json!(["hearth-peers.other.svc"]));
    assert_eq!(made["spec"]["secretName"], "hearth-peers");
}

#[test]
fn wrong_values_are_refused_with_what_is_wrong() {
    for (values, expected) in [
        // Helm 3 and 4 word this differently.
        (r#"{"runtime": {"name": "docker"}}"#, "rke2"),
        (r#"{"imagee": {}}"#, "imagee"),
        (r#"{"store": {"limit": "lots"}}"#, "limit"),
        (r#"{"registries": []}"#, "registries"),
        (r#"{"image": {"digest": "latest"}}"#, "digest"),
        (r#"{"imageSets": {"sets": {"spark": {}}}}"#, "spark"),
        (
            r#"{"registries": [{"host": "registry.example.com", "private": "agent"}], "peers": {"tls": {"source": "none"}}}"#,
            "peers without TLS would give its images to every pod",
        ),
    ] {
        let said = helm("template", &["a-release"], values).expect_err(values);
        assert!(said.contains(expected), "{values}: {said}");
    }
}

#[test]
fn the_definitions_are_installed_and_outlive_the_release() {
    let chart = folder().join("helm/hearth");
    let ours = fs::read_to_string(chart.join("crds/crds.yaml")).expect("the chart has the definitions");
    // Helm installs what is in `crds/`, and never removes it.
    assert!(
        ours == hearth_agent::prepull::crd::definitions(),
        "`hearth-agent crds > manifests/helm/hearth/crds/crds.yaml`"
    );
    assert!(super::chart::chart("hearth", "{}").iter().all(|one| one["kind"] != "CustomResourceDefinition"));
}

/// The notes that Helm prints after an installation. Helm 3 shows them only where it reaches a cluster, so a copy of the chart has
/// them in an object.
fn notes(values: &str) -> String {
    let home = tempfile::tempdir().expect("temporary folders are available");
    let copied = Command::new("cp").arg("-r").arg(folder().join("helm/hearth")).arg(home.path()).status();
    assert!(copied.expect("it runs").success());
    let templates = home.path().join("hearth/templates");
    let text = fs::read_to_string(templates.join("NOTES.txt")).expect("the chart has notes");
    let defined = format!("{{{{- define \"notes\" }}}}{text}{{{{ end }}}}");
    fs::write(templates.join("_notes.tpl"), defined).expect("writable");
    let object = "kind: Notes\ntext: {{ include \"notes\" . | toJson }}\n";
    fs::write(templates.join("notes.yaml"), object).expect("writable");
    let arguments = ["a-release", "--namespace", "other", "--show-only", "templates/notes.yaml"];
    let rendered = helm_on(&home.path().join("hearth"), "template", &arguments, values);
    let rendered = rendered.unwrap_or_else(|error| panic!("{error}"));
    render::documents(&rendered)[0]["text"].as_str().expect("it is text").to_owned()
}

#[test]
fn the_notes_say_how_to_verify_and_name_what_exists() {
    let text = notes(r#"{"runtime": {"name": "k3s"}}"#);
    for expected in [
        "kubectl -n other rollout status daemonset/hearth-agent",
        "-c setup",
        "kubectl get nodecaches",
        "kubectl get imagesets",
        "k3s reads its registry configuration when it starts",
        "image.repository is still the example",
        "--set runtime.restore=true",
        "helm show crds",
    ] {
        assert!(text.contains(expected), "`{expected}` is missing in\n{text}");
    }
    let text = notes(r#"{"runtime": {"name": "none"}, "image": {"repository": "r.test/hearth-agent"}}"#);
    assert!(!text.contains("-c setup") && !text.contains("still the example"), "{text}");
}

#[test]
fn the_chart_has_no_mistake_that_helm_finds() {
    let said = helm("lint", &["--strict"], "{}");
    assert!(said.is_ok(), "{said:?}");
}

#[test]
fn a_changed_configuration_of_the_chart_is_rolled_out() {
    let checksum = |values| {
        let documents = chart("hearth", values);
        let daemon_set = documents.into_iter().find(|one| one["kind"] == "DaemonSet").expect("there is one");
        daemon_set["spec"]["template"]["metadata"]["annotations"]["checksum/config"].clone()
    };
    assert_eq!(checksum("{}"), checksum(r#"{"podLabels": {"a": "b"}}"#));
    assert_ne!(checksum("{}"), checksum(r#"{"config": {"log": {"filter": "debug"}}}"#));
}

#[test]
fn objects_of_the_chart_are_known_in_every_field() {
    for (name, _, values) in SAME {
        let wrong: Vec<_> = chart("hearth", values).iter().flat_map(objects::wrong).collect();
        assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
    }
}
