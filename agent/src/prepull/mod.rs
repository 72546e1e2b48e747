//! Pre-pulls images: caches them on this node before a pod needs them.
//!
//! ```text
//! configuration file --sets--+
//!                            +--> queue (pure: what is due) --tasks--> pull --> fetch
//! ImageSets ----------sets---+       |
//!                                    +--> references that the store keeps, status, metrics
//! ```
//!
//! | part | owns |
//! | --- | --- |
//! | `set` | which images to cache, and how |
//! | `schedule` | cron expressions in time zones (pure) |
//! | `queue` | the state of every image and what is due (pure) |
//! | `pull`, `platform` | pulling one complete image; which parts of an index are needed (pure) |
//! | `load` | loading into the container runtime |
//! | `report` | the state of the sets, for people and the cluster |
//! | [`crd`] | the cluster's objects |
//! | [`cluster`] | following `ImageSet`s, this node's `NodeCache` and taint |
//!
//! This is background work: it stops requests to a registry when only the reserve of its rate limit is left,
//! and shares every download with waiting pods and with other nodes. Exactly the references in the sets are
//! kept: an image that no set names any more becomes evictable. `<data>/prepull-v1` records what was pulled for
//! sets, so that `Once` is kept over restarts too; if it is lost, the images are resolved again.

pub mod cluster;
pub mod crd;
pub(crate) mod jitter;
mod load;
mod platform;
mod progress;
mod pull;
mod queue;
mod report;
mod schedule;
mod schema;
mod set;

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use load::Loader;
use pull::{Checks, Problem, Pulled, pull};
use queue::{Key, PullEvent, PullQueue, PullTask, Remembered};
pub use report::{ImageReport, SetReport, State, counts, document};
pub use schedule::{Schedule, ScheduleError};
pub use set::{Origin, PullPolicy, Set, SetName};

use crate::{
    access::Access,
    download::{Fetcher, TransferStatus},
    metrics::{Metrics, PrepullLabels, PrepullStateLabels},
    runtime::{Runtime, Stopped},
    store::{Store, StoreError},
    types::{Digest, chain},
    upstream::{PullSecret, Upstream},
    verify::Verifier,
};

/// Wait before a failed write to the store is retried.
const RETRY: Duration = Duration::from_secs(5);

/// How often the progress of running tasks is published.
const PROGRESS: Duration = Duration::from_secs(2);

/// What is to be pre-pulled, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// Sets of the configuration file.
    pub sets: Vec<Set>,
    /// Most images that are pulled at once.
    pub parallel: usize,
    /// How often the tags of a set without a schedule are resolved.
    pub interval: Duration,
    /// This node's name.
    pub node: String,
    /// Whether sets of a cluster will follow.
    pub in_cluster: bool,
}

/// Keeps the images of the sets on this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Prepuller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    fetcher: Fetcher,
    upstream: Arc<Upstream>,
    access: Access,
    verifier: Verifier,
    loader: Loader,
    store: Store,
    metrics: Metrics,
    queue: Mutex<Option<PullQueue>>,
    /// Sets of the cluster; `None` until they were read once.
    cluster: watch::Sender<Option<Vec<Set>>>,
    /// Counts changes of [`Prepuller::report`].
    changes: watch::Sender<u64>,
}

type Done = (Key, Result<Pulled, Problem>);

