//! Verified content on the node's disk. Owns everything under the data directory.
//!
//! ```text
//! <data>/format                                   "hearth-store-v1"
//! <data>/lock                                     held while an agent uses the directory
//! <data>/blobs-v1/sha256/ab/abcd...               whole, verified, read-only; the truth
//! <data>/partial-v1/<algorithm>-<hex>.data .map   sparse file and its map; survives restarts, resumed
//! <data>/refs-v1/<registry>/<repository>/
//!     _tags/<tag>                                 digest, media type, when last confirmed; a bounded number
//!     _manifests/<digest>                         this repository has it, with its media type
//! <data>/index-v1/                                sled: sizes and last use; disposable, rebuilt from the above
//! <data>/quarantine-v1/                           blobs that went bad on disk, the last few
//! <data>/check-v1                                 how far the slow check of every blob has come
//! <data>/prepull-v1                               which images sets have brought; lost, they are looked for again
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
mod buffers;
mod check;
mod facts;
mod health;
mod index;
mod notes;
mod own;
mod partial;
mod paths;
mod ranges;
mod refs;
mod runtime;
mod shards;
mod space;
mod staged;
mod tags;
mod usage;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

pub use blob::{Blob, read_chunk};
pub use buffers::ChunkSize;
pub use check::{Damage, Look, SHARDS};
pub use facts::{BlobFact, PartialFact, RefFact, RefName};
pub use health::{Trouble, TroubleKind};
pub use index::Totals;
pub use partial::{Finish, Partial, Unverified};
pub use ranges::RangeSet;
pub use refs::{ManifestRecord, TagRecord};
pub use runtime::{RuntimeBlob, RuntimeContent};
pub use space::{FileSystem, Limits, Need, Space};
pub use staged::{Kept, StageError, Staged};
pub use tags::{MOST_TAGS, TagFact};

