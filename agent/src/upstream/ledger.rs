//! The budget of one registry for the background work of all nodes, as its owner keeps it. Pure: time is passed in.
//!
//! The owner knows what the registry said last, to any node that reported it, and which requests it has granted since: these may be
//! under way, and the registry has not counted them yet. A grant is for one content, so that many nodes that need the same
//! manifest, which is read once for all of them, need one grant together.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::limits::{Told, is_below_reserve};

/// A request that was granted reaches the registry within this time, or not at all.
const UNDER_WAY: Duration = Duration::from_secs(5);

/// For how long a content that was granted needs no further grant: other nodes get it from the node that has requested it.
const REMEMBERED: Duration = Duration::from_mins(10);

/// Most grants that are remembered.
const MOST: usize = 10_000;

/// Longest window that is believed.
const LONGEST_WINDOW: Duration = Duration::from_hours(24);

/// Answers that cross on their way to the owner: within this time a larger number is an older one, later it is a new window's.
const CROSSING: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
struct Known {
    limit: u64,
    remaining: u64,
    window: Duration,
    at: Instant,
    /// The first answer of the window: it is refilled one window later at the latest.
    since: Instant,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    known: Option<Known>,
    /// By content: when its request was granted.
    granted: HashMap<u64, Instant>,
}

impl Ledger {
    /// Another node's report, or this node's own knowledge.
    pub(super) fn learn(&mut self, told: Told, now: Instant) {
        let Told { limit, remaining, window, age, .. } = told;
        let Some(at) = now.checked_sub(age).filter(|_| window <= LONGEST_WINDOW) else { return };
        let before = self.known.filter(|known| now < known.since + known.window);
        let since = match before {
            Some(known) if at <= known.at => return,
            Some(known) if remaining <= known.remaining => known.since,
            Some(known) if at < known.at + CROSSING => return,
            _ => at,
        };
        self.known = Some(Known { limit, remaining, window, at, since });
    }

    /// Grants the request for a content, or says how long to wait.
    pub(super) fn grant(&mut self, subject: u64, now: Instant) -> Result<(), Duration> {
        self.granted.retain(|_, granted| now < *granted + REMEMBERED);
        if self.granted.contains_key(&subject) {
            return Ok(());
        }
        if self.granted.len() >= MOST {
            self.granted.retain(|_, granted| now < *granted + UNDER_WAY);
        }
        if let Some(known) = self.known.filter(|known| now < known.since + known.window) {
            let under_way = self.granted.values().filter(|granted| now < **granted + UNDER_WAY).count();
            let under_way = u64::try_from(under_way).unwrap_or(u64::MAX);
            if is_below_reserve(known.limit, known.remaining) {
                return Err(known.since + known.window - now);
            }
            if is_below_reserve(known.limit, known.remaining.saturating_sub(under_way)) {
                return Err(UNDER_WAY);
            }
        }
        if self.granted.len() < MOST {
            self.granted.insert(subject, now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_mins(10);

    fn told(remaining: u64, age: u64) -> Told {
        Told { source: 0, limit: 100, remaining, window: WINDOW, age: Duration::from_secs(age) }
    }

    fn granted(ledger: &mut Ledger, subjects: std::ops::Range<u64>, now: Instant) -> usize {
        subjects.filter(|subject| ledger.grant(*subject, now).is_ok()).count()
    }

    #[test]
    fn all_nodes_together_leave_the_reserve() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        assert_eq!(granted(&mut ledger, 0..5, now), 5, "nothing is known of a limit");
        ledger.learn(told(50, 0), now);
        // The registry may not have counted those five.
        assert_eq!(granted(&mut ledger, 5..200, now), 16, "down to 30, which is not below the reserve");
        assert_eq!(granted(&mut ledger, 0..21, now), 21, "the same contents need no second request");
        assert_eq!(ledger.grant(999, now), Err(UNDER_WAY));
        // Most of them were not needed; the registry's next answer says so.
        let later = now + UNDER_WAY;
        ledger.learn(told(40, 0), later);
        assert_eq!(granted(&mut ledger, 200..300, later), 11);
        assert!(ledger.grant(3, later).is_ok(), "some node has it by now");
        ledger.learn(told(29, 0), later + UNDER_WAY * 2);
        let now = later + UNDER_WAY * 2;
        assert_eq!(ledger.grant(999, now), Err(WINDOW.saturating_sub(UNDER_WAY * 3)));
        assert!(ledger.grant(999, now + WINDOW).is_ok(), "the window is refilled");
    }

    #[test]
    fn reports_that_are_old_or_cross_on_their_way_change_nothing() {
        let now = Instant::now() + WINDOW * 2;
        for (first, second, expected) in [
            (told(80, 1), told(20, 2), 80),
            (told(20, 2), told(90, 1), 20),
            (told(20, 300), told(90, 1), 90),
            (told(80, 2), told(20, 1), 20),
            (told(20, 601), told(90, 599), 90),
        ] {
            let mut ledger = Ledger::default();
            ledger.learn(first, now);
            ledger.learn(second, now);
            assert_eq!(ledger.known.map(|known| known.remaining), Some(expected), "{first:?} {second:?}");
        }
        let mut ledger = Ledger::default();
        ledger.learn(Told { window: LONGEST_WINDOW * 2, ..told(0, 0) }, now);
        assert!(ledger.known.is_none());
    }
}
