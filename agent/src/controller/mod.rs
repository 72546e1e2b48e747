//! The work of one process for the whole cluster: `hearth-agent controller`.
//!
//! ```text
//! Nodes, NodeCaches, ImageSets (watch) --aggregated--> ImageSets' status, Events;  expired sets removed
//! Spark applications, driver pods (watch) --> ImageSets
//! CertificateSigningRequests of agents (watch) --> certificates for peers
//! ```
//!
//! | part | owns |
//! | --- | --- |
//! | `lease` | the election: of several processes one leads, and only it watches and writes |
//! | `nodes`, `renewals` | which nodes a set is for, and which of them report (pure) |
//! | `aggregate` | the status of a set (pure) |
//! | `status` | writes statuses and Events, removes expired sets |
//! | [`spark`] | sets for Spark applications |
//! | [`certificates`] | certificates for peers |
//!
//! Agents need none of it to warm their nodes: without a controller sets are pulled, their status stays as it is, Spark
//! applications get no sets, and `maxParallelNodes` admits no further nodes.

mod aggregate;
pub mod certificates;
mod lease;
mod nodes;
mod renewals;
pub mod spark;
mod status;

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    runtime::{Controller as Runtime, watcher},
};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    kubernetes::{Known, connect, follow},
    metrics::ControllerMetrics,
    prepull::crd::{ImageSet, NodeCache},
};
use lease::Elector;
use nodes::Reported;

/// Field manager of the controller's writes.
const MANAGER: &str = "hearth-controller";

/// Longest wait for the release of the lease.
const RELEASE: Duration = Duration::from_secs(2);

/// A process is ready while the API server has answered within this time.
const CONTACT: Duration = Duration::from_secs(30);

/// The controller's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// URL of the API server; `None` means the cluster in which this process runs.
    pub api: Option<String>,
    /// Name of this process in the lease; a random part is added.
    pub name: String,
    /// Namespace of the lease.
    pub namespace: String,
    /// Key of the start-up taint, which every set tolerates.
    pub taint: String,
    /// Label selector of the nodes that have an agent.
    pub nodes: String,
    /// Shortest time between two writes of one set's status.
    pub interval: Duration,
    /// How often agents renew their `NodeCache`.
    pub heartbeat: Duration,
    /// Settings for Spark applications; `None` when they are not watched.
    pub spark: Option<spark::Config>,
    /// Settings for certificates of peers; `None` when the controller signs none.
    pub certificates: Option<certificates::Config>,
}

/// Whether the API server answers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Contact(Arc<Mutex<Option<Instant>>>);

impl Contact {
    fn note(&self, answered: bool) {
        if answered {
            *self.0.lock() = Some(Instant::now());
        }
    }

    /// Whether it has answered lately.
    pub fn is_recent(&self) -> bool {
        self.0.lock().is_some_and(|at| at.elapsed() < CONTACT)
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Controller {
    config: Config,
    metrics: ControllerMetrics,
    contact: Contact,
}

/// What the leader knows of nodes.
#[derive(Clone, Debug, Default)]
struct Watched {
    nodes: watch::Sender<Known<Node>>,
    caches: watch::Sender<Known<Reported>>,
}

impl Controller {
    /// Sends no requests before [`Self::run`].
    pub fn new(config: Config, metrics: ControllerMetrics) -> Self {
        Self { config, metrics, contact: Contact::default() }
    }

    /// For the readiness probe.
    pub fn contact(&self) -> Contact {
        self.contact.clone()
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let connected = connect(self.config.api.as_deref(), "the controller");
        let Some(client) = stop.run_until_cancelled(connected).await else { return };
        let identity =
            format!("{}_{:016x}", self.config.name, RandomState::new().hash_one(&self.config.name));
        let mut elector = Elector::new(client.clone(), &self.config.namespace, &identity);
        let work = async {
            loop {
                elector.win(|answered| self.contact.note(answered)).await;
                tracing::info!(identity, "became the leader");
                self.metrics.leader.set(1);
                Box::pin(self.lead(&client, &mut elector, &identity)).await;
                self.metrics.leader.set(0);
                tracing::warn!(identity, "lost the lease: another process may lead");
            }
        };
        let _ = stop.run_until_cancelled(Box::pin(work)).await;
        let _ = tokio::time::timeout(RELEASE, elector.release()).await;
    }

    /// Runs until the lease is lost.
    async fn lead(&self, client: &Client, elector: &mut Elector, identity: &str) {
        let watched = Watched::default();
        let sets = Runtime::new(Api::<ImageSet>::all(client.clone()), watcher::Config::default());
        let known_sets = sets.store();
        let nodes = follow::<Node, _>(
            Api::all(client.clone()),
            watcher::Config::default().labels(&self.config.nodes),
            nodes::reduce,
            watched.nodes.clone(),
        );
        let caches = follow::<NodeCache, _>(
            Api::all(client.clone()),
            watcher::Config::default(),
            |cache| Reported {
                status: cache.status.unwrap_or_default(),
                arrived: Instant::now(),
                arrived_at: Timestamp::now(),
            },
            watched.caches.clone(),
        );
        let statuses = status::write(&self.config, &self.metrics, client, identity, &watched, sets);
        let applications = async {
            match &self.config.spark {
                Some(config) => Box::pin(spark::run(client, config, &known_sets)).await,
                None => std::future::pending().await,
            }
        };
        let certificates = async {
            match &self.config.certificates {
                Some(config) => {
                    let signing = certificates::run(client, config, &self.config.namespace, &self.metrics);
                    Box::pin(signing).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = nodes => {}
            () = caches => {}
            () = statuses => {}
            () = applications => {}
            () = certificates => {}
            () = elector.renew(|answered| self.contact.note(answered)) => {}
        }
    }
}
