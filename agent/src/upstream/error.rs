//! Why upstream could not give what was asked.

use std::time::Duration;

use crate::types::RegistryHost;

/// Why upstream could not give what was asked, by what the caller can do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The registry itself says that it does not exist.
    #[error("`{registry}` does not have it")]
    NotFound {
        /// Which registry.
        registry: RegistryHost,
    },
    /// The registry does not let these credentials read it.
    #[error("`{registry}` denies access: {reason}")]
    Denied {
        /// Which registry.
        registry: RegistryHost,
        /// What it said.
        reason: String,
    },
    /// Too many requests.
    #[error("`{registry}` is throttling")]
    Throttled {
        /// Which registry.
        registry: RegistryHost,
        /// For how long, when it said so.
        retry_after: Option<Duration>,
    },
    /// The registry's content is another one than before: it ends before the range that was asked for, or bears
    /// another entity tag.
    #[error("`{registry}` has other content than before: {reason}")]
    Changed {
        /// Which registry.
        registry: RegistryHost,
        /// How that was seen.
        reason: String,
    },
    /// Every endpoint sent wrong bytes for this content a moment ago: asking again at once would bring them again.
    #[error("every endpoint of `{registry}` sent wrong bytes for it a moment ago")]
    Distrusted {
        /// Which registry.
        registry: RegistryHost,
    },
    /// A document beyond what the protocol allows; it will not be smaller the next time.
    #[error("`{registry}` has a document of more than {limit} bytes there, the most that is accepted")]
    TooLarge {
        /// Which registry.
        registry: RegistryHost,
        /// The most.
        limit: u64,
    },
    /// Unreachable, silent, broken, or answering nonsense.
    #[error("`{registry}` cannot be read now: {reason}")]
    Unavailable {
        /// Which registry.
        registry: RegistryHost,
        /// What happened, with its causes.
        reason: String,
    },
}
