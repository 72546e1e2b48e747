//! Whether this node is slow: the best recent rate of its link, compared with the rates that other peers report.
//!
//! A slow node between others delays all of them, and only the node itself can tell all of them the same. So each
//! request for a piece contains the requester's rate, and a node that is much slower than most others while its link is
//! full becomes a leaf ([`super::plan`]): it fetches for itself, and redirects requests. What one peer reports counts as
//! much as what any other does.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::limits::peers::speed::{
    AT_ONCE, BURST, ENOUGH, HALF_LIFE, MEMORY, MOST, PAUSE, RENEW, SHARE, SILENT_PEERS, SILENT_SPAN, WINDOW,
    WINDOWS,
};

/// The rates of this node and its peers.
#[derive(Debug, Default)]
pub struct Speeds {
    own: Own,
    others: HashMap<String, (u64, Instant)>,
    median: Option<u64>,
    notes: u32,
    /// Peers that seemed dead recently, and when.
    silent: HashMap<String, Instant>,
    slow: bool,
}

#[derive(Debug, Default)]
struct Own {
    /// Bytes that have arrived so far.
    total: u64,
    window: Option<Window>,
    windows: u32,
    /// Peers that are sending pieces now, and how many each.
    senders: HashMap<String, usize>,
    /// Windows in a row in which enough peers were sending all the time.
    full: u32,
    /// Bytes per second, and when measured.
    best: Option<(f64, Instant)>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    last: Instant,
    bytes: u64,
    /// The fewest peers that were sending at once.
    senders: usize,
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "estimates"
)]
impl Speeds {
    /// Bytes of content have arrived at this node.
    pub fn note_arrival(&mut self, bytes: u64, now: Instant) {
        let own = &mut self.own;
        own.total = own.total.wrapping_add(bytes);
        let window = match &mut own.window {
            Some(window) if now.duration_since(window.last) < PAUSE => window,
            window => {
                // The bytes arrived before the window starts.
                *window = Some(Window { since: now, last: now, bytes: 0, senders: own.senders.len() });
                own.full = 0;
                return;
            }
        };
        (window.last, window.bytes) = (now, window.bytes + bytes);
        let taken = now.duration_since(window.since);
        if taken < WINDOW {
            return;
        }
        let rate = window.bytes.saturating_sub(BURST) as f64 / taken.as_secs_f64();
        own.full = if window.senders >= AT_ONCE { own.full + 1 } else { 0 };
        (window.since, window.bytes, window.senders) = (now, 0, own.senders.len());
        own.windows += 1;
        let before = own.best.map_or(0.0, |best| decayed(best, now));
        own.best = Some((rate.max(before), now));
        self.look(now);
    }

    /// A peer begins to send a piece.
    pub fn begin_piece(&mut self, peer: &str) {
        *self.own.senders.entry(peer.to_owned()).or_default() += 1;
    }

    /// A piece has ended, one way or the other.
    pub fn end_piece(&mut self, peer: &str) {
        let own = &mut self.own;
        if let Some(count) = own.senders.get_mut(peer) {
            *count -= 1;
            if *count == 0 {
                own.senders.remove(peer);
            }
        }
        if let Some(window) = &mut own.window {
            window.senders = window.senders.min(own.senders.len());
        }
    }

    /// A peer seemed dead: no connection, or no answer in time.
    pub fn note_silent(&mut self, peer: &str, now: Instant) {
        self.silent.retain(|_, noted| now.duration_since(*noted) < SILENT_SPAN);
        // More peers would not change the decision.
        if self.silent.len() < SILENT_PEERS || self.silent.contains_key(peer) {
            self.silent.insert(peer.to_owned(), now);
        }
        self.look(now);
    }

    /// The rate that this node reports to others, in bytes per second; `None` before it was measured.
    pub fn own(&self) -> Option<u64> {
        self.own.best.filter(|_| self.own.windows >= WINDOWS).map(|(rate, _)| rate as u64)
    }

    /// A peer reported its rate, in bytes per second.
    pub fn note_peer(&mut self, peer: &str, rate: u64, now: Instant) {
        if self.others.len() >= MOST && !self.others.contains_key(peer) {
            return;
        }
        self.others.insert(peer.to_owned(), (rate, now));
        if self.notes.is_multiple_of(RENEW) || self.others.len() <= ENOUGH {
            self.others.retain(|_, (_, noted)| now.duration_since(*noted) < MEMORY);
            let mut rates: Vec<_> = self.others.values().map(|(rate, _)| *rate).collect();
            let middle = rates.len() / 2;
            self.median = (rates.len() >= ENOUGH).then(|| *rates.select_nth_unstable(middle).1);
        }
        self.notes = self.notes.wrapping_add(1);
        self.look(now);
    }

    /// A slow node stays slow until its link has carried more: it receives few pieces at once, and with its longer time
    /// limits no peer seems dead.
    fn look(&mut self, now: Instant) {
        let below = match (self.own(), self.median) {
            (Some(own), Some(median)) => (own as f64) < SHARE * median as f64,
            _ => false,
        };
        let silent = self.silent.values().filter(|noted| now.duration_since(**noted) < SILENT_SPAN).count();
        let full = self.own.full >= WINDOWS || silent >= SILENT_PEERS;
        self.slow = below && (self.slow || full);
    }

    /// Bytes that have arrived so far.
    pub fn arrived(&self) -> u64 {
        self.own.total
    }

