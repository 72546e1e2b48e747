//! Aggregates the reports of many nodes into the status of a set. Pure.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::translate::{WHOLE, share};
use crate::prepull::{
    crd::{
        DigestCount, ImageSet, ImageSetStatus, ImageStatus, NodeCacheStatus, NodeFailure, NodeImageStatus,
        NodeSetStatus,
    },
    set::PullPolicy,
};

/// Failures that are listed with a node's name; further nodes with the same failure are counted.
const MAX_FAILURES: usize = 10;

/// Most digests of a tag that are listed.
const MAX_DIGESTS: usize = 3;

/// Longest message in a status.
const MAX_MESSAGE: usize = 512;

const READY: &str = "Ready";
const FAILED: &str = "Failed";

/// The state of a set on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NodeState {
    Ready,
    Failed,
    InProgress,
}

/// The status of a set. `now` is used where a condition changes.
pub(crate) fn aggregate<'a>(
    object: &ImageSet,
    nodes: impl Iterator<Item = (&'a str, &'a NodeCacheStatus)>,
    now: &Time,
) -> ImageSetStatus {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    let mut concerned: Vec<(&str, &NodeSetStatus)> = nodes
        .filter_map(|(node, status)| Some((node, status.sets.iter().find(|set| set.name == name)?)))
        .collect();
    concerned.sort_by_key(|(node, _)| *node);
    let newest = newest(object, name, &concerned);
    let states: Vec<_> = concerned.iter().map(|(_, set)| node_state(set, generation, &newest)).collect();
    let count = |wanted: NodeState| number(states.iter().filter(|node_state| **node_state == wanted).count());
    let images = object.spec.images.iter().map(|image| image_status(image, &concerned)).collect::<Vec<_>>();
    let mut status = ImageSetStatus {
        observed_generation: generation,
        nodes_desired: number(concerned.len()),
        nodes_ready: count(NodeState::Ready),
        nodes_failed: count(NodeState::Failed),
        progress: mean(images.iter().map(|image| image.progress)),
        admitted: object.spec.max_parallel_nodes.map(|most| admitted(name, &concerned, &states, most)),
        failures: failures(&concerned),
        images,
        conditions: Vec::new(),
    };
    let before = object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    status.conditions = conditions(&status, before, now);
    status
}

fn node_state(set: &NodeSetStatus, generation: i64, newest: &Newest<'_>) -> NodeState {
    if set.problem.is_some() || set.images.iter().any(|image| image.state == FAILED) {
        return NodeState::Failed;
    }
    let current = set.observed_generation >= generation && !set.images.is_empty();
    let newest = |image: &NodeImageStatus| {
        newest.get(image.image.as_str()).is_none_or(|newest| image.digest.as_deref() == Some(newest))
    };
    if current && set.images.iter().all(|image| image.state == READY && newest(image)) {
        NodeState::Ready
    } else {
        NodeState::InProgress
    }
}

/// The digests of tags on the first node in order that has them. Where nodes take turns, the first ones check
/// for changes, and nodes with other digests are not done. Empty where nodes do not take turns.
type Newest<'a> = HashMap<&'a str, &'a str>;

fn newest<'a>(object: &ImageSet, name: &str, nodes: &[(&'a str, &'a NodeSetStatus)]) -> Newest<'a> {
    let mut newest = HashMap::new();
    if object.spec.max_parallel_nodes.is_none() || object.spec.pull_policy == PullPolicy::Once {
        return newest;
    }
    let mut nodes = nodes.to_vec();
    nodes.sort_by_key(|(node, _)| share(name, node));
    for image in nodes.iter().flat_map(|(_, set)| &set.images).filter(|image| image.state == READY) {
        if let Some(digest) = &image.digest {
            newest.entry(image.image.as_str()).or_insert(digest.as_str());
        }
    }
    newest
}

