//! What a Spark application will need, and where: read from the objects as they are. Pure.
//!
//! | object | images | nodes |
//! | --- | --- | --- |
//! | `SparkApplication`, `ScheduledSparkApplication` (its template) | `spec.{driver,executor}.image`, else `spark.kubernetes.{driver,executor}.container.image` or `spark.kubernetes.container.image` of `sparkConf`, else `spec.image`; sidecars, init containers and pod templates of the role | selectors, tolerations, required node affinity of the role, of its template, and of `sparkConf` |
//! | `SparkConnect` | `spec.image`, containers of `server.template` and `executor.template` | as above |
//! | driver pod of plain `spark-submit` | of its properties ConfigMap: as `sparkConf`; without one the driver's own | `spark.kubernetes.node.selector.*`, `spark.kubernetes.executor.node.selector.*` |

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;

/// Properties of Spark.
type Conf = BTreeMap<String, String>;

/// The container that Spark runs in, by its name in driver pods.
const DRIVER_CONTAINER: &str = "spark-kubernetes-driver";

/// The key of a properties ConfigMap.
const PROPERTIES: &str = "spark.properties";

/// Images that are needed together on the same nodes.
#[derive(Clone, Debug, Default, PartialEq, PartialOrd)]
pub(crate) struct PrepullRequest {
    /// The image and the rule that found it.
    pub(crate) images: BTreeMap<String, String>,
    pub(crate) node_selector: BTreeMap<String, String>,
    /// Node selector terms and tolerations as they stand in the object.
    pub(crate) terms: Vec<String>,
    pub(crate) tolerations: BTreeSet<String>,
}

/// What an application needs now, one request for each kind of nodes. Nothing when it has ended or is suspended.
pub(crate) fn application(object: &Value) -> Vec<PrepullRequest> {
    let state = object["status"]["applicationState"]["state"].as_str().unwrap_or_default();
    let over = matches!(state, "COMPLETED" | "FAILED" | "SUCCEEDING" | "FAILING" | "SUSPENDED");
    if over || object["spec"]["suspend"] == true { Vec::new() } else { of_spec(&object["spec"], "spec") }
}

/// What a scheduled application needs: from `lead` before its next run until that has begun.
pub(crate) fn scheduled(object: &Value, now: Timestamp, lead: std::time::Duration) -> Vec<PrepullRequest> {
    if object["spec"]["suspend"] == true {
        return Vec::new();
    }
    let next = object["status"]["nextRun"].as_str().and_then(|next| next.parse::<Timestamp>().ok());
    let near = next.and_then(|next| next.checked_sub(lead).ok()).is_some_and(|from| from <= now);
    if near { of_spec(&object["spec"]["template"], "spec.template") } else { Vec::new() }
}

/// What a `SparkConnect` server needs.
pub(crate) fn connect(object: &Value) -> Vec<PrepullRequest> {
    let spec = &object["spec"];
    let state = object["status"]["state"].as_str().unwrap_or_default();
    if state == "Failed" {
        return Vec::new();
    }
    let conf = conf(&spec["sparkConf"]);
    let request = |role: &str, conf_role: &str| {
        let mut request = PrepullRequest::default();
        main_image(&mut request, &Value::Null, spec, &conf, conf_role, "spec");
        pod(&mut request, &spec[role]["template"]["spec"], &format!("spec.{role}.template"));
        of_conf(&mut request, &conf, conf_role);
        request
    };
    together([request("server", "driver"), request("executor", "executor")])
}

/// Whether a driver pod is one of plain `spark-submit` that is starting or runs; an operator's applications speak for
/// themselves.
pub(crate) fn is_plain_driver(pod: &Value) -> bool {
    let labels = &pod["metadata"]["labels"];
    let phase = pod["status"]["phase"].as_str().unwrap_or("Pending");
    labels["spark-role"] == "driver"
        && labels
            .as_object()
            .is_some_and(|labels| !labels.keys().any(|key| key.starts_with("sparkoperator.k8s.io/")))
        && matches!(phase, "Pending" | "Running")
        && pod["metadata"]["deletionTimestamp"].is_null()
}

