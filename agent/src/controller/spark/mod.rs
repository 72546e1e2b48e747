//! Images of Spark applications are warmed while their drivers start, and before their schedules fire.
//!
//! ```text
//! SparkApplication, ScheduledSparkApplication, SparkConnect --+
//!                                                             +--> requests (extract, pure) --> ImageSets with a time to live
//! driver pods (spark-role=driver), their properties ----------+          |
//!                                          Events on the application <---+--- status of the sets
//! ```
//!
//! A set is named after what it contains and its namespace, so that a thousand jobs with one image are one set and one
//! write: it lives for its time to live, and is prolonged while an application still needs it. Nothing has an owner reference, because a set of
//! the cluster cannot be owned by an object of a namespace. Kinds whose definitions are not installed are looked for
//! again now and then.

mod admit;
mod extract;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ObjectReference, Pod};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    runtime::{
        events::{Event, EventType, Recorder, Reporter},
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use serde_json::Value;
use tokio::{sync::watch, time::Instant};

use crate::{
    kubernetes::{Known, follow, has_code, within},
    prepull::crd::{ImageSet, ImageSetSpec},
};
pub use admit::Namespaces;
use admit::{OwnedRequests, Plan};
use extract::PrepullRequest;

/// Who writes these sets.
const MANAGER: &str = "hearth-spark";

/// On every set that is made here.
const LABEL: &str = "hearth.dev/made-for";

const GROUP: &str = "sparkoperator.k8s.io";

/// How often is looked, at least: schedules come near without any change.
const TICK: Duration = Duration::from_secs(1);

/// For how long a set that was written is not written again: the watch may lag behind.
const LAG: Duration = Duration::from_secs(10);

/// Failed writes after which a round ends: then the API server has trouble, and not one set.
const MOST_ERRORS: u32 = 3;

/// For how long a set that the API server refused is not sent again.
const REFUSED: Duration = Duration::from_mins(5);

/// How often an application is told how far its images are.
const NEWS: Duration = Duration::from_secs(15);

/// Looks for a driver's properties before it is taken to have none: they are made right after its pod.
const LOOKS: u32 = 5;

/// How Spark applications are looked after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long before a scheduled run its images are warmed.
    pub lead: Duration,
    /// For how long images stay wanted after the last application that needed them.
    pub ttl: Duration,
    /// Whose applications.
    pub namespaces: Namespaces,
    /// Most images, over all sets, that the applications of one namespace may have pre-pulled.
    pub images: usize,
    /// Most bytes of such images on one node, for each namespace.
    pub bytes: u64,
}

type Objects = watch::Sender<Known<Value>>;

/// Until the caller drops it.
pub(crate) async fn run(client: &Client, config: &Config, sets: &Store<ImageSet>) {
    let kinds: [Objects; 4] = std::array::from_fn(|_| watch::Sender::default());
    let [applications, scheduled, connects, drivers] = &kinds;
    let of = |version: &str, kind: &str, plural: &str, known: &Objects| {
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, version, kind), plural);
        let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
        follow(api, watcher::Config::default(), document, known.clone())
    };
    let pods = follow(
        Api::<Pod>::all(client.clone()),
        watcher::Config::default().labels("spark-role=driver"),
        document,
        drivers.clone(),
    );
    let opted_in: watch::Sender<Known<()>> = watch::Sender::default();
    let namespaces = async {
        // Without the label's word nothing of namespaces is of interest, and no right to read them is needed.
        if config.namespaces == Namespaces::Labelled {
            let labelled = watcher::Config::default().labels(&format!("{}=true", admit::OPT_IN));
            follow(Api::<Namespace>::all(client.clone()), labelled, |_| (), opted_in.clone()).await;
        }
    };
    let kinds = [applications, scheduled, connects, drivers];
    let tend = Tender::new(client, config.clone(), sets).run(kinds, &opted_in);
    tokio::join!(
        namespaces,
        of("v1beta2", "SparkApplication", "sparkapplications", applications),
        of("v1beta2", "ScheduledSparkApplication", "scheduledsparkapplications", scheduled),
        of("v1alpha1", "SparkConnect", "sparkconnects", connects),
        pods,
        tend,
    );
}

