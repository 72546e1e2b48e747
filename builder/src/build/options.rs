//! What to build and how.

use std::path::{Path, PathBuf};

use crate::{
    lock::{Lock, LockError},
    registry::{Repository, Settings},
};

/// What to build and how; the command line, checked.
#[derive(Debug, Clone)]
pub struct Options {
    /// The specification.
    pub spec: PathBuf,
    /// Where the OCI layout goes; by default `dist` beside the specification.
    pub output: Option<PathBuf>,
    /// A file for `docker load` that is written as well.
    pub docker_archive: Option<PathBuf>,
    /// Whether to push.
    pub push: bool,
    /// Replaces the specification's repository.
    pub repository: Option<Repository>,
    /// Replaces the specification's tag.
    pub tag: Option<String>,
    /// Whether refused cells are left out instead of failing the build.
    pub skip_refused: bool,
    /// The lock; by default it lies beside the specification and has its name.
    pub lock: Option<PathBuf>,
    /// Whether there must be a lock.
    pub locked: bool,
    /// For a plan: the lock of images that a node has already.
    pub against: Option<PathBuf>,
    /// For a plan: whether layers that were never built are, so that every size is known.
    pub exact: bool,
    /// The cache.
    pub cache: PathBuf,
    /// Threads for compression.
    pub jobs: usize,
    /// How to reach registries.
    pub registries: Settings,
    /// Replaces the specification's base with this archive or layout.
    pub base: Option<PathBuf>,
    /// Replaces the specification's Spark source with this archive.
    pub spark: Option<PathBuf>,
    /// Whether documents about the images are made: what is in them, and where it came from.
    pub sbom: bool,
    /// Whether only what the cache has may be used.
    pub offline: bool,
    /// `SOURCE_DATE_EPOCH`: the creation time in image configurations.
    pub epoch: Option<u64>,
}

/// Where the lock lies: `hearth.yaml` has `hearth.lock`.
pub(super) fn lock_path(options: &Options) -> PathBuf {
    options.lock.clone().unwrap_or_else(|| options.spec.with_extension("lock"))
}

pub(super) fn read_lock(options: &Options) -> Result<Option<Lock>, LockError> {
    let path = lock_path(options);
    match Lock::read(&path)? {
        None if options.locked || options.lock.is_some() => Err(LockError::Absent { path }),
        lock => Ok(lock),
    }
}

pub(super) fn output(options: &Options) -> PathBuf {
    let beside = || options.spec.parent().unwrap_or(Path::new("")).join("dist");
    options.output.clone().unwrap_or_else(beside)
}
