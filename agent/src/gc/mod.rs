//! Keeps the store within its limits: measures every few seconds, and evicts whole images when the store is too
//! large, or when a download needs space ([`Collector::make_room`]). Nothing is evicted before everything on disk is
//! counted. The records of tags have a limit of their own, because they use inodes rather than bytes.
//!
//! The decision is [`plan()`]; this file collects its input and carries it out: references first, then blobs, so that
//! a crash in between leaves unreferenced blobs, never a name without its blobs.

mod plan;
mod tags;

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::{Mutex, MutexGuard};
pub use plan::{Plan, Step, View, plan};
use tokio_util::sync::CancellationToken;

use crate::{
    images,
    metrics::Metrics,
    store::{MOST_TAGS, Need, Store, StoreError},
    types::{chain, format_size},
};

/// How often the store is measured: a `statvfs` and a listing of the partial blobs.
const INTERVAL: Duration = Duration::from_secs(5);

/// How often abandoned partial blobs are removed while there is space, in intervals.
const ROUNDS_BETWEEN_SWEEPS: u32 = 120;

/// Records of tags that stay when there were too many: an eighth below the limit, so that it is not reached again
/// soon.
const TAGS_LEFT: usize = MOST_TAGS / 8 * 7;

/// The eviction loop, and evictions on request. See the module documentation. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Collector(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    metrics: Metrics,
    /// Held during an eviction, so that no two plans count the same bytes.
    collecting: Mutex<()>,
}

impl Collector {
    /// Evicts nothing before [`Self::run`] or [`Self::make_room`].
    pub fn new(store: Store, metrics: Metrics) -> Self {
        Self(Arc::new(Inner { store, metrics, collecting: Mutex::default() }))
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut round = 0_u32;
        while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
            let (collector, stop) = (self.clone(), stop.clone());
            let sweep = round.is_multiple_of(ROUNDS_BETWEEN_SWEEPS);
            round = round.wrapping_add(1);
            let collected = tokio::task::spawn_blocking(move || collector.0.collect(sweep, &stop)).await;
            match collected {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error = %chain(&error), "eviction failed: retrying"),
                Err(error) => tracing::error!(%error, "eviction failed: retrying"),
            }
        }
    }

    /// Evicts what a need requires, if that is enough for it; returns the bytes freed. Blocking.
    pub fn make_room(&self, need: Need) -> Result<u64, StoreError> {
        let Inner { store, metrics, .. } = &*self.0;
        if !store.is_counted() {
            return Ok(0);
        }
        let _only = self.0.only();
        let (space, _) = store.space(&store.partials()?)?;
        let (least, worth) = store.limits().demand(space, need);
        if least == 0 {
            return Ok(0);
        }
        let plan = plan_for(store, worth)?;
        if plan.freed < least {
            return match need {
                Need::Room(wanted) => Err(StoreError::NoRoom { wanted, allowed: space.allowed }),
                Need::Freed(_) => Ok(0),
            };
        }
        let freed = execute(store, metrics, &plan, &CancellationToken::new())?;
        tracing::info!(?need, freed, "evicted to make room for a download");
        Ok(freed)
    }
}

impl Inner {
    fn only(&self) -> MutexGuard<'_, ()> {
        self.collecting.lock()
    }

    fn collect(&self, sweep: bool, stop: &CancellationToken) -> Result<(), StoreError> {
        let Self { store, metrics, .. } = self;
        store.probe();
        if !store.is_counted() {
            // The count at the start has failed or is still running.
            store.rebuild_index_if_needed()?;
            return Ok(());
        }
        if let Err(error) = evict_tags(store, metrics) {
            // Eviction of blobs continues.
            tracing::warn!(error = %chain(&error), "cannot evict records of tags: retrying");
        }
        let _only = self.only();
        let (space, wanted) = store.space(&store.partials()?)?;
        metrics.store_allowed.set(i64::try_from(space.allowed).unwrap_or(i64::MAX));
        if wanted == 0 {
            self.note_excess(0);
            if !sweep {
                return Ok(());
            }
        }
        let plan = plan_for(store, wanted)?;
        let freed = execute(store, metrics, &plan, stop)?;
        if freed > 0 && wanted > 0 {
            tracing::info!(
                used = space.used,
                allowed = space.allowed,
                wanted,
                freed,
                "evicted to keep the store below its limit"
            );
        }
        self.note_excess(wanted.saturating_sub(plan.freed));
        Ok(())
    }

    /// Logged once per change; the amount is a metric, and a condition of the `NodeCache`.
    fn note_excess(&self, bytes: u64) {
        self.metrics.store_excess.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        if !self.store.note_excess(bytes) {
            return;
        }
        if bytes > 0 {
            tracing::warn!(
                excess = format_size(bytes),
                "the store is above its limit, and the remaining images are pinned or in use: raise `store.limit` or unpin images"
            );
        } else {
            tracing::info!("the store is within its limit again");
        }
    }
}