fn image_status(image: &str, nodes: &[(&str, &NodeSetStatus)]) -> ImageStatus {
    let known: Vec<&NodeImageStatus> = nodes.iter().filter_map(|(_, set)| find(set, image)).collect();
    let count = |state: &str| number(known.iter().filter(|one| one.state == state).count());
    let mut digests: BTreeMap<&str, u32> = BTreeMap::new();
    for digest in known.iter().filter_map(|one| one.digest.as_deref()) {
        *digests.entry(digest).or_default() += 1;
    }
    let mut digests: Vec<_> =
        digests.into_iter().map(|(digest, nodes)| DigestCount { digest: digest.to_owned(), nodes }).collect();
    digests.sort_by(|a, b| b.nodes.cmp(&a.nodes).then_with(|| a.digest.cmp(&b.digest)));
    digests.truncate(MAX_DIGESTS);
    let progress = nodes.iter().map(|(_, set)| find(set, image).map_or(0, |one| one.progress));
    ImageStatus {
        image: image.to_owned(),
        nodes_ready: count(READY),
        nodes_failed: count(FAILED),
        progress: mean(progress),
        digests,
    }
}

/// Compares names as written and as normalized: agents add a missing registry or tag.
fn find<'a>(set: &'a NodeSetStatus, image: &str) -> Option<&'a NodeImageStatus> {
    let exact = set.images.iter().find(|one| one.image == image);
    exact.or_else(|| {
        let meant = image.parse::<crate::types::ImageName>().ok()?.to_string();
        set.images.iter().find(|one| one.image == meant)
    })
}

/// The threshold below which nodes may pull: includes as many unfinished nodes as are allowed at once, and no
/// later ones, which would find the same changes and pull as well. When all are done, the first ones check for
/// changes. Failed nodes do not block others.
fn admitted(name: &str, nodes: &[(&str, &NodeSetStatus)], states: &[NodeState], most: u32) -> u32 {
    let shares = |open: bool| {
        let nodes = nodes.iter().zip(states);
        let chosen = nodes.filter(|(_, node_state)| !open || **node_state == NodeState::InProgress);
        let mut shares: Vec<u32> = chosen.map(|((node, _), _)| share(name, node)).collect();
        shares.sort_unstable();
        shares
    };
    let open = shares(true);
    let end = open.last().map_or(WHOLE, |last| last + 1);
    let order = if open.is_empty() { shares(false) } else { open };
    order.get(usize::try_from(most).unwrap_or(usize::MAX)).copied().unwrap_or(end)
}

fn failures(nodes: &[(&str, &NodeSetStatus)]) -> Vec<NodeFailure> {
    let mut found: Vec<NodeFailure> = Vec::new();
    let mut at: HashMap<(String, String), usize> = HashMap::new();
    let mut note = |node: &str, image: &str, reason: &str, message: &str| {
        let place = *at.entry((image.to_owned(), reason.to_owned())).or_insert(found.len());
        if place == found.len() {
            found.push(NodeFailure {
                node: node.to_owned(),
                image: image.to_owned(),
                reason: reason.to_owned(),
                message: message.chars().take(MAX_MESSAGE).collect(),
                nodes: 0,
            });
        }
        found[place].nodes += 1;
    };
    for (node, set) in nodes {
        if let Some(problem) = &set.problem {
            note(node, "", "InvalidSet", problem);
        }
        for image in set.images.iter().filter(|image| image.state == FAILED) {
            note(
                node,
                &image.image,
                image.reason.as_deref().unwrap_or("Unknown"),
                image.message.as_deref().unwrap_or_default(),
            );
        }
    }
    found.sort_by(|a, b| b.nodes.cmp(&a.nodes).then_with(|| (&a.image, &a.node).cmp(&(&b.image, &b.node))));
    found.truncate(MAX_FAILURES);
    found
}

