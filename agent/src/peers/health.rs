//! Which peers to skip, and for how long: longer with every failure in a row, until the first success.
//!
//! Kept in memory only. A peer that sent corrupt bytes is quarantined for longer, and a busy one is skipped for a moment.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::limits::peers::health::{BUSY, FIRST, LONGEST, MOST, WRONG_BYTES};

#[derive(Debug, Default)]
pub(super) struct Health(Mutex<HashMap<String, State>>);

#[derive(Clone, Copy, Debug)]
struct State {
    failures: u32,
    until: Instant,
    wrong_bytes: bool,
}

impl Health {
    /// Whether to send the peer any requests.
    pub(super) fn is_usable(&self, peer: &str) -> bool {
        self.is_usable_at(peer, Instant::now())
    }

    /// Whether to request segments that the peer is to read from the registry: its substitutes would read them a
    /// second time. On a full link one answer in thousands is late, so a single failure is ignored here.
    pub(super) fn is_trusted(&self, peer: &str) -> bool {
        self.is_trusted_at(peer, Instant::now())
    }

    fn is_usable_at(&self, peer: &str, now: Instant) -> bool {
        self.lock().get(peer).is_none_or(|state| state.until <= now)
    }

    fn is_trusted_at(&self, peer: &str, now: Instant) -> bool {
        self.lock()
            .get(peer)
            .is_none_or(|state| state.until <= now || (state.failures == 1 && !state.wrong_bytes))
    }

    /// The peer answered correctly.
    pub(super) fn succeeded(&self, peer: &str) {
        let now = Instant::now();
        let mut states = self.lock();
        // A correct answer does not end the quarantine after wrong bytes.
        if states.get(peer).is_some_and(|state| !state.wrong_bytes || state.until <= now) {
            states.remove(peer);
        }
    }

    /// The peer did not answer, or closed the connection early.
    pub(super) fn failed(&self, peer: &str) {
        self.fail_at(peer, Instant::now());
    }

    fn fail_at(&self, peer: &str, now: Instant) {
        self.note(peer, now, |state| {
            // Requests that failed at the same time are one failure.
            if state.until <= now {
                let failures = (state.failures + 1).min(16);
                *state = State { failures, until: now + pause(failures), wrong_bytes: false };
            }
        });
    }

    /// The peer answered "busy".
    pub(super) fn busy(&self, peer: &str) {
        let now = Instant::now();
        let until = now + BUSY;
        self.note(peer, now, |state| state.until = state.until.max(until));
    }

    /// The peer sent wrong bytes.
    pub(super) fn sent_wrong_bytes(&self, peer: &str) {
        let now = Instant::now();
        let until = now + WRONG_BYTES;
        self.note(peer, now, |state| *state = State { failures: 0, until, wrong_bytes: true });
    }

    fn note(&self, peer: &str, now: Instant, change: impl FnOnce(&mut State)) {
        let mut states = self.lock();
        if states.len() >= MOST {
            states.retain(|_, state| state.until > now);
        }
        if states.len() < MOST || states.contains_key(peer) {
            change(states.entry(peer.to_owned()).or_insert(State {
                failures: 0,
                until: now,
                wrong_bytes: false,
            }));
        }
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, HashMap<String, State>> {
        self.0.lock()
    }
}

/// For how long a peer is skipped after this many failures in a row.
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
    fn a_peer_is_skipped_longer_with_every_failure_and_used_again_after_a_success() {
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
        health.sent_wrong_bytes("b");
        health.succeeded("b");
        health.fail_at("b", start);
        let soon = start + Duration::from_mins(9);
        assert!(
            !health.is_usable_at("b", soon) && !health.is_trusted_at("b", soon),
            "a peer that sent wrong bytes stays quarantined"
        );
    }
}