    /// For how long nothing has arrived.
    pub fn quiet_for(&self, now: Instant) -> Duration {
        self.own.window.as_ref().map_or(Duration::MAX, |window| now.duration_since(window.last))
    }

    /// Whether this node is much slower than most others although its link is full.
    pub fn is_slow(&self) -> bool {
        self.slow
    }
}

fn decayed((rate, at): (f64, Instant), now: Instant) -> f64 {
    rate * 0.5_f64.powf(now.duration_since(at).as_secs_f64() / HALF_LIFE.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A node whose link carries `rate` bytes per second for some seconds.
    fn fed(rate: u64, seconds: u64) -> (Speeds, Instant) {
        let (mut speeds, start) = (Speeds::default(), Instant::now());
        let now = |step| start + Duration::from_millis(step * 100);
        (0..=seconds * 10).for_each(|step| speeds.note_arrival(rate / 10, now(step)));
        (speeds, now(seconds * 10))
    }

    #[test]
    fn a_node_is_slow_when_most_others_are_much_faster() {
        let table: [(u64, &[u64], bool); 7] = [
            (1, &[12, 12, 11, 13], true),
            (5, &[12, 12, 11, 13], false),
            (12, &[12, 12, 11, 13], false),
            (1, &[12, 12, 12], false),
            (2, &[2, 2, 2, 2, 100_000], false),
            (12, &[1, 1, 12, 12, 12, 100_000, 100_000], false),
            (1, &[1, 12, 12, 12], true),
        ];
        for (own, others, slow) in table {
            let (mut speeds, now) = fed(own * MIB, 3);
            for (at, rate) in others.iter().enumerate() {
                (0..RENEW).for_each(|_| speeds.note_peer(&format!("peer-{at}"), rate * MIB, now));
            }
            assert!(!speeds.is_slow(), "all peers answer: the node only waits for them");
            (0..2).for_each(|_| speeds.note_silent("peer-0", now));
            assert!(!speeds.is_slow(), "one peer may be dead");
            speeds.note_silent("peer-1", now);
            assert_eq!(speeds.is_slow(), slow, "{own} beside {others:?}");
        }
    }

    #[test]
    fn a_node_is_slow_when_many_peers_send_at_once_and_little_arrives() {
        for (senders, each, short, slow) in [
            (AT_ONCE, 1, false, true),
            (AT_ONCE - 1, 1, false, false),
            // The fault may be one peer's.
            (1, 3 * AT_ONCE, false, false),
            // One piece ends in each window, and the next one begins.
            (AT_ONCE, 1, true, false),
            (AT_ONCE, 2, true, true),
            (AT_ONCE + 1, 1, true, true),
            (0, 0, false, false),
        ] {
            let (mut speeds, start) = (Speeds::default(), Instant::now());
            (0..ENOUGH).for_each(|at| speeds.note_peer(&format!("peer-{at}"), 12 * MIB, start));
            let names: Vec<_> = (0..senders).map(|at| format!("sender-{at}")).collect();
            for name in names.iter().flat_map(|name| std::iter::repeat_n(name, each)) {
                speeds.begin_piece(name);
            }
            for step in 0..30 {
                speeds.note_arrival(MIB / 10, start + Duration::from_millis(step * 100));
                if short {
                    speeds.end_piece("sender-0");
                    speeds.begin_piece("sender-0");
                }
            }
            assert_eq!(speeds.is_slow(), slow, "{senders} peers with {each} pieces, {short}");
        }
    }

    #[test]
    fn a_burst_after_a_pause_does_not_make_a_slow_link_fast() {
        let (mut speeds, mut now) = fed(MIB / 2, 3);
        for at in 0..4 {
            (0..RENEW).for_each(|_| speeds.note_peer(&format!("peer-{at}"), 5 * MIB, now));
            speeds.note_silent(&format!("peer-{at}"), now);
        }
        for _ in 0..20 {
            now += Duration::from_secs(1);
            speeds.note_arrival(0, now);
            speeds.note_arrival(BURST, now + Duration::from_millis(10));
            (1..=6).for_each(|step| speeds.note_arrival(MIB / 20, now + Duration::from_millis(step * 100)));
        }
        assert!(speeds.is_slow(), "{:?}", speeds.own());
    }

    #[test]
    fn a_speed_is_measured_without_the_pauses() {
        let (speeds, _) = fed(10 * MIB, 3);
        let near = |rate: u64| (8 * MIB..11 * MIB).contains(&rate);
        assert!(speeds.own().is_some_and(near), "{:?}", speeds.own());
        assert_eq!(fed(10 * MIB, 0).0.own(), None, "too early");
        let (mut speeds, mut now) = fed(10 * MIB, 3);
        for _ in 0..100 {
            now += Duration::from_millis(450);
            speeds.note_arrival(1_000, now);
        }
        assert!(speeds.own().is_some_and(near), "a node that waits for others is not slow");
    }

    #[test]
    fn a_link_that_becomes_slow_or_recovers_is_noticed() {
        let (mut speeds, mut now) = fed(10 * MIB, 3);
        for _ in 0..6_000 {
            now += Duration::from_millis(100);
            speeds.note_arrival(MIB / 10, now);
        }
        assert!(speeds.own().is_some_and(|rate| rate < 2 * MIB), "{:?}", speeds.own());
        for _ in 0..20 {
            now += Duration::from_millis(100);
            speeds.note_arrival(MIB, now);
        }
        assert!(speeds.own().is_some_and(|rate| rate > 8 * MIB));
    }
}