use crate::types::{Digest, Mismatch, Repository, Tag};
use health::Health;
use index::Index;
use own::Owned;
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
    /// The store's own limits leave no room, and nothing more can be evicted.
    #[error(
        "no room for {wanted} bytes: the store may hold {allowed}, and what it holds is pinned, in use or needed"
    )]
    NoRoom {
        /// Bytes to be stored.
        wanted: u64,
        /// Bytes that may be held now.
        allowed: u64,
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

    /// Whether the disk is full, over quota, or the store over its limits.
    pub fn is_full(&self) -> bool {
        self.trouble() == Some(TroubleKind::Full)
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

/// The node's content store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    paths: Paths,
    owned: OnceLock<Owned>,
    /// Stands in for the owner's index.
    no_index: Index,
    usage: Arc<UsageLog>,
    limits: Limits,
    runtime: Option<RuntimeContent>,
    health: Health,
    /// Held while references are written or removed, so that none is written into a directory that is being removed.
    references: std::sync::Mutex<()>,
    /// Counts changes of references that were not made for a client's request.
    changes: AtomicU64,
    /// How many records of tags there are; see `tags`.
    tags: AtomicUsize,
}

impl Store {
    /// Opens or makes the store, owns it, and counts what is in it. Blocking: call it off the runtime's threads.
    pub fn open(config: &Config) -> Result<Self, StoreError> {
        let store = Self::attach(config)?;
        store.owner()?;
        store.rebuild_index_if_needed()?;
        Ok(store)
    }

    /// Opens or makes the store; while another process owns it, for reading. Blocking.
    pub fn attach(config: &Config) -> Result<Self, StoreError> {
        let store = Self::new(config);
        store.take_over()?;
        Ok(store)
    }

    /// A store that is there, for a look at it beside whoever owns it. Blocking.
    pub fn visit(config: &Config) -> Result<Self, StoreError> {
        let store = Self::new(config);
        store.expect_format()?;
        Ok(store)
    }

    fn new(config: &Config) -> Self {
        Self(Arc::new(Inner {
            paths: Paths::new(&config.data_dir),
            owned: OnceLock::new(),
            no_index: Index::none(),
            usage: Arc::default(),
            limits: config.limits,
            runtime: config.runtime.clone(),
            health: Health::default(),
            references: std::sync::Mutex::default(),
            changes: AtomicU64::new(0),
            tags: AtomicUsize::new(tags::UNCOUNTED),
        }))
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        self.0.paths.root()
    }

    fn index(&self) -> &Index {
        self.0.owned.get().map_or(&self.0.no_index, |owned| &owned.index)
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

    /// Stores content that is whole in memory (a manifest), after checking it. A file of that name with other bytes is
    /// damaged, and replaced; those that read it keep theirs. Blocking.
    pub fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        self.owner()?;
        digest.verify(bytes)?;
        let target = self.0.paths.blob(digest);
        if holds(&target, bytes) {
            return Ok(());
        }
        paths::write_atomically(&self.0.paths, &target, bytes, paths::Mode::ReadOnly)?;
        self.index().insert(digest, bytes.len() as u64);
        self.0.health.recovered();
        Ok(())
    }

    /// Opens the partial blob of a digest, resuming what an earlier flight or process left. Blocking.
    ///
    /// At most one per digest at a time: the caller (one flight per digest) sees to that.
    pub fn partial(&self, digest: &Digest) -> Result<Partial, StoreError> {
        self.owner()?;
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
        self.owner()?;
        let _only = self.0.references.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let path = self.0.paths.tag(repository, tag);
        // A pin is the tag's, whatever upstream makes it mean.
        let old = refs::read::<TagRecord>(&path)?;
        if old.is_none() {
            self.count_new_tag();
        }
        let (pinned, held) = old.map_or((false, false), |old| (old.pinned, old.held));
        let record =
            TagRecord { pinned: record.pinned || pinned, held: record.held || held, ..record.clone() };
        refs::write(&self.0.paths, &path, &record)
    }

    /// Forgets a tag: upstream says that it does not exist. One that is kept by hand stays. Blocking.
    pub fn remove_tag(&self, repository: &Repository, tag: &Tag) -> Result<(), StoreError> {
        self.owner()?;
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
        self.owner()?;
        let _only = self.0.references.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let path = self.0.paths.manifest(repository, digest);
        let (pinned, held) =
            refs::read::<ManifestRecord>(&path)?.map_or((false, false), |old| (old.pinned, old.held));
        let record =
            ManifestRecord { pinned: record.pinned || pinned, held: record.held || held, ..record.clone() };
        refs::write(&self.0.paths, &path, &record)
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
        self.index().totals()
    }

    /// Counts what is on disk when the index was lost or not closed cleanly. Blocking, seconds at most; hits are
    /// served meanwhile.
    pub fn rebuild_index_if_needed(&self) -> Result<(), StoreError> {
        if !self.is_owner() {
            return Ok(());
        }
        self.index().rebuild_if_needed(&self.0.paths)
    }

    /// Whether everything on disk is counted. Before that nothing may be evicted.
    pub fn is_counted(&self) -> bool {
        self.index().is_counted()
    }

    /// Whether this process had to rebuild the index.
    pub fn was_index_rebuilt(&self) -> bool {
        self.index().was_rebuilt()
    }

    /// Writes noted use times to the index in one batch. Blocking.
    pub fn flush_usage(&self) {
        if self.is_owner() {
            self.index().touch(self.0.usage.take());
        }
    }

    /// Last write-out before the process ends. Blocking.
    pub fn close(&self) {
        self.flush_usage();
        if let Some(owned) = self.0.owned.get() {
            owned.index.close();
            owned.release();
        }
    }
}

/// Whether a file holds these bytes. One that cannot be read does not.
fn holds(path: &Path, bytes: &[u8]) -> bool {
    let same_size = std::fs::metadata(path).is_ok_and(|found| found.len() == bytes.len() as u64);
    same_size && std::fs::read(path).is_ok_and(|found| found == bytes)
}

#[cfg(test)]
mod crash;
#[cfg(test)]
mod tests;
