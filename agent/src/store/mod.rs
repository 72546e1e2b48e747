//! Verified content on the node's disk. Owns everything under the data directory.
//!
//! ```text
//! <data>/format                                   "hearth-store-v1"
//! <data>/lock                                     held while an agent uses the directory
//! <data>/blobs-v1/sha256/ab/abcd...               whole, verified, read-only; the truth
//! <data>/partial-v1/<algorithm>-<hex>.data .map   sparse file and its map; survives restarts, resumed
//! <data>/refs-v1/<registry>/<repository>/
//!     _tags/<tag>                                 digest, media type, when last confirmed
//!     _manifests/<digest>                         this repository has it, with its media type
//! <data>/index-v1/                                sled: sizes and last use; disposable, rebuilt from the above
//! <data>/tmp/                                     files being written; emptied at start
//! ```
//!
//! Invariants:
//! * A [`Blob`] exists only after its digest was checked: only [`Partial::commit`] and [`Store::put`] make files
//!   under `blobs-v1`.
//! * Write: aside on the same file system -> hash -> fsync -> rename -> fsync of the directory -> index. A crash at
//!   any point leaves nothing or a whole verified blob.
//! * A hit is one `open` and one `fstat`: no database, no channel, no global lock.
//! * Nothing in the index is unique. Lost, broken or unreadable, it is moved aside and rebuilt.
//!
//! Not promised: that a file under `blobs-v1` was not damaged later by the disk or by someone else.

#![expect(clippy::disallowed_methods, reason = "the store is where files are touched")]

mod blob;
mod facts;
mod index;
mod partial;
mod paths;
mod ranges;
mod refs;
mod runtime;
mod space;
mod staged;
mod usage;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

pub use blob::{Blob, read_chunk};
pub use facts::{BlobFact, PartialFact, RefFact, RefName};
pub use index::Totals;
pub use partial::{Finish, Partial};
pub use ranges::RangeSet;
pub use refs::{ManifestRecord, TagRecord};
pub use runtime::{RuntimeBlob, RuntimeContent};
pub use space::{FileSystem, Limits, Space};
pub use staged::{Kept, StageError, Staged};

use crate::types::{Digest, Mismatch, Repository, Tag};
use index::Index;
use paths::Paths;
use usage::UsageLog;

/// Why the store could not do what was asked. A missing blob is not an error: it is `None`.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call on one of our files failed.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Two agents on one directory.
    #[error("`{}` is in use by another agent: give each agent its own `dataDir`", .0.display())]
    Locked(PathBuf),
    /// The directory was written by another kind of program or a later version.
    #[error("`{}` holds `{found}` where `{expected}` was expected: use another `dataDir` or remove it", path.display())]
    Format {
        /// The file that tells the format.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What this version writes.
        expected: &'static str,
    },
    /// Bytes do not hash to their name.
    #[error(transparent)]
    Mismatch(#[from] Box<Mismatch>),
    /// A background thread ended early.
    #[error("a disk task did not finish")]
    Task(#[from] tokio::task::JoinError),
}

impl StoreError {
    fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Whether the disk is full or over quota.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Where the store lives.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data directory; made when missing.
    pub data_dir: PathBuf,
    /// How much it may hold.
    pub limits: Limits,
    /// Content of the container runtime that may be used, if any.
    pub runtime: Option<RuntimeContent>,
}

#[cfg(test)]
impl Config {
    /// With the limits that hold unless configured.
    pub(crate) fn of(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_owned(), limits: Limits::default(), runtime: None }
    }
}

const FORMAT: &str = "hearth-store-v1";

/// The node's content store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    paths: Paths,
    index: Index,
    usage: Arc<UsageLog>,
    limits: Limits,
    runtime: Option<RuntimeContent>,
    /// Held while references are written or removed, so that none is written into a directory that is being removed.
    references: std::sync::Mutex<()>,
    /// Counts changes of references that were not made for a client's request.
    changes: AtomicU64,
    /// Released by [`Store::close`], or by the kernel when the process ends.
    lock: fs::File,
}

impl Store {
    /// Opens or makes the store. Blocking: call it off the runtime's threads.
    pub fn open(config: &Config) -> Result<Self, StoreError> {
        let paths = Paths::new(&config.data_dir);
        for directory in paths.directories() {
            fs::create_dir_all(&directory).map_err(StoreError::io("make", &directory))?;
        }
        let lock = lock_directory(&paths)?;
        check_format(&paths)?;
        empty_directory(&paths.temporary())?;
        let index = Index::open(&paths);
        Ok(Self(Arc::new(Inner {
            paths,
            index,
            usage: Arc::default(),
            limits: config.limits,
            runtime: config.runtime.clone(),
            references: std::sync::Mutex::default(),
            changes: AtomicU64::new(0),
            lock,
        })))
    }

