//! Content that nobody waits for: brought into the store, whole and checked, and not read.

use std::{sync::Arc, time::Duration};

use super::{error::FetchError, fetcher::Fetcher, state::Download};
use crate::{
    metrics::{Found, Kind},
    types::{Digest, RangeHeader, RegistryHost, Repository, chain},
};

use crate::limits::download::keep::STRIDE;

impl Fetcher {
    /// Whether a blob or manifest is in the store.
    pub async fn has(&self, digest: &Digest) -> bool {
        self.0.stored_blob(digest).await.is_some()
    }

    /// For how long work that nobody waits for should leave a registry alone: its budget is at the reserve.
    pub fn background_wait(&self, registry: &RegistryHost) -> Option<Duration> {
        self.0.upstream.background_wait(registry)
    }

    /// From now on these documents (`.dockerconfigjson`) are credentials of the agent as well; gives what is wrong with
    /// them.
    pub fn use_secrets(&self, documents: &[Vec<u8>]) -> Vec<String> {
        self.0.upstream.use_secrets(documents).iter().map(|error| chain(error)).collect()
    }

    /// Brings a blob into the store and waits until it is there under its name. Joins a transfer that is under way.
    pub async fn keep(&self, repository: &Repository, digest: &Digest) -> Result<(), FetchError> {
        if self.has(digest).await {
            self.0.metrics.count_content(Kind::blob, Found::hit);
            return Ok(());
        }
        let key = (repository.clone(), *digest);
        self.0.negative.check(&key)?;
        // Once more when the bytes were wrong: the next transfer may be right.
        let mut again = true;
        loop {
            if self.0.store.is_paused() {
                let reason = "the disk takes no content".to_owned();
                return Err(FetchError::NotNow { reason, retry_after: None });
            }
            let (download, subscriber, found) = self.join(repository, digest, RangeHeader::Whole);
            self.0.metrics.count_content(Kind::blob, found);
            let landed = landed(&download, |position| subscriber.reached(position)).await;
            match landed {
                Err(FetchError::Corrupt { .. } | FetchError::Changed(_) | FetchError::Parked) if again => {
                    again = false;
                }
                outcome => {
                    return outcome.inspect_err(|error| self.0.negative.note(&key, error));
                }
            }
        }
    }
}

/// Waits until a download has put its blob into the store. Ends because a download always ends.
async fn landed(download: &Arc<Download>, reached: impl Fn(u64)) -> Result<(), FetchError> {
    let mut progress = download.progress();
    let mut position = 0;
    loop {
        if let Some(outcome) = download.outcome(&mut progress) {
            return outcome;
        }
        let end = download.partial().map_or(0, |partial| partial.end_from(position));
        if end >= position + STRIDE {
            position = end;
            reached(position);
        }
        if progress.changed().await.is_err() {
            return Err(FetchError::Stopping);
        }
    }
}