/// As it is on the wire, without what nobody reads here.
fn document<K: serde::Serialize>(object: K) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    value
}

struct Tender<'a> {
    client: &'a Client,
    config: Config,
    sets: &'a Store<ImageSet>,
    recorder: Recorder,
    written: HashMap<String, Instant>,
    properties: HashMap<String, (u32, Option<Value>)>,
    told: HashMap<(String, String), Told>,
    /// Sets that the API server did not accept: since when, and why.
    invalid: HashMap<String, (Instant, String)>,
    /// Refusals that applications were told of, by their uid.
    refused: HashSet<(String, String)>,
    /// Namespaces that did not opt in, as far as logged.
    left_out: BTreeSet<String>,
}

/// What an application was told of one set.
struct Told {
    since: Instant,
    at: Instant,
    ready: u32,
    over: bool,
}

impl<'a> Tender<'a> {
    fn new(client: &'a Client, config: Config, sets: &'a Store<ImageSet>) -> Self {
        let recorder = Recorder::new(client.clone(), Reporter::from(MANAGER));
        Self {
            client,
            config,
            sets,
            recorder,
            written: HashMap::new(),
            properties: HashMap::new(),
            told: HashMap::new(),
            invalid: HashMap::new(),
            refused: HashSet::new(),
            left_out: BTreeSet::new(),
        }
    }

    async fn run(mut self, kinds: [&Objects; 4], opted_in: &watch::Sender<Known<()>>) {
        // It fails only when the other side has ended: then this is about to.
        let _ = self.sets.wait_until_ready().await;
        loop {
            tokio::time::sleep(TICK).await;
            let owned = self.owned(&kinds).await;
            let labelled = opted_in.borrow().objects.keys().cloned().collect();
            let Plan { sets: wanted, mut refusals, left_out } = admit::plan(&owned, &self.config, &labelled);
            self.log_left_out(left_out);
            self.invalid.retain(|name, (since, _)| wanted.contains_key(name) && since.elapsed() < REFUSED);
            let mut errors = 0;
            for (name, (spec, _)) in
                wanted.iter().filter(|(name, _)| !self.invalid.contains_key(*name)).collect::<Vec<_>>()
            {
                match self.keep(name, spec).await {
                    Ok(()) => {}
                    // The server, or an admission webhook, refused this set: the others are not concerned.
                    Err(error) if has_code(&error, &[400, 403, 413, 422]) => {
                        tracing::warn!(set = name, %error, "API server refused a set for Spark applications: skipped");
                        self.invalid.insert(name.clone(), (Instant::now(), error.to_string()));
                    }
                    Err(error) => {
                        tracing::warn!(set = name, %error, "cannot write a set for Spark applications: retrying");
                        errors += 1;
                        if errors == MOST_ERRORS {
                            break;
                        }
                    }
                }
            }
            for (name, (_, problem)) in &self.invalid {
                let owners = wanted.get(name).map(|(_, owners)| owners.as_slice()).unwrap_or_default();
                let problem = format!(
                    "its images are not pre-pulled: the API server refused their ImageSet: {problem}"
                );
                refusals.extend(owners.iter().map(|owner| (owner.clone(), problem.clone())));
            }
            self.tell_refusals(&refusals).await;
            self.told.retain(|(uid, set), _| {
                wanted
                    .get(set)
                    .is_some_and(|(_, owners)| owners.iter().any(|owner| owner.uid.as_deref() == Some(uid)))
            });
            for (name, (_, owners)) in &wanted {
                for owner in owners {
                    self.tell(name, owner).await;
                }
            }
        }
    }

    /// Once for each namespace and process.
    fn log_left_out(&mut self, left_out: BTreeSet<String>) {
        for namespace in left_out.difference(&self.left_out) {
            tracing::info!(
                namespace,
                "Spark applications of this namespace are not pre-pulled: label it `{}=true` or set \
                 `kubernetes.sparkNamespaces`",
                admit::OPT_IN
            );
        }
        self.left_out = left_out;
    }