    /// Opens a blob for reading; `None` when it is not here.
    pub async fn blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let found = blob::open(&self.0.paths, digest).await?;
        Ok(found.map(|blob| blob.held(self.0.usage.hold(digest))))
    }

    /// Whether there may be blobs of the container runtime to use.
    pub fn has_runtime(&self) -> bool {
        self.0.runtime.is_some()
    }

    /// Stores content that is whole in memory (a manifest), after checking it. Blocking.
    pub fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        digest.verify(bytes)?;
        let target = self.0.paths.blob(digest);
        if target.exists() {
            return Ok(());
        }
        paths::write_atomically(&self.0.paths, &target, bytes, paths::Mode::ReadOnly)?;
        self.0.index.insert(digest, bytes.len() as u64);
        Ok(())
    }

    /// Opens the partial blob of a digest, resuming what an earlier flight or process left. Blocking.
    ///
    /// At most one per digest at a time: the caller (one flight per digest) sees to that.
    pub fn partial(&self, digest: &Digest) -> Result<Partial, StoreError> {
        Partial::open(self.clone(), digest)
    }

    /// What is known of a tag.
    pub async fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        let path = self.0.paths.tag(repository, tag);
        tokio::task::spawn_blocking(move || refs::read(&path)).await?
    }

    /// Notes that a manifest was used though it was not opened: a client asked what its tag means.
    pub fn note_use(&self, digest: &Digest) {
        self.0.usage.note(digest);
    }

    /// Remembers what a tag means. Blocking.
    pub fn set_tag(&self, repository: &Repository, tag: &Tag, record: &TagRecord) -> Result<(), StoreError> {
        let _only = self.0.references.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let path = self.0.paths.tag(repository, tag);
        // A pin is the tag's, whatever upstream makes it mean.
        let pinned = record.pinned || refs::read::<TagRecord>(&path)?.is_some_and(|old| old.pinned);
        refs::write(&self.0.paths, &path, &TagRecord { pinned, ..record.clone() })
    }

    /// Forgets a tag: upstream says that it does not exist. One that is kept by hand stays. Blocking.
    pub fn remove_tag(&self, repository: &Repository, tag: &Tag) -> Result<(), StoreError> {
        let _only = self.0.references.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let path = self.0.paths.tag(repository, tag);
        let kept = refs::read::<TagRecord>(&path)?.is_some_and(|record| record.is_kept());
        if kept { Ok(()) } else { refs::remove(&path) }
    }

    /// What is known of a manifest within a repository; `None` when this repository is not known to have it.
    pub async fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<ManifestRecord>, StoreError> {
        let path = self.0.paths.manifest(repository, digest);
        tokio::task::spawn_blocking(move || refs::read(&path)).await?
    }

    /// Remembers that a repository has a manifest. Blocking.
    pub fn set_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        record: &ManifestRecord,
    ) -> Result<(), StoreError> {
        let _only = self.0.references.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let path = self.0.paths.manifest(repository, digest);
        let pinned = record.pinned || refs::read::<ManifestRecord>(&path)?.is_some_and(|old| old.pinned);
        refs::write(&self.0.paths, &path, &ManifestRecord { pinned, ..record.clone() })
    }

    /// Goes up whenever references were pinned, removed or imported: who remembers one looks again.
    pub fn reference_changes(&self) -> u64 {
        self.0.changes.load(Ordering::Acquire)
    }

    /// Tells those who remember references that some are different now.
    pub fn note_reference_change(&self) {
        self.0.changes.fetch_add(1, Ordering::Release);
    }

    /// How much is stored, as far as the index has counted.
    pub fn totals(&self) -> Totals {
        self.0.index.totals()
    }

    /// Counts what is on disk when the index was lost or not closed cleanly. Blocking, seconds at most; hits are
    /// served meanwhile.
    pub fn rebuild_index_if_needed(&self) -> Result<(), StoreError> {
        self.0.index.rebuild_if_needed(&self.0.paths)
    }

    /// Writes noted use times to the index in one batch. Blocking.
    pub fn flush_usage(&self) {
        self.0.index.touch(self.0.usage.take());
    }

    /// Last write-out before the process ends. Blocking.
    pub fn close(&self) {
        self.flush_usage();
        self.0.index.close();
        if let Err(error) = rustix::fs::flock(&self.0.lock, rustix::fs::FlockOperation::Unlock) {
            tracing::warn!(%error, "directory not unlocked: the end of the process does it");
        }
    }
}

fn lock_directory(paths: &Paths) -> Result<fs::File, StoreError> {
    let path = paths.lock();
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(StoreError::io("open", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked(paths.root().to_owned())),
        Err(errno) => Err(StoreError::io("lock", path)(errno.into())),
    }
}

fn check_format(paths: &Paths) -> Result<(), StoreError> {
    let path = paths.format();
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == FORMAT => Ok(()),
        Ok(found) => {
            Err(StoreError::Format { path, found: found.trim().chars().take(80).collect(), expected: FORMAT })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            paths::write_atomically(paths, &path, FORMAT.as_bytes(), paths::Mode::Normal)
        }
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}

