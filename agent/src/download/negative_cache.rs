//! What upstream has said does not exist: believed for a short while, so that a herd of clients that ask for the same
//! missing thing costs one request.

use std::{hash::Hash, time::Duration};

use moka::sync::Cache;

use super::error::FetchError;
use crate::limits::download::negative_cache::MOST;

#[derive(Debug)]
pub(super) struct NegativeCache<K>(Cache<K, String>)
where
    K: Eq + Hash + Send + Sync + 'static;

impl<K: Eq + Hash + Clone + Send + Sync + 'static> NegativeCache<K> {
    /// Believes what it is told for `span`.
    pub(super) fn new(span: Duration) -> Self {
        Self(Cache::builder().max_capacity(MOST).time_to_live(span).build())
    }

    /// Fails when the key is known not to exist.
    pub(super) fn check(&self, key: &K) -> Result<(), FetchError> {
        self.0.get(key).map_or(Ok(()), |reason| Err(FetchError::NotFound(reason)))
    }

    /// Remembers upstream's "does not exist", and no other failure.
    pub(super) fn note(&self, key: &K, error: &FetchError) {
        if let FetchError::NotFound(reason) = error {
            // Not prolonged by being asked again.
            self.0.entry_by_ref(key).or_insert_with(|| reason.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_upstreams_own_word_is_remembered_and_not_for_long() {
        let absent = NegativeCache::new(Duration::from_mins(1));
        absent.note(&1, &FetchError::NotNow { reason: String::new(), retry_after: None });
        absent.note(&2, &FetchError::NotFound("gone".into()));
        assert!(absent.check(&1).is_ok());
        assert!(matches!(absent.check(&2), Err(FetchError::NotFound(_))));
        let forgetful = NegativeCache::new(Duration::ZERO);
        forgetful.note(&3, &FetchError::NotFound("gone".into()));
        assert!(forgetful.check(&3).is_ok());
    }
}
