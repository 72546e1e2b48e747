//! Limits on what this node sends to peers: pieces at once, in the order of their requests, and bytes per second.
//!
//! Few pieces at once: a piece that has arrived completely can be forwarded, while many that arrive slowly side by
//! side help no peer yet.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::limits::peers::uploads::{BURST, SLOW, TIMES, WAITING};

/// The limits on uploads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Uploads {
    slots: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// Pieces that are being sent or wait for it: the number of references beyond the first.
    queue: Arc<()>,
    /// The usual time to send a piece, in microseconds.
    typical: Arc<AtomicU64>,
    pace: Option<Arc<Pace>>,
}

/// A permit to send one piece.
#[derive(Debug)]
pub struct Upload {
    /// Returned early when the receiver is slow: it hardly uses this node's link, and others wait.
    place: Option<Place>,
    began: Instant,
    typical: Arc<AtomicU64>,
    pace: Option<Arc<Pace>>,
}

#[derive(Debug)]
struct Place {
    _slot: OwnedSemaphorePermit,
    _queued: Arc<()>,
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.place.is_some() {
            let taken = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
            let before = self.typical.load(Ordering::Relaxed);
            self.typical.store(before - before / 8 + taken / 8, Ordering::Relaxed);
        }
    }
}

fn is_slow(taken: Duration, typical: Duration) -> bool {
    taken >= SLOW.max(typical.saturating_mul(TIMES))
}

/// A permit to wait.
#[derive(Debug)]
pub struct Waiting(#[expect(dead_code, reason = "only its life counts")] OwnedSemaphorePermit);

#[derive(Debug)]
struct Pace {
    rate: u64,
    /// When the next byte may be sent.
    next: Mutex<Instant>,
}

impl Uploads {
    pub(super) fn new(slots: usize, rate: Option<u64>) -> Self {
        let pace = rate.map(|rate| Arc::new(Pace { rate: rate.max(1), next: Mutex::new(Instant::now()) }));
        let (slots, waiting) = (Arc::new(Semaphore::new(slots)), Arc::new(Semaphore::new(WAITING)));
        Self { slots, waiting, queue: Arc::default(), typical: Arc::default(), pace }
    }

    /// A permit to wait; `None` when too many requests wait.
    pub fn wait(&self) -> Option<Waiting> {
        self.waiting.clone().try_acquire_owned().ok().map(Waiting)
    }

    /// A permit to send a piece, in the order of requests; `None` when it takes longer than `limit`.
    pub async fn acquire(&self, limit: Duration) -> Option<Upload> {
        let queued = self.queue.clone();
        let slot = tokio::time::timeout(limit, self.slots.clone().acquire_owned()).await.ok()?.ok()?;
        let place = Some(Place { _slot: slot, _queued: queued });
        Some(Upload { place, began: Instant::now(), typical: self.typical.clone(), pace: self.pace.clone() })
    }

    /// Number of pieces that are being sent or wait for it.
    pub fn queue(&self) -> usize {
        Arc::strong_count(&self.queue) - 1
    }
}

impl Upload {
    /// Waits until this many more bytes may be sent.
    pub async fn pass(&mut self, bytes: usize) {
        // A delay by this node's own limit is not the receiver's fault.
        let typical = Duration::from_micros(self.typical.load(Ordering::Relaxed));
        if self.pace.is_none() && is_slow(self.began.elapsed(), typical) {
            self.place = None;
        }
        let Some(pace) = &self.pace else { return };
        tokio::time::sleep_until(pace.take(bytes as u64, Instant::now())).await;
    }
}

impl Pace {
    /// When bytes that are requested at `now` may be sent.
    fn take(&self, bytes: u64, now: Instant) -> Instant {
        let mut next = self.next.lock();
        let leave = (*next).max(now.checked_sub(BURST).unwrap_or(now));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        *next = leave + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        *next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_are_sent_no_faster_than_allowed() {
        let now = Instant::now() + Duration::from_secs(10);
        let pace = Pace { rate: 1_000_000, next: Mutex::new(Instant::now()) };
        assert_eq!(pace.take(100_000, now), now, "a burst after a quiet time");
        assert_eq!(pace.take(500_000, now), now + Duration::from_millis(500));
        assert_eq!(pace.take(500_000, now), now + Duration::from_secs(1), "they share the rate");
    }

    #[tokio::test]
    async fn the_wait_for_a_permit_is_limited() {
        let uploads = Uploads::new(1, None);
        let first = uploads.acquire(Duration::from_secs(1)).await.expect("it is free");
        assert_eq!(uploads.queue(), 1);
        assert!(uploads.acquire(Duration::from_millis(10)).await.is_none());
        assert_eq!(uploads.queue(), 1, "a request that timed out no longer counts");
        drop(first);
        assert_eq!(uploads.queue(), 0);
        assert!(uploads.acquire(Duration::from_millis(10)).await.is_some());
    }

    #[test]
    fn a_receiver_is_slow_when_others_would_have_finished_long_ago() {
        let seconds = Duration::from_secs;
        for (taken, usual, slow) in [(1, 0, false), (2, 0, true), (2, 1, false), (4, 1, true), (9, 5, false)]
        {
            assert_eq!(is_slow(seconds(taken), seconds(usual)), slow, "{taken} s where {usual} s are usual");
        }
    }

    #[tokio::test]
    async fn a_slow_receiver_does_not_block_uploads_to_others() {
        let uploads = Uploads::new(1, None);
        let mut slow = uploads.acquire(SLOW).await.expect("it is free");
        slow.began = Instant::now().checked_sub(2 * SLOW).expect("the machine is up for longer");
        slow.pass(1).await;
        assert_eq!(uploads.queue(), 0);
        assert!(uploads.acquire(Duration::from_millis(10)).await.is_some());
    }
}
