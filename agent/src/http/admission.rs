//! How many clients a listener serves at once, and what those above that number are told.
//!
//! A client that waits for a connection waits silently, and container runtimes have no time-out of their own for that. So
//! every connection is accepted; above the limit it is answered once, with 503 and `Retry-After`, and closed. The answers
//! under way are bounded too: above that number a connection is closed without one.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Refusals under way at once.
const REFUSALS: usize = 256;

/// Longest time for a client to send the request that is refused, and to take the answer.
pub(super) const REFUSAL: Duration = Duration::from_secs(1);

/// Least time between two log lines about refused clients.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// What becomes of a connection. The permits are held for as long as it is open.
#[derive(Debug)]
pub(super) enum Admitted {
    /// Its requests are answered.
    Served(OwnedSemaphorePermit),
    /// Its first request is answered with a refusal.
    Refused(OwnedSemaphorePermit),
    /// It is closed.
    Closed,
}

/// The number of open connections of one listener.
#[derive(Debug)]
pub(super) struct Admission {
    open: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    limit: usize,
    refused: Mutex<Refused>,
}

/// Refused clients since the last log line.
#[derive(Debug, Default)]
struct Refused {
    count: u64,
    logged: Option<Instant>,
}

impl Admission {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            open: Arc::new(Semaphore::new(limit)),
            refusals: Arc::new(Semaphore::new(REFUSALS)),
            limit,
            refused: Mutex::default(),
        }
    }

    /// Decides about a connection that was accepted just now.
    pub(super) fn admit(&self) -> Admitted {
        if let Ok(permit) = self.open.clone().try_acquire_owned() {
            return Admitted::Served(permit);
        }
        self.log();
        match self.refusals.clone().try_acquire_owned() {
            Ok(permit) => Admitted::Refused(permit),
            Err(_) => Admitted::Closed,
        }
    }

    fn log(&self) {
        let due = self.refused.lock().unwrap_or_else(PoisonError::into_inner).due(Instant::now());
        if let Some(count) = due {
            tracing::warn!(
                limit = self.limit,
                count,
                "clients refused: all connections of `limits.connections` are in use"
            );
        }
    }
}

impl Refused {
    /// Counts one more; the number to log when a line is due. Pure.
    fn due(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        if self.logged.is_some_and(|at| now.saturating_duration_since(at) < LOG_INTERVAL) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_above_the_limit_are_refused_and_those_above_that_are_closed() {
        let admission = Admission::new(2);
        let mut held: Vec<_> = (0..=(2 + REFUSALS)).map(|_| admission.admit()).collect();
        let served = held.iter().filter(|one| matches!(one, Admitted::Served(_))).count();
        let refused = held.iter().filter(|one| matches!(one, Admitted::Refused(_))).count();
        assert_eq!((served, refused), (2, REFUSALS));
        assert!(matches!(held.last(), Some(Admitted::Closed)));
        held.clear();
        assert!(matches!(admission.admit(), Admitted::Served(_)));
    }

    #[test]
    fn refused_clients_are_logged_once_in_a_while_with_their_number() {
        let (mut refused, begin) = (Refused::default(), Instant::now());
        for (at, expected) in [(0, Some(1)), (1, None), (59, None), (60, Some(3)), (61, None), (200, Some(2))]
        {
            assert_eq!(refused.due(begin + Duration::from_secs(at)), expected, "{at}");
        }
    }
}
