//! Why a build fails, and with which exit code.

use std::path::PathBuf;

use crate::{
    cache::CacheError,
    digest::Digest,
    layer::LayerError,
    lock::LockError,
    plan::Refused,
    publish::{layout::LayoutError, upload::PushError},
    runtime::RuntimeError,
    sources::{
        archive::ArchiveError, base::BaseError, detect::DetectError, download::DownloadError,
        pypi::PyPiError, spark::SparkError,
    },
    spec::SpecError,
    version::Version,
};

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The specification is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Cells are refused.
    #[error("{}", refusals(.0))]
    Refused(Vec<Refused>),
    /// The lock does not fit.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The base cannot be used.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The base does not suit a cell.
    #[error("cannot build {cell}")]
    Unsuitable {
        /// The cell.
        cell: String,
        /// Why.
        #[source]
        source: DetectError,
    },
    /// Spark cannot be found.
    #[error("cannot find Spark {version}")]
    Find {
        /// Which one.
        version: Version,
        /// Why.
        #[source]
        source: PyPiError,
    },
    /// Spark cannot be downloaded.
    #[error("cannot get Spark {version}")]
    Download {
        /// Which one.
        version: Version,
        /// Why.
        #[source]
        source: DownloadError,
    },
    /// The Spark archive is not the one that was pinned.
    #[error("`{}` has the digest `{found}` instead of `{expected}`", path.display())]
    Pinned {
        /// The archive.
        path: PathBuf,
        /// Its digest.
        found: Digest,
        /// The specification's.
        expected: Digest,
    },
    /// The Spark archive cannot be read.
    #[error("cannot use the Spark archive `{}`", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: ArchiveError,
    },
    /// It is no Spark.
    #[error("cannot use the Spark archive `{}`", path.display())]
    Spark {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: SparkError,
    },
    /// Our files do not fit the base.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A layer cannot be written.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The output cannot be written.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The push failed.
    #[error(transparent)]
    Push(#[from] PushError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl BuildError {
    /// 2 for what the user has to change in the specification, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Spec(_)
            | Self::Refused(_)
            | Self::Unsuitable { .. }
            | Self::Lock(
                LockError::Unusable { .. }
                | LockError::Stale { .. }
                | LockError::Unknown { .. }
                | LockError::Absent { .. },
            ) => 2,
            _ => 1,
        }
    }
}

fn refusals(refused: &[Refused]) -> String {
    let mut text = "these combinations are refused:".to_owned();
    for Refused { cell, verdict } in refused {
        for reason in &verdict.impossible {
            text = format!("{text}\n  {}: {reason}", cell.name());
        }
        for reason in &verdict.untested {
            text = format!("{text}\n  {}: {reason} (build it with `allowUntested: true`)", cell.name());
        }
    }
    format!("{text}\nchange the axes, or leave such combinations out with --skip-refused")
}