/// The ConfigMap with a driver's properties, by its name.
pub(crate) fn properties_map(pod: &Value) -> Option<&str> {
    let volumes = pod["spec"]["volumes"].as_array()?;
    let names = volumes.iter().filter_map(|volume| volume["configMap"]["name"].as_str());
    names.into_iter().find(|name| name.ends_with("-conf-map"))
}

/// What the executors of a driver pod will need. `properties` is the data of its ConfigMap, when that can be read.
pub(crate) fn driver(pod: &Value, properties: Option<&Value>) -> Vec<PrepullRequest> {
    let conf =
        properties.and_then(|data| data[PROPERTIES].as_str()).map(parse_properties).unwrap_or_default();
    let mut request = PrepullRequest::default();
    main_image(&mut request, &Value::Null, &Value::Null, &conf, "executor", "properties");
    if request.images.is_empty() {
        let containers = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let main =
            containers.iter().find(|container| container["name"] == DRIVER_CONTAINER).or(containers.first());
        if let Some(image) = main.and_then(|container| container["image"].as_str()) {
            request.note(image, "the driver's image");
        }
    }
    of_conf(&mut request, &conf, "executor");
    together([request])
}

/// `key=value` lines as Java writes them: `\:` and `\=` are escaped, `#` begins a comment.
fn parse_properties(text: &str) -> Conf {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', '!']));
    let pair = |line: &str| {
        let (key, value) = line.split_once('=')?;
        let plain = |text: &str| text.trim().replace("\\:", ":").replace("\\=", "=").replace("\\ ", " ");
        Some((plain(key), plain(value)))
    };
    lines.filter_map(pair).collect()
}

