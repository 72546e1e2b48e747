//! Which applications' images become sets: those of namespaces that opted in, as far as their names are valid and the
//! limit of the namespace allows. Pure.
//!
//! A tenant who may create a pod decides what stands in it. So nothing of one application can stop another's, a set
//! belongs to one namespace, and every set carries that namespace and its limit in bytes: agents fetch such images without
//! credentials and never pin them.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::json;

use super::{Config, extract::PrepullRequest};
use crate::{
    prepull::{
        crd::{ApplicationScope, ImageSetSpec},
        jitter::hex_name,
    },
    types::ImageName,
};

/// The label by which a namespace opts in, with the value `true`.
pub(super) const OPT_IN: &str = "hearth.dev/prepull";

/// Longest reason of a set.
const REASON: usize = 512;

/// Which namespaces have the images of their applications pre-pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// Those with the label `hearth.dev/prepull: "true"`.
    Labelled,
    /// All.
    All,
    /// These.
    Listed(BTreeSet<String>),
}

impl FromStr for Namespaces {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "labelled" => return Ok(Self::Labelled),
            "all" => return Ok(Self::All),
            _ => {}
        }
        let names: BTreeSet<_> =
            text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        match names.iter().find(|name| name.len() > 63 || !name.chars().all(fits)) {
            Some(wrong) => Err(format!("`{wrong}` is not a namespace")),
            None if names.is_empty() => {
                Err("write `labelled`, `all`, or namespaces separated by commas".to_owned())
            }
            None => Ok(Self::Listed(names)),
        }
    }
}

impl Namespaces {
    fn admits(&self, namespace: &str, labelled: &BTreeSet<String>) -> bool {
        match self {
            Self::Labelled => labelled.contains(namespace),
            Self::All => true,
            Self::Listed(names) => names.contains(namespace),
        }
    }
}

/// An application and what it needs now.
pub(super) struct OwnedRequests {
    pub(super) owner: ObjectReference,
    pub(super) requests: Vec<PrepullRequest>,
}

/// What is done for the applications of the cluster.
#[derive(Default)]
pub(super) struct Plan {
    /// The sets that are needed, by their names, and by which applications.
    pub(super) sets: BTreeMap<String, (ImageSetSpec, Vec<ObjectReference>)>,
    /// Applications with images that are not pre-pulled, and why.
    pub(super) refusals: Vec<(ObjectReference, String)>,
    /// Namespaces with applications that did not opt in.
    pub(super) left_out: BTreeSet<String>,
}

pub(super) fn plan(owned: &[OwnedRequests], config: &Config, labelled: &BTreeSet<String>) -> Plan {
    let mut plan = Plan::default();
    let mut used: BTreeMap<&str, usize> = BTreeMap::new();
    for OwnedRequests { owner, requests } in owned {
        let namespace = owner.namespace.as_deref().unwrap_or_default();
        if !config.namespaces.admits(namespace, labelled) {
            plan.left_out.insert(namespace.to_owned());
            continue;
        }
        for request in requests {
            let mut request = request.clone();
            request.images.retain(|image, rule| match image.parse::<ImageName>() {
                Ok(_) => true,
                Err(error) => {
                    plan.refusals
                        .push((owner.clone(), format!("`{image}` of {rule} is not pre-pulled: {error}")));
                    false
                }
            });
            if request.images.is_empty() {
                continue;
            }
            let name = name_of(namespace, &request);
            if let Some((_, owners)) = plan.sets.get_mut(&name) {
                if !owners.iter().any(|known| known.uid == owner.uid) {
                    owners.push(owner.clone());
                }
                continue;
            }
            let used = used.entry(namespace).or_default();
            if *used + request.images.len() > config.images {
                let images: Vec<_> = request.images.keys().map(String::as_str).collect();
                let problem = format!(
                    "{} not pre-pulled: applications of namespace `{namespace}` name more than {} images \
                     (`kubernetes.sparkImages`)",
                    images.join(", "),
                    config.images
                );
                plan.refusals.push((owner.clone(), problem));
                continue;
            }
            *used += request.images.len();
            plan.sets.insert(name, (spec_of(&request, owner, namespace, config), vec![owner.clone()]));
        }
    }
    plan
}

/// The name depends on what is requested and for which namespace, not on the application.
fn name_of(namespace: &str, request: &PrepullRequest) -> String {
    let images: Vec<_> = request.images.keys().collect();
    let what = json!([namespace, images, request.node_selector, request.terms, request.tolerations]);
    format!("spark-{}", hex_name(&what.to_string()))
}

