//! Which peers to leave alone, and for how long: growing with every failure in a row, gone with the first success.
//!
//! Kept in memory only. A peer that sent corrupt bytes is quarantined for longer, and a busy one is skipped for a moment.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::limits::peers::health::{BUSY, FIRST, LIE, LONGEST, MOST};

#[derive(Debug, Default)]
pub(super) struct Health(Mutex<HashMap<String, State>>);

#[derive(Clone, Copy, Debug)]
struct State {
    failures: u32,
    until: Instant,
    lied: bool,
}

impl Health {
    /// Whether to ask it at all.
    pub(super) fn is_usable(&self, peer: &str) -> bool {
        self.is_usable_at(peer, Instant::now())
    }

    /// Whether to ask it for what only it is to read upstream: everyone else would read the same once more. On a full
    /// link one answer in thousands comes late, so a single failure does not keep anyone from that.
    pub(super) fn is_trusted(&self, peer: &str) -> bool {
        self.is_trusted_at(peer, Instant::now())
    }

    fn is_usable_at(&self, peer: &str, now: Instant) -> bool {
        self.lock().get(peer).is_none_or(|state| state.until <= now)
    }

    fn is_trusted_at(&self, peer: &str, now: Instant) -> bool {
        self.lock().get(peer).is_none_or(|state| state.until <= now || (state.failures == 1 && !state.lied))
    }

    /// It answered as it should.
    pub(super) fn succeeded(&self, peer: &str) {
        let now = Instant::now();
        let mut states = self.lock();
        // A liar's answers look like any other's.
        if states.get(peer).is_some_and(|state| !state.lied || state.until <= now) {
            states.remove(peer);
        }
    }

    /// It did not answer, or broke off.
    pub(super) fn failed(&self, peer: &str) {
        self.fail_at(peer, Instant::now());
    }

    fn fail_at(&self, peer: &str, now: Instant) {
        self.note(peer, now, |state| {
            // Requests that were under way together are one failure.
            if state.until <= now {
                let failures = (state.failures + 1).min(16);
                *state = State { failures, until: now + pause(failures), lied: false };
            }
        });
    }

    /// It said that it is busy.
    pub(super) fn busy(&self, peer: &str) {
        let now = Instant::now();
        let until = now + BUSY;
        self.note(peer, now, |state| state.until = state.until.max(until));
    }

    /// It sent wrong bytes.
    pub(super) fn lied(&self, peer: &str) {
        let now = Instant::now();
        let until = now + LIE;
        self.note(peer, now, |state| *state = State { failures: 0, until, lied: true });
    }

    fn note(&self, peer: &str, now: Instant, change: impl FnOnce(&mut State)) {
        let mut states = self.lock();
        if states.len() >= MOST {
            states.retain(|_, state| state.until > now);
        }
        if states.len() < MOST || states.contains_key(peer) {
            change(states.entry(peer.to_owned()).or_insert(State { failures: 0, until: now, lied: false }));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For how long it is left alone after so many failures in a row.
fn pause(failures: u32) -> Duration {
    FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let pauses: Vec<_> = [1, 2, 3, 9, 10, 16].map(|failures| pause(failures).as_secs()).into();
        assert_eq!(pauses, [1, 2, 4, 256, 300, 300]);
    }

    #[test]
    fn a_member_is_left_alone_longer_with_every_failure_and_comes_back_with_a_success() {
        let (health, start) = (Health::default(), Instant::now());
        assert!(health.is_usable("a"));
        let mut now = start;
        for expected in [1, 2, 4] {
            health.fail_at("a", now);
            health.fail_at("a", now);
            let before = now + Duration::from_millis(expected * 1_000 - 1);
            assert!(!health.is_usable_at("a", before));
            assert_eq!(health.is_trusted_at("a", before), expected == 1, "one failure may be a full link");
            now += Duration::from_secs(expected);
            assert!(health.is_usable_at("a", now));
        }
        health.succeeded("a");
        assert!(health.is_usable_at("a", start));
        health.lied("b");
        health.succeeded("b");
        health.fail_at("b", start);
        let soon = start + Duration::from_mins(9);
        assert!(!health.is_usable_at("b", soon) && !health.is_trusted_at("b", soon), "a liar stays out");
    }
}
