//! Converts an `ImageSet` into a set for this node, and this node's reports into its part of the `NodeCache`.
//! Pure.

use std::collections::HashSet;

use super::secrets::Unreadable;
use crate::{
    prepull::{
        crd::{ImageSet, NodeCacheStatus, NodeImageStatus, NodeSetStatus, Reference},
        jitter::fraction,
        report::{ImageReport, SetReport, State},
        schedule::Schedule,
        set::{Application, Origin, Set, SetName},
    },
    types::{ImageName, Platform, parse_size},
};

/// Reason of an image that the registry does not give to the agent.
const DENIED: &str = "Denied";

/// The unit of the threshold of `maxParallelNodes`.
pub(crate) const WHOLE: u32 = 1_000_000;

/// A set that this node is to follow, or the reason why it cannot.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) generation: i64,
    /// Whether the set expires (`ttlSeconds`): a starting node does not wait for it.
    pub(crate) passing: bool,
    pub(crate) secrets: Vec<Reference>,
    pub(crate) accounts: Vec<Reference>,
    pub(crate) set: Result<Set, String>,
}

/// Reads a set. Errors that the schema cannot detect are reported in the node's status.
pub(crate) fn wanted(object: &ImageSet, node: &str) -> Wanted {
    let name = object.metadata.name.clone().unwrap_or_default();
    let foreign = object.spec.application.is_some();
    Wanted {
        generation: object.metadata.generation.unwrap_or_default(),
        passing: object.spec.ttl_seconds.is_some(),
        secrets: if foreign { Vec::new() } else { object.spec.pull_secrets.clone() },
        accounts: if foreign { Vec::new() } else { object.spec.service_accounts.clone() },
        set: read(object, &name, node),
        name,
    }
}

fn read(object: &ImageSet, name: &str, node: &str) -> Result<Set, String> {
    let spec = &object.spec;
    let mut seen = HashSet::new();
    let mut images = Vec::new();
    for image in &spec.images {
        let image = image.parse::<ImageName>().map_err(|error| error.to_string())?;
        if seen.insert(image.to_string()) {
            images.push(image);
        }
    }
    let platforms = spec.platforms.iter().map(|platform| platform.parse::<Platform>());
    let schedule = spec.schedule.as_deref().map(|cron| Schedule::new(cron, spec.time_zone.as_deref()));
    let bandwidth = spec.bandwidth.as_deref().map(parse_size);
    Ok(Set {
        platforms: platforms.collect::<Result<_, _>>().map_err(|error| error.to_string())?,
        schedule: schedule.transpose().map_err(|error| error.to_string())?,
        policy: spec.pull_policy,
        pin: spec.pin && spec.application.is_none(),
        bandwidth: bandwidth.transpose().map_err(|error| error.to_string())?.filter(|rate| *rate > 0),
        runtime: spec.runtime && spec.application.is_none(),
        admitted: admitted(object, name, node),
        retries: retries(object),
        application: spec
            .application
            .as_ref()
            .map(|scope| Application { namespace: scope.namespace.clone(), limit: scope.max_bytes }),
        ..Set::of(SetName { origin: Origin::Cluster, name: name.to_owned() }, images)
    })
}

/// Whether it is this node's turn. Before the controller has set the threshold, no node has its turn.
fn admitted(object: &ImageSet, name: &str, node: &str) -> bool {
    if object.spec.max_parallel_nodes.is_none() {
        return true;
    }
    let threshold = object.status.as_ref().and_then(|status| status.admitted).unwrap_or(0);
    share(name, node) < threshold
}

/// Whether failed nodes may retry: they have no turn, and use free places.
fn retries(object: &ImageSet) -> bool {
    let Some((most, status)) = object.spec.max_parallel_nodes.zip(object.status.as_ref()) else {
        return true;
    };
    status.nodes_desired.saturating_sub(status.nodes_ready).saturating_sub(status.nodes_failed) < most
}

/// A node's place in a set's order, below [`WHOLE`].
pub(crate) fn share(set: &str, node: &str) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to below a million")]
    let share = (fraction(&format!("{set} {node}")) * f64::from(WHOLE)) as u32;
    share
}

/// The sets' part of the node's status. An image that the registry denies names the pull secrets that could not be read.
pub(super) fn status(wanted: &[Wanted], reports: &[SetReport], unreadable: &[Unreadable]) -> NodeCacheStatus {
    let of = |wanted: &Wanted| {
        let report = reports
            .iter()
            .find(|report| report.name.origin == Origin::Cluster && report.name.name == wanted.name);
        NodeSetStatus {
            name: wanted.name.clone(),
            observed_generation: wanted.generation,
            problem: wanted.set.as_ref().err().cloned(),
            images: report
                .map(|report| {
                    report.images.iter().map(|one| explained(image(one), wanted, unreadable)).collect()
                })
                .unwrap_or_default(),
        }
    };
    let sets: Vec<NodeSetStatus> = wanted.iter().map(of).collect();
    let count = |state: State| {
        let images = sets.iter().flat_map(|set| &set.images);
        u32::try_from(images.filter(|image| image.state == state.as_str()).count()).unwrap_or(u32::MAX)
    };
    let desired = sets.iter().map(|set| set.images.len()).sum::<usize>();
    NodeCacheStatus {
        images_desired: u32::try_from(desired).unwrap_or(u32::MAX),
        images_ready: count(State::Ready),
        images_failed: count(State::Failed),
        sets,
        ..NodeCacheStatus::default()
    }
}

