//! Images of Spark applications are warmed while their drivers start, and before their schedules fire. The leader's.
//!
//! ```text
//! SparkApplication, ScheduledSparkApplication, SparkConnect --+
//!                                                             +--> wishes (extract, pure) --> ImageSets with a time to live
//! driver pods (spark-role=driver), their properties ----------+          |
//!                                          Events on the application <---+--- status of the sets
//! ```
//!
//! A set is named by what it asks for, so that a thousand jobs with one image are one set and one write: it lives for
//! its time to live, and is prolonged while somebody still needs it. Nothing has an owner reference, because a set of
//! the cluster cannot be owned by an object of a namespace. Kinds whose definitions are not installed are looked for
//! again now and then.

mod extract;

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Pod};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    runtime::{
        events::{Event, EventType, Recorder, Reporter},
        watcher,
    },
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use super::{
    crd::{ImageSet, ImageSetSpec},
    jitter::hex_name,
};
use crate::kubernetes::{Known, follow, within};
use extract::Wish;

/// Who writes these sets.
const MANAGER: &str = "hearth-spark";

/// On every set that is made here.
const LABEL: &str = "hearth.dev/made-for";

const GROUP: &str = "sparkoperator.k8s.io";

/// How often is looked, at least: schedules come near without any change.
const TICK: Duration = Duration::from_secs(1);

/// For how long a set that was written is not written again: the watch may lag behind.
const LAG: Duration = Duration::from_secs(10);

/// How often an application is told how far its images are.
const NEWS: Duration = Duration::from_secs(15);

/// Looks for a driver's properties before it is taken to have none: they are made right after its pod.
const LOOKS: u32 = 5;

/// How Spark applications are looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long before a scheduled run its images are warmed.
    pub lead: Duration,
    /// For how long images stay wanted after the last application that needed them.
    pub ttl: Duration,
    /// After so long every node has said what it has of a new set.
    pub settled: Duration,
}

type Objects = watch::Sender<Known<Value>>;

/// An application and what it needs now.
struct Ask {
    owner: ObjectReference,
    wishes: Vec<Wish>,
}

