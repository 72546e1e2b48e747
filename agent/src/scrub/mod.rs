//! Slowly checks every stored blob against its digest.
//!
//! Reads the store in the order of digests, at a limited rate, at most once a week, and continues after a restart. A
//! damaged blob is quarantined, counted and logged; it is fetched again at the next request.

mod verify;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
pub use verify::{Bad, Verdict, verify};

use crate::{
    metrics::Metrics,
    store::{Damage, Look, SHARDS, Store, StoreError},
    types::{Digest, chain},
};

/// Bytes read at once.
const CHUNK: usize = 1024 * 1024;

/// From the start of one round to the start of the next.
const ROUND: Duration = Duration::from_hours(7 * 24);

/// How often the position is saved.
const MARK_EVERY: Duration = Duration::from_mins(1);

/// Pause while there is nothing to do, or nothing can be done.
const IDLE: Duration = Duration::from_secs(10);

/// The position of a round. Everything in earlier shards, and up to `last` in this one, was checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// Second since 1970 at which the round began.
    began: u64,
    shard: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<String>,
}

impl Mark {
    /// Whether a round is complete and the next one not due. Pure.
    fn rests(&self, now: u64) -> bool {
        self.shard >= SHARDS && now.saturating_sub(self.began) < ROUND.as_secs()
    }

    /// The position to continue from: this one, or the start of a new round. Pure.
    fn resume(self, now: u64) -> Self {
        let began = if self.shard < SHARDS && self.began > 0 { return self } else { now };
        Self { began, ..Self::default() }
    }
}

/// The check loop. See the module documentation.
#[derive(Debug)]
pub struct Scrubber {
    store: Store,
    metrics: Metrics,
    /// Bytes per second.
    rate: u64,
    begun: Instant,
    read: u64,
    marked: Instant,
}

impl Scrubber {
    /// Checks nothing before [`Self::run`].
    pub fn new(store: Store, metrics: Metrics, rate: u64) -> Self {
        Self { store, metrics, rate, begun: Instant::now(), read: 0, marked: Instant::now() }
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        if self.rate == 0 {
            return;
        }
        let mut known: Option<Mark> = None;
        let mut idle = IDLE;
        while stop.run_until_cancelled(tokio::time::sleep(idle)).await.is_some() {
            // While everything is being counted, the disk is busy.
            if !self.store.is_counted() {
                continue;
            }
            let mark = match known.take() {
                Some(mark) => mark,
                None => blocking(&self.store, |store| Ok(store.check_mark()))
                    .await
                    .ok()
                    .flatten()
                    .unwrap_or_default(),
            };
            if mark.rests(unix_now()) {
                known = Some(mark);
                continue;
            }
            (self.begun, self.read) = (Instant::now(), 0);
            let mut mark = mark.resume(unix_now());
            let round = stop.run_until_cancelled(self.round(&mut mark)).await;
            self.write_down(&mark).await;
            known = Some(mark);
            idle = IDLE;
            if let Some(Err(error)) = round {
                tracing::warn!(error = %chain(&error), "check of stored blobs interrupted: retrying");
                idle = MARK_EVERY;
            }
        }
    }

    /// From the saved position to the end of the store.
    async fn round(&mut self, mark: &mut Mark) -> Result<(), StoreError> {
        while mark.shard < SHARDS {
            let shard = mark.shard;
            let blobs = blocking(&self.store, move |store| store.shard(shard)).await?;
            for digest in blobs {
                let name = digest.to_string();
                if mark.last.as_ref().is_some_and(|last| *last >= name) {
                    continue;
                }
                self.check(digest).await?;
                mark.last = Some(name);
                if self.marked.elapsed() >= MARK_EVERY {
                    self.write_down(mark).await;
                }
            }
            (mark.shard, mark.last) = (shard + 1, None);
        }
        tracing::info!("checked all stored blobs");
        Ok(())
    }

    async fn check(&mut self, digest: Digest) -> Result<(), StoreError> {
        match self.read_through(digest).await {
            Ok(()) => Ok(()),
            Err(damage) if !damage.is_lasting() => {
                tracing::warn!(%digest, error = %chain(&damage), "check of a stored blob aborted");
                Ok(())
            }
            Err(damage) => {
                tracing::error!(%digest, error = %chain(&damage), "stored blob is damaged: quarantined, will be fetched again at the next request");
                self.metrics.bad_blobs.inc();
                blocking(&self.store, move |store| store.quarantine(&digest)).await
            }
        }
    }

    async fn read_through(&mut self, digest: Digest) -> Result<(), Damage> {
        let store = self.store.clone();
        let opened = tokio::task::spawn_blocking(move || store.look(&digest)).await;
        let Some(mut look) = opened.map_err(std::io::Error::other)?? else { return Ok(()) };
        loop {
            let advanced = tokio::task::spawn_blocking(move || advance(look)).await;
            let (next, read) = advanced.map_err(std::io::Error::other)??;
            if read == 0 {
                return Ok(());
            }
            look = next;
            self.read += read;
            self.metrics.checked_bytes.inc_by(read);
            tokio::time::sleep(pause(self.read, self.rate, self.begun.elapsed())).await;
        }
    }

    async fn write_down(&mut self, mark: &Mark) {
        self.marked = Instant::now();
        let mark = mark.clone();
        if let Err(error) = blocking(&self.store, move |store| store.set_check_mark(&mark)).await {
            tracing::debug!(error = %chain(&error), "cannot save the position of the check");
        }
    }
}

fn advance(mut look: Look) -> Result<(Look, u64), Damage> {
    let read = look.advance(CHUNK)?;
    Ok((look, read))
}

/// How long to wait so that reading `read` bytes takes as long as the rate requires. Pure.
fn pause(read: u64, rate: u64, elapsed: Duration) -> Duration {
    let micros = u128::from(read) * 1_000_000 / u128::from(rate.max(1));
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)).saturating_sub(elapsed)
}

async fn blocking<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let store = store.clone();
    tokio::task::spawn_blocking(move || work(&store)).await?
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_continued_and_the_next_one_starts_a_week_after_it() {
        let week = ROUND.as_secs();
        let half = Mark { began: 1_000, shard: 7, last: Some("sha256:07".into()) };
        assert!(!half.rests(1_000 + 3 * week), "a slow round is finished first");
        assert_eq!(half.clone().resume(9), half);
        let over = Mark { began: 1_000, shard: SHARDS, last: None };
        assert!(over.rests(1_000 + week - 1) && !over.rests(1_000 + week));
        assert_eq!(over.resume(5_000), Mark { began: 5_000, shard: 0, last: None });
    }

    #[test]
    fn the_rate_is_kept_over_everything_that_was_read() {
        let second = Duration::from_secs(1);
        assert_eq!(pause(8_000, 4_000, second), second);
        assert_eq!(pause(8_000, 4_000, 3 * second), Duration::ZERO);
        assert_eq!(pause(0, 1, Duration::ZERO), Duration::ZERO);
    }
}