    /// An application is told once of each of its problems.
    async fn tell_refusals(&mut self, refusals: &[(ObjectReference, String)]) {
        let key = |owner: &ObjectReference, problem: &String| {
            (owner.uid.clone().unwrap_or_default(), problem.clone())
        };
        let current: HashSet<_> = refusals.iter().map(|(owner, problem)| key(owner, problem)).collect();
        self.refused.retain(|known| current.contains(known));
        for (owner, problem) in refusals {
            if self.refused.insert(key(owner, problem)) {
                self.publish(owner, EventType::Warning, "ImagesNotWarm", problem).await;
            }
        }
    }

    /// An event that is lost is no reason to stop.
    async fn publish(&self, owner: &ObjectReference, type_: EventType, reason: &str, note: &str) {
        let note = Some(note.chars().take(1_000).collect());
        let event =
            Event { type_, reason: reason.to_owned(), note, action: "Warm".to_owned(), secondary: None };
        if let Err(error) = within(self.recorder.publish(&event, owner)).await {
            tracing::debug!(%error, "an event was not published");
        }
    }

    async fn owned(
        &mut self,
        [applications, scheduled, connects, drivers]: &[&Objects; 4],
    ) -> Vec<OwnedRequests> {
        let mut owned = Vec::new();
        let now = Timestamp::now();
        let mut take = |objects: &Objects, requests: &dyn Fn(&Value) -> Vec<PrepullRequest>| {
            for object in objects.borrow().objects.values() {
                let requests = requests(object);
                if !requests.is_empty() {
                    owned.push(OwnedRequests { owner: reference(object), requests });
                }
            }
        };
        take(applications, &extract::application);
        take(scheduled, &|object| extract::scheduled(object, now, self.config.lead));
        take(connects, &extract::connect);
        let pods: Vec<Value> =
            drivers.borrow().objects.values().filter(|pod| extract::is_plain_driver(pod)).cloned().collect();
        self.properties.retain(|uid, _| pods.iter().any(|pod| pod["metadata"]["uid"] == uid.as_str()));
        for pod in pods {
            if let Some(properties) = self.properties_of(&pod).await {
                let requests = extract::driver(&pod, properties.as_ref());
                owned.push(OwnedRequests { owner: reference(&pod), requests });
            }
        }
        owned
    }

    /// `None`: not known yet. `Some(None)`: it has none, or they cannot be read.
    async fn properties_of(&mut self, pod: &Value) -> Option<Option<Value>> {
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let (looks, known) = self.properties.get(&uid).cloned().unwrap_or_default();
        let Some(map) = extract::properties_map(pod).filter(|_| known.is_none() && looks < LOOKS) else {
            return Some(known);
        };
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let found = match within(maps.get_opt(map)).await {
            Ok(found) => found.and_then(|map| serde_json::to_value(map.data?).ok()),
            Err(error) => {
                tracing::debug!(%error, map, "a driver's properties cannot be read");
                None
            }
        };
        let settled = found.is_some() || looks + 1 >= LOOKS;
        self.properties.insert(uid, (looks + 1, found.clone()));
        settled.then_some(found)
    }