fn conf(value: &Value) -> Conf {
    let pairs = value.as_object().into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn of_spec(spec: &Value, path: &str) -> Vec<PrepullRequest> {
    let conf = conf(&spec["sparkConf"]);
    let request = |role: &str| {
        let mut request = PrepullRequest::default();
        let of_role = &spec[role];
        main_image(&mut request, of_role, spec, &conf, role, path);
        for list in ["sidecars", "initContainers"] {
            containers(&mut request, &of_role[list], &format!("{path}.{role}.{list}"));
        }
        pod(&mut request, &of_role["template"]["spec"], &format!("{path}.{role}.template"));
        request.place(&spec["nodeSelector"], &Value::Null, &Value::Null);
        request.place(&of_role["nodeSelector"], &of_role["affinity"], &of_role["tolerations"]);
        of_conf(&mut request, &conf, role);
        request
    };
    together([request("executor"), request("driver")])
}

/// The role's own image, else that of the properties, else the common one.
fn main_image(
    request: &mut PrepullRequest,
    of_role: &Value,
    spec: &Value,
    conf: &Conf,
    role: &str,
    path: &str,
) {
    let of_role_key = format!("spark.kubernetes.{role}.container.image");
    let common_key = "spark.kubernetes.container.image";
    let places = [
        (of_role["image"].as_str(), format!("{path}.{role}.image")),
        (conf.get(&of_role_key).map(String::as_str), of_role_key.clone()),
        (conf.get(common_key).map(String::as_str), common_key.to_owned()),
        (spec["image"].as_str(), format!("{path}.image")),
    ];
    if let Some((image, rule)) = places.into_iter().find_map(|(image, rule)| Some((image?, rule))) {
        request.note(image, &rule);
    }
}

/// A pod template: containers, init containers, image volumes, and where it may run.
fn pod(request: &mut PrepullRequest, spec: &Value, path: &str) {
    for list in ["containers", "initContainers"] {
        containers(request, &spec[list], &format!("{path}.{list}"));
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        if let Some(image) = volume["image"]["reference"].as_str() {
            request.note(image, &format!("{path}.volumes"));
        }
    }
    request.place(&spec["nodeSelector"], &spec["affinity"], &spec["tolerations"]);
}

fn containers(request: &mut PrepullRequest, list: &Value, rule: &str) {
    for image in list.as_array().into_iter().flatten().filter_map(|one| one["image"].as_str()) {
        request.note(image, rule);
    }
}

fn of_conf(request: &mut PrepullRequest, conf: &Conf, role: &str) {
    for prefix in
        ["spark.kubernetes.node.selector.".to_owned(), format!("spark.kubernetes.{role}.node.selector.")]
    {
        for (key, value) in conf {
            if let Some(label) = key.strip_prefix(&prefix) {
                request.node_selector.insert(label.to_owned(), value.clone());
            }
        }
    }
}

impl PrepullRequest {
    fn note(&mut self, image: &str, rule: &str) {
        let image = image.trim();
        if !image.is_empty() {
            self.images.entry(image.to_owned()).or_insert_with(|| rule.to_owned());
        }
    }

    fn place(&mut self, selector: &Value, affinity: &Value, tolerations: &Value) {
        self.node_selector.extend(conf(selector));
        let terms =
            &affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
        self.terms.extend(terms.as_array().into_iter().flatten().map(ToString::to_string));
        self.tolerations.extend(tolerations.as_array().into_iter().flatten().map(ToString::to_string));
    }

    fn same_nodes(&self, other: &Self) -> bool {
        self.node_selector == other.node_selector
            && self.terms == other.terms
            && self.tolerations == other.tolerations
    }
}

/// Requests for the same nodes become one; those without images go.
fn together(requests: impl IntoIterator<Item = PrepullRequest>) -> Vec<PrepullRequest> {
    let mut found: Vec<PrepullRequest> = Vec::new();
    for request in requests.into_iter().filter(|request| !request.images.is_empty()) {
        match found.iter_mut().find(|other| other.same_nodes(&request)) {
            Some(other) => {
                for (image, rule) in request.images {
                    other.images.entry(image).or_insert(rule);
                }
            }
            None => found.push(request),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn images(requests: &[PrepullRequest]) -> Vec<Vec<(&str, &str)>> {
        requests
            .iter()
            .map(|request| {
                request.images.iter().map(|(image, rule)| (image.as_str(), rule.as_str())).collect()
            })
            .collect()
    }

    /// As the operator's examples have it, with everything that names an image.
    fn spark_pi() -> Value {
        json!({
            "apiVersion": "sparkoperator.k8s.io/v1beta2", "kind": "SparkApplication",
            "metadata": {"name": "spark-pi", "namespace": "jobs", "uid": "u1"},
            "spec": {
                "type": "Scala", "mode": "cluster", "image": "r.test/spark:4.0.1", "imagePullPolicy": "IfNotPresent",
                "mainClass": "org.apache.spark.examples.SparkPi", "sparkVersion": "4.0.1",
                "mainApplicationFile": "local:///opt/spark/examples/jars/spark-examples.jar",
                "driver": {"cores": 1, "memory": "512m", "serviceAccount": "spark"},
                "executor": {"instances": 8, "cores": 1, "memory": "512m"},
            },
        })
    }

    fn with(mut object: Value, pointer: &str, value: Value) -> Value {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[key] = value;
        object
    }

    #[test]
    fn the_image_of_a_role_wins_over_the_properties_and_those_over_the_common_one() {
        let common = vec![vec![("r.test/spark:4.0.1", "spec.image")]];
        assert_eq!(images(&application(&spark_pi())), common);
        let own = with(spark_pi(), "/spec/executor/image", json!("r.test/executor:1"));
        let expected =
            vec![vec![("r.test/executor:1", "spec.executor.image"), ("r.test/spark:4.0.1", "spec.image")]];
        assert_eq!(images(&application(&own)), expected);
        let conf = json!({
            "spark.kubernetes.container.image": "r.test/conf:1",
            "spark.kubernetes.driver.container.image": "r.test/driver:1",
        });
        let with_conf = with(spark_pi(), "/spec/sparkConf", conf.clone());
        let expected = vec![vec![
            ("r.test/conf:1", "spark.kubernetes.container.image"),
            ("r.test/driver:1", "spark.kubernetes.driver.container.image"),
        ]];
        assert_eq!(images(&application(&with_conf)), expected);
        let both = with(own, "/spec/sparkConf", conf);
        let expected = vec![vec![
            ("r.test/driver:1", "spark.kubernetes.driver.container.image"),
            ("r.test/executor:1", "spec.executor.image"),
        ]];
        assert_eq!(images(&application(&both)), expected);
    }

    #[test]
    fn sidecars_init_containers_and_templates_come_along_on_the_nodes_of_their_role() {
        let object = with(
            spark_pi(),
            "/spec/executor",
            json!({
                "nodeSelector": {"pool": "spark"},
                "tolerations": [{"key": "dedicated", "operator": "Exists"}],
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "arch", "operator": "In", "values": ["amd64"]}]},
                ]}}},
                "sidecars": [{"name": "logs", "image": "r.test/logs:1"}],
                "initContainers": [{"name": "init", "image": "r.test/init:1"}],
                "template": {"spec": {
                    "containers": [{"name": "x", "image": "r.test/template:1"}],
                    "volumes": [{"name": "v", "image": {"reference": "r.test/data:1"}}],
                }},
            }),
        );
        let requests = application(&object);
        let [executor, driver] = &requests[..] else { panic!("two kinds of nodes: {requests:?}") };
        let names: Vec<_> = executor.images.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["r.test/data:1", "r.test/init:1", "r.test/logs:1", "r.test/spark:4.0.1", "r.test/template:1"]
        );
        assert_eq!(executor.node_selector["pool"], "spark");
        assert_eq!((executor.terms.len(), executor.tolerations.len()), (1, 1));
        assert_eq!((driver.images.len(), driver.node_selector.len()), (1, 0));
        let conf = json!({"spark.kubernetes.node.selector.zone": "a", "spark.kubernetes.driver.node.selector.pool": "drivers"});
        let requests = application(&with(spark_pi(), "/spec/sparkConf", conf));
        assert_eq!(requests[0].node_selector, BTreeMap::from([("zone".into(), "a".into())]));
        assert_eq!(requests[1].node_selector["pool"], "drivers");
    }

    #[test]
    fn what_has_ended_or_is_suspended_needs_nothing() {
        for (state, wanted) in [
            ("", true),
            ("SUBMITTED", true),
            ("RUNNING", true),
            ("PENDING_RERUN", true),
            ("SUBMISSION_FAILED", true),
            ("COMPLETED", false),
            ("FAILED", false),
            ("SUCCEEDING", false),
            ("SUSPENDED", false),
        ] {
            let object = with(spark_pi(), "/status", json!({"applicationState": {"state": state}}));
            assert_eq!(!application(&object).is_empty(), wanted, "{state}");
        }
        assert!(application(&with(spark_pi(), "/spec/suspend", json!(true))).is_empty());
    }

    #[test]
    fn a_schedule_is_looked_after_from_a_while_before_its_next_run() {
        let object = json!({
            "apiVersion": "sparkoperator.k8s.io/v1beta2", "kind": "ScheduledSparkApplication",
            "metadata": {"name": "nightly", "namespace": "jobs", "uid": "u2"},
            "spec": {"schedule": "0 3 * * *", "timeZone": "UTC", "concurrencyPolicy": "Forbid", "template": spark_pi()["spec"]},
            "status": {"nextRun": "2026-11-22T03:00:00Z", "scheduleState": "Scheduled"},
        });
        let at =
            |object: &Value, time: &str| scheduled(object, time.parse().unwrap(), Duration::from_mins(10));
        assert!(at(&object, "2026-11-22T02:49:59Z").is_empty());
        assert_eq!(
            images(&at(&object, "2026-11-22T02:50:00Z")),
            [vec![("r.test/spark:4.0.1", "spec.template.image")]]
        );
        assert_eq!(at(&object, "2026-11-22T03:00:10Z").len(), 1, "until the next run is another one");
        assert!(at(&with(object.clone(), "/spec/suspend", json!(true)), "2026-11-22T02:55:00Z").is_empty());
        assert!(at(&with(object, "/status", json!(null)), "2026-11-22T02:55:00Z").is_empty());
    }

    #[test]
    fn a_connect_server_needs_its_image_and_those_of_its_templates() {
        let object = json!({
            "apiVersion": "sparkoperator.k8s.io/v1alpha1", "kind": "SparkConnect",
            "metadata": {"name": "shared", "namespace": "jobs", "uid": "u3"},
            "spec": {
                "sparkVersion": "4.0.1", "image": "r.test/spark:4.0.1",
                "server": {"template": {"spec": {"containers": [{"name": "spark-kubernetes-driver", "image": "r.test/server:1"}]}}},
                "executor": {"instances": 3, "template": {"spec": {"nodeSelector": {"pool": "spark"}}}},
            },
        });
        let requests = connect(&object);
        assert_eq!(requests.len(), 2);
        assert_eq!(requests[0].images.len(), 2);
        assert_eq!(images(&requests[1..]), [vec![("r.test/spark:4.0.1", "spec.image")]]);
        assert_eq!(requests[1].node_selector["pool"], "spark");
    }

    #[test]
    fn a_plain_drivers_executors_have_the_image_of_its_properties_or_its_own() {
        let pod = json!({
            "metadata": {"name": "pi-driver", "namespace": "jobs", "uid": "u4",
                "labels": {"spark-role": "driver", "spark-app-selector": "spark-1", "spark-app-name": "pi"}},
            "spec": {
                "containers": [{"name": "sidecar", "image": "r.test/s:1"}, {"name": "spark-kubernetes-driver", "image": "r.test/driver:1"}],
                "volumes": [
                    {"name": "spark-local-dir-1", "emptyDir": {}},
                    {"name": "spark-conf-volume-driver", "configMap": {"name": "spark-drv-1a2b-conf-map", "defaultMode": 420}},
                ],
            },
            "status": {"phase": "Pending"},
        });
        assert!(is_plain_driver(&pod));
        assert_eq!(properties_map(&pod), Some("spark-drv-1a2b-conf-map"));
        assert_eq!(images(&driver(&pod, None)), [vec![("r.test/driver:1", "the driver's image")]]);
        let text = "#Java properties built from Kubernetes config map\n#Sat Nov 21 2026\n\
                    spark.kubernetes.container.image=r.test/common\\:1\n\
                    spark.kubernetes.executor.container.image=r.test\\:5000/executor\\:2\n\
                    spark.kubernetes.executor.node.selector.pool=spark\n";
        let requests = driver(&pod, Some(&json!({"spark.properties": text})));
        assert_eq!(
            images(&requests),
            [vec![("r.test:5000/executor:2", "spark.kubernetes.executor.container.image")]]
        );
        assert_eq!(requests[0].node_selector["pool"], "spark");
        for (pointer, value) in [
            ("/status/phase", json!("Succeeded")),
            ("/metadata/labels", json!({"spark-role": "driver", "sparkoperator.k8s.io/app-name": "pi"})),
            ("/metadata/labels", json!({"spark-role": "executor"})),
            ("/metadata/deletionTimestamp", json!("2026-11-21T00:00:00Z")),
        ] {
            assert!(!is_plain_driver(&with(pod.clone(), pointer, value)), "{pointer}");
        }
    }
}
