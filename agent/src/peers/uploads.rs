//! What this node gives to others: so many pieces at once, first come first served, and so many bytes a second.
//!
//! Few at once, because a piece that arrives whole is passed on at once, while many that arrive slowly side by side
//! help nobody yet.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::limits::peers::uploads::{BURST, SLOW, TIMES, WAITING};

/// Limits of what this node gives. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Uploads {
    slots: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// Pieces that are being sent or wait for it: the references beyond the first.
    queue: Arc<()>,
    /// What sending a piece takes as a rule, in microseconds.
    typical: Arc<AtomicU64>,
    pace: Option<Arc<Pace>>,
}

/// The right to send one piece.
#[derive(Debug)]
pub struct Upload {
    /// Given back early when the receiver is slow: it hardly uses this node's link, and others wait.
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

/// The right to wait.
#[derive(Debug)]
pub struct Waiting(#[expect(dead_code, reason = "only its life counts")] OwnedSemaphorePermit);

#[derive(Debug)]
struct Pace {
    rate: u64,
    /// When the next byte may leave.
    next: Mutex<Instant>,
}

impl Uploads {
    pub(super) fn new(slots: usize, rate: Option<u64>) -> Self {
        let pace = rate.map(|rate| Arc::new(Pace { rate: rate.max(1), next: Mutex::new(Instant::now()) }));
        let (slots, waiting) = (Arc::new(Semaphore::new(slots)), Arc::new(Semaphore::new(WAITING)));
        Self { slots, waiting, queue: Arc::default(), typical: Arc::default(), pace }
    }

    /// A place among those who wait; `None` when there are too many.
    pub fn wait(&self) -> Option<Waiting> {
        self.waiting.clone().try_acquire_owned().ok().map(Waiting)
    }

    /// The right to send a piece, in the order of asking; `None` when it takes longer than `limit`.
    pub async fn acquire(&self, limit: Duration) -> Option<Upload> {
        let queued = self.queue.clone();
        let slot = tokio::time::timeout(limit, self.slots.clone().acquire_owned()).await.ok()?.ok()?;
        let place = Some(Place { _slot: slot, _queued: queued });
        Some(Upload { place, began: Instant::now(), typical: self.typical.clone(), pace: self.pace.clone() })
    }

    /// How many pieces are being sent or wait for their turn.
    pub fn queue(&self) -> usize {
        Arc::strong_count(&self.queue) - 1
    }
}

impl Upload {
    /// Waits until so many more bytes may leave.
    pub async fn pass(&mut self, bytes: usize) {
        // A limit of this node's own is no fault of the receiver.
        let typical = Duration::from_micros(self.typical.load(Ordering::Relaxed));
        if self.pace.is_none() && is_slow(self.began.elapsed(), typical) {
            self.place = None;
        }
        let Some(pace) = &self.pace else { return };
        tokio::time::sleep_until(pace.take(bytes as u64, Instant::now())).await;
    }
}

impl Pace {
    /// When bytes that are asked for at `now` may leave.
    fn take(&self, bytes: u64, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
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
    async fn bytes_leave_no_faster_than_allowed() {
        let now = Instant::now() + Duration::from_secs(10);
        let pace = Pace { rate: 1_000_000, next: Mutex::new(Instant::now()) };
        assert_eq!(pace.take(100_000, now), now, "a burst after a quiet time");
        assert_eq!(pace.take(500_000, now), now + Duration::from_millis(500));
        assert_eq!(pace.take(500_000, now), now + Duration::from_secs(1), "they share the rate");
    }

    #[tokio::test]
    async fn a_turn_is_waited_for_only_so_long() {
        let uploads = Uploads::new(1, None);
        let first = uploads.acquire(Duration::from_secs(1)).await.expect("it is free");
        assert_eq!(uploads.queue(), 1);
        assert!(uploads.acquire(Duration::from_millis(10)).await.is_none());
        assert_eq!(uploads.queue(), 1, "who gave up waits no more");
        drop(first);
        assert_eq!(uploads.queue(), 0);
        assert!(uploads.acquire(Duration::from_millis(10)).await.is_some());
    }

    #[test]
    fn a_receiver_is_slow_when_others_would_have_the_piece_long_ago() {
        let seconds = Duration::from_secs;
        for (taken, usual, slow) in [(1, 0, false), (2, 0, true), (2, 1, false), (4, 1, true), (9, 5, false)]
        {
            assert_eq!(is_slow(seconds(taken), seconds(usual)), slow, "{taken} s where {usual} s are usual");
        }
    }

    #[tokio::test]
    async fn a_slow_receiver_keeps_nobody_from_sending_to_others() {
        let uploads = Uploads::new(1, None);
        let mut slow = uploads.acquire(SLOW).await.expect("it is free");
        slow.began = Instant::now().checked_sub(2 * SLOW).expect("the machine is up for longer");
        slow.pass(1).await;
        assert_eq!(uploads.queue(), 0);
        assert!(uploads.acquire(Duration::from_millis(10)).await.is_some());
    }
}
