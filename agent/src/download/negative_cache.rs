//! Remembers the registry's "not found" for a short time, so that many clients that request the same missing content
//! cause one request.

use std::{hash::Hash, time::Duration};

use super::error::FetchError;
use crate::{limits::download::negative_cache::MOST, types::Cache};

#[derive(Debug)]
pub(super) struct NegativeCache<K: Eq + Hash>(Cache<K, String>);

impl<K: Eq + Hash + Clone> NegativeCache<K> {
    /// Remembers each answer for `span`.
    pub(super) fn new(span: Duration) -> Self {
        Self(Cache::ending(MOST, span))
    }

    /// Fails when the registry has recently answered "not found" for the key.
    pub(super) fn check(&self, key: &K) -> Result<(), FetchError> {
        self.0.get(key).map_or(Ok(()), |reason| Err(FetchError::NotFound(reason)))
    }

    /// Remembers a "not found" of the registry, and no other error.
    pub(super) fn note(&self, key: &K, error: &FetchError) {
        if let FetchError::NotFound(reason) = error {
            // A second failure does not extend the time.
            self.0.get_or_insert_with(key, || reason.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_not_found_is_remembered_and_not_for_long() {
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