/// Until the caller drops it.
pub(crate) async fn run(client: &Client, config: &Config, sets: &watch::Sender<Known<ImageSet>>) {
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
    let tend = Tender::new(client, *config, sets).run([applications, scheduled, connects, drivers]);
    tokio::join!(
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
    sets: &'a watch::Sender<Known<ImageSet>>,
    recorder: Recorder,
    written: HashMap<String, Instant>,
    properties: HashMap<String, (u32, Option<Value>)>,
    told: HashMap<(String, String), Told>,
}

/// What an application was told of one set.
struct Told {
    since: Instant,
    at: Instant,
    ready: u32,
    over: bool,
}

impl<'a> Tender<'a> {
    fn new(client: &'a Client, config: Config, sets: &'a watch::Sender<Known<ImageSet>>) -> Self {
        let recorder = Recorder::new(client.clone(), Reporter::from(MANAGER));
        let (written, properties, told) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { client, config, sets, recorder, written, properties, told }
    }

    async fn run(mut self, kinds: [&Objects; 4]) {
        loop {
            tokio::time::sleep(TICK).await;
            if !self.sets.borrow().synced {
                continue;
            }
            let asks = self.asks(&kinds).await;
            let wanted = sets_for(&asks);
            for (name, (spec, _)) in &wanted {
                if let Err(error) = self.keep(name, spec).await {
                    tracing::warn!(set = name, %error, "a set for Spark applications is not written: tried again");
                    break;
                }
            }
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

    async fn asks(&mut self, [applications, scheduled, connects, drivers]: &[&Objects; 4]) -> Vec<Ask> {
        let mut asks = Vec::new();
        let now = Timestamp::now();
        let mut take = |objects: &Objects, wishes: &dyn Fn(&Value) -> Vec<Wish>| {
            for object in objects.borrow().objects.values() {
                let wishes = wishes(object);
                if !wishes.is_empty() {
                    asks.push(Ask { owner: reference(object), wishes });
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
                let wishes = extract::driver(&pod, properties.as_ref());
                asks.push(Ask { owner: reference(&pod), wishes });
            }
        }
        asks
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
        let there = self.sets.borrow().objects.get(name).cloned();
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
        let reason = there.and_then(|set| set.spec.reason).or_else(|| spec.reason.clone());
        let spec = ImageSetSpec { ttl_seconds: Some(ttl), reason, ..spec.clone() };
        let mut set = ImageSet::new(name, spec);
        set.metadata.labels = Some(BTreeMap::from([(LABEL.to_owned(), "spark".to_owned())]));
        let sets: Api<ImageSet> = Api::all(self.client.clone());
        within(sets.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&set))).await?;
        self.written.insert(name.to_owned(), Instant::now());
        Ok(())
    }

    async fn tell(&mut self, name: &str, owner: &ObjectReference) {
        let Some(set) = self.sets.borrow().objects.get(name).cloned() else { return };
        let status = set.status.unwrap_or_default();
        let key = (owner.uid.clone().unwrap_or_default(), name.to_owned());
        let now = Instant::now();
        let first = !self.told.contains_key(&key);
        let told = self.told.entry(key).or_insert(Told { since: now, at: now, ready: 0, over: false });
        if told.over {
            return;
        }
        let images = set.spec.images.join(", ");
        let (ready, desired, failed) = (status.nodes_ready, status.nodes_desired, status.nodes_failed);
        // Of a set that was made just now the beginning is told first, however soon it is done.
        let begins = first && self.written.contains_key(name);
        let spoken = !begins
            && set.metadata.creation_timestamp.is_some_and(|created| {
                Timestamp::now().duration_since(created.0).unsigned_abs() >= self.config.settled
            });
        let (type_, reason, note) = if spoken && desired > 0 && ready == desired {
            told.over = true;
            let after = if first {
                "already".to_owned()
            } else {
                format!("after {} s", told.since.elapsed().as_secs())
            };
            (
                EventType::Normal,
                "ImagesWarm",
                format!("{images}: on all {desired} nodes, {after} (ImageSet {name})"),
            )
        } else if spoken && failed > 0 && ready + failed == desired {
            told.over = true;
            let why = status
                .failures
                .first()
                .map(|first| format!("`{}` on `{}`: {}", first.image, first.node, first.message));
            let why = why.unwrap_or_default();
            (
                EventType::Warning,
                "ImagesNotWarm",
                format!("on {ready} of {desired} nodes; {why} (ImageSet {name})"),
            )
        } else if first {
            (
                EventType::Normal,
                "ImagesWarming",
                format!("{images}: brought to the nodes where they may be needed (ImageSet {name})"),
            )
        } else if told.at.elapsed() >= NEWS && ready > told.ready {
            (told.at, told.ready) = (now, ready);
            (EventType::Normal, "ImagesWarming", format!("on {ready} of {desired} nodes (ImageSet {name})"))
        } else {
            return;
        };
        let note = Some(note.chars().take(1_000).collect());
        let event =
            Event { type_, reason: reason.to_owned(), note, action: "Warm".to_owned(), secondary: None };
        // An event that is lost is no reason to stop.
        if let Err(error) = within(self.recorder.publish(&event, owner)).await {
            tracing::debug!(%error, "an event was not published");
        }
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

/// The sets that are needed, by their names, and by whom. Pure.
fn sets_for(asks: &[Ask]) -> BTreeMap<String, (ImageSetSpec, Vec<ObjectReference>)> {
    let mut sets: BTreeMap<String, (ImageSetSpec, Vec<ObjectReference>)> = BTreeMap::new();
    for ask in asks {
        for wish in &ask.wishes {
            let (_, owners) =
                sets.entry(name_of(wish)).or_insert_with(|| (spec_of(wish, &ask.owner), Vec::new()));
            if !owners.iter().any(|owner| owner.uid == ask.owner.uid) {
                owners.push(ask.owner.clone());
            }
        }
    }
    sets
}

/// By what is asked for, not by who asks.
fn name_of(wish: &Wish) -> String {
    let images: Vec<_> = wish.images.keys().collect();
    let what = json!([images, wish.node_selector, wish.terms, wish.tolerations]);
    format!("spark-{}", hex_name(&what.to_string()))
}

fn spec_of(wish: &Wish, owner: &ObjectReference) -> ImageSetSpec {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let rules: Vec<_> = wish.images.iter().map(|(image, rule)| format!("{image} by {rule}")).collect();
    let reason = format!(
        "{} {}/{}: {}",
        text(&owner.kind),
        text(&owner.namespace),
        text(&owner.name),
        rules.join(", ")
    );
    let parsed = |text: &String| serde_json::from_str(text).ok();
    ImageSetSpec {
        images: wish.images.keys().cloned().collect(),
        node_selector: wish.node_selector.clone(),
        node_selector_terms: wish.terms.iter().filter_map(parsed).collect(),
        tolerations: wish.tolerations.iter().filter_map(|text| serde_json::from_str(text).ok()).collect(),
        pin: true,
        reason: Some(reason.chars().take(512).collect()),
        ..ImageSetSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(name: &str, image: &str, pool: &str) -> Ask {
        let object = json!({
            "apiVersion": "sparkoperator.k8s.io/v1beta2", "kind": "SparkApplication",
            "metadata": {"name": name, "namespace": "jobs", "uid": name},
            "spec": {"image": image, "executor": {}, "driver": {}, "nodeSelector": {"pool": pool}},
        });
        Ask { owner: reference(&object), wishes: extract::application(&object) }
    }

    #[test]
    fn jobs_with_the_same_images_on_the_same_nodes_share_one_set() {
        let sets = sets_for(&[
            ask("a", "r.test/x:1", "p"),
            ask("b", "r.test/x:1", "p"),
            ask("c", "r.test/x:1", "q"),
        ]);
        let mut owners: Vec<_> = sets.values().map(|(_, owners)| owners.len()).collect();
        owners.sort_unstable();
        assert_eq!(owners, [1, 2]);
        for (name, (spec, _)) in &sets {
            assert!(name.len() <= 63 && name.starts_with("spark-"), "{name}");
            assert_eq!(spec.images, ["r.test/x:1"]);
        }
        let reasons: Vec<_> = sets.values().filter_map(|(spec, _)| spec.reason.as_deref()).collect();
        assert!(reasons.contains(&"SparkApplication jobs/a: r.test/x:1 by spec.image"), "{reasons:?}");
    }

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
