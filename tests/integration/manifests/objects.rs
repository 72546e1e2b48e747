//! Objects against the API's types. These read over fields that they do not know, so an object is read and written again:
//! what does not come back was unknown.

use k8s_openapi::{
    api::{
        admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
        apps::v1::{DaemonSet, Deployment, StatefulSet},
        batch::v1::{CronJob, Job},
        core::v1::{ConfigMap, Namespace, Pod, ResourceQuota, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// What is wrong with an object.
pub(super) fn wrong(object: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let check: fn(&Value) -> Vec<String> = match (version.as_str(), kind.as_str()) {
        ("v1", "Namespace") => strict::<Namespace>,
        ("v1", "ResourceQuota") => strict::<ResourceQuota>,
        ("v1", "ServiceAccount") => strict::<ServiceAccount>,
        ("v1", "Service") => strict::<Service>,
        ("v1", "ConfigMap") => strict::<ConfigMap>,
        ("v1", "Secret") => strict::<Secret>,
        ("v1", "Pod") => strict::<Pod>,
        ("apps/v1", "DaemonSet") => strict::<DaemonSet>,
        ("apps/v1", "Deployment") => strict::<Deployment>,
        ("apps/v1", "StatefulSet") => strict::<StatefulSet>,
        ("batch/v1", "Job") => strict::<Job>,
        ("batch/v1", "CronJob") => strict::<CronJob>,
        ("networking.k8s.io/v1", "NetworkPolicy") => strict::<NetworkPolicy>,
        ("rbac.authorization.k8s.io/v1", "Role") => strict::<Role>,
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => strict::<RoleBinding>,
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => strict::<ClusterRole>,
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => strict::<ClusterRoleBinding>,
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => strict::<CustomResourceDefinition>,
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => {
            strict::<ValidatingAdmissionPolicy>
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
            strict::<ValidatingAdmissionPolicyBinding>
        }
        _ => return vec![format!("`{version}` `{kind}` is not known to this test")],
    };
    let name = text(&object["metadata"]["name"]);
    check(object).into_iter().map(|problem| format!("{kind} `{name}`: {problem}")).collect()
}

/// Reads an object as `T`, and names the fields that `T` does not have.
pub(super) fn strict<T: DeserializeOwned + Serialize>(object: &Value) -> Vec<String> {
    let read = match serde_json::from_value::<T>(object.clone()) {
        Ok(read) => read,
        Err(error) => return vec![error.to_string()],
    };
    let mut lost = Vec::new();
    compare(object, &serde_json::to_value(&read).expect("it is JSON"), "", &mut lost);
    lost
}

fn compare(before: &Value, after: &Value, path: &str, lost: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(fields), _) => {
            for (name, value) in fields {
                match after.get(name) {
                    Some(kept) => compare(value, kept, &format!("{path}.{name}"), lost),
                    // What is empty says nothing.
                    None if value.as_object().is_some_and(serde_json::Map::is_empty) => {}
                    None => lost.push(format!("unknown field `{path}.{name}`")),
                }
            }
        }
        (Value::Array(items), Value::Array(kept)) if items.len() == kept.len() => {
            for (at, (value, kept)) in items.iter().zip(kept).enumerate() {
                compare(value, kept, &format!("{path}[{at}]"), lost);
            }
        }
        _ if before == after || is_same_number(before, after) => {}
        _ => lost.push(format!("`{path}` is read as {after} instead of {before}")),
    }
}

/// `1` and `1.0` are one number to the API: a schema's bounds are floating-point there.
fn is_same_number(before: &Value, after: &Value) -> bool {
    before.as_f64().is_some_and(|number| Some(number) == after.as_f64())
}

#[test]
fn unknown_fields_and_wrong_types_are_found() {
    let service = |spec: Value| serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": spec});
    assert!(wrong(&service(serde_json::json!({"ports": [{"port": 1}], "selector": {}}))).is_empty());
    for (spec, expected) in [
        (
            serde_json::json!({"ports": [{"prot": 1, "port": 1}]}),
            "Service `a`: unknown field `.spec.ports[0].prot`",
        ),
        (serde_json::json!({"clusterIp": "None"}), "Service `a`: unknown field `.spec.clusterIp`"),
    ] {
        assert_eq!(wrong(&service(spec)), [expected]);
    }
    assert_eq!(wrong(&service(serde_json::json!({"ports": 1}))).len(), 1);
}
