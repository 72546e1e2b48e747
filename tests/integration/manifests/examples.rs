//! The examples: objects that the API knows, those of other projects in the shape that these projects define, and the same
//! images in what warms them and in what runs them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use hearth_agent::prepull::crd::ImageSet;
use k8s_openapi::{
    api::core::v1::{EnvVar, NodeSelectorRequirement, Taint, Toleration},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{folder, objects, render};

/// A type of somebody else's resource: the fields that examples may use, and no others.
macro_rules! resource {
    ($(#[$meta:meta])* $name:ident { $($(#[$on:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Deserialize, Serialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct $name { $(#[serde(skip_serializing_if = "Option::is_none")] $(#[$on])* $field: Option<$type>),* }
    };
}

/// Of any object.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Object<S> {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: S,
}

resource!(Metadata { name: String, namespace: String, labels: BTreeMap<String, String> });

// sparkoperator.k8s.io/v1beta2: kubeflow/spark-operator, `api/v1beta2/sparkapplication_types.go`.
resource!(Application {
    r#type: String,
    python_version: String,
    mode: String,
    spark_version: String,
    image: String,
    image_pull_policy: String,
    image_pull_secrets: Vec<String>,
    main_class: String,
    main_application_file: String,
    arguments: Vec<String>,
    spark_conf: BTreeMap<String, String>,
    restart_policy: RestartPolicy,
    driver: SparkPod,
    executor: SparkPod,
    time_to_live_seconds: i64,
});
resource!(RestartPolicy { r#type: String, on_failure_retries: i32, on_failure_retry_interval: i64 });
resource!(SparkPod {
    cores: i32,
    memory: String,
    instances: i32,
    service_account: String,
    image: String,
    env: Vec<EnvVar>,
    node_selector: BTreeMap<String, String>,
    tolerations: Vec<Toleration>,
});

// The same project, `scheduledsparkapplication_types.go`.
resource!(Scheduled {
    schedule: String,
    time_zone: String,
    concurrency_policy: String,
    successful_run_history_limit: i32,
    failed_run_history_limit: i32,
    template: Application,
});

// karpenter.sh/v1: kubernetes-sigs/karpenter, `pkg/apis/v1/nodepool.go`.
resource!(NodePool { template: NodeTemplate, limits: BTreeMap<String, String>, disruption: Disruption });
resource!(NodeTemplate { metadata: Metadata, spec: NodeClaim });
resource!(NodeClaim {
    node_class_ref: BTreeMap<String, String>,
    taints: Vec<Taint>,
    startup_taints: Vec<Taint>,
    requirements: Vec<NodeSelectorRequirement>,
    expire_after: String,
});
resource!(Disruption { consolidation_policy: String, consolidate_after: String });

// cert-manager.io/v1: cert-manager/cert-manager, `pkg/apis/certmanager/v1/types_certificate.go` and `types_issuer.go`.
resource!(Issuer { self_signed: BTreeMap<String, String>, ca: BTreeMap<String, String> });
resource!(Certificate {
    #[serde(rename = "isCA")]
    is_ca: bool,
    common_name: String,
    dns_names: Vec<String>,
    secret_name: String,
    duration: String,
    renew_before: String,
    private_key: PrivateKey,
    usages: Vec<String>,
    issuer_ref: BTreeMap<String, String>,
});
resource!(PrivateKey { algorithm: String, size: i32, rotation_policy: String });

// monitoring.coreos.com/v1: prometheus-operator/prometheus-operator, `pkg/apis/monitoring/v1/podmonitor_types.go`,
// `prometheusrule_types.go` and `types.go`.
resource!(PodMonitor { selector: LabelSelector, pod_metrics_endpoints: Vec<PodEndpoint> });
resource!(PodEndpoint { path: String, interval: String, relabelings: Vec<Relabeling> });
resource!(Relabeling {
    action: String,
    source_labels: Vec<String>,
    regex: String,
    target_label: String,
    replacement: String,
});
resource!(PrometheusRule { groups: Vec<RuleGroup> });
resource!(RuleGroup { name: String, rules: Vec<Rule> });
resource!(Rule {
    record: String,
    alert: String,
    expr: String,
    r#for: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
});

fn strict<S: DeserializeOwned + Serialize>(object: &Value) -> Vec<String> {
    objects::strict::<Object<S>>(object)
}

pub(super) fn wrong(object: &Value) -> Vec<String> {
    match (object["apiVersion"].as_str(), object["kind"].as_str()) {
        (Some("hearth.dev/v1alpha1"), Some("ImageSet")) => objects::strict::<ImageSet>(object),
        (Some("sparkoperator.k8s.io/v1beta2"), Some("SparkApplication")) => strict::<Application>(object),
        (Some("sparkoperator.k8s.io/v1beta2"), Some("ScheduledSparkApplication")) => {
            strict::<Scheduled>(object)
        }
        (Some("karpenter.sh/v1"), Some("NodePool")) => strict::<NodePool>(object),
        (Some("cert-manager.io/v1"), Some("Issuer")) => strict::<Issuer>(object),
        (Some("cert-manager.io/v1"), Some("Certificate")) => strict::<Certificate>(object),
        (Some("monitoring.coreos.com/v1"), Some("PodMonitor")) => strict::<PodMonitor>(object),
        (Some("monitoring.coreos.com/v1"), Some("PrometheusRule")) => strict::<PrometheusRule>(object),
        _ => objects::wrong(object),
    }
}

/// The examples that are one file each, with their documents.
fn examples() -> Vec<(String, Vec<Value>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder().join("examples")).expect("the examples are readable") {
        let path = entry.expect("the examples are readable").path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).expect("the examples are readable");
            found.push((name, render::documents(&text)));
        }
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
}

/// Every value of a key `image`, wherever it stands, and of lists `images`.
fn images(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("image", Value::String(image)) => drop(found.insert(image.clone())),
                    ("images", Value::Array(all)) => {
                        found.extend(all.iter().filter_map(Value::as_str).map(str::to_owned));
                    }
                    _ => images(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| images(item, found)),
        _ => {}
    }
}

