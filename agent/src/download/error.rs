//! Why content cannot be delivered, in the categories that a client needs.

use std::{io, sync::Arc, time::Duration};

use crate::{
    store::StoreError,
    types::{Mismatch, RegistryHost},
    upstream::UpstreamError,
};

/// All subscribers of a download get the same error, hence cheap to clone.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// The registry says that the content does not exist.
    #[error("not found: {0}")]
    NotFound(String),
    /// The client has to show credentials for the repository.
    #[error("{0}")]
    Unauthorized(String),
    /// The registry denies the agent, or the client, access to the content.
    #[error("{0}")]
    Denied(String),
    /// The registry's images must be signed, and this content belongs to no image with a valid signature.
    #[error("{0}")]
    Unsigned(String),
    /// The content is not available now, and may be later.
    #[error("not available now: {reason}")]
    NotNow {
        /// What happened.
        reason: String,
        /// When a retry makes sense, if the registry said so.
        retry_after: Option<Duration>,
    },
    /// Only the reserve of the registry's rate limit is left, and no client waits for the content.
    #[error(
        "the rate limit of `{registry}` is nearly used up and the rest is reserved for waiting pods; retrying when it has \
         recovered"
    )]
    Reserved {
        /// The registry.
        registry: RegistryHost,
        /// When to ask again.
        wait: Duration,
    },
    /// The bytes that arrived do not hash to the digest.
    #[error("wrong bytes from {}", origins.join(", "))]
    Corrupt {
        /// Registry from which the content was requested.
        registry: RegistryHost,
        /// The registry endpoints and peers that sent the bytes.
        origins: Vec<String>,
        /// The expected and the actual digest.
        #[source]
        mismatch: Arc<Mismatch>,
    },
    /// Content that no current client accepts.
    #[error("{reason}")]
    Unsupported {
        /// The reason, for the client.
        reason: String,
    },
    /// The store failed.
    #[error("the agent's store failed")]
    Store(#[source] Arc<StoreError>),
    /// Reading a stored file failed.
    #[error("reading a stored blob failed")]
    Disk(#[source] Arc<io::Error>),
    /// The registry's earlier answer about the blob is not true any more; the download starts from the beginning.
    #[error("the download has to start again from the beginning: {0}")]
    Changed(String),
    /// All requested ranges were delivered, and no client needs the rest.
    #[error("the download ended after the requested ranges")]
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
            | UpstreamError::AllPenalized { .. }
            | UpstreamError::Unavailable { .. } => Self::NotNow { reason: text, retry_after: None },
        }
    }
}
