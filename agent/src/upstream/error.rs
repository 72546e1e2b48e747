//! Why a request to a registry failed.

use std::time::Duration;

use crate::types::RegistryHost;

/// Why a request to a registry failed, by what the caller can do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The registry answered "not found".
    #[error("`{registry}` has no such content")]
    NotFound {
        /// The registry.
        registry: RegistryHost,
    },
    /// The registry denies access with these credentials.
    #[error("`{registry}` denies access: {reason}")]
    Denied {
        /// The registry.
        registry: RegistryHost,
        /// The registry's message.
        reason: String,
    },
    /// Too many requests.
    #[error("`{registry}` limits the rate of requests")]
    Throttled {
        /// The registry.
        registry: RegistryHost,
        /// How long to wait, if the registry sent it.
        retry_after: Option<Duration>,
    },
    /// The registry's content has changed: it ends before the requested range, or has another entity tag.
    #[error("the content of `{registry}` has changed: {reason}")]
    Changed {
        /// The registry.
        registry: RegistryHost,
        /// How the change was detected.
        reason: String,
    },
    /// Every endpoint sent wrong bytes for this content recently: an immediate retry would return them again.
    #[error("every endpoint of `{registry}` sent wrong bytes for this content recently")]
    AllPenalized {
        /// The registry.
        registry: RegistryHost,
    },
    /// A document beyond the limit; a retry does not help.
    #[error("`{registry}` sent a document of more than {limit} bytes, the maximum")]
    TooLarge {
        /// The registry.
        registry: RegistryHost,
        /// The limit in bytes.
        limit: u64,
    },
    /// The registry is unreachable, silent or broken, or its response is invalid.
    #[error("`{registry}` is not available: {reason}")]
    Unavailable {
        /// The registry.
        registry: RegistryHost,
        /// What happened, with its causes.
        reason: String,
    },
}
