//! The budget of one registry for the background work of all nodes, as its owner keeps it. Pure: time is passed in.
//!
//! The owner knows what the registry said last, to any node that reported it, and which requests it has granted since: these may be
//! under way, and the registry has not counted them yet. A grant is for one content, so that many nodes that need the same
//! manifest, which is read once for all of them, need one grant together. Nodes that have granted requests themselves, because
//! they were the owner before or no owner answered, report how many.
//!
//! A registry counts by account or address ("source"). A node that was told nothing yet belongs to the source that is known.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::limits::{Told, leaves_reserve};
use crate::types::RegistryHost;

/// A request that was granted is counted in the answers that nodes get later than this, or was not sent. An answer to `HEAD` may take
/// 5 s (`limits.firstHeader`), and a node may ask three owners for 2 s each before it grants itself.
const UNDER_WAY: Duration = Duration::from_secs(15);

/// For how long a content that was granted needs no further grant: other nodes get it from the node that has requested it.
const REMEMBERED: Duration = Duration::from_mins(10);

/// Most grants that are remembered, and most nodes whose own grants are.
const MOST: usize = 10_000;

/// Most own grants of one node that are believed.
const MOST_OF_ONE: u64 = 64;

/// Most ledgers.
const MOST_LEDGERS: usize = 1_024;

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
    /// When the requests were granted that the registry has not counted, the oldest first.
    uncounted: VecDeque<Instant>,
    /// By node: how many requests it has granted itself, and when it said so.
    elsewhere: HashMap<String, (u64, Instant)>,
}

/// The ledgers of all registries, by the source of their limits.
#[derive(Debug, Default)]
pub(super) struct Ledgers(HashMap<(RegistryHost, u64), Ledger>);

impl Ledgers {
    /// A node asks. `told` is what it was told, `own` what this node was told. `None` for the ledger beyond the limit.
    pub(super) fn of(
        &mut self,
        registry: &RegistryHost,
        told: Option<Told>,
        own: Option<Told>,
        now: Instant,
    ) -> Option<&mut Ledger> {
        let source =
            told.or(own).map(|told| told.source).or_else(|| self.known_source(registry)).unwrap_or(0);
        let key = (registry.clone(), source);
        if !self.0.contains_key(&key) {
            // What was granted before anything was told.
            let early = self.0.remove(&(registry.clone(), 0)).unwrap_or_default();
            if self.0.len() >= MOST_LEDGERS {
                return None;
            }
            self.0.insert(key.clone(), early);
        }
        let ledger = self.0.get_mut(&key)?;
        for told in own.filter(|own| own.source == source).into_iter().chain(told) {
            ledger.learn(told, now);
        }
        Some(ledger)
    }

    fn known_source(&self, registry: &RegistryHost) -> Option<u64> {
        let known = self.0.iter().filter(|((of, _), _)| of == registry);
        known.max_by_key(|(_, ledger)| ledger.known.map(|known| known.at)).map(|((_, source), _)| *source)
    }