fn conditions(status: &ImageSetStatus, before: &[Condition], now: &Time) -> Vec<Condition> {
    let ImageSetStatus { nodes_desired: desired, nodes_ready: ready, nodes_failed: failed, .. } = status;
    let counts = format!("{ready} of {desired} nodes have every image");
    let done = ready == desired;
    let on_its_way = desired - ready - failed;
    let worst = status
        .failures
        .first()
        .map(|first| format!("`{}` on `{}`: {}", first.image, first.node, first.message));
    [
        (
            "Ready",
            done,
            if *desired == 0 {
                "NoNodes"
            } else if done {
                "Complete"
            } else {
                "Incomplete"
            },
            counts.clone(),
        ),
        (
            "Progressing",
            on_its_way > 0,
            if on_its_way > 0 { "Pulling" } else { "Idle" },
            format!("{on_its_way} nodes are pulling images"),
        ),
        (
            "Degraded",
            *failed > 0,
            if *failed > 0 { "ImagesFailed" } else { "AsExpected" },
            worst.unwrap_or_else(|| "no node reports a failure".to_owned()),
        ),
    ]
    .into_iter()
    .map(|(type_, holds, reason, message)| {
        let holds = if holds { "True" } else { "False" };
        let same = before.iter().find(|old| old.type_ == type_ && old.status == holds);
        Condition {
            type_: type_.to_owned(),
            status: holds.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: Some(status.observed_generation),
            last_transition_time: same.map_or_else(|| now.clone(), |old| old.last_transition_time.clone()),
        }
    })
    .collect()
}

