//! A circuit breaker per endpoint: an endpoint that fails again and again is left alone for a growing while, so that
//! a dead registry costs milliseconds. Pure: time is handed in.
//!
//! ```text
//! closed --3 failures in a row--> open (1 s, doubling to 30 s) --time is up--> one probe --success--> closed
//!                                   ^------------------------------------------failure--+
//! ```

use std::time::{Duration, Instant};

/// Failures in a row that open the circuit.
const FAILURES: u32 = 3;

/// First time open; doubles with each failed probe.
const FIRST: Duration = Duration::from_secs(1);

/// Longest time open.
const LONGEST: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    /// Whether a request may be sent; how long to wait otherwise. A request let through while open is the probe: the
    /// next one has to wait for its outcome, or for as long again.
    pub(super) fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match self.open_until {
            None => Ok(()),
            Some(until) if now < until => Err(until - now),
            Some(_) => {
                self.open_until = Some(now + self.pause());
                Ok(())
            }
        }
    }

    fn pause(&self) -> Duration {
        FIRST.saturating_mul(2_u32.saturating_pow(self.failures.saturating_sub(FAILURES))).min(LONGEST)
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    pub(super) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES {
            self.open_until = Some(now + self.pause());
        }
    }

    /// How long the endpoint is still left alone.
    pub(super) fn open_for(&self, now: Instant) -> Option<Duration> {
        self.open_until.and_then(|until| until.checked_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_three_failures_probes_once_and_closes_on_success() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut breaker = Breaker::default();
        breaker.failed(at(0));
        breaker.failed(at(0));
        breaker.succeeded();
        breaker.failed(at(0));
        breaker.failed(at(0));
        assert!(breaker.admit(at(0)).is_ok(), "not three in a row");
        breaker.failed(at(0));
        assert_eq!(breaker.admit(at(400)), Err(Duration::from_millis(600)));
        assert!(breaker.admit(at(1_000)).is_ok(), "the probe");
        assert!(breaker.admit(at(1_001)).is_err(), "one at a time");
        breaker.failed(at(1_010));
        assert_eq!(breaker.open_for(at(1_010)), Some(Duration::from_secs(2)));
        for _ in 0..20 {
            breaker.failed(at(1_010));
        }
        assert_eq!(breaker.open_for(at(1_010)), Some(LONGEST));
        breaker.succeeded();
        assert!(breaker.admit(at(1_011)).is_ok());
    }
}