    /// How many requests this node has granted that may be under way.
    pub(super) fn under_way(&self, registry: &RegistryHost, now: Instant) -> u64 {
        self.0
            .iter()
            .filter(|((of, _), _)| of == registry)
            .map(|(_, ledger)| ledger.granted_lately(now))
            .sum()
    }
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
        // Requests of waiting pods count too: then fewer seem to be under way than are, until the next report.
        let counted = before.map_or(0, |known| known.remaining.saturating_sub(remaining));
        let counted = usize::try_from(counted).unwrap_or(usize::MAX).min(self.uncounted.len());
        self.uncounted.drain(..counted);
        self.known = Some(Known { limit, remaining, window, at, since });
    }

    /// What a node has granted itself.
    pub(super) fn note_elsewhere(&mut self, peer: &str, count: u64, now: Instant) {
        self.elsewhere.retain(|_, (_, at)| now < *at + UNDER_WAY);
        if self.elsewhere.len() < MOST {
            self.elsewhere.insert(peer.to_owned(), (count.min(MOST_OF_ONE), now));
        }
    }

    fn granted_lately(&self, now: Instant) -> u64 {
        let lately = self.uncounted.iter().filter(|granted| now < **granted + UNDER_WAY).count();
        u64::try_from(lately).unwrap_or(u64::MAX)
    }

    fn under_way(&self, now: Instant) -> u64 {
        let elsewhere =
            self.elsewhere.values().filter(|(_, at)| now < *at + UNDER_WAY).map(|(count, _)| count);
        self.granted_lately(now).saturating_add(elsewhere.sum())
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
            if !leaves_reserve(known.limit, known.remaining, 1) {
                return Err(known.since + known.window - now);
            }
            if !leaves_reserve(known.limit, known.remaining.saturating_sub(self.under_way(now)), 1) {
                return Err(UNDER_WAY);
            }
        }
        if self.granted.len() < MOST {
            self.granted.insert(subject, now);
            // The registry counts a request that is later than expected before requests with later grants.
            self.uncounted.retain(|granted| now < *granted + REMEMBERED);
            self.uncounted.push_back(now);
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
        assert_eq!(granted(&mut ledger, 5..200, now), 15, "down to 30, which is the reserve");
        assert_eq!(granted(&mut ledger, 0..20, now), 20, "the same contents need no second request");
        assert_eq!(ledger.grant(999, now), Err(UNDER_WAY));
        // Most of them were not needed; the registry's next answer says so.
        let later = now + UNDER_WAY;
        ledger.learn(told(40, 0), later);
        assert_eq!(granted(&mut ledger, 200..300, later), 10);
        assert!(ledger.grant(3, later).is_ok(), "some node has it by now");
        ledger.learn(told(30, 0), later + UNDER_WAY * 2);
        let now = later + UNDER_WAY * 2;
        assert_eq!(ledger.grant(999, now), Err(WINDOW.saturating_sub(UNDER_WAY * 3)));
        assert!(ledger.grant(999, now + WINDOW).is_ok(), "the window is refilled");
    }

    #[test]
    fn a_request_that_the_registry_has_counted_is_not_under_way_any_more() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        ledger.learn(told(41, 0), now);
        assert_eq!(granted(&mut ledger, 0..6, now), 6);
        ledger.learn(told(37, 0), now + Duration::from_millis(100));
        assert_eq!(
            granted(&mut ledger, 6..99, now + Duration::from_millis(100)),
            5,
            "four of six are counted"
        );
        // The other two come so late that they are not expected any more.
        let late = now + UNDER_WAY;
        ledger.learn(told(35, 0), late);
        assert_eq!(granted(&mut ledger, 200..299, late), 0, "late requests do not count as later ones");
    }

    #[test]
    fn what_nodes_have_granted_themselves_counts() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        ledger.learn(told(50, 0), now);
        for (peer, count) in [("a", 3), ("b", 4), ("a", 5)] {
            ledger.note_elsewhere(peer, count, now);
        }
        assert_eq!(granted(&mut ledger, 0..100, now), 11, "9 of the 20 are taken");
        let mut ledger = Ledger::default();
        ledger.learn(told(100, 0), now);
        ledger.note_elsewhere("c", u64::MAX, now);
        assert_eq!(granted(&mut ledger, 0..100, now), 6, "one node is believed within limits");
        assert_eq!(granted(&mut ledger, 100..200, now + UNDER_WAY), 70, "and only for a while");
    }

    #[test]
    fn a_node_that_was_told_nothing_belongs_to_the_source_that_is_known() {
        let (registry, now) = ("r.test".parse::<RegistryHost>().unwrap(), Instant::now());
        let from = |source| Some(Told { source, ..told(31, 0) });
        let mut ledgers = Ledgers::default();
        let mut ask = |told, own, subject| {
            let ledger = ledgers.of(&registry, told, own, now).unwrap();
            let granted = ledger.grant(subject, now).is_ok();
            (granted, ledgers.under_way(&registry, now))
        };
        assert_eq!(ask(None, None, 1), (true, 1), "nothing is known");
        assert_eq!(ask(from(7), None, 2), (false, 1), "the first one takes what is left");
        assert_eq!(ask(None, None, 3), (false, 1), "as a node of the same source");
        assert_eq!(ask(from(8), None, 4), (true, 2), "another source has its own limit");
        assert_eq!(ask(None, from(7), 5), (false, 2));
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