fn mean(parts: impl Iterator<Item = u32>) -> u32 {
    let (mut sum, mut count) = (0_u64, 0_u64);
    for part in parts {
        sum += u64::from(part);
        count += 1;
    }
    u32::try_from(sum / count.max(1)).unwrap_or(u32::MAX)
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(spec: &Value) -> ImageSet {
        serde_json::from_value(json!({
            "apiVersion": "hearth.dev/v1alpha1", "kind": "ImageSet", "metadata": {"name": "s", "generation": 2}, "spec": spec,
        }))
        .unwrap()
    }

    fn node(state: &str, progress: u32, generation: i64) -> NodeCacheStatus {
        serde_json::from_value(json!({"sets": [
            {"name": "other", "images": []},
            {"name": "s", "observedGeneration": generation, "images": [{
                "image": "r.test/a:1", "state": state, "progress": progress,
                "digest": "sha256:1", "reason": "NotFound", "message": "it is not there",
            }]},
        ]}))
        .unwrap()
    }

    fn aggregate_of(object: &ImageSet, nodes: &[NodeCacheStatus]) -> ImageSetStatus {
        let names: Vec<_> = (0..nodes.len()).map(|n| format!("n{n}")).collect();
        let pairs = names.iter().map(String::as_str).zip(nodes);
        let now: Time = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        aggregate(object, pairs, &now)
    }

    fn condition(status: &ImageSetStatus, name: &str) -> (String, String) {
        let found = status.conditions.iter().find(|one| one.type_ == name).unwrap();
        (found.status.clone(), found.reason.clone())
    }

    #[test]
    fn nodes_are_counted_by_state_and_failures_have_a_reason() {
        let object = object(&json!({"images": ["r.test/a:1"]}));
        let nodes = [
            node("Ready", 100, 2),
            node("Ready", 100, 1),
            node("Pulling", 40, 2),
            node("Failed", 0, 2),
            node("Failed", 0, 2),
            NodeCacheStatus::default(),
        ];
        let status = aggregate_of(&object, &nodes);
        assert_eq!((status.nodes_desired, status.nodes_ready, status.nodes_failed), (5, 1, 2));
        assert_eq!((status.progress, status.observed_generation, status.admitted), (48, 2, None));
        assert_eq!(status.failures.len(), 1);
        let failure = &status.failures[0];
        assert_eq!((failure.node.as_str(), failure.reason.as_str(), failure.nodes), ("n3", "NotFound", 2));
        assert_eq!(status.images[0].digests, [DigestCount { digest: "sha256:1".into(), nodes: 5 }]);
        let text = |pair: (&str, &str)| (pair.0.to_owned(), pair.1.to_owned());
        assert_eq!(condition(&status, "Ready"), text(("False", "Incomplete")));
        assert_eq!(condition(&status, "Progressing"), text(("True", "Pulling")));
        assert_eq!(condition(&status, "Degraded"), text(("True", "ImagesFailed")));
        let done = aggregate_of(&object, &[node("Ready", 100, 2)]);
        assert_eq!(condition(&done, "Ready"), text(("True", "Complete")));
        assert_eq!(condition(&aggregate_of(&object, &[]), "Ready"), text(("True", "NoNodes")));
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let mut object = object(&json!({"images": ["r.test/a:1"]}));
        let first = aggregate_of(&object, &[node("Pulling", 0, 2)]);
        object.status = Some(first.clone());
        let later: Time = serde_json::from_value(json!("2027-01-01T00:00:00Z")).unwrap();
        let ready = node("Ready", 100, 2);
        let second = aggregate(&object, [("n0", &ready)].into_iter(), &later);
        let time = |status: &ImageSetStatus, name: &str| {
            status.conditions.iter().find(|one| one.type_ == name).unwrap().last_transition_time.clone()
        };
        assert_eq!(time(&second, "Ready"), later);
        assert_eq!(time(&second, "Degraded"), time(&first, "Degraded"));
    }

    #[test]
    fn as_many_nodes_pull_as_are_allowed_and_failed_ones_do_not_block() {
        let object = object(&json!({"images": ["r.test/a:1"], "maxParallelNodes": 2}));
        let turns = |nodes: &[NodeCacheStatus]| {
            let threshold = aggregate_of(&object, nodes).admitted.unwrap();
            let open = |n: &usize| nodes[*n].sets[1].images[0].state == "Waiting";
            (0..nodes.len()).filter(open).filter(|n| share("s", &format!("n{n}")) < threshold).count()
        };
        let waiting = || node("Waiting", 0, 2);
        assert_eq!(turns(&[waiting(), waiting(), waiting(), waiting(), waiting()]), 2);
        assert_eq!(turns(&[waiting(), node("Ready", 100, 2), waiting(), waiting()]), 2);
        assert_eq!(turns(&[waiting(), node("Failed", 0, 2), node("Failed", 0, 2), waiting()]), 2);
        assert_eq!(aggregate_of(&object, &[waiting()]).admitted, Some(share("s", "n0") + 1));
        assert_eq!(aggregate_of(&object, &[]).admitted, Some(WHOLE));
        // The first node has found a change: those after it, which are done, do not check.
        let mut nodes: Vec<_> = (0..5).map(|_| node("Ready", 100, 2)).collect();
        let first = (0..5).min_by_key(|n| share("s", &format!("n{n}"))).unwrap();
        nodes[first] = node("Pulling", 50, 2);
        let threshold = aggregate_of(&object, &nodes).admitted.unwrap();
        assert_eq!((0..5).filter(|n| share("s", &format!("n{n}")) < threshold).collect::<Vec<_>>(), [first]);
        // All done: two nodes check for changes.
        let ready = || node("Ready", 100, 2);
        let done = aggregate_of(&object, &[ready(), ready(), ready(), ready()]);
        let looking = (0..4).filter(|n| share("s", &format!("n{n}")) < done.admitted.unwrap()).count();
        assert_eq!((done.nodes_ready, looking), (4, 2));
    }

    #[test]
    fn a_node_with_an_older_image_is_not_done_where_nodes_take_turns() {
        let object = object(&json!({"images": ["r.test/a:1"], "maxParallelNodes": 1}));
        let mut nodes = vec![node("Ready", 100, 2), node("Ready", 100, 2), node("Ready", 100, 2)];
        let first = (0..3).min_by_key(|n| share("s", &format!("n{n}"))).unwrap();
        nodes[first].sets[1].images[0].digest = Some("sha256:2".into());
        let status = aggregate_of(&object, &nodes);
        assert_eq!((status.nodes_ready, status.nodes_failed), (1, 0));
        let turns = (0..3).filter(|n| *n != first && share("s", &format!("n{n}")) < status.admitted.unwrap());
        assert_eq!(turns.count(), 1, "the turn of the next node");
    }
}
