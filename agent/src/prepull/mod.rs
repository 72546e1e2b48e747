//! Images that are to be on this node before anyone asks for them.
//!
//! ```text
//! configuration file --sets--+
//!                            +--> board (pure: what is due) --jobs--> pull --> fetch
//! ImageSets ----------sets---+       |
//!                                    +--> references that the store keeps, status, metrics
//! ```
//!
//! | part | owns |
//! | --- | --- |
//! | `set` | what is wished for |
//! | `schedule` | cron expressions in time zones (pure) |
//! | `board` | what every image stands at and what is due (pure) |
//! | `pull`, `platform` | bringing one whole image; which parts of an index are needed (pure) |
//! | `load` | into the container runtime too |
//! | `report` | how it stands, for people and the cluster |
//! | [`crd`] | the cluster's objects |
//! | [`cluster`] | following `ImageSet`s, this node's `NodeCache` and taint, the leader |
//! | [`spark`] | what Spark applications will need |
//!
//! The work is background work: it leaves a registry alone whose budget is at the reserve, and shares every transfer
//! with waiting pods and with other nodes. Which references sets keep is exactly what the sets say: whatever no set
//! names any more is let go, and eviction may take it. `<data>/prepull-v1` remembers what sets have brought, so that
//! `Once` means once over restarts too; lost, the images are looked for again.

mod board;
pub mod cluster;
pub mod crd;
mod load;
mod platform;
mod progress;
mod pull;
mod report;
mod schedule;
mod set;
pub mod spark;
mod spread;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use board::{Board, Job, Key, News, Remembered};
use load::Loader;
use pull::{Problem, Pulled, pull};
pub use report::{ImageReport, SetReport, State, document};
pub use schedule::{Schedule, ScheduleError};
pub use set::{Origin, PullPolicy, Set, SetName};

use crate::{
    download::Fetcher,
    metrics::{Metrics, PrepullLabels, PrepullStateLabels},
    runtime::{Runtime, Stopped},
    store::{Store, StoreError},
    types::{Digest, chain},
};

/// After the store could not be written to, it is tried again after this long.
const RETRY: Duration = Duration::from_secs(5);

/// How often what is under way is looked at: for those who are told of progress.
const PROGRESS: Duration = Duration::from_secs(2);

/// What is to be pre-pulled, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// Sets of the configuration file.
    pub sets: Vec<Set>,
    /// Images under way at once.
    pub parallel: usize,
    /// How often a set without a schedule asks what its tags mean.
    pub interval: Duration,
    /// This node's name.
    pub node: String,
    /// Whether there will be sets of a cluster.
    pub in_cluster: bool,
}

/// Keeps the wished images on this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Prepuller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    fetcher: Fetcher,
    loader: Loader,
    store: Store,
    metrics: Metrics,
    board: Mutex<Option<Board>>,
    /// Sets of the cluster; `None` until they were read once.
    cluster: watch::Sender<Option<Vec<Set>>>,
    /// Counts changes of what [`Prepuller::report`] says.
    changes: watch::Sender<u64>,
}

type Done = (Key, Result<Pulled, Problem>);

impl Prepuller {
    /// Puts the parts together; nothing is pulled before [`Self::run`].
    pub fn new(
        config: Config,
        fetcher: Fetcher,
        runtime: Option<Runtime>,
        store: Store,
        metrics: Metrics,
    ) -> Self {
        let (cluster, changes) = (watch::Sender::default(), watch::Sender::default());
        let (loader, board) = (Loader::new(runtime), Mutex::default());
        Self(Arc::new(Inner { config, fetcher, loader, store, metrics, board, cluster, changes }))
    }

    /// From now on these are the sets of the cluster.
    pub(crate) fn follow_cluster(&self, sets: Vec<Set>) {
        self.0.cluster.send_replace(Some(sets));
    }

    /// From now on these secrets of the cluster are credentials as well; gives what is wrong with them.
    pub(crate) fn use_secrets(&self, documents: &[Vec<u8>]) -> Vec<String> {
        self.0.fetcher.use_secrets(documents)
    }

    /// Why the container runtime is not called any more, when that is so.
    pub(crate) fn runtime_stopped(&self) -> Option<Stopped> {
        self.0.loader.stopped()
    }

