//! What every kind of base needs, and why one cannot be used.

use std::{io, path::PathBuf};

use crate::{
    cache::{Cache, CacheError},
    digest::Digest,
    platform::Platform,
    progress::Progress,
    registry::RegistryError,
    sources::{scan::ScanError, tarball::ArchiveError},
};

/// Manifests and configurations of real images are far smaller; more is refused before it is read.
pub(super) const DOCUMENT_LIMIT: u64 = 8 << 20;

/// Why a base cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The archive cannot be used.
    #[error("cannot use the root file system `{}`", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: ArchiveError,
    },
    /// A file of the layout cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the layout is not what its name says.
    #[error("`{}` has the digest `{found}`: the layout is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The digest of its bytes.
        found: Digest,
    },
    /// The image is of a kind that cannot be a base.
    #[error("the base `{name}` cannot be used: {problem}")]
    Unsuitable {
        /// The base.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The registry does not give it.
    #[error("cannot get the base `{name}`")]
    Registry {
        /// The base.
        name: String,
        /// Why.
        #[source]
        source: RegistryError,
    },
    /// No registry may be asked.
    #[error(
        "{what} of the base `{name}` is not in the cache, and --offline forbids to ask its registry{hint}"
    )]
    Offline {
        /// The base.
        name: String,
        /// What is missing.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// A layer cannot be read.
    #[error(transparent)]
    Scan(Box<ScanError>),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl From<ScanError> for BaseError {
    fn from(error: ScanError) -> Self {
        Self::Scan(Box::new(error))
    }
}

/// What every source of a base needs.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Where everything is kept.
    pub cache: &'a Cache,
    /// Bars.
    pub progress: &'a Progress,
    /// Which platform of a multi-platform image.
    pub platform: Platform,
    /// Whether no registry may be asked.
    pub offline: bool,
}