fn empty_directory(directory: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(directory).map_err(StoreError::io("list", directory))? {
        let path = entry.map_err(StoreError::io("list", directory))?.path();
        fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&Config::of(directory.path())).unwrap();
        (directory, store)
    }

    fn record() -> TagRecord {
        TagRecord {
            digest: Digest::of(b"m"),
            media_type: "a/b".into(),
            size: 1,
            confirmed: 7,
            pinned: false,
            imported: false,
        }
    }

    #[tokio::test]
    async fn content_is_stored_only_under_its_own_digest() {
        let (_directory, store) = store();
        let digest = Digest::of(b"hello");
        assert!(matches!(store.put(&digest, b"jello"), Err(StoreError::Mismatch(_))));
        assert!(store.blob(&digest).await.unwrap().is_none());
        store.put(&digest, b"hello").unwrap();
        assert_eq!(store.blob(&digest).await.unwrap().unwrap().size(), 5);
        assert_eq!(store.totals(), Totals { blobs: 1, bytes: 5 });
    }

    #[test]
    fn a_second_agent_on_the_same_directory_is_refused() {
        let (directory, _store) = store();
        let second = Store::open(&Config::of(directory.path()));
        assert!(matches!(second, Err(StoreError::Locked(_))));
    }

    #[test]
    fn a_directory_of_another_format_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("format"), "hearth-store-v9").unwrap();
        let error = Store::open(&Config::of(directory.path())).unwrap_err();
        assert!(matches!(error, StoreError::Format { .. }), "{error}");
    }

    #[tokio::test]
    async fn tags_are_remembered_over_a_restart_and_forgotten_when_removed() {
        let (directory, store) = store();
        let repository =
            Repository { registry: "r.test:5000".parse().unwrap(), name: "a/b".parse().unwrap() };
        let tag: Tag = "v1".parse().unwrap();
        let record = record();
        store.set_tag(&repository, &tag, &record).unwrap();
        store.close();
        drop(store);
        let store = Store::open(&Config::of(directory.path())).unwrap();
        assert_eq!(store.tag(&repository, &tag).await.unwrap(), Some(record));
        let fact = store.references().unwrap().remove(0);
        assert!(store.set_pin(&fact, true).unwrap());
        store.remove_tag(&repository, &tag).unwrap();
        assert!(store.tag(&repository, &tag).await.unwrap().unwrap().pinned, "a pinned tag stays");
        assert!(store.set_pin(&fact, false).unwrap());
        store.remove_tag(&repository, &tag).unwrap();
        store.remove_tag(&repository, &tag).unwrap();
        assert_eq!(store.tag(&repository, &tag).await.unwrap(), None);
        assert!(!store.set_pin(&fact, true).unwrap());
    }

    #[tokio::test]
    async fn a_damaged_reference_counts_as_unknown() {
        let (_directory, store) = store();
        let repository = Repository { registry: "r.test".parse().unwrap(), name: "a".parse().unwrap() };
        let tag: Tag = "v1".parse().unwrap();
        let record = record();
        store.set_tag(&repository, &tag, &record).unwrap();
        fs::write(store.0.paths.tag(&repository, &tag), "{\"dig").unwrap();
        assert_eq!(store.tag(&repository, &tag).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_lost_or_broken_index_is_rebuilt_from_the_blobs() {
        for damage in ["remove", "junk", "file"] {
            let (directory, store) = store();
            store.put(&Digest::of(b"one"), b"one").unwrap();
            store.put(&Digest::of(b"three"), b"three").unwrap();
            store.close();
            drop(store);
            let index = directory.path().join("index-v1");
            match damage {
                "remove" => fs::remove_dir_all(&index).unwrap(),
                "junk" => {
                    for entry in fs::read_dir(&index).unwrap() {
                        let path = entry.unwrap().path();
                        if path.is_file() {
                            fs::write(path, b"junk junk junk").unwrap();
                        }
                    }
                }
                _ => {
                    fs::remove_dir_all(&index).unwrap();
                    fs::write(&index, b"not a directory").unwrap();
                }
            }
            let store = Store::open(&Config::of(directory.path())).unwrap();
            assert!(store.blob(&Digest::of(b"one")).await.unwrap().is_some(), "{damage}: hits need no index");
            store.rebuild_index_if_needed().unwrap();
            assert_eq!(store.totals(), Totals { blobs: 2, bytes: 8 }, "{damage}");
        }
    }

    #[test]
    fn a_clean_index_is_not_rebuilt() {
        let (directory, store) = store();
        store.put(&Digest::of(b"one"), b"one").unwrap();
        store.rebuild_index_if_needed().unwrap();
        store.close();
        drop(store);
        let store = Store::open(&Config::of(directory.path())).unwrap();
        assert_eq!(store.totals(), Totals { blobs: 1, bytes: 3 });
    }
}
