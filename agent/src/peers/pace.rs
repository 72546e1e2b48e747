//! The rates at which peers send to this node. A parent that is much slower than the others is skipped, and tried
//! again from time to time, because links recover.
//!
//! Only the time in which bytes flow counts, not the time in which the sender waited for them itself.

use std::{collections::HashMap, hash::Hash, time::Duration};

use crate::limits::peers::pace::{AGAIN, ENOUGH, MOST, PATIENCE, RENEW, SHARE, WEIGHT};

/// The rates of peers. `M` identifies a peer.
#[derive(Clone, Debug)]
pub struct Paces<M> {
    seen: HashMap<M, Seen>,
    median: f64,
    notes: u32,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Bytes per second.
    rate: f64,
    passed_over: u32,
}

impl<M> Default for Paces<M> {
    fn default() -> Self {
        Self { seen: HashMap::new(), median: 0.0, notes: 0 }
    }
}

impl<M: Eq + Hash> Paces<M> {
    /// A peer sent this many bytes in this time.
    pub fn note(&mut self, peer: M, bytes: u64, taken: Duration) {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let rate = bytes as f64 / taken.as_secs_f64().max(1e-6);
        if self.seen.len() >= MOST && !self.seen.contains_key(&peer) {
            return;
        }
        let seen = self.seen.entry(peer).or_insert(Seen { rate, passed_over: 0 });
        seen.rate += WEIGHT * (rate - seen.rate);
        if self.notes.is_multiple_of(RENEW) {
            self.median = median(self.seen.values().map(|seen| seen.rate).collect());
        }
        self.notes = self.notes.wrapping_add(1);
    }

    /// Whether a peer that has sent this many bytes in this time, and has not finished, is slow.
    pub fn is_slow_transfer(&self, bytes: u64, taken: Duration) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let rate = bytes as f64 / taken.as_secs_f64().max(1e-6);
        self.seen.len() >= ENOUGH && taken >= PATIENCE && rate < SHARE * self.median
    }

    /// Whether to skip a peer this time and use the next one.
    pub fn skips(&mut self, peer: &M) -> bool {
        if self.seen.len() < ENOUGH {
            return false;
        }
        let limit = SHARE * self.median;
        let Some(seen) = self.seen.get_mut(peer).filter(|seen| seen.rate < limit) else { return false };
        seen.passed_over = (seen.passed_over + 1) % AGAIN;
        seen.passed_over != 0
    }
}

fn median(mut rates: Vec<f64>) -> f64 {
    let middle = rates.len() / 2;
    if rates.is_empty() { 0.0 } else { *rates.select_nth_unstable_by(middle, f64::total_cmp).1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn noted(rates: &[(&'static str, u64)]) -> Paces<&'static str> {
        let mut paces = Paces::default();
        for _ in 0..2 * RENEW {
            for (peer, rate) in rates {
                paces.note(*peer, rate * MIB, Duration::from_secs(1));
            }
        }
        paces
    }

    #[test]
    fn a_peer_much_slower_than_the_others_is_skipped_and_tried_from_time_to_time() {
        let mut paces = noted(&[("a", 20), ("b", 25), ("c", 30), ("d", 5)]);
        for fast in ["a", "b", "c", "unknown"] {
            assert!((0..100).all(|_| !paces.skips(&fast)), "{fast}");
        }
        let asked = (0..160).filter(|_| !paces.skips(&"d")).count();
        assert_eq!(asked, 10);
        for _ in 0..20 {
            paces.note("d", 24 * MIB, Duration::from_secs(1));
        }
        assert!(!paces.skips(&"d"), "its link has recovered");
    }

    #[test]
    fn a_transfer_is_slow_when_others_would_have_finished_long_ago() {
        let paces = noted(&[("a", 20), ("b", 20), ("c", 20), ("d", 20)]);
        for (mib, millis, slow) in [(1, 1_000, true), (1, 900, false), (10, 1_000, false), (0, 1_000, true)] {
            assert_eq!(
                paces.is_slow_transfer(mib * MIB, Duration::from_millis(millis)),
                slow,
                "{mib} in {millis} ms"
            );
        }
        assert!(!noted(&[("a", 20)]).is_slow_transfer(0, Duration::from_secs(9)));
    }

    #[test]
    fn with_few_peers_or_a_slow_link_no_peer_is_called_slow() {
        let mut few = noted(&[("a", 20), ("b", 20), ("c", 1)]);
        assert!(!few.skips(&"c"));
        let mut even = noted(&[("a", 2), ("b", 2), ("c", 3), ("d", 1)]);
        assert!(["a", "b", "c", "d"].iter().all(|peer| !even.skips(peer)));
    }
}
