//! What this process knows about the files of the cache.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Mutex, PoisonError, atomic::AtomicUsize},
};

/// What this process knows about the files of the cache.
#[derive(Debug, Default)]
pub(super) struct State {
    verified: Mutex<HashSet<PathBuf>>,
    pub(super) damaged: AtomicUsize,
}

impl State {
    /// The set is whole after every operation on it, also after a panic elsewhere.
    pub(super) fn verified(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
