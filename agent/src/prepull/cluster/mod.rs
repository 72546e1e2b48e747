//! The agent as a member of a Kubernetes cluster.
//!
//! ```text
//! every agent:  ImageSets (watch) --selects this node--> sets --> Prepuller --reports--> its own NodeCache
//!               its own Node: start-up taint, condition
//! the leader:   NodeCaches (watch) --summed--> ImageSets' status;  expired sets removed;  Spark applications --> ImageSets
//! ```
//!
//! | part | owns |
//! | --- | --- |
//! | `select`, `translate`, `sum` | decisions (pure) |
//! | `node` | this node's sets and its `NodeCache` |
//! | `secrets` | pull secrets that sets name |
//! | `taint` | warming a node that joins |
//! | `lease`, `leader` | who leads, and what only the leader does |
//!
//! Nothing here is needed to serve: with the API server gone, slow or refusing, what was known stays in force, every
//! loop backs off, and the cache goes on. Until the sets were read once, nothing that earlier sets kept is let go.

mod leader;
mod lease;
mod node;
mod secrets;
mod select;
mod sum;
mod taint;
mod translate;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kube::{Api, Client, runtime::watcher};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Origin, Prepuller, crd::ImageSet};
use crate::{
    kubernetes::{Known, connect, follow},
    store::Store,
};

/// Who writes, in objects' managed fields.
const MANAGER: &str = "hearth-agent";

/// How this agent takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The API server; without one, the cluster that this process runs in.
    pub api: Option<String>,
    /// This node's name in the cluster.
    pub node: String,
    /// Where the lease of the leader is.
    pub namespace: String,
    /// Key of the start-up taint.
    pub taint: String,
    /// After so long the taint goes whatever is here.
    pub deadline: Duration,
    /// Least time between two writes of one object's status.
    pub interval: Duration,
    /// How often the node is read when there is nothing to do.
    pub idle: Duration,
    /// How Spark applications are looked after.
    pub spark: Option<super::spark::Config>,
}

/// How far the pinned images of this node are here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Warmth {
    pub(crate) here: usize,
    pub(crate) wanted: usize,
    /// The sets were read.
    pub(crate) known: bool,
}

impl Warmth {
    pub(crate) fn is_warm(self) -> bool {
        self.known && self.here >= self.wanted
    }
}

/// This agent's part in the cluster.
#[derive(Debug)]
pub struct Cluster {
    config: Config,
    prepuller: Prepuller,
    store: Store,
}

/// What its tasks share.
struct Shared {
    config: Config,
    prepuller: Prepuller,
    store: Store,
    client: Client,
    sets: watch::Sender<Known<ImageSet>>,
    leads: AtomicBool,
    /// Sets that this node follows.
    wanted: watch::Sender<Option<Vec<translate::Wanted>>>,
}

impl Cluster {
    /// Puts the parts together; nobody is asked before [`Self::run`].
    pub fn new(config: Config, prepuller: Prepuller, store: Store) -> Self {
        Self { config, prepuller, store }
    }

    /// Until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let Some(client) = stop.run_until_cancelled(connect(self.config.api.as_deref(), "ImageSets")).await
        else {
            return;
        };
        let Self { config, prepuller, store } = self;
        let (sets, wanted) = (watch::Sender::default(), watch::Sender::default());
        let shared =
            Arc::new(Shared { config, prepuller, store, client, sets, leads: AtomicBool::default(), wanted });
        // A set is small, and what is of interest of it is nearly all.
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
                shared.guard_node(),
                leader::run(&shared, &stop)
            );
        };
        let _ = stop.run_until_cancelled(Box::pin(work)).await;
        if shared.leads.load(Ordering::Relaxed) {
            // The next leader need not wait for the lease to run out.
            let _ = tokio::time::timeout(Duration::from_secs(2), shared.elector().release()).await;
        }
    }
}

impl Shared {
    async fn guard_node(&self) {
        let Config { node, taint, deadline, idle, .. } = self.config.clone();
        let warden = taint::Warden { client: self.client.clone(), node, taint, deadline, idle };
        warden.run(|| self.warmth()).await;
    }

    /// Sets that are for a while only, and those that pin nothing, are not waited for.
    fn warmth(&self) -> Warmth {
        let wanted = self.wanted.borrow();
        let Some(wanted) = wanted.as_ref() else { return Warmth::default() };
        let counts = |report: &super::SetReport| match report.name.origin {
            Origin::File => true,
            Origin::Cluster => wanted.iter().any(|one| {
                one.name == report.name.name && !one.passing && one.set.as_ref().is_ok_and(|set| set.pin)
            }),
        };
        let reports: Vec<_> = self.prepuller.report().into_iter().filter(counts).collect();
        let images = || reports.iter().flat_map(|report| &report.images);
        // A set that was just read is not on the board yet.
        let expected = wanted.iter().filter(|one| !one.passing).filter_map(|one| one.set.as_ref().ok());
        let expected: usize = expected.filter(|set| set.pin).map(|set| set.images.len()).sum();
        let of_file = reports.iter().filter(|report| report.name.origin == Origin::File);
        let expected = expected + of_file.map(|report| report.images.len()).sum::<usize>();
        Warmth {
            here: images().filter(|image| image.here).count(),
            wanted: images().count().max(expected),
            known: true,
        }
    }

    fn elector(&self) -> lease::Elector {
        lease::Elector::new(self.client.clone(), &self.config.namespace, leader::LEASE, &self.config.node)
    }
}
