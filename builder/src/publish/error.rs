//! Why a push failed.

use reqwest::StatusCode;

use crate::{cache::CacheError, digest::Digest, registry::RegistryError, retry};

/// Why a push failed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The registry cannot be reached.
    #[error("cannot push to `{repository}`{hint}")]
    Network {
        /// Where.
        repository: String,
        /// What to try.
        hint: String,
        /// The last failure.
        #[source]
        source: reqwest::Error,
    },
    /// A transfer stood still.
    #[error("cannot push to `{repository}`: nothing moved for {} seconds", retry::STALL_TIMEOUT.as_secs())]
    Stalled {
        /// Where.
        repository: String,
    },
    /// The registry refused.
    #[error("`{repository}` refuses {what}: {status}{message}{hint}")]
    Refused {
        /// Where.
        repository: String,
        /// What was sent.
        what: String,
        /// Its answer.
        status: StatusCode,
        /// What it says.
        message: String,
        /// What to do.
        hint: String,
    },
    /// A chunk was accepted, but is not there.
    #[error(
        "`{repository}` refuses the blob `{digest}` in one request and loses chunks: raise the limit of the proxy before it"
    )]
    LostChunk {
        /// Where.
        repository: String,
        /// The blob.
        digest: Digest,
    },
    /// The registry does not speak the protocol.
    #[error("`{repository}` answers an upload without a usable `Location`")]
    Location {
        /// Where.
        repository: String,
    },
    /// No access.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A blob cannot be read.
    #[error(transparent)]
    Cache(#[from] CacheError),
}
