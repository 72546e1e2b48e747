//! Whether a set selects a node: labels, affinity terms, taints. Pure.

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};

use crate::prepull::crd::ImageSetSpec;

/// Temporary taints, and those of nodes that are starting: images are needed on such nodes even more.
const PASSING: &[&str] = &[
    "node.kubernetes.io/",
    "node.cloudprovider.kubernetes.io/",
    "startup-taint.cluster-autoscaler.kubernetes.io/",
    "ignore-taint.cluster-autoscaler.kubernetes.io/",
    "readiness.k8s.io/",
    "karpenter.sh/unregistered",
    "hearth.dev/",
];

/// Whether the set selects this node. `own_taint` is the agent's own start-up taint.
pub(crate) fn selects(spec: &ImageSetSpec, node: &Node, own_taint: &str) -> bool {
    let label =
        |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let labels = spec.node_selector.iter().all(|(key, value)| label(key) == Some(value));
    let name = node.metadata.name.as_deref();
    let terms = spec.node_selector_terms.is_empty()
        || spec.node_selector_terms.iter().any(|term| satisfies(term, &label, name));
    let taints = node.spec.iter().filter_map(|spec| spec.taints.as_ref()).flatten();
    let hard = taints.filter(|taint| taint.effect != "PreferNoSchedule" && taint.key != own_taint);
    let mut hard = hard.filter(|taint| !PASSING.iter().any(|prefix| taint.key.starts_with(prefix)));
    labels
        && terms
        && hard.all(|taint| spec.tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

/// A term without any requirement selects nothing, as in a pod's affinity.
fn satisfies<'a>(
    term: &NodeSelectorTerm,
    label: &dyn Fn(&str) -> Option<&'a str>,
    name: Option<&'a str>,
) -> bool {
    let labels = term.match_expressions.iter().flatten();
    let fields = term.match_fields.iter().flatten();
    let any = labels.clone().next().is_some() || fields.clone().next().is_some();
    any && labels.into_iter().all(|requirement| meets(requirement, label(&requirement.key)))
        && fields
            .into_iter()
            .all(|requirement| requirement.key == "metadata.name" && meets(requirement, name))
}

fn meets(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = || value.is_some_and(|value| values.iter().any(|one| one == value));
    let number = |text: &str| text.parse::<i64>().ok();
    let compared = |compare: fn(&i64, &i64) -> bool| {
        let (value, bound) = (value.and_then(number), values.first().and_then(|bound| number(bound)));
        value.zip(bound).is_some_and(|(value, bound)| compare(&value, &bound))
    };
    match requirement.operator.as_str() {
        "In" => among(),
        "NotIn" => !among(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(i64::gt),
        "Lt" => compared(i64::lt),
        _ => false,
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => key.is_empty() || key == taint.key,
        _ => {
            key == taint.key
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_set_selects_nodes_with_its_labels_and_terms_whose_taints_it_tolerates() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"pool": "spark", "cores": "16"}},
            "spec": {"taints": [
                {"key": "dedicated", "value": "spark", "effect": "NoSchedule"},
                {"key": "soft", "effect": "PreferNoSchedule"},
                {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"},
                {"key": "example.com/warming", "effect": "NoSchedule"},
            ]},
        }))
        .unwrap();
        let tolerant =
            json!([{"key": "dedicated", "operator": "Equal", "value": "spark", "effect": "NoSchedule"}]);
        let term = |key: &str, operator: &str, values: Value| json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]);
        for (selector, terms, tolerations, expected) in [
            (json!({}), json!([]), json!([]), false),
            (json!({}), json!([]), tolerant.clone(), true),
            (json!({}), json!([]), json!([{"operator": "Exists"}]), true),
            (json!({}), json!([]), json!([{"key": "dedicated", "operator": "Exists"}]), true),
            (
                json!({}),
                json!([]),
                json!([{"key": "dedicated", "operator": "Exists", "effect": "NoExecute"}]),
                false,
            ),
            (json!({}), json!([]), json!([{"key": "dedicated", "value": "other"}]), false),
            (json!({"pool": "spark"}), json!([]), tolerant.clone(), true),
            (json!({"pool": "gpu"}), json!([]), tolerant.clone(), false),
            (json!({}), term("pool", "In", json!(["a", "spark"])), tolerant.clone(), true),
            (json!({}), term("pool", "NotIn", json!(["spark"])), tolerant.clone(), false),
            (json!({}), term("zone", "DoesNotExist", json!([])), tolerant.clone(), true),
            (json!({}), term("cores", "Gt", json!(["8"])), tolerant.clone(), true),
            (json!({}), term("cores", "Lt", json!(["8"])), tolerant.clone(), false),
            (json!({}), json!([{}]), tolerant.clone(), false),
            (
                json!({}),
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]),
                tolerant.clone(),
                true,
            ),
            (
                json!({}),
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]),
                tolerant.clone(),
                false,
            ),
        ] {
            let spec: ImageSetSpec = serde_json::from_value(json!({
                "images": ["a"], "nodeSelector": selector, "nodeSelectorTerms": terms, "tolerations": tolerations,
            }))
            .unwrap();
            assert_eq!(selects(&spec, &node, "example.com/warming"), expected, "{spec:?}");
        }
    }
}
