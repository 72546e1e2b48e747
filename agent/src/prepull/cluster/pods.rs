//! Events on pods of this node that wait for an image which arrives at this agent: "pulling IMAGE via hearth: 62 %, 140.0 MiB/s from 5
//! peers".
//!
//! Only where `kubernetes.podEvents` is on. At most [`MOST`] pods have Events at a time, and each at most one in [`PAUSE`].

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{ContainerStatus, ObjectReference, Pod};
use kube::{
    Api,
    runtime::{
        events::{Event, EventType, Recorder, Reporter},
        watcher,
    },
};
use tokio::time::Instant;

use super::{MANAGER, Shared};
use crate::{
    download::TransferStatus,
    images,
    kubernetes::{follow, log_failure, within},
    types::{Digest, ImageName, Reference, format_size},
};

/// How often it is looked at what has arrived.
const LOOK: Duration = Duration::from_secs(5);

/// Shortest time between two Events on one pod.
const PAUSE: Duration = Duration::from_secs(15);

/// Most pods with Events at a time: what a node sends to the API server has a bound.
const MOST: usize = 10;

const REASON: &str = "PullingViaHearth";

/// A pod that has not started, and the images that it may wait for.
#[derive(Clone, Debug, Default, PartialEq)]
struct Waiting {
    pod: ObjectReference,
    images: Vec<String>,
}

/// How much of an image has arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Arrived {
    have: u64,
    total: u64,
    peers: usize,
    /// Bytes of running downloads came from a registry.
    registry: bool,
}

pub(super) async fn run(shared: &Arc<Shared>) {
    if !shared.config.pod_events {
        return;
    }
    let known = tokio::sync::watch::Sender::default();
    let fields = format!("spec.nodeName={},status.phase=Pending", shared.config.node);
    let pods: Api<Pod> = Api::all(shared.client.clone());
    let follow = follow(pods, watcher::Config::default().fields(&fields), |pod| waiting(&pod), known.clone());
    let tell = async {
        let mut told = Told::default();
        loop {
            tokio::time::sleep(LOOK).await;
            let pods: Vec<Waiting> = known.borrow().objects.values().cloned().collect();
            let arrived = arriving(shared, &pods).await;
            for (pod, note) in told.next(&pods, &arrived, Instant::now()) {
                if let Err(error) = publish(shared, &pod, note).await {
                    log_failure(&error, "cannot publish an Event on a waiting pod");
                }
            }
        }
    };
    tokio::join!(follow, tell);
}

/// The images of a pod's containers that have none yet, in the order in which they are pulled.
fn waiting(pod: &Pod) -> Waiting {
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
    let statuses: Vec<&ContainerStatus> = status
        .iter()
        .flat_map(|status| [&status.init_container_statuses, &status.container_statuses])
        .flat_map(|list| list.iter().flatten())
        .collect();
    let pulled = |name: &str| statuses.iter().any(|one| one.name == name && !one.image_id.is_empty());
    let containers =
        spec.iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    let images = containers.filter(|one| !pulled(&one.name)).filter_map(|one| one.image.clone()).collect();
    let metadata = &pod.metadata;
    let pod = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        ..ObjectReference::default()
    };
    Waiting { pod, images }
}

/// Those of the pods' images of which something arrives now.
async fn arriving(shared: &Shared, pods: &[Waiting]) -> HashMap<String, Arrived> {
    let mut found = HashMap::new();
    let transfers = shared.prepuller.arriving();
    if pods.is_empty() || transfers.is_empty() {
        return found;
    }
    let transfers: HashMap<&str, &TransferStatus> =
        transfers.iter().map(|transfer| (transfer.digest.as_str(), transfer)).collect();
    let images: BTreeSet<&String> = pods.iter().flat_map(|pod| &pod.images).collect();
    for image in images {
        if let Some(arrived) = arrived(shared, image, &transfers).await {
            found.insert(image.clone(), arrived);
        }
    }
    found
}

async fn arrived(
    shared: &Shared,
    image: &str,
    transfers: &HashMap<&str, &TransferStatus>,
) -> Option<Arrived> {
    let image: ImageName = image.parse().ok()?;
    let root = match image.reference() {
        Reference::Digest(digest) => digest,
        Reference::Tag(tag) => shared.store.tag(&image.repository, &tag).await.ok()??.digest,
    };
    let store = shared.store.clone();
    let parts = tokio::task::spawn_blocking(move || images::parts(&store, &root)).await.ok()?;
    let (mut arrived, mut peers, mut moving) = (Arrived::default(), BTreeSet::new(), false);
    for part in parts {
        arrived.total += part.size;
        arrived.have += match transfers.get(part.digest.to_string().as_str()) {
            Some(transfer) => {
                moving = true;
                arrived.registry |= transfer.from_registry > 0;
                peers.extend(&transfer.peers);
                transfer.have.min(part.size)
            }
            None => stored(shared, &part.digest).await,
        };
    }
    arrived.peers = peers.len();
    moving.then_some(arrived)
}

async fn stored(shared: &Shared, digest: &Digest) -> u64 {
    shared.store.blob(digest).await.ok().flatten().map_or(0, |blob| blob.size())
}

async fn publish(shared: &Shared, pod: &ObjectReference, note: String) -> Result<(), kube::Error> {
    let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(shared.config.node.clone()) };
    let event = Event {
        type_: EventType::Normal,
        reason: REASON.to_owned(),
        note: Some(note),
        action: "Pull".to_owned(),
        secondary: None,
    };
    within(Recorder::new(shared.client.clone(), reporter).publish(&event, pod)).await
}

