//! Why a layer could not be written.

use std::{io, path::PathBuf};

use crate::{cache::CacheError, tree::ImagePath};

/// Why a layer could not be written.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A content of the cache cannot be read.
    #[error("cannot read `{path}` from the cache")]
    Read {
        /// The file in the image.
        path: ImagePath,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A compressed file is missing that was made a moment ago.
    #[error("the compressed form of `{path}` is no longer in the cache at `{}`", file.display())]
    Missing {
        /// The file in the image.
        path: ImagePath,
        /// The file in the cache.
        file: PathBuf,
    },
}
