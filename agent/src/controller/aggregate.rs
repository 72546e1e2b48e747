//! Aggregates the reports of many nodes into the status of a set. Pure.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::nodes::{Report, Silence};
use crate::prepull::{
    PullPolicy,
    cluster::{WHOLE, share},
    crd::{DigestCount, ImageSet, ImageSetStatus, ImageStatus, NodeFailure, NodeImageStatus, NodeSetStatus},
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
    /// Nothing is known, so the node is neither counted as ready nor waited for by other nodes.
    Unknown,
}

/// The status of a set. `nodes` are all nodes that it selects; `now` is used where a condition changes.
pub(super) fn aggregate(object: &ImageSet, nodes: &[(&str, Report<'_>)], now: &Time) -> ImageSetStatus {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    let known: Vec<(&str, &NodeSetStatus)> = nodes
        .iter()
        .filter_map(|(node, report)| match report {
            Report::Current(set) => Some((*node, (*set)?)),
            Report::Unknown(_) => None,
        })
        .collect();
    let newest = newest(object, name, &known);
    let states: Vec<_> = nodes.iter().map(|(_, report)| node_state(*report, generation, &newest)).collect();
    let count = |wanted: NodeState| number(states.iter().filter(|node_state| **node_state == wanted).count());
    let images = object.spec.images.iter().map(|image| image_status(image, &known, nodes.len()));
    let images: Vec<_> = images.collect();
    let mut status = ImageSetStatus {
        observed_generation: generation,
        nodes_desired: number(nodes.len()),
        nodes_ready: count(NodeState::Ready),
        nodes_failed: count(NodeState::Failed),
        nodes_unknown: count(NodeState::Unknown),
        progress: mean(images.iter().map(|image| image.progress), images.len()),
        admitted: object.spec.max_parallel_nodes.map(|most| admitted(name, nodes, &states, most)),
        failures: failures(&known),
        images,
        conditions: Vec::new(),
    };
    let silent = nodes.iter().find_map(|(node, report)| match report {
        Report::Unknown(why) => Some((*node, *why)),
        Report::Current(_) => None,
    });
    let before = object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    status.conditions = conditions(&status, silent, before, now);
    status
}

fn node_state(report: Report<'_>, generation: i64, newest: &Newest<'_>) -> NodeState {
    let set = match report {
        Report::Unknown(_) => return NodeState::Unknown,
        Report::Current(None) => return NodeState::InProgress,
        Report::Current(Some(set)) => set,
    };
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

fn image_status(image: &str, nodes: &[(&str, &NodeSetStatus)], desired: usize) -> ImageStatus {
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
        progress: mean(progress, desired),
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
/// changes. Failed nodes, and nodes of which nothing is known, do not block others.
fn admitted(name: &str, nodes: &[(&str, Report<'_>)], states: &[NodeState], most: u32) -> u32 {
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

fn conditions(
    status: &ImageSetStatus,
    silent: Option<(&str, Silence)>,
    before: &[Condition],
    now: &Time,
) -> Vec<Condition> {
    let ImageSetStatus { nodes_desired: desired, nodes_ready: ready, nodes_failed: failed, .. } = status;
    let unknown = status.nodes_unknown;
    let on_its_way = desired - ready - failed - unknown;
    let mut counts = format!("{ready} of {desired} nodes have every image");
    if let Some((node, why)) = silent {
        counts = format!("{counts}; nothing is known of {unknown}: `{node}`: {why}");
    }
    let (is_ready, reason) = match () {
        () if *desired == 0 => ("Unknown", "NoNodes"),
        () if ready == desired => ("True", "Complete"),
        () if ready + unknown == *desired => ("Unknown", "NodesUnknown"),
        () => ("False", "Incomplete"),
    };
    let counts = if *desired == 0 { "the set selects no node".to_owned() } else { counts };
    let worst = status
        .failures
        .first()
        .map(|first| format!("`{}` on `{}`: {}", first.image, first.node, first.message));
    let holds = |holds: bool| if holds { "True" } else { "False" };
    [
        ("Ready", is_ready, reason, counts),
        (
            "Progressing",
            holds(on_its_way > 0),
            if on_its_way > 0 { "Pulling" } else { "Idle" },
            format!("{on_its_way} nodes are pulling images"),
        ),
        (
            "Degraded",
            holds(*failed > 0),
            if *failed > 0 { "ImagesFailed" } else { "AsExpected" },
            worst.unwrap_or_else(|| "no node reports a failure".to_owned()),
        ),
    ]
    .into_iter()
    .map(|(type_, holds, reason, message)| {
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

/// The mean over `count` parts, of which missing ones are 0.
fn mean(parts: impl Iterator<Item = u32>, count: usize) -> u32 {
    let sum: u64 = parts.map(u64::from).sum();
    u32::try_from(sum / u64::try_from(count).unwrap_or(u64::MAX).max(1)).unwrap_or(u32::MAX)
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::prepull::crd::NodeCacheStatus;

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

    fn report(node: &NodeCacheStatus) -> Report<'_> {
        Report::Current(node.sets.iter().find(|set| set.name == "s"))
    }

    fn aggregate_of(object: &ImageSet, nodes: &[NodeCacheStatus]) -> ImageSetStatus {
        let names: Vec<_> = (0..nodes.len()).map(|n| format!("n{n}")).collect();
        let pairs: Vec<_> = names.iter().map(String::as_str).zip(nodes.iter().map(report)).collect();
        let now: Time = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        aggregate(object, &pairs, &now)
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
        assert_eq!((status.nodes_desired, status.nodes_ready, status.nodes_failed), (6, 1, 2));
        assert_eq!((status.progress, status.observed_generation, status.admitted), (40, 2, None));
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
    }

    #[test]
    fn a_set_is_ready_when_every_selected_node_has_reported_this_generation() {
        let object = object(&json!({"images": ["r.test/a:1"]}));
        let now: Time = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let (ready, older, pulling, failed) =
            (node("Ready", 100, 2), node("Ready", 100, 1), node("Pulling", 40, 2), node("Failed", 0, 2));
        let (ready, older, pulling, failed) =
            (report(&ready), report(&older), report(&pulling), report(&failed));
        let silent = |why| Report::Unknown(why);
        let dead = silent(Silence::NodeNotReady);
        for (reports, expected, counts) in [
            (&[][..], ("Unknown", "NoNodes"), (0, 0, 0)),
            (&[silent(Silence::NoReport)], ("Unknown", "NodesUnknown"), (1, 0, 1)),
            (&[ready, silent(Silence::NotRenewed)], ("Unknown", "NodesUnknown"), (2, 1, 1)),
            (&[dead, ready], ("Unknown", "NodesUnknown"), (2, 1, 1)),
            (&[ready, Report::Current(None)], ("False", "Incomplete"), (2, 1, 0)),
            (&[ready, older], ("False", "Incomplete"), (2, 1, 0)),
            (&[ready, pulling, dead], ("False", "Incomplete"), (3, 1, 1)),
            (&[ready, failed, dead], ("False", "Incomplete"), (3, 1, 1)),
            (&[ready, ready], ("True", "Complete"), (2, 2, 0)),
        ] {
            let nodes: Vec<_> = ["a", "b", "c"].into_iter().zip(reports.iter().copied()).collect();
            let status = aggregate(&object, &nodes, &now);
            let (expected, reason) = expected;
            assert_eq!(condition(&status, "Ready"), (expected.to_owned(), reason.to_owned()), "{reports:?}");
            assert_eq!(
                (status.nodes_desired, status.nodes_ready, status.nodes_unknown),
                counts,
                "{reports:?}"
            );
        }
        let status = aggregate(&object, &[("a", ready), ("b", dead)], &now);
        assert_eq!(
            status.conditions[0].message,
            "1 of 2 nodes have every image; nothing is known of 1: `b`: the node is not ready"
        );
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let mut object = object(&json!({"images": ["r.test/a:1"]}));
        let first = aggregate_of(&object, &[node("Pulling", 0, 2)]);
        object.status = Some(first.clone());
        let later: Time = serde_json::from_value(json!("2027-01-01T00:00:00Z")).unwrap();
        let ready = node("Ready", 100, 2);
        let second = aggregate(&object, &[("n0", report(&ready))], &later);
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
