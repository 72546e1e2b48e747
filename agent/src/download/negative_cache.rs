//! What upstream has said does not exist: believed for a short while, so that a herd of clients that ask for the same
//! missing thing costs one request.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::error::FetchError;

use crate::limits::download::negative_cache::MOST;

#[derive(Debug)]
pub(super) struct NegativeCache<K>(Mutex<HashMap<K, (Instant, String)>>);

impl<K> Default for NegativeCache<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone> NegativeCache<K> {
    /// Fails when the key is known not to exist.
    pub(super) fn check(&self, key: &K) -> Result<(), FetchError> {
        let absent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match absent.get(key) {
            Some((until, reason)) if *until > Instant::now() => Err(FetchError::NotFound(reason.clone())),
            _ => Ok(()),
        }
    }

    /// Remembers upstream's "does not exist", and no other failure.
    pub(super) fn note(&self, key: &K, error: &FetchError, span: Duration) {
        let FetchError::NotFound(reason) = error else { return };
        let now = Instant::now();
        let mut absent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if absent.len() >= MOST {
            absent.retain(|_, (until, _)| *until > now);
        }
        // Not prolonged by being asked again.
        if absent.len() < MOST && absent.get(key).is_none_or(|(until, _)| *until <= now) {
            absent.insert(key.clone(), (now + span, reason.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_upstreams_own_word_is_remembered_and_not_for_long() {
        let absent = NegativeCache::default();
        let minute = Duration::from_mins(1);
        absent.note(&1, &FetchError::NotNow { reason: String::new(), retry_after: None }, minute);
        absent.note(&2, &FetchError::NotFound("gone".into()), minute);
        absent.note(&3, &FetchError::NotFound("gone".into()), Duration::ZERO);
        assert!(absent.check(&1).is_ok());
        assert!(matches!(absent.check(&2), Err(FetchError::NotFound(_))));
        assert!(absent.check(&3).is_ok());
    }
}
