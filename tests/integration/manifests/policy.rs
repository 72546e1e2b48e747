//! The admission policy's expressions, evaluated on the requests that an agent sends and on those that it must not.

use cel::{Context, Program, Value as Cel};
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingAdmissionPolicy,
    core::v1::{NodeSpec, NodeStatus},
};
use serde_json::{Value, json};

use super::render;

/// What the API server asks the policy.
struct Review {
    user: &'static str,
    /// The node that the token speaks for.
    node: &'static str,
    resource: &'static str,
    operation: &'static str,
    before: Value,
    after: Value,
}

/// A node as an agent finds it.
fn node() -> Value {
    json!({
        "metadata": {"name": "a", "labels": {"zone": "z1", "hearth.dev/warm.old": "true"}, "resourceVersion": "1"},
        "spec": {"taints": [
            {"key": "hearth.dev/warming", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"},
        ]},
        "status": {
            "capacity": {"cpu": "8"}, "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// The agent of node `a` changes a node.
fn update(change: impl FnOnce(&mut Value)) -> Review {
    let mut after = node();
    change(&mut after);
    Review {
        user: "system:serviceaccount:hearth:hearth-agent",
        node: "a",
        resource: "nodes",
        operation: "UPDATE",
        before: node(),
        after,
    }
}

fn unlabel(key: &str) -> Review {
    update(|node| drop(node["metadata"]["labels"].as_object_mut().expect("there are some").remove(key)))
}

fn cache(name: &str, operation: &'static str) -> Review {
    let object = json!({"metadata": {"name": name}, "spec": {}});
    let (before, after) = match operation {
        "CREATE" => (Value::Null, object),
        "DELETE" => (object, Value::Null),
        _ => (object.clone(), object),
    };
    Review { resource: "nodecaches", operation, before, after, ..update(|_| ()) }
}

/// The policies speak of these resources.
fn resources(policy: &ValidatingAdmissionPolicy) -> Vec<String> {
    let spec = policy.spec.as_ref().expect("a policy has a specification");
    let rules = spec.match_constraints.iter().flat_map(|all| all.resource_rules.iter().flatten());
    rules.flat_map(|rule| rule.resources.clone().unwrap_or_default()).collect()
}

/// The messages of the validations that fail; none when the policy does not speak of this request.
fn refusals(policy: &ValidatingAdmissionPolicy, review: &Review) -> Vec<String> {
    assert!(resources(policy).iter().any(|one| one == review.resource));
    let spec = policy.spec.as_ref().expect("a policy has a specification");
    let mut context = Context::default();
    let extra = if review.node.is_empty() { json!({}) } else { json!({NODE_CLAIM: [review.node]}) };
    let request = json!({
        "userInfo": {"username": review.user, "extra": extra},
        "operation": review.operation,
    });
    for (name, value) in [("request", &request), ("object", &review.after), ("oldObject", &review.before)] {
        context.add_variable(name, value.clone()).expect("it is JSON");
    }
    let evaluate = |expression: &str, context: &Context<'_, '_>| {
        let program = Program::compile(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
        program.execute(context).unwrap_or_else(|error| panic!("{expression}: {error}"))
    };
    let conditions = spec.match_conditions.iter().flatten();
    if conditions.map(|one| evaluate(&one.expression, &context)).any(|value| value != Cel::Bool(true)) {
        return Vec::new();
    }
    let mut variables = serde_json::Map::new();
    for variable in spec.variables.iter().flatten() {
        let value = evaluate(&variable.expression, &context);
        variables.insert(variable.name.clone(), value.json().expect("it is JSON"));
        context.add_variable("variables", Value::Object(variables.clone())).expect("it is JSON");
    }
    let failed = spec
        .validations
        .iter()
        .flatten()
        .filter(|one| evaluate(&one.expression, &context) != Cel::Bool(true));
    failed
        .map(|one| match &one.message_expression {
            Some(expression) => match evaluate(expression, &context) {
                Cel::String(text) => text.to_string(),
                other => panic!("a message is text: {other:?}"),
            },
            None => one.message.clone().expect("a validation says what it is about"),
        })
        .collect()
}

const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";

#[test]
fn an_agent_may_do_its_work_on_its_own_node_and_nothing_else_anywhere() {
    let documents = render::overlay("containerd");
    let policy = |review: &Review| -> ValidatingAdmissionPolicy {
        let kind = if review.resource == "nodes" { "node" } else { "nodecache" };
        render::one(&documents, "ValidatingAdmissionPolicy", &format!("hearth-agent-{kind}"))
    };
    let taints = |node: &mut Value| node["spec"]["taints"].as_array_mut().expect("there are some").clone();
    let allowed = [
        ("nothing", update(|_| ())),
        ("its taint goes", update(|node| node["spec"]["taints"] = json!([taints(node)[1]]))),
        (
            "its condition comes",
            update(|node| {
                node["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}, {"type": "HearthImagesReady", "status": "True"}]);
            }),
        ),
        (
            "its labels of warm sets come",
            update(|node| node["metadata"]["labels"]["hearth.dev/warm.spark-3.5"] = "true".into()),
        ),
        ("its labels of warm sets go", unlabel("hearth.dev/warm.old")),
        ("its cache comes", cache("a", "CREATE")),
        ("its cache changes", cache("a", "UPDATE")),
        ("its cache goes", cache("a", "DELETE")),
        (
            "its taint goes, in another namespace",
            Review {
                user: "system:serviceaccount:other:hearth-agent",
                ..update(|node| node["spec"]["taints"] = json!([taints(node)[1]]))
            },
        ),
        ("someone else", Review { user: "system:node:b", ..update(|node| node["spec"] = json!({})) }),
    ];
    for (what, review) in &allowed {
        assert_eq!(refusals(&policy(review), review), [""; 0], "{what}");
    }
    let refused = [
        (
            "another's taint goes",
            update(|node| node["spec"]["taints"] = json!([taints(node)[0]])),
            "no other",
        ),
        (
            "a taint comes",
            update(|node| {
                let mut all = taints(node);
                all.push(json!({"key": "x", "effect": "NoExecute"}));
                node["spec"]["taints"] = json!(all);
            }),
            "no other",
        ),
        (
            "its taint changes",
            update(|node| node["spec"]["taints"][0]["effect"] = "NoExecute".into()),
            "no other",
        ),
        ("it cordons", update(|node| node["spec"]["unschedulable"] = true.into()), "cordon"),
        (
            "another word in a label of a warm set",
            update(|node| node["metadata"]["labels"]["hearth.dev/warm.old"] = "gpu".into()),
            "no other label",
        ),
        (
            "a label that only looks like one of warm sets",
            update(|node| node["metadata"]["labels"]["hearth.dev/warming"] = "true".into()),
            "no other label",
        ),
        ("another's label goes", unlabel("zone"), "no other label"),
        (
            "all labels go",
            update(|node| drop(node["metadata"].as_object_mut().expect("one").remove("labels"))),
            "no other label",
        ),
        ("it labels", update(|node| node["metadata"]["labels"]["x"] = "y".into()), "labels"),
        ("it annotates", update(|node| node["metadata"]["annotations"] = json!({"x": "y"})), "annotations"),
        (
            "another condition",
            update(|node| node["status"]["conditions"][0]["status"] = "False".into()),
            "no other",
        ),
        ("it moves", update(|node| node["status"]["addresses"] = json!([])), "where it is"),
        ("it grows", update(|node| node["status"]["capacity"]["cpu"] = "9".into()), "what its node offers"),
        (
            "it labels, in another namespace",
            Review {
                user: "system:serviceaccount:other:hearth-agent",
                ..update(|node| node["metadata"]["labels"]["x"] = "y".into())
            },
            "labels",
        ),
        (
            "another's cache, in another namespace",
            Review { user: "system:serviceaccount:other:hearth-agent", ..cache("b", "UPDATE") },
            "its own NodeCache",
        ),
        ("it is owned", update(|node| node["metadata"]["ownerReferences"] = json!([{"uid": "x"}])), "owners"),
        ("it holds its node", update(|node| node["metadata"]["finalizers"] = json!(["x"])), "finalizers"),
        (
            "its range changes",
            update(|node| node["spec"]["podCIDR"] = "10.9.0.0/24".into()),
            "what its node is",
        ),
        ("its ranges change", update(|node| node["spec"]["podCIDRs"] = json!([])), "what its node is"),
        ("it is another machine", update(|node| node["spec"]["providerID"] = "x".into()), "what its node is"),
        (
            "its specification goes",
            update(|node| drop(node.as_object_mut().expect("one").remove("spec"))),
            "specification",
        ),
        (
            "its status goes",
            update(|node| drop(node.as_object_mut().expect("one").remove("status"))),
            "status",
        ),
        (
            "exec goes elsewhere",
            update(|node| node["status"]["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": 1}})),
            "where it is",
        ),
        (
            "it has images",
            update(|node| node["status"]["images"] = json!([{"names": ["x"]}])),
            "offers, runs",
        ),
        (
            "it is newer",
            update(|node| node["status"]["nodeInfo"] = json!({"kubeletVersion": "v9"})),
            "offers, runs",
        ),
        ("it has volumes", update(|node| node["status"]["volumesAttached"] = json!([])), "offers, runs"),
        ("another node", Review { node: "b", ..update(|_| ()) }, "runs on `b`"),
        ("a token without a node", Review { node: "", ..update(|_| ()) }, "runs on ``"),
        ("another's cache", cache("b", "UPDATE"), "its own NodeCache"),
        ("another's cache goes", cache("b", "DELETE"), "its own NodeCache"),
        ("it makes a node", Review { operation: "CREATE", before: Value::Null, ..update(|_| ()) }, "creates"),
    ];
    for (what, review, expected) in &refused {
        let said = refusals(&policy(review), review).join("; ");
        assert!(said.contains(expected), "{what}: {said}");
    }
}

#[test]
fn every_field_of_a_node_is_compared() {
    let policy: ValidatingAdmissionPolicy =
        render::one(&render::overlay("containerd"), "ValidatingAdmissionPolicy", "hearth-agent-node");
    let text = serde_json::to_string(&policy).expect("it is JSON").to_lowercase();
    // The types show their fields when they are printed.
    let field = regex::Regex::new(r"([a-z_]+): None").expect("it is a pattern");
    for (parent, printed, least) in [
        ("spec", format!("{:?}", NodeSpec::default()), 7),
        ("status", format!("{:?}", NodeStatus::default()), 13),
    ] {
        let names: Vec<_> = field.captures_iter(&printed).map(|found| found[1].replace('_', "")).collect();
        assert!(names.len() >= least, "{printed}");
        for name in names {
            assert!(
                text.contains(&format!("oldobject.{parent}.{name}")),
                "`{parent}.{name}` is not compared"
            );
        }
    }
}
