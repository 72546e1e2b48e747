//! Which nodes a set is for, and what is known of each. Pure.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use tokio::time::Instant;

use crate::prepull::{
    cluster::selects,
    crd::{ImageSet, NodeCacheStatus, NodeSetStatus},
};

/// A `NodeCache` as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Reported {
    pub(super) status: NodeCacheStatus,
    pub(super) arrived: Instant,
    pub(super) arrived_at: Timestamp,
}

/// What is known of a set on a node that it selects.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Report<'a> {
    /// The agent reports; absent while it does not know the set yet.
    Current(Option<&'a NodeSetStatus>),
    Unknown(Silence),
}

/// Why nothing is known of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    NodeNotReady,
    NoReport,
    NotRenewed,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NodeNotReady => "the node is not ready",
            Self::NoReport => "its agent has not reported yet",
            Self::NotRenewed => "its agent has not renewed its NodeCache",
        })
    }
}

/// The part of a node that decides whether sets select it.
pub(super) fn reduce(node: Node) -> Node {
    let mut metadata = node.metadata;
    (metadata.managed_fields, metadata.annotations) = (None, None);
    let taints = node.spec.and_then(|spec| spec.taints);
    let conditions = node.status.and_then(|status| status.conditions).into_iter().flatten();
    let ready = conditions.filter(|condition| condition.type_ == "Ready").collect();
    Node {
        metadata,
        spec: Some(NodeSpec { taints, ..NodeSpec::default() }),
        status: Some(NodeStatus { conditions: Some(ready), ..NodeStatus::default() }),
    }
}

fn is_ready(node: &Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The nodes that a set selects, by name, with what is known of each. A node that is being deleted is not selected.
pub(super) fn selected<'a>(
    set: &ImageSet,
    nodes: &'a BTreeMap<String, Node>,
    caches: &'a BTreeMap<String, Reported>,
    taint: &str,
    is_current: impl Fn(&str) -> bool,
) -> Vec<(&'a str, Report<'a>)> {
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let report = |node: &Node, cache: Option<&'a Reported>| match cache {
        _ if !is_ready(node) => Report::Unknown(Silence::NodeNotReady),
        None => Report::Unknown(Silence::NoReport),
        Some(cache) if cache.status.updated.is_none() => Report::Unknown(Silence::NoReport),
        Some(_) if !is_current(node.metadata.name.as_deref().unwrap_or_default()) => {
            Report::Unknown(Silence::NotRenewed)
        }
        Some(cache) => Report::Current(cache.status.sets.iter().find(|one| one.name == name)),
    };
    nodes
        .iter()
        .filter(|(_, node)| node.metadata.deletion_timestamp.is_none() && selects(&set.spec, node, taint))
        .map(|(name, node)| (name.as_str(), report(node, caches.get(name))))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, ready: Option<&str>, more: &Value) -> Node {
        let conditions: Vec<_> =
            ready.iter().map(|status| json!({"type": "Ready", "status": status})).collect();
        let mut metadata = json!({"name": name, "labels": {"pool": "spark"}, "annotations": {"a": "b"}});
        for (key, value) in more["metadata"].as_object().into_iter().flatten() {
            metadata[key] = value.clone();
        }
        let node = json!({
            "metadata": metadata, "spec": {"taints": more["taints"], "podCIDR": "10.0.0.0/24"},
            "status": {"conditions": conditions, "images": [{"names": ["a"]}]},
        });
        reduce(serde_json::from_value(node).unwrap())
    }

    fn cache(updated: &Value, sets: &[&str]) -> Reported {
        let sets: Vec<_> = sets.iter().map(|name| json!({"name": name, "images": []})).collect();
        Reported {
            status: serde_json::from_value(json!({"updated": updated, "sets": sets})).unwrap(),
            arrived: Instant::now(),
            arrived_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn nodes_are_selected_as_long_as_they_exist_and_known_as_long_as_node_and_agent_report() {
        let set: ImageSet = serde_json::from_value(json!({
            "apiVersion": "hearth.dev/v1alpha1", "kind": "ImageSet", "metadata": {"name": "s"},
            "spec": {"images": ["a"], "nodeSelector": {"pool": "spark"}},
        }))
        .unwrap();
        let written = || json!("2026-01-01T00:00:00Z");
        let none = json!({});
        let hard = json!({"taints": [{"key": "dedicated", "effect": "NoSchedule"}]});
        let own = json!({"taints": [{"key": "example.com/warming", "effect": "NoSchedule"}]});
        let leaving = json!({"metadata": {"deletionTimestamp": written()}});
        let other = json!({"metadata": {"labels": {"pool": "gpu"}}});
        // The node, its NodeCache, whether that is renewed; what is known, or nothing where the set is not for the node.
        for (ready, more, cached, current, expected) in [
            (Some("True"), &none, Some(cache(&written(), &["s"])), true, Some("the set")),
            (Some("True"), &none, Some(cache(&written(), &["t"])), true, Some("not the set")),
            (Some("True"), &none, Some(cache(&written(), &["s"])), false, Some("NotRenewed")),
            (Some("True"), &none, Some(cache(&Value::Null, &[])), true, Some("NoReport")),
            (Some("True"), &none, None, false, Some("NoReport")),
            (Some("False"), &none, Some(cache(&written(), &["s"])), true, Some("NodeNotReady")),
            (Some("Unknown"), &none, Some(cache(&written(), &["s"])), true, Some("NodeNotReady")),
            (None, &none, Some(cache(&written(), &["s"])), true, Some("NodeNotReady")),
            (Some("True"), &own, Some(cache(&written(), &["s"])), true, Some("the set")),
            (Some("True"), &hard, Some(cache(&written(), &["s"])), true, None),
            (Some("True"), &leaving, Some(cache(&written(), &["s"])), true, None),
            (Some("True"), &other, Some(cache(&written(), &["s"])), true, None),
        ] {
            let nodes = BTreeMap::from([("n".to_owned(), node("n", ready, more))]);
            let caches: BTreeMap<_, _> = cached.map(|cached| ("n".to_owned(), cached)).into_iter().collect();
            let found = selected(&set, &nodes, &caches, "example.com/warming", |_| current);
            let found = found.first().map(|(_, report)| match report {
                Report::Current(Some(_)) => "the set".to_owned(),
                Report::Current(None) => "not the set".to_owned(),
                Report::Unknown(why) => format!("{why:?}"),
            });
            assert_eq!(found.as_deref(), expected, "{ready:?} {more} {caches:?}");
        }
    }
}