#[test]
fn every_example_is_known_in_every_field() {
    let examples = examples();
    assert!(examples.len() >= 5, "{} examples", examples.len());
    for (name, documents) in examples {
        let problems: Vec<_> = documents.iter().flat_map(wrong).collect();
        assert!(problems.is_empty(), "{name}:\n{}", problems.join("\n"));
    }
}

#[test]
fn what_a_set_warms_is_what_runs() {
    for (name, documents) in examples() {
        let (mut warmed, mut run) = (BTreeSet::new(), BTreeSet::new());
        for document in &documents {
            images(document, if document["kind"] == "ImageSet" { &mut warmed } else { &mut run });
        }
        assert!(warmed.is_empty() || run.is_subset(&warmed), "{name}: {run:?} of {warmed:?}");
    }
}

#[test]
fn several_clouds_render_and_the_agent_reads_them() {
    let documents = render::kustomize(&folder().join("examples/several-clouds"));
    let problems: Vec<_> = documents.iter().flat_map(objects::wrong).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    let config = super::pods::config(&documents, "hearth");
    assert!(config.upstream.registries.iter().any(|registry| registry.endpoints.len() == 3));
}

#[test]
fn clearing_a_node_removes_what_agents_stored_and_nothing_else() {
    let text =
        fs::read_to_string(folder().join("examples/clear-node-data.yaml")).expect("the example is readable");
    let object = &render::documents(&text)[0];
    let pod = &object["spec"]["template"]["spec"];
    let data = serde_json::json!({"path": "/var/lib/hearth", "type": "DirectoryOrCreate"});
    let volumes = pod["volumes"].as_array().expect("there are volumes");
    assert_eq!(volumes.iter().map(|one| &one["hostPath"]).collect::<Vec<_>>(), [&data]);
    let home = tempfile::tempdir().expect("temporary folders are available");
    let store = home.path().join("store");
    fs::create_dir_all(store.join("blobs-v1/sha256/ab")).expect("writable");
    fs::write(store.join("blobs-v1/sha256/ab/abcd"), "x").expect("writable");
    fs::write(home.path().join("other"), "x").expect("writable");
    let command = pod["initContainers"][0]["command"].as_array().expect("there is a command");
    let words = command
        .iter()
        .filter_map(Value::as_str)
        .map(|word| word.replace("/var/lib/hearth", &store.to_string_lossy()));
    let words: Vec<_> = words.collect();
    let status = std::process::Command::new(&words[0]).args(&words[1..]).status().expect("it runs");
    assert!(status.success());
    assert_eq!(fs::read_dir(&store).expect("the directory itself stays").count(), 0);
    assert!(home.path().join("other").exists());
}