impl Prepuller {
    /// Pulls nothing before [`Self::run`].
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part of its own, and one caller puts them together"
    )]
    pub fn new(
        config: Config,
        fetcher: Fetcher,
        upstream: Arc<Upstream>,
        access: Access,
        verifier: Verifier,
        runtime: Option<Runtime>,
        store: Store,
        metrics: Metrics,
    ) -> Self {
        let (cluster, changes) = (watch::Sender::default(), watch::Sender::default());
        let (loader, queue) = (Loader::new(runtime), Mutex::default());
        Self(Arc::new(Inner {
            config,
            fetcher,
            upstream,
            access,
            verifier,
            loader,
            store,
            metrics,
            queue,
            cluster,
            changes,
        }))
    }

    /// Replaces the sets of the cluster.
    pub(crate) fn follow_cluster(&self, sets: Vec<Set>) {
        self.0.cluster.send_replace(Some(sets));
    }

    /// Replaces the cluster's secrets among the agent's credentials; returns their errors.
    pub(crate) fn use_secrets(&self, secrets: Vec<PullSecret>) -> Vec<String> {
        self.0.fetcher.use_secrets(secrets)
    }

    /// Why the agent does not call the container runtime any more, if so.
    pub(crate) fn runtime_stopped(&self) -> Option<Stopped> {
        self.0.loader.stopped()
    }

    /// A receiver that is notified when [`Self::report`] has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// The downloads under way, for clients, peers and pre-pulls.
    pub(crate) fn arriving(&self) -> Vec<TransferStatus> {
        self.0.fetcher.status()
    }

    /// The state of every set.
    pub fn report(&self) -> Vec<SetReport> {
        let transfers: HashMap<String, u64> =
            self.0.fetcher.status().into_iter().map(|transfer| (transfer.digest, transfer.have)).collect();
        let have = |digest: &Digest| transfers.get(&digest.to_string()).copied().unwrap_or(0);
        self.queue().as_ref().map(|queue| queue.report(&have)).unwrap_or_default()
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let _ = stop.run_until_cancelled(self.work()).await;
    }

    fn queue(&self) -> MutexGuard<'_, Option<PullQueue>> {
        self.0.queue.lock()
    }

    fn with_queue<T>(&self, act: impl FnOnce(&mut PullQueue) -> T) -> T {
        let mut queue = self.queue();
        let Config { interval, node, .. } = &self.0.config;
        act(queue.get_or_insert_with(|| PullQueue::new(*interval, node, Remembered::default())))
    }

    async fn work(&self) {
        self.wait_for_store().await;
        let mut cluster = self.0.cluster.subscribe();
        let mut running: FuturesUnordered<BoxFuture<'_, Done>> = FuturesUnordered::new();
        let mut unsettled = true;
        self.accept(cluster.borrow_and_update().as_deref());
        loop {
            let room = self.0.config.parallel.saturating_sub(running.len());
            let (tasks, next) = self.with_queue(|queue| queue.begin(Timestamp::now(), room));
            for task in tasks {
                running.push(Box::pin(self.run_task(task)));
            }
            if unsettled {
                unsettled = !self.settle().await;
            }
            self.publish();
            let until = next.map_or(Duration::MAX, |next| wait_until(next, Timestamp::now()));
            let until = if unsettled { until.min(RETRY) } else { until };
            let until = if running.is_empty() { until } else { until.min(PROGRESS) };
            tokio::select! {
                Some((key, outcome)) = running.next(), if !running.is_empty() => {
                    unsettled |= self.finish(&key, outcome);
                }
                changed = cluster.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.accept(cluster.borrow_and_update().as_deref());
                    unsettled = true;
                }
                () = tokio::time::sleep(until) => {}
            }
        }
    }

    /// Records can be read, and images kept, only once this process has locked the store.
    async fn wait_for_store(&self) {
        while !self.0.store.is_owner() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let store = self.0.store.clone();
        let read = tokio::task::spawn_blocking(move || store.prepulled::<Remembered>()).await;
        let remembered = read.map_err(StoreError::from).and_then(|read| read).unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "cannot read the records of earlier pre-pulls: resolving the images again");
            None
        });
        let Config { interval, node, .. } = &self.0.config;
        *self.queue() = Some(PullQueue::new(*interval, node, remembered.unwrap_or_default()));
    }

    fn accept(&self, cluster: Option<&[Set]>) {
        let sets = self.0.config.sets.iter().chain(cluster.unwrap_or_default()).cloned().collect();
        self.with_queue(|queue| queue.accept(sets, Timestamp::now()));
    }

    async fn run_task(&self, task: PullTask) -> Done {
        tracing::debug!(set = %task.key.set, image = task.key.image, reference = %task.reference, "pre-pull started");
        let inner = &self.0;
        let checks = Checks { access: &inner.access, verifier: &inner.verifier };
        let outcome = pull(&inner.fetcher, &inner.upstream, checks, &inner.loader, &task).await;
        (task.key, outcome)
    }

    /// Returns whether the references to keep may have changed.
    fn finish(&self, key: &Key, outcome: Result<Pulled, Problem>) -> bool {
        let news = self.with_queue(|queue| queue.finished(key, outcome, Timestamp::now()));
        let (set, image) = (&key.set, &key.image);
        let count = |outcome: &'static str| {
            self.0.metrics.prepulls.get_or_create(&PrepullLabels { outcome }).inc();
        };
        match news {
            PullEvent::Cached(digest) => {
                count("here");
                tracing::info!(%set, image, %digest, "image pre-pulled");
                true
            }
            PullEvent::Changed { from, to } => {
                count("changed");
                tracing::info!(%set, image, %from, %to, "pre-pulled tag changed: new image pre-pulled");
                true
            }
            PullEvent::Same => {
                count("same");
                false
            }
            PullEvent::Failed(problem) => {
                count(problem.reason);
                tracing::warn!(%set, image, reason = problem.reason, details = problem.message, "pre-pull failed: retrying later");
                false
            }
            PullEvent::Gone => false,
        }
    }

    /// Makes the store keep exactly the references of the sets, and records what was pulled. `false` when that
    /// has to be retried.
    async fn settle(&self) -> bool {
        // Before the cluster's sets were read, images of its earlier sets stay pinned.
        let known = !self.0.config.in_cluster || self.0.cluster.borrow().is_some();
        let (holds, remembered, loaded) =
            self.with_queue(|queue| (queue.holds(), queue.remember(known), queue.loaded()));
        let store = self.0.store.clone();
        let settled = tokio::task::spawn_blocking(move || {
            store.hold(&|fact| holds(fact) || (!known && fact.held))?;
            store.remember_prepulled(&remembered)
        });
        let settled = settled.await.map_err(StoreError::from).and_then(|settled| settled);
        let settled = settled
            .inspect_err(|error| {
                tracing::warn!(error = %chain(error), "cannot record the references of the sets: retrying");
            })
            .is_ok();
        settled & self.0.loader.keep_only(&loaded).await
    }

    fn publish(&self) {
        let report = self.report();
        for state in [State::Waiting, State::Pulling, State::Ready, State::Failed] {
            let images = report.iter().flat_map(|set| &set.images);
            let count = images.filter(|image| image.state == state).count();
            let labels = PrepullStateLabels { state: state.as_str() };
            let gauge = self.0.metrics.prepull_images.get_or_create(&labels);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.0.changes.send_modify(|changes| *changes += 1);
    }
}

fn wait_until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default()
}