fn spec_of(
    request: &PrepullRequest,
    owner: &ObjectReference,
    namespace: &str,
    config: &Config,
) -> ImageSetSpec {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let rules: Vec<_> = request.images.iter().map(|(image, rule)| format!("{image} by {rule}")).collect();
    let reason = format!("{} {namespace}/{}: {}", text(&owner.kind), text(&owner.name), rules.join(", "));
    let parsed = |text: &String| serde_json::from_str(text).ok();
    ImageSetSpec {
        images: request.images.keys().cloned().collect(),
        node_selector: request.node_selector.clone(),
        node_selector_terms: request.terms.iter().filter_map(parsed).collect(),
        tolerations: request.tolerations.iter().filter_map(|text| serde_json::from_str(text).ok()).collect(),
        pin: false,
        application: Some(ApplicationScope { namespace: namespace.to_owned(), max_bytes: config.bytes }),
        reason: Some(reason.chars().take(REASON).collect()),
        ..ImageSetSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{extract, reference},
        *,
    };

    fn config(namespaces: Namespaces, images: usize) -> Config {
        let second = Duration::from_secs(1);
        Config { lead: second, ttl: second, namespaces, images, bytes: 5 }
    }

    fn ask(namespace: &str, name: &str, image: &str, pool: &str) -> OwnedRequests {
        let object = json!({
            "apiVersion": "sparkoperator.k8s.io/v1beta2", "kind": "SparkApplication",
            "metadata": {"name": name, "namespace": namespace, "uid": name},
            "spec": {"image": image, "executor": {}, "driver": {}, "nodeSelector": {"pool": pool}},
        });
        OwnedRequests { owner: reference(&object), requests: extract::application(&object) }
    }

    #[test]
    fn jobs_with_the_same_images_on_the_same_nodes_share_one_set_within_a_namespace() {
        let owned = [
            ask("jobs", "a", "r.test/x:1", "p"),
            ask("jobs", "b", "r.test/x:1", "p"),
            ask("jobs", "c", "r.test/x:1", "q"),
            ask("other", "d", "r.test/x:1", "p"),
        ];
        let sets = plan(&owned, &config(Namespaces::All, 9), &BTreeSet::new()).sets;
        let mut owners: Vec<_> = sets.values().map(|(_, owners)| owners.len()).collect();
        owners.sort_unstable();
        assert_eq!(owners, [1, 1, 2]);
        for (name, (spec, owners)) in &sets {
            assert!(name.len() <= 63 && name.starts_with("spark-"), "{name}");
            assert_eq!((spec.images.as_slice(), spec.pin), (&["r.test/x:1".to_owned()][..], false));
            let scope = spec.application.as_ref().unwrap();
            assert_eq!((Some(&scope.namespace), scope.max_bytes), (owners[0].namespace.as_ref(), 5));
        }
        let reasons: Vec<_> = sets.values().filter_map(|(spec, _)| spec.reason.as_deref()).collect();
        assert!(reasons.contains(&"SparkApplication jobs/a: r.test/x:1 by spec.image"), "{reasons:?}");
    }

    #[test]
    fn an_invalid_name_or_a_limit_costs_only_the_application_that_it_concerns() {
        let owned = [
            ask("jobs", "a", "bad image name x", "p"),
            ask("jobs", "b", "r.test/b:1", "p"),
            ask("jobs", "c", "r.test/c:1", "p"),
            ask("jobs", "d", "r.test/b:1", "p"),
            ask("other", "e", "r.test/c:1", "p"),
        ];
        let plan = plan(&owned, &config(Namespaces::All, 1), &BTreeSet::new());
        let images: Vec<_> = plan.sets.values().flat_map(|(spec, _)| spec.images.clone()).collect();
        assert_eq!(images.len(), 2, "{images:?}");
        let refused: Vec<_> = plan.refusals.iter().map(|(owner, why)| (owner.name.as_deref(), why)).collect();
        assert_eq!(refused.len(), 2, "{refused:?}");
        assert!(refused[0].0 == Some("a") && refused[0].1.contains("`bad image name x` of spec.image"));
        assert!(refused[1].0 == Some("c") && refused[1].1.contains("more than 1 images"), "{refused:?}");
    }

    #[test]
    fn only_namespaces_that_opted_in_are_looked_after() {
        let owned = [ask("jobs", "a", "r.test/a:1", "p"), ask("other", "b", "r.test/b:1", "p")];
        let labelled = BTreeSet::from(["other".to_owned()]);
        for (namespaces, expected, left_out) in
            [("labelled", 1, &["jobs"][..]), ("all", 2, &[]), ("jobs, third", 1, &["other"])]
        {
            let plan = plan(&owned, &config(namespaces.parse().unwrap(), 9), &labelled);
            assert_eq!(plan.sets.len(), expected, "{namespaces}");
            assert!(plan.left_out.iter().eq(left_out.iter()), "{namespaces}: {:?}", plan.left_out);
        }
        assert!("Jobs".parse::<Namespaces>().is_err() && ",".parse::<Namespaces>().is_err());
    }
}
