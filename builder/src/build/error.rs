//! Why a build fails, and with which exit code.

use std::path::PathBuf;

use crate::{
    cache::CacheError,
    fetch::download::DownloadError,
    layer::LayerError,
    lock::LockError,
    matrix::Refused,
    plain::StartError,
    publish::{PushError, docker_archive::DockerArchiveError, layout::LayoutError},
    runtime::RuntimeError,
    sources::{
        base::BaseError,
        detect::DetectError,
        directory::DirectoryError,
        maven::MavenError,
        pypi::PyPiError,
        relocate::RelocateError,
        spark::SparkError,
        tarball::ArchiveError,
        wheels::{WheelsError, install::InstallError},
        zip::ZipFileError,
    },
    spec::SpecError,
    tree::PathError,
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
    /// Containers of a plain image could not start.
    #[error("cannot build {cell}")]
    Start {
        /// The cell.
        cell: String,
        /// Why.
        #[source]
        source: StartError,
    },
    /// A Spark is given for images that have none.
    #[error("`--set-source spark=PATH` is given, but no image of the specification has Spark")]
    NoSpark,
    /// Spark cannot be found.
    #[error("cannot find Spark {version}")]
    Find {
        /// Which one.
        version: Version,
        /// Why.
        #[source]
        source: PyPiError,
    },
    /// An input cannot be downloaded.
    #[error("cannot get {name}")]
    Input {
        /// Its name in a lock.
        name: String,
        /// Why.
        #[source]
        source: DownloadError,
    },
    /// A URL without a checksum.
    #[error("`{0}` has no checksum")]
    NoChecksum(String),
    /// A file is not the one that was pinned.
    #[error("`{}` has the digest `{found}` instead of `{expected}`", path.display())]
    Pinned {
        /// The file.
        path: PathBuf,
        /// Its checksum.
        found: String,
        /// The specification's.
        expected: String,
    },
    /// A file or directory cannot be read.
    #[error("cannot use `{}`", path.display())]
    Directory {
        /// It.
        path: PathBuf,
        /// Why.
        #[source]
        source: DirectoryError,
    },
    /// A file cannot have the name that it would have in the image.
    #[error("cannot put `{path}` into the image")]
    Place {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: PathError,
    },
    /// A zip archive cannot be read.
    #[error("cannot use `{}`", path.display())]
    Zip {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: ZipFileError,
    },
    /// JARs cannot be found.
    #[error(transparent)]
    Maven(#[from] MavenError),
    /// Python packages cannot be found.
    #[error(transparent)]
    Wheels(#[from] WheelsError),
    /// A wheel cannot be installed.
    #[error("cannot install `{file}`")]
    Install {
        /// The wheel.
        file: String,
        /// Why.
        #[source]
        source: InstallError,
    },
    /// A runtime is not what it should be.
    #[error("cannot use the archive `{}`", path.display())]
    Relocate {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: RelocateError,
    },
    /// An archive cannot be read.
    #[error("cannot use the archive `{}`", path.display())]
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
    /// The archive cannot be written.
    #[error(transparent)]
    DockerArchive(#[from] DockerArchiveError),
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
            | Self::Start { .. }
            | Self::NoSpark
            | Self::DockerArchive(DockerArchiveError::Platforms(_))
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
