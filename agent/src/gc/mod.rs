//! Keeps the store within its bounds: measures every few seconds, and evicts whole images when it holds too much.
//!
//! The decision is [`plan()`]; this file gathers its facts and carries it out: references first, then blobs, so that a
//! crash in between leaves blobs that nothing names, never a name without its blobs.

mod plan;

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use plan::{Plan, Step, View, plan};
use tokio_util::sync::CancellationToken;

use crate::{
    images,
    metrics::Metrics,
    store::{Store, StoreError},
};

/// How often the store is measured: a `statvfs` and a look at the unfinished transfers.
const INTERVAL: Duration = Duration::from_secs(5);

/// How often transfers that were given up are looked for while there is room.
const ROUNDS_BETWEEN_SWEEPS: u32 = 120;

/// The loop. See the module's text.
#[derive(Debug)]
pub struct Collector {
    store: Store,
    metrics: Metrics,
}

impl Collector {
    /// Puts the parts together.
    pub fn new(store: Store, metrics: Metrics) -> Self {
        Self { store, metrics }
    }

    /// Until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut round = 0_u32;
        while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
            let (store, metrics, stop) = (self.store.clone(), self.metrics.clone(), stop.clone());
            let sweep = round.is_multiple_of(ROUNDS_BETWEEN_SWEEPS);
            round = round.wrapping_add(1);
            let collected =
                tokio::task::spawn_blocking(move || collect(&store, &metrics, sweep, &stop)).await;
            match collected {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error = %chain(&error), "eviction failed: tried again"),
                Err(_) => return,
            }
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

/// What would go if room were made now.
pub fn make_plan(store: &Store) -> Result<Plan, StoreError> {
    store.flush_usage();
    let partials = store.partials()?;
    let (_, wanted) = store.space(&partials)?;
    // Without a need, only given-up transfers can go, and images need not be read.
    let images = if wanted > 0 { images::all(store)? } else { Vec::new() };
    let blobs = if wanted > 0 { store.blobs()? } else { Vec::new() };
    Ok(plan(&View { now: unix_now(), wanted, blobs: &blobs, partials: &partials, images: &images }))
}

fn collect(
    store: &Store,
    metrics: &Metrics,
    sweep: bool,
    stop: &CancellationToken,
) -> Result<(), StoreError> {
    let (space, wanted) = store.space(&store.partials()?)?;
    metrics.store_allowed.set(i64::try_from(space.allowed).unwrap_or(i64::MAX));
    if wanted == 0 && !sweep {
        return Ok(());
    }
    let plan = make_plan(store)?;
    let before = store.totals().bytes;
    for step in &plan.steps {
        if stop.is_cancelled() {
            break;
        }
        carry_out(store, metrics, step)?;
    }
    let freed = before.saturating_sub(store.totals().bytes);
    metrics.evicted_bytes.inc_by(freed);
    if wanted > 0 {
        tracing::info!(used = space.used, allowed = space.allowed, wanted, freed, "room made in the store");
    }
    if plan.freed < wanted {
        tracing::warn!(
            short = wanted - plan.freed,
            "the store holds more than it may, and the rest is pinned or in use"
        );
    }
    Ok(())
}

/// A plan in words, one line a step.
pub fn describe(plan: &Plan) -> String {
    let mut out = String::new();
    for step in &plan.steps {
        let _ = match step {
            Step::Partial(digest) => writeln!(out, "transfer {digest}: given up"),
            Step::Orphan(digest) => writeln!(out, "blob {digest}: no image needs it"),
            Step::Image { digest, used, references, blobs } => {
                let ago = Duration::from_secs(unix_now().saturating_sub(*used));
                let names: Vec<_> = references.iter().map(ToString::to_string).collect();
                writeln!(
                    out,
                    "image {digest} ({}): not used for {ago:?}; {} blobs that only it needs",
                    names.join(", "),
                    blobs.len()
                )
            }
        };
    }
    let _ = writeln!(out, "{} bytes in {} steps", plan.freed, plan.steps.len());
    out
}

/// Makes room once; with `dry_run` only says what would go. The store must be this process's own.
pub fn run_once(store: &Store, dry_run: bool) -> Result<Plan, StoreError> {
    let plan = make_plan(store)?;
    if !dry_run {
        for step in &plan.steps {
            carry_out(store, &Metrics::default(), step)?;
        }
    }
    Ok(plan)
}

fn carry_out(store: &Store, metrics: &Metrics, step: &Step) -> Result<(), StoreError> {
    match step {
        Step::Partial(digest) => store.remove_partial(digest).map(drop),
        Step::Orphan(digest) => store.remove_blob(digest).map(drop),
        Step::Image { digest, used, references, blobs } => {
            for reference in references {
                store.remove_reference(reference)?;
            }
            for blob in blobs {
                store.remove_blob(blob)?;
            }
            metrics.evicted_images.inc();
            tracing::info!(image = %digest.short(), used, blobs = blobs.len(), "image evicted");
            Ok(())
        }
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
