//! One async lock per key, kept only while it is held or waited for: the second caller waits for the first and then
//! finds its result.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

#[derive(Debug)]
pub(crate) struct KeyedMutex<K>(Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>);

impl<K> Default for KeyedMutex<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone> KeyedMutex<K> {
    /// Waits for the key's lock. Dropping the wait or the guard releases it.
    pub(crate) async fn lock(&self, key: &K) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock();
            // Removes locks that are neither held nor waited for.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(key.clone()).or_default().clone()
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_waits_for_the_first_and_nothing_is_kept_afterwards() {
        let locks = KeyedMutex::default();
        let first = locks.lock(&1).await;
        let other = locks.lock(&2).await;
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), locks.lock(&1)).await.is_err());
        drop((first, other));
        drop(locks.lock(&1).await);
        drop(locks.lock(&3).await);
        assert_eq!(locks.0.lock().len(), 1);
    }
}
