//! Every path of the store, and the atomic write of a small file.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::StoreError;
use crate::types::{Algorithm, Digest, Repository, Tag};

/// Paths below one data directory. `tmp` must be on the same file system as the rest, which it is unless something is
/// mounted inside.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    root: PathBuf,
}

impl Paths {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Directories that must exist.
    pub(super) fn directories(&self) -> Vec<PathBuf> {
        let mut all = vec![self.partials(), self.refs(), self.temporary()];
        all.extend(Algorithm::ALL.map(|algorithm| self.blobs(algorithm)));
        all
    }

    pub(super) fn format(&self) -> PathBuf {
        self.root.join("format")
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(super) fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine-v1")
    }

    pub(super) fn prepulled(&self) -> PathBuf {
        self.root.join("prepull-v1")
    }

    pub(super) fn origins(&self) -> PathBuf {
        self.root.join("origins-v1")
    }

    pub(super) fn origins_of(&self, digest: &Digest) -> PathBuf {
        record(&self.origins(), digest)
    }

    pub(super) fn verified(&self) -> PathBuf {
        self.root.join("verified-v1")
    }

    pub(super) fn verified_of(&self, digest: &Digest) -> PathBuf {
        record(&self.verified(), digest)
    }

    pub(super) fn check_mark(&self) -> PathBuf {
        self.root.join("check-v1")
    }

    pub(super) fn index(&self) -> PathBuf {
        self.root.join("index-v1")
    }

    pub(super) fn blobs(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join("blobs-v1").join(algorithm.as_str())
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.blobs(digest.algorithm()).join(&hex[..2]).join(hex)
    }

    pub(super) fn partials(&self) -> PathBuf {
        self.root.join("partial-v1")
    }

    pub(super) fn partial_data(&self, digest: &Digest) -> PathBuf {
        self.partials().join(format!("{}-{}.data", digest.algorithm().as_str(), digest.hex()))
    }

    pub(super) fn partial_map(&self, digest: &Digest) -> PathBuf {
        self.partials().join(format!("{}-{}.map", digest.algorithm().as_str(), digest.hex()))
    }

    pub(super) fn refs(&self) -> PathBuf {
        self.root.join("refs-v1")
    }

    /// Validated names cannot leave the directory: no part of a repository name is empty, `.` or `..`, and none
    /// starts with an underscore.
    fn repository(&self, repository: &Repository) -> PathBuf {
        self.refs().join(repository.registry.as_str()).join(repository.name.as_str())
    }

    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> PathBuf {
        self.repository(repository).join("_tags").join(tag.as_str())
    }

    pub(super) fn manifest(&self, repository: &Repository, digest: &Digest) -> PathBuf {
        self.manifests(repository).join(digest.to_string())
    }

    pub(super) fn manifests(&self, repository: &Repository) -> PathBuf {
        self.repository(repository).join("_manifests")
    }

    /// A new name under `tmp`.
    pub(super) fn aside(&self) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.temporary().join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }
}

/// The record of a content below a directory of records.
fn record(directory: &Path, digest: &Digest) -> PathBuf {
    let (algorithm, hex) = (digest.algorithm().as_str(), digest.hex());
    directory.join(&hex[..2]).join(format!("{algorithm}-{hex}"))
}

/// Permissions of a finished file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mode {
    Normal,
    ReadOnly,
}

/// Writes a small file: aside, fsync, rename, fsync of the directory.
pub(super) fn write_atomically(
    paths: &Paths,
    target: &Path,
    bytes: &[u8],
    mode: Mode,
) -> Result<(), StoreError> {
    let aside = paths.aside();
    let written = write_synced(&aside, bytes).and_then(|()| publish(&aside, target, mode));
    if written.is_err() {
        // The caller gets the error; a leftover file is removed at the next start.
        let _ = fs::remove_file(&aside);
    }
    written
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut file = fs::File::create_new(path).map_err(StoreError::io("make", path))?;
    file.write_all(bytes).map_err(StoreError::io("write", path))?;
    file.sync_all().map_err(StoreError::io("sync", path))
}

/// Moves a written and synced file to its place and makes the move durable.
pub(super) fn publish(from: &Path, target: &Path, mode: Mode) -> Result<(), StoreError> {
    if let Mode::ReadOnly = mode {
        fs::set_permissions(from, fs::Permissions::from_mode(0o444))
            .map_err(StoreError::io("protect", from))?;
    }
    let parent = target.parent().expect("every path of the store is below its root");
    make_directory(parent)?;
    fs::rename(from, target).map_err(StoreError::io("rename into", target))?;
    sync_directory(parent)
}

/// Creates a directory and missing parents, each synced in its parent.
pub(super) fn make_directory(directory: &Path) -> Result<(), StoreError> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(above) = above(directory) {
        make_directory(above)?;
    }
    match fs::create_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        made => made.map_err(StoreError::io("make", directory))?,
    }
    sync_directory(above(directory).unwrap_or(Path::new(".")))
}

/// The directory above, unless that is the root's or, for a name alone, the current directory.
fn above(directory: &Path) -> Option<&Path> {
    directory.parent().filter(|above| !above.as_os_str().is_empty())
}

fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(StoreError::io("sync directory", directory))
}
