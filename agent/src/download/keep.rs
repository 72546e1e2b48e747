//! Background downloads: content is stored and verified, and not read by a client.

use std::sync::Arc;

use super::{error::FetchError, fetcher::Fetcher, state::Download};
use crate::{
    metrics::{Found, Kind},
    types::{Digest, RangeHeader, Repository, chain},
    upstream::PullSecret,
};

use crate::limits::download::keep::STRIDE;

impl Fetcher {
    /// Whether a blob or manifest is in the store.
    pub async fn has(&self, digest: &Digest) -> bool {
        self.0.stored_blob(digest).await.is_some()
    }

    /// Adds these documents (`.dockerconfigjson`) to the agent's credentials, replacing earlier ones; returns their
    /// errors.
    pub fn use_secrets(&self, secrets: Vec<PullSecret>) -> Vec<String> {
        self.0.upstream.use_secrets(secrets).iter().map(|error| chain(error)).collect()
    }

    /// Downloads a blob into the store and waits until it is committed. Joins a running download.
    pub async fn keep(&self, repository: &Repository, digest: &Digest) -> Result<(), FetchError> {
        if self.has(digest).await {
            self.0.metrics.count_content(Kind::blob, Found::hit);
            return Ok(());
        }
        let key = (repository.clone(), *digest);
        self.0.negative.check(&key)?;
        // One retry when the bytes were wrong: the next download may be right.
        let mut again = true;
        loop {
            if self.0.store.is_paused() {
                let reason = "the store accepts no new content".to_owned();
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

/// Waits until a download has committed its blob to the store. Ends because every download ends.
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
