//! Why content cannot be given, by what the client should be told.

use std::{io, sync::Arc, time::Duration};

use crate::{
    store::StoreError,
    types::{Mismatch, RegistryHost},
    upstream::UpstreamError,
};

/// Every variant is shared by all who wait for one download, hence cheap to clone.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// Upstream says that it does not exist.
    #[error("not found: {0}")]
    NotFound(String),
    /// Upstream does not let the agent read it.
    #[error("{0}")]
    Denied(String),
    /// It cannot be had now; later perhaps.
    #[error("not available now: {reason}")]
    NotNow {
        /// What happened.
        reason: String,
        /// When it is worth asking again, if upstream said so.
        retry_after: Option<Duration>,
    },
    /// The bytes that arrived do not hash to the digest.
    #[error("wrong bytes from {}", origins.join(", "))]
    Corrupt {
        /// Registry through which it was asked for.
        registry: RegistryHost,
        /// Who sent it.
        origins: Vec<String>,
        /// The digests.
        #[source]
        mismatch: Arc<Mismatch>,
    },
    /// Content that no current client accepts.
    #[error("{reason}")]
    Unsupported {
        /// Why.
        reason: String,
    },
    /// The store failed.
    #[error("the agent's store failed")]
    Store(#[source] Arc<StoreError>),
    /// Reading a stored file failed.
    #[error("reading a stored blob failed")]
    Disk(#[source] Arc<io::Error>),
    /// What upstream said of the blob before is not true any more; the transfer has to begin anew.
    #[error("the transfer has to begin anew: {0}")]
    Changed(String),
    /// What was wanted has been given, and nobody wanted the rest.
    #[error("the transfer ended after the parts that were asked for")]
    Parked,
    /// The agent is shutting down.
    #[error("the agent is shutting down")]
    Stopping,
}

impl From<StoreError> for FetchError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<UpstreamError> for FetchError {
    fn from(error: UpstreamError) -> Self {
        let text = error.to_string();
        match error {
            UpstreamError::NotFound { .. } => Self::NotFound(text),
            UpstreamError::Denied { .. } => Self::Denied(text),
            UpstreamError::TooLarge { .. } => Self::Unsupported { reason: text },
            UpstreamError::Throttled { retry_after, .. } => Self::NotNow { reason: text, retry_after },
            UpstreamError::Changed { .. }
            | UpstreamError::Distrusted { .. }
            | UpstreamError::Unavailable { .. } => Self::NotNow { reason: text, retry_after: None },
        }
    }
}
