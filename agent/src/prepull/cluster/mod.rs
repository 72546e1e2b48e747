//! The agent in a Kubernetes cluster.
//!
//! ```text
//! ImageSets (watch) --selects this node--> sets --> Prepuller --reports--> its own NodeCache
//! its own Node: start-up taint, condition
//! ```
//!
//! | part | owns |
//! | --- | --- |
//! | `select`, `translate` | decisions (pure) |
//! | `node` | this node's sets and its `NodeCache` |
//! | `condition` | the conditions of the `NodeCache`, and the Events about them |
//! | `labels` | which labels say that sets are warm (pure) |
//! | `pods` | Events on pods that wait for an image |
//! | `secrets` | pull secrets of sets |
//! | `taint` | start-up taint, condition and labels of the node |
//!
//! What concerns the whole cluster is the controller's (`crate::controller`). Nothing here is needed to serve images: while the API server is unreachable, slow or refusing, the last sets
//! stay in force, every loop backs off, and the cache keeps working. Until the sets were read once, images of
//! earlier sets stay pinned.

mod condition;
mod labels;
mod node;
mod pods;
mod secrets;
mod select;
mod taint;
mod translate;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kube::{Api, Client, runtime::watcher};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use select::selects;
pub(crate) use translate::{WHOLE, share};

use super::{Origin, Prepuller, crd::ImageSet};
use crate::{
    kubernetes::{Known, connect, follow},
    proof::Proof,
    store::Store,
};

/// Field manager of the agent's writes.
const MANAGER: &str = "hearth-agent";

/// How often it is looked whether the images of an earlier process are checked, and for how long: the API server may be gone, and
/// a `NodeCache` that is not written for three heartbeats counts as unknown.
const LOOK: Duration = Duration::from_millis(200);
const CHECK: Duration = Duration::from_secs(20);

/// The agent's configuration for the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// URL of the API server; `None` means the cluster in which this process runs.
    pub api: Option<String>,
    /// This node's name in the cluster.
    pub node: String,
    /// Key of the start-up taint.
    pub taint: String,
    /// The node has a label for each set whose images are all cached.
    pub warm_labels: bool,
    /// Pods of this node that wait for an image get Events with its progress.
    pub pod_events: bool,
    /// The start-up taint is removed after this time even if images are missing.
    pub deadline: Duration,
    /// Shortest time between two writes of one object's status.
    pub interval: Duration,
    /// How often the `NodeCache` is renewed when nothing changes.
    pub heartbeat: Duration,
    /// How often the node is read when nothing changes.
    pub idle: Duration,
}

/// How many of this node's pinned images are cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) here: usize,
    pub(crate) wanted: usize,
    /// The sets were read.
    pub(crate) known: bool,
}

impl Readiness {
    pub(crate) fn is_ready(self) -> bool {
        self.known && self.here >= self.wanted
    }
}

/// The agent's tasks in the cluster.
#[derive(Debug)]
pub struct Cluster {
    config: Config,
    prepuller: Prepuller,
    store: Store,
    proof: watch::Receiver<Proof>,
}

/// State that the tasks share.
struct Shared {
    config: Config,
    prepuller: Prepuller,
    store: Store,
    /// Whether the container runtime pulls through this agent.
    proof: watch::Receiver<Proof>,
    client: Client,
    sets: watch::Sender<Known<ImageSet>>,
    /// Sets that select this node.
    wanted: watch::Sender<Option<Vec<translate::Wanted>>>,
    /// Pull secrets that cannot be read.
    unreadable: watch::Sender<Vec<secrets::Unreadable>>,
}

