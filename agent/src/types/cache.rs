//! A bounded cache: the least recently used entry gives way, and entries may end after a time.
//!
//! One lock, held for one lookup. Entries whose time is over are dropped where they are found and, a few at each use of the
//! cache, among the least recently used: some of them are secrets.

use std::{
    hash::Hash,
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};

/// Ended entries that one use drops at most.
const DROPPED: usize = 2;

/// At most `most` entries. Values are cloned out of it.
#[derive(Debug)]
pub struct Cache<K: Eq + Hash, V> {
    entries: Mutex<LruCache<K, Entry<V>>>,
    most: usize,
    end: End,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    /// When it was inserted, or used last where that counts.
    since: Instant,
}

/// When an entry ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Never,
    AfterInsertion(Duration),
    AfterUse(Duration),
}

impl End {
    fn is_over(self, since: Instant, now: Instant) -> bool {
        match self {
            Self::Never => false,
            Self::AfterInsertion(span) | Self::AfterUse(span) => now.saturating_duration_since(since) >= span,
        }
    }
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// Entries do not end.
    pub fn new(most: usize) -> Self {
        Self::with(most, End::Never)
    }

    /// Entries end `span` after they were inserted.
    pub fn ending(most: usize, span: Duration) -> Self {
        Self::with(most, End::AfterInsertion(span))
    }

    /// Entries end when they were not used for `span`.
    pub fn ending_unused(most: usize, span: Duration) -> Self {
        Self::with(most, End::AfterUse(span))
    }

    fn with(most: usize, end: End) -> Self {
        // A bound of its own would reserve memory for all entries at once.
        Self { entries: Mutex::new(LruCache::unbounded()), most, end }
    }

    /// The value; that counts as a use.
    pub fn get(&self, key: &K) -> Option<V> {
        self.get_at(key, Instant::now())
    }

    /// Whether there is a value; that counts as a use.
    pub fn contains(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Replaces the value.
    pub fn insert(&self, key: K, value: V) {
        self.insert_at(key, value, Instant::now());
    }

    /// The value, or that of `make`, which is inserted. `make` must be short: all other lookups wait for it.
    pub fn get_or_insert_with(&self, key: &K, make: impl FnOnce() -> V) -> V
    where
        K: Clone,
    {
        let now = Instant::now();
        let mut entries = self.locked(now);
        if let Some(value) = self.look(&mut entries, key, now) {
            return value;
        }
        let value = make();
        self.put(&mut entries, key.clone(), value.clone(), now);
        value
    }

    /// Entries, ended ones among them.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.lock().len()
    }

    fn get_at(&self, key: &K, now: Instant) -> Option<V> {
        self.look(&mut self.locked(now), key, now)
    }

    fn insert_at(&self, key: K, value: V, now: Instant) {
        self.put(&mut self.locked(now), key, value, now);
    }

    /// The entries, after a few ended ones were dropped.
    fn locked(&self, now: Instant) -> MutexGuard<'_, LruCache<K, Entry<V>>> {
        let mut entries = self.entries.lock();
        for _ in 0..DROPPED {
            if !entries.peek_lru().is_some_and(|(_, entry)| self.end.is_over(entry.since, now)) {
                break;
            }
            entries.pop_lru();
        }
        entries
    }

    fn look(&self, entries: &mut LruCache<K, Entry<V>>, key: &K, now: Instant) -> Option<V> {
        let entry = entries.get_mut(key)?;
        if self.end.is_over(entry.since, now) {
            entries.pop(key);
            return None;
        }
        if matches!(self.end, End::AfterUse(_)) {
            entry.since = now;
        }
        Some(entry.value.clone())
    }

    fn put(&self, entries: &mut LruCache<K, Entry<V>>, key: K, value: V, now: Instant) {
        entries.put(key, Entry { value, since: now });
        while entries.len() > self.most {
            entries.pop_lru();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn the_least_recently_used_entry_gives_way() {
        let cache = Cache::new(2);
        cache.insert("a", 1);
        cache.insert("b", 2);
        assert_eq!(cache.get(&"a"), Some(1));
        cache.insert("c", 3);
        assert_eq!((cache.get(&"a"), cache.get(&"b"), cache.get(&"c")), (Some(1), None, Some(3)));
        cache.insert("a", 4);
        assert_eq!((cache.get(&"a"), cache.len()), (Some(4), 2));
    }

    #[test]
    fn entries_end_after_their_insertion_or_their_last_use() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for (cache, uses) in [
            (Cache::new(9), &[(30, true), (80, true), (9_999, true)]),
            (Cache::ending(9, MINUTE), &[(30, true), (59, true), (60, false)]),
            (Cache::ending_unused(9, MINUTE), &[(30, true), (89, true), (149, false)]),
        ] {
            cache.insert_at("a", 1, start);
            for (seconds, expected) in uses {
                assert_eq!(
                    cache.get_at(&"a", at(*seconds)).is_some(),
                    *expected,
                    "{:?} {seconds} s",
                    cache.end
                );
            }
        }
    }

    #[test]
    fn a_new_value_begins_a_new_time() {
        let (cache, start) = (Cache::ending(9, MINUTE), Instant::now());
        cache.insert_at("a", 1, start);
        cache.insert_at("a", 2, start + MINUTE / 2);
        assert_eq!(cache.get_at(&"a", start + MINUTE), Some(2));
    }

    #[test]
    fn a_time_of_zero_keeps_nothing() {
        let cache = Cache::ending(9, Duration::ZERO);
        cache.insert("a", 1);
        assert_eq!((cache.get(&"a"), cache.len()), (None, 0));
    }

    #[test]
    fn ended_entries_are_dropped_without_being_looked_up() {
        let (cache, start) = (Cache::ending(1_000, MINUTE), Instant::now());
        for key in 0..100 {
            cache.insert_at(key, (), start);
        }
        for key in 100..120 {
            cache.insert_at(key, (), start + MINUTE);
        }
        assert_eq!(cache.len(), 80, "by insertions");
        for _ in 0..30 {
            assert!(cache.get_at(&100, start + MINUTE).is_some());
        }
        assert_eq!(cache.len(), 20, "by lookups of others");
    }

    #[test]
    fn a_value_is_made_once() {
        let cache = Cache::new(9);
        assert_eq!(cache.get_or_insert_with(&"a", || 1), 1);
        assert_eq!(cache.get_or_insert_with(&"a", || unreachable!("it is there")), 1);
    }
}
