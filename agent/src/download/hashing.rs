//! Hashes the contiguous beginning of a partial blob while the rest arrives.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::error::FetchError;
use crate::store::{Partial, StoreError};

use crate::limits::download::hashing::BEHIND;

/// At most one hashing thread per download.
#[derive(Debug, Default)]
pub(crate) struct CatchUp(Option<JoinHandle<Result<(), StoreError>>>);

impl CatchUp {
    /// Starts hashing when there are enough bytes and no thread is running.
    pub(crate) fn tick(&mut self, partial: &Arc<Partial>) {
        if self.0.as_ref().is_none_or(JoinHandle::is_finished) && partial.unhashed() >= BEHIND {
            let partial = partial.clone();
            self.0 = Some(tokio::task::spawn_blocking(move || partial.hash_forward()));
        }
    }

    /// Waits for the running thread.
    pub(crate) async fn finish(&mut self) -> Result<(), FetchError> {
        if let Some(round) = self.0.take() {
            round.await.map_err(StoreError::from)??;
        }
        Ok(())
    }
}