impl Cluster {
    /// Sends no requests before [`Self::run`].
    pub fn new(config: Config, prepuller: Prepuller, store: Store, proof: watch::Receiver<Proof>) -> Self {
        Self { config, prepuller, store, proof }
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let Some(client) = stop.run_until_cancelled(connect(self.config.api.as_deref(), "ImageSets")).await
        else {
            return;
        };
        let Self { config, prepuller, store, proof } = self;
        let (sets, wanted, unreadable) = Default::default();
        let shared = Arc::new(Shared { config, prepuller, store, proof, client, sets, wanted, unreadable });
        // Sets are small and nearly all of their fields are needed, so they are watched in full.
        let follow = follow::<ImageSet, _>(
            Api::all(shared.client.clone()),
            watcher::Config::default(),
            |mut set| {
                set.metadata.managed_fields = None;
                set
            },
            shared.sets.clone(),
        );
        let work = async {
            tokio::join!(
                follow,
                node::run(&shared),
                secrets::run(&shared),
                pods::run(&shared),
                shared.guard_node()
            );
        };
        let _ = stop.run_until_cancelled(Box::pin(work)).await;
    }
}

impl Shared {
    /// Waits until this process owns the store and has checked the images of an earlier process, so that an update of the
    /// agent changes no status; then nothing that it writes is worse than what the earlier process wrote.
    async fn checked(&self) {
        while !self.store.is_owner() {
            tokio::time::sleep(LOOK).await;
        }
        let checking = async {
            while !self.is_checked() {
                tokio::time::sleep(LOOK).await;
            }
        };
        let _ = tokio::time::timeout(CHECK, checking).await;
    }

    fn is_checked(&self) -> bool {
        let wanted = self.wanted.borrow();
        let Some(wanted) = wanted.as_ref() else { return false };
        let reports = self.prepuller.report();
        let checked = |name: &str| {
            let mut of_cluster = reports.iter().filter(|report| report.name.origin == Origin::Cluster);
            let report = of_cluster.find(|report| report.name.name == name);
            report.is_some_and(|report| report.images.iter().all(|image| !image.unchecked))
        };
        wanted.iter().filter(|one| one.set.is_ok()).all(|one| checked(&one.name))
    }

    async fn guard_node(&self) {
        self.checked().await;
        let Config { node, taint, deadline, idle, .. } = self.config.clone();
        let controller = taint::TaintController { client: self.client.clone(), node, taint, deadline, idle };
        let changes = self.prepuller.changes();
        controller.run(changes, || taint::Wish { readiness: self.readiness(), labels: self.labels() }).await;
    }

    /// The labels of sets whose images are all cached.
    fn labels(&self) -> BTreeSet<String> {
        let wanted = self.wanted.borrow();
        let (true, Some(wanted)) = (self.config.warm_labels, wanted.as_ref()) else { return BTreeSet::new() };
        let reports = self.prepuller.report();
        let warm = |one: &&translate::Wanted| {
            let Ok(set) = &one.set else { return false };
            let mut of_cluster = reports.iter().filter(|report| report.name.origin == Origin::Cluster);
            let report = of_cluster.find(|report| report.name.name == one.name);
            !one.passing
                && report.is_some_and(|report| report.images.len() == set.images.len() && report.is_here())
        };
        wanted.iter().filter(warm).map(|one| labels::key(&one.name)).collect()
    }

    /// Sets that expire, and sets that pin nothing, do not delay the removal of the taint.
    fn readiness(&self) -> Readiness {
        let wanted = self.wanted.borrow();
        let Some(wanted) = wanted.as_ref() else { return Readiness::default() };
        let counts = |report: &super::SetReport| match report.name.origin {
            Origin::File => true,
            Origin::Cluster => wanted.iter().any(|one| {
                one.name == report.name.name && !one.passing && one.set.as_ref().is_ok_and(|set| set.pin)
            }),
        };
        let reports: Vec<_> = self.prepuller.report().into_iter().filter(counts).collect();
        let images = || reports.iter().flat_map(|report| &report.images);
        // A set that was just read is not in the queue yet.
        let expected = wanted.iter().filter(|one| !one.passing).filter_map(|one| one.set.as_ref().ok());
        let expected: usize = expected.filter(|set| set.pin).map(|set| set.images.len()).sum();
        let of_file = reports.iter().filter(|report| report.name.origin == Origin::File);
        let expected = expected + of_file.map(|report| report.images.len()).sum::<usize>();
        Readiness {
            here: images().filter(|image| image.here).count(),
            wanted: images().count().max(expected),
            known: true,
        }
    }
}