    /// Makes a set that is missing, and prolongs one that is still needed when half of its time is over.
    async fn keep(&mut self, name: &str, spec: &ImageSetSpec) -> Result<(), kube::Error> {
        self.written.retain(|_, at| at.elapsed() < LAG);
        if self.written.contains_key(name) {
            return Ok(());
        }
        let there = self.sets.get(&ObjectRef::new(name));
        let created = there.as_ref().and_then(|set| set.metadata.creation_timestamp.as_ref()).map(|at| at.0);
        let Some(ttl) = time_to_live(
            created,
            there.as_ref().and_then(|set| set.spec.ttl_seconds),
            self.config.ttl,
            Timestamp::now(),
        ) else {
            return Ok(());
        };
        // The first who asked stays named.
        let reason = there.and_then(|set| set.spec.reason.clone()).or_else(|| spec.reason.clone());
        let spec = ImageSetSpec { ttl_seconds: Some(ttl), reason, ..spec.clone() };
        let mut set = ImageSet::new(name, spec);
        set.metadata.labels = Some(BTreeMap::from([(LABEL.to_owned(), "spark".to_owned())]));
        let sets: Api<ImageSet> = Api::all(self.client.clone());
        within(sets.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&set))).await?;
        self.written.insert(name.to_owned(), Instant::now());
        Ok(())
    }

    async fn tell(&mut self, name: &str, owner: &ObjectReference) {
        let Some(set) = self.sets.get(&ObjectRef::new(name)) else { return };
        let status = set.status.clone().unwrap_or_default();
        let key = (owner.uid.clone().unwrap_or_default(), name.to_owned());
        let now = Instant::now();
        let first = !self.told.contains_key(&key);
        let told = self.told.entry(key).or_insert(Told { since: now, at: now, ready: 0, over: false });
        if told.over {
            return;
        }
        let images = set.spec.images.join(", ");
        // Nodes of which nothing is known are not waited for.
        let known = status.nodes_desired.saturating_sub(status.nodes_unknown);
        let (ready, failed) = (status.nodes_ready, status.nodes_failed);
        // Of a set that was made just now the beginning is told first, however soon it is done.
        let begins = first && self.written.contains_key(name);
        let current = set.metadata.generation.is_none_or(|now| status.observed_generation >= now);
        let spoken = !begins && current && known > 0;
        let (type_, reason, note) = if spoken && ready == known {
            told.over = true;
            let after = if first {
                "already".to_owned()
            } else {
                format!("after {} s", told.since.elapsed().as_secs())
            };
            (
                EventType::Normal,
                "ImagesWarm",
                format!("{images}: on all {known} nodes, {after} (ImageSet {name})"),
            )
        } else if spoken && failed > 0 && ready + failed == known {
            told.over = true;
            let why = status
                .failures
                .first()
                .map(|first| format!("`{}` on `{}`: {}", first.image, first.node, first.message));
            let why = why.unwrap_or_default();
            (
                EventType::Warning,
                "ImagesNotWarm",
                format!("on {ready} of {known} nodes; {why} (ImageSet {name})"),
            )
        } else if first {
            (
                EventType::Normal,
                "ImagesWarming",
                format!("{images}: brought to the nodes where they may be needed (ImageSet {name})"),
            )
        } else if told.at.elapsed() >= NEWS && ready > told.ready {
            (told.at, told.ready) = (now, ready);
            (EventType::Normal, "ImagesWarming", format!("on {ready} of {known} nodes (ImageSet {name})"))
        } else {
            return;
        };
        self.publish(owner, type_, reason, &note).await;
    }
}

/// Seconds from its creation that a set is to live; nothing when it need not be written. Pure.
fn time_to_live(
    created: Option<Timestamp>,
    now_lives: Option<u32>,
    ttl: Duration,
    now: Timestamp,
) -> Option<u32> {
    let whole = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).max(1);
    let Some(created) = created else { return Some(whole) };
    let age = u32::try_from(now.duration_since(created).as_secs().max(0)).unwrap_or(u32::MAX);
    let left = now_lives.unwrap_or(u32::MAX).saturating_sub(age);
    (left < whole / 2).then(|| age.saturating_add(whole))
}

fn reference(object: &Value) -> ObjectReference {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let metadata = &object["metadata"];
    ObjectReference {
        api_version: text(&object["apiVersion"]).or_else(|| Some("v1".to_owned())),
        kind: text(&object["kind"]).or_else(|| Some("Pod".to_owned())),
        name: text(&metadata["name"]),
        namespace: text(&metadata["namespace"]),
        uid: text(&metadata["uid"]),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_prolonged_when_half_of_its_time_is_over_and_only_then() {
        let hour = Duration::from_hours(1);
        let created = Timestamp::UNIX_EPOCH;
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        for (created, lives, now, expected) in [
            (None, None, 0, Some(3_600)),
            (Some(created), Some(3_600), 1_800, None),
            (Some(created), Some(3_600), 1_801, Some(5_401)),
            (Some(created), Some(5_401), 1_900, None),
            (Some(created), Some(3_600), 9_000, Some(12_600)),
            (Some(created), None, 9_000, None),
        ] {
            assert_eq!(time_to_live(created, lives, hour, at(now)), expected, "{lives:?} {now}");
        }
    }
}