/// What pods were told, and how much there was of each image at the last look.
#[derive(Debug, Default)]
struct Told {
    pods: HashMap<String, Instant>,
    seen: HashMap<String, (Instant, u64)>,
}

impl Told {
    /// The Events to publish now. Pure: time and state of the images are passed in. An image has an Event when it was seen arriving
    /// twice, so that pulls of a few seconds have none.
    fn next(
        &mut self,
        pods: &[Waiting],
        arrived: &HashMap<String, Arrived>,
        now: Instant,
    ) -> Vec<(ObjectReference, String)> {
        let uid = |waiting: &Waiting| waiting.pod.uid.clone().unwrap_or_default();
        let present: BTreeSet<String> = pods.iter().map(uid).collect();
        self.pods.retain(|pod, _| present.contains(pod));
        let mut events = Vec::new();
        for waiting in pods {
            let uid = uid(waiting);
            let due = self.pods.get(&uid).is_none_or(|last| now.saturating_duration_since(*last) >= PAUSE);
            let room = self.pods.contains_key(&uid) || self.pods.len() < MOST;
            let note = waiting.images.iter().find_map(|image| {
                let (at, before) = self.seen.get(image)?;
                note(image, arrived.get(image)?, *before, now.saturating_duration_since(*at))
            });
            if let (true, Some(note)) = (due && room, note) {
                self.pods.insert(uid, now);
                events.push((waiting.pod.clone(), note));
            }
        }
        self.seen = arrived.iter().map(|(image, arrived)| (image.clone(), (now, arrived.have))).collect();
        events
    }
}

/// The text about an image of which there were `before` bytes, and `took` later what has arrived; `None` when there is nothing to
/// wait for.
fn note(image: &str, arrived: &Arrived, before: u64, took: Duration) -> Option<String> {
    let Arrived { have, total, peers, registry } = *arrived;
    let percent = u128::from(have) * 100 / u128::from(total.max(1));
    let millis = took.as_millis();
    if have >= total || millis == 0 {
        return None;
    }
    let rate = u128::from(have.saturating_sub(before)) * 1_000 / millis;
    let rate = format_size(u64::try_from(rate).unwrap_or(u64::MAX));
    let of_peers = match peers {
        1 => "1 peer".to_owned(),
        peers => format!("{peers} peers"),
    };
    let sources = match (peers > 0, registry) {
        (true, true) => format!("{of_peers} and the registry"),
        (true, false) => of_peers,
        (false, _) => "the registry".to_owned(),
    };
    Some(format!("pulling {image} via hearth: {percent} %, {rate}/s from {sources}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: usize) -> Waiting {
        let pod = ObjectReference { uid: Some(uid.to_string()), ..ObjectReference::default() };
        Waiting { pod, images: vec!["r.test/a:1".into(), "r.test/b:1".into()] }
    }

    fn arrived(have: u64, peers: usize, registry: bool) -> Arrived {
        Arrived { have, total: 1_000 << 20, peers, registry }
    }

    #[test]
    fn a_note_says_how_much_how_fast_and_from_where() {
        let took = Duration::from_secs(5);
        for (arrived, expected) in [
            (arrived(620 << 20, 5, false), Some("62 %, 100.0 MiB/s from 5 peers")),
            (arrived(620 << 20, 1, true), Some("62 %, 100.0 MiB/s from 1 peer and the registry")),
            (arrived(120 << 20, 0, true), Some("12 %, 0 B/s from the registry")),
            (arrived(1_000 << 20, 5, false), None),
        ] {
            let text = note("r.test/a:1", &arrived, 120 << 20, took);
            assert_eq!(text, expected.map(|text| format!("pulling r.test/a:1 via hearth: {text}")));
        }
    }

    #[test]
    fn few_pods_have_events_and_each_only_now_and_then() {
        let (mut told, start) = (Told::default(), Instant::now());
        let pods: Vec<_> = (0..MOST + 5).map(pod).collect();
        let image = |have| HashMap::from([("r.test/b:1".to_owned(), arrived(have, 1, false))]);
        let mut next = |pods: &[Waiting], have, seconds| {
            told.next(pods, &image(have), start + Duration::from_secs(seconds)).len()
        };
        assert_eq!(next(&pods, 1, 0), 0, "its pull may last a moment only");
        assert_eq!(next(&pods, 2, 5), MOST);
        assert_eq!(next(&pods, 3, 10), 0);
        assert_eq!(next(&pods, 4, 20), MOST);
        // The others have their turn when those are gone.
        assert_eq!(next(&pods[MOST..], 5, 25), 5);
    }

    #[test]
    fn a_pod_waits_for_the_images_of_containers_without_one() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {
                "initContainers": [{"name": "i", "image": "r.test/i:1"}],
                "containers": [{"name": "a", "image": "r.test/a:1"}, {"name": "b", "image": "r.test/b:1"}],
            },
            "status": {
                "initContainerStatuses": [
                    {"name": "i", "image": "r.test/i:1", "imageID": "sha256:1", "ready": true, "restartCount": 0},
                ],
                "containerStatuses": [
                    {"name": "a", "image": "r.test/a:1", "imageID": "", "ready": false, "restartCount": 0},
                ],
            },
        }))
        .unwrap();
        let found = waiting(&pod);
        assert_eq!(found.images, ["r.test/a:1", "r.test/b:1"]);
        assert_eq!((found.pod.kind.as_deref(), found.pod.uid.as_deref()), (Some("Pod"), Some("u")));
    }
}