/// Removes surplus records of tags. Locks only for one removal at a time, so that pulls do not wait.
fn evict_tags(store: &Store, metrics: &Metrics) -> Result<(), StoreError> {
    if !store.may_have_too_many_tags() {
        return Ok(());
    }
    let evictable = store.count_tags()?;
    if evictable <= MOST_TAGS {
        return Ok(());
    }
    let tags = store.tags()?;
    store.flush_usage();
    let used = store.blobs()?.into_iter().map(|blob| (blob.digest, blob.used)).collect();
    let evicted = store.evict_tags(&tags::surplus(&tags, &used, TAGS_LEFT))?;
    metrics.evicted_tags.inc_by(evicted as u64);
    tracing::info!(
        evictable,
        evicted,
        most = MOST_TAGS,
        "evicted the least recently confirmed records of tags"
    );
    Ok(())
}

/// Carries out a plan; returns the bytes freed.
fn execute(
    store: &Store,
    metrics: &Metrics,
    plan: &Plan,
    stop: &CancellationToken,
) -> Result<u64, StoreError> {
    let mut freed = 0;
    for step in &plan.steps {
        if stop.is_cancelled() {
            break;
        }
        let removed = carry_out(store, metrics, step)?;
        freed += removed;
        metrics.evicted_bytes.inc_by(removed);
    }
    Ok(freed)
}

/// The plan if eviction ran now.
pub fn make_plan(store: &Store) -> Result<Plan, StoreError> {
    let (_, wanted) = store.space(&store.partials()?)?;
    plan_for(store, wanted)
}

fn plan_for(store: &Store, wanted: u64) -> Result<Plan, StoreError> {
    store.flush_usage();
    let partials = store.partials()?;
    // Without a need, only abandoned partial blobs can be removed, and images need not be read.
    let images = if wanted > 0 { images::all(store)? } else { Vec::new() };
    let blobs = if wanted > 0 { store.blobs()? } else { Vec::new() };
    Ok(plan(&View { now: unix_now(), wanted, blobs: &blobs, partials: &partials, images: &images }))
}

/// A plan as text, one line per step.
pub fn describe(plan: &Plan, dry_run: bool) -> String {
    if plan.steps.is_empty() {
        return "the store is within its limits: nothing to evict\n".to_owned();
    }
    let mut out = String::new();
    for step in &plan.steps {
        let _ = match step {
            Step::Partial(digest) => writeln!(out, "partial download {digest}: abandoned"),
            Step::Orphan(digest) => writeln!(out, "blob {digest}: no image needs it"),
            Step::Image { digest, used, references, blobs } => {
                let hours = unix_now().saturating_sub(*used) / 3_600;
                let names: Vec<_> = references.iter().map(ToString::to_string).collect();
                writeln!(
                    out,
                    "image {digest} ({}): not used for {hours} h; {} blobs that no other image needs",
                    names.join(", "),
                    blobs.len()
                )
            }
        };
    }
    let would = if dry_run { "would be " } else { "" };
    let _ = writeln!(out, "{} {would}freed", format_size(plan.freed));
    out
}

/// Evicts once; with `dry_run` only makes the plan. This process must have locked the store.
pub fn run_once(store: &Store, dry_run: bool) -> Result<Plan, StoreError> {
    let plan = make_plan(store)?;
    if !dry_run {
        execute(store, &Metrics::default(), &plan, &CancellationToken::new())?;
    }
    Ok(plan)
}

/// Returns the bytes freed.
fn carry_out(store: &Store, metrics: &Metrics, step: &Step) -> Result<u64, StoreError> {
    match step {
        Step::Partial(digest) => store.remove_partial(digest),
        Step::Orphan(digest) => Ok(store.remove_blob(digest)?.unwrap_or(0)),
        Step::Image { digest, used, references, blobs } => {
            for reference in references {
                store.remove_reference(reference)?;
            }
            let mut freed = 0;
            for blob in blobs {
                freed += store.remove_blob(blob)?.unwrap_or(0);
            }
            // References that are cached elsewhere may be among them.
            store.note_reference_change();
            metrics.evicted_images.inc();
            tracing::info!(image = %digest.short(), used, blobs = blobs.len(), freed, "image evicted");
            Ok(freed)
        }
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
