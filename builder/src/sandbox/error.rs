//! What all parts of the sandbox name.

use crate::cache::CacheError;

/// The subcommand of `hearth` that [`enter`](super::enter()) serves.
pub const SUBCOMMAND: &str = "enter-sandbox";

/// Why a program of the image did not run or did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// This machine cannot do it, or the program failed: the reason.
    #[error("{0}")]
    Failed(String),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}