fn explained(mut image: NodeImageStatus, wanted: &Wanted, unreadable: &[Unreadable]) -> NodeImageStatus {
    if image.reason.as_deref() != Some(DENIED) {
        return image;
    }
    let named = || wanted.secrets.iter().chain(&wanted.accounts);
    for one in unreadable.iter().filter(|one| named().any(|reference| reference.namespace == one.namespace)) {
        let message = image.message.get_or_insert_default();
        if !message.is_empty() {
            message.push_str("; ");
        }
        message.push_str(&one.object);
        message.push_str(" cannot be read: ");
        message.push_str(&one.problem);
    }
    image
}

fn image(report: &ImageReport) -> NodeImageStatus {
    NodeImageStatus {
        image: report.image.clone(),
        state: report.state.as_str().to_owned(),
        here: report.here,
        // In steps, so that a slow download does not cause a stream of writes.
        progress: u32::from(if report.progress == 100 { 100 } else { report.progress / 10 * 10 }),
        digest: report.digest.clone(),
        reason: report.reason.map(str::to_owned),
        message: report.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(spec: &serde_json::Value, status: &serde_json::Value) -> ImageSet {
        serde_json::from_value(json!({
            "apiVersion": "hearth.dev/v1alpha1", "kind": "ImageSet",
            "metadata": {"name": "s", "generation": 3}, "spec": spec, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_set_is_read_and_errors_are_reported() {
        let spec = json!({"images": ["r.test/a:1", "r.test/a:1"], "bandwidth": "5MiB", "schedule": "0 3 * * *", "timeZone": "Europe/Berlin"});
        let read = wanted(&object(&spec, &json!(null)), "n");
        let set = read.set.unwrap();
        assert_eq!(
            (set.images.len(), set.bandwidth, read.generation, read.passing),
            (1, Some(5 << 20), 3, false)
        );
        for (spec, problem) in [
            (json!({"images": ["r.test/A:1"]}), "A"),
            (json!({"images": ["a"], "schedule": "61 * * * *"}), "is not between 0 and 59"),
            (json!({"images": ["a"], "schedule": "@daily", "timeZone": "X"}), "not a time zone"),
            (json!({"images": ["a"], "platforms": ["linux"]}), "is not a platform"),
            (json!({"images": ["a"], "bandwidth": "fast"}), "fast"),
        ] {
            let message = wanted(&object(&spec, &json!(null)), "n").set.unwrap_err();
            assert!(message.contains(problem), "{message}");
        }
    }

    #[test]
    fn with_a_limit_the_nodes_below_the_threshold_have_their_turn() {
        let turn = |status| {
            wanted(&object(&json!({"images": ["a"], "maxParallelNodes": 2}), &status), "n")
                .set
                .unwrap()
                .admitted
        };
        let mine = share("s", "n");
        assert!(
            !turn(json!(null)) && !turn(json!({"admitted": mine})) && turn(json!({"admitted": mine + 1}))
        );
        assert!(wanted(&object(&json!({"images": ["a"]}), &json!(null)), "n").set.unwrap().admitted);
        let retries = |ready: u32, failed: u32| {
            let status = json!({"nodesDesired": 9, "nodesReady": ready, "nodesFailed": failed});
            wanted(&object(&json!({"images": ["a"], "maxParallelNodes": 2}), &status), "n")
                .set
                .unwrap()
                .retries
        };
        assert!(!retries(4, 3) && retries(5, 3) && retries(0, 9), "while fewer than two are pulling");
    }

    #[test]
    fn a_denied_image_names_the_secret_of_its_set_that_cannot_be_read() {
        let spec = json!({"images": ["r.test/a:1", "r.test/b:1"], "pullSecrets": [{"namespace": "team", "name": "pull"}]});
        let wanted = [wanted(&object(&spec, &json!(null)), "n")];
        let report = |image: &str, reason| ImageReport {
            image: image.to_owned(),
            state: State::Failed,
            digest: None,
            progress: 0,
            bytes: 0,
            here: false,
            unchecked: false,
            reason: Some(reason),
            message: Some("no".to_owned()),
            since: jiff::Timestamp::UNIX_EPOCH,
            retry_at: None,
        };
        let name = SetName { origin: Origin::Cluster, name: "s".to_owned() };
        let images = vec![report("r.test/a:1", "Denied"), report("r.test/b:1", "NotFound")];
        let unreadable = |namespace: &str| Unreadable {
            namespace: namespace.to_owned(),
            object: format!("Secret `{namespace}/pull`"),
            problem: "forbidden".to_owned(),
        };
        let status =
            status(&wanted, &[SetReport { name, images }], &[unreadable("team"), unreadable("other")]);
        let messages: Vec<_> =
            status.sets[0].images.iter().map(|image| image.message.clone().unwrap()).collect();
        assert_eq!(messages, ["no; Secret `team/pull` cannot be read: forbidden", "no"]);
    }
}