    /// Says when [`Self::report`] has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// How every set stands.
    pub fn report(&self) -> Vec<SetReport> {
        let transfers: HashMap<String, u64> =
            self.0.fetcher.status().into_iter().map(|transfer| (transfer.digest, transfer.have)).collect();
        let have = |digest: &Digest| transfers.get(&digest.to_string()).copied().unwrap_or(0);
        self.board().as_ref().map(|board| board.report(&have)).unwrap_or_default()
    }

    /// Until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let _ = stop.run_until_cancelled(self.work()).await;
    }

    fn board(&self) -> MutexGuard<'_, Option<Board>> {
        self.0.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_board<T>(&self, act: impl FnOnce(&mut Board) -> T) -> T {
        let mut board = self.board();
        let Config { interval, node, .. } = &self.0.config;
        act(board.get_or_insert_with(|| Board::new(*interval, node, Remembered::default())))
    }

    async fn work(&self) {
        self.wait_for_store().await;
        let mut cluster = self.0.cluster.subscribe();
        let mut running: FuturesUnordered<BoxFuture<'_, Done>> = FuturesUnordered::new();
        let mut unsettled = true;
        self.accept(cluster.borrow_and_update().as_deref());
        loop {
            let room = self.0.config.parallel.saturating_sub(running.len());
            let (jobs, next) = self.with_board(|board| board.begin(Timestamp::now(), room));
            for job in jobs {
                running.push(Box::pin(self.do_job(job)));
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

    /// What was remembered can be read, and what is pulled be kept, once the store is this process's own.
    async fn wait_for_store(&self) {
        while !self.0.store.is_owner() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let store = self.0.store.clone();
        let read = tokio::task::spawn_blocking(move || store.prepulled::<Remembered>()).await;
        let remembered = read.map_err(StoreError::from).and_then(|read| read).unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "what was pre-pulled before is not known: looked for again");
            None
        });
        let Config { interval, node, .. } = &self.0.config;
        *self.board() = Some(Board::new(*interval, node, remembered.unwrap_or_default()));
    }

    fn accept(&self, cluster: Option<&[Set]>) {
        let sets = self.0.config.sets.iter().chain(cluster.unwrap_or_default()).cloned().collect();
        self.with_board(|board| board.accept(sets, Timestamp::now()));
    }

    async fn do_job(&self, job: Job) -> Done {
        tracing::debug!(set = %job.key.set, image = job.key.image, reference = %job.reference, "pre-pull begins");
        let outcome = pull(&self.0.fetcher, &self.0.loader, &job).await;
        (job.key, outcome)
    }

    /// Says whether what the store keeps may have to be different now.
    fn finish(&self, key: &Key, outcome: Result<Pulled, Problem>) -> bool {
        let news = self.with_board(|board| board.finished(key, outcome, Timestamp::now()));
        let (set, image) = (&key.set, &key.image);
        let count = |outcome: &'static str| {
            self.0.metrics.prepulls.get_or_create(&PrepullLabels { outcome }).inc();
        };
        match news {
            News::Here(digest) => {
                count("here");
                tracing::info!(%set, image, %digest, "pre-pulled image is here");
                true
            }
            News::Changed { from, to } => {
                count("changed");
                tracing::info!(%set, image, %from, %to, "pre-pulled tag changed: the new image is here");
                true
            }
            News::Same => {
                count("same");
                false
            }
            News::Failed(problem) => {
                count(problem.reason);
                tracing::warn!(%set, image, reason = problem.reason, message = problem.message, "image not pre-pulled: tried again");
                false
            }
            News::Gone => false,
        }
    }

    /// Makes the store keep what the sets name and nothing else, and remembers what they brought. `false` when that
    /// has to be tried again.
    async fn settle(&self) -> bool {
        // Before the cluster's sets were read, what they kept is not let go.
        let known = !self.0.config.in_cluster || self.0.cluster.borrow().is_some();
        let (holds, remembered, loaded) =
            self.with_board(|board| (board.holds(), board.remember(known), board.loaded()));
        let store = self.0.store.clone();
        let settled = tokio::task::spawn_blocking(move || {
            store.hold(&|fact| holds(fact) || (!known && fact.held))?;
            store.remember_prepulled(&remembered)
        });
        let settled = settled.await.map_err(StoreError::from).and_then(|settled| settled);
        let settled = settled
            .inspect_err(|error| {
                tracing::warn!(error = %chain(error), "what sets keep is not written down: tried again");
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
