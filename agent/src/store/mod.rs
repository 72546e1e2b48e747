//! Verified content on the node's disk. The only writer under the data directory.
//!
//! ```text
//! <data>/format                                   "hearth-store-v1"
//! <data>/lock                                     held while an agent uses the directory
//! <data>/blobs-v1/sha256/ab/abcd...               complete, verified, read-only; the truth
//! <data>/partial-v1/<algorithm>-<hex>.data .map   sparse file and its map; survives restarts, resumed
//! <data>/refs-v1/<registry>/<repository>/
//!     _tags/<tag>                                 digest, media type, when last confirmed; a bounded number
//!     _manifests/<digest>                         this repository has it, with its media type
//! <data>/index-v1/                                sled: sizes and last use; disposable, rebuilt from the above
//! <data>/quarantine-v1/                           the last few damaged blobs
//! <data>/check-v1                                 position of the background check
//! <data>/prepull-v1                               images pulled for sets; if lost, they are resolved again
//! <data>/verified-v1/                             which keys signed an image with this content; if lost, checked again
//! <data>/tmp/                                     files being written; emptied at start
//! ```
//!
//! Invariants:
//! * A [`Blob`] exists only after its digest was verified: only [`Partial::commit`] and [`Store::put`] create files
//!   under `blobs-v1`.
//! * Write: aside on the same file system -> hash -> fsync -> rename -> fsync of the directory -> index. A crash at
//!   any point leaves nothing or a complete verified blob.
//! * A cache hit is one `open` and one `fstat`: no database, no channel, no global lock.
//! * Nothing in the index is unique. If it is lost, broken or unreadable, it is moved aside and rebuilt.
//!
//! Not guaranteed: that a file under `blobs-v1` was not damaged later by the disk or by another program.

#![expect(clippy::disallowed_methods, reason = "the store is where files are touched")]

mod blob;
mod buffers;
mod check;
mod facts;
mod health;
mod index;
mod notes;
mod origins;
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
mod verified;

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
pub use health::{Excess, Trouble, TroubleKind};
pub use index::Totals;
pub use origins::{GivenTo, Origins};
pub use partial::{Accepted, Finish, Partial, Unverified};
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

/// Why an operation of the store failed. A missing blob is not an error: it is `None`.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call on a file of the store failed.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// The operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// Another agent uses the directory.
    #[error("`{}` is in use by another agent: give each agent its own `dataDir`", .0.display())]
    Locked(PathBuf),
    /// The directory belongs to another program or a later version.
    #[error("`{}` holds `{found}` where `{expected}` was expected: use another `dataDir` or remove it", path.display())]
    Format {
        /// The file with the format's name.
        path: PathBuf,
        /// Its content.
        found: String,
        /// The expected content.
        expected: &'static str,
    },
    /// The store's limits leave no space, and nothing more can be evicted.
    #[error(
        "no space for {wanted} bytes: the store may hold {allowed} bytes, and the stored images are pinned or in use"
    )]
    NoRoom {
        /// Bytes to be stored.
        wanted: u64,
        /// Bytes that may be held now.
        allowed: u64,
    },
    /// Bytes do not match their digest.
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

/// The configuration of the store.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data directory; created when missing.
    pub data_dir: PathBuf,
    /// How much it may hold.
    pub limits: Limits,
    /// Content of the container runtime that may be used, if configured.
    pub runtime: Option<RuntimeContent>,
}

#[cfg(test)]
impl Config {
    /// The default configuration.
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
    /// Used while this process is not the owner.
    no_index: Index,
    usage: Arc<UsageLog>,
    limits: Limits,
    runtime: Option<RuntimeContent>,
    health: Health,
    /// Locked while references are written or removed, so that none is written into a directory that is being
    /// removed.
    references: parking_lot::Mutex<()>,
    /// Counts changes of references other than by client requests.
    changes: AtomicU64,
    /// Number of records of tags; see `tags`.
    tags: AtomicUsize,
}

impl Store {
    /// Opens or creates the store, locks it, and reads the index. Blocking: call it on the blocking pool.
    pub fn open(config: &Config) -> Result<Self, StoreError> {
        let store = Self::attach(config)?;
        store.owner()?;
        store.rebuild_index_if_needed()?;
        Ok(store)
    }

    /// Opens or creates the store, for reading only while another process owns it. Blocking.
    pub fn attach(config: &Config) -> Result<Self, StoreError> {
        let store = Self::new(config);
        store.take_over()?;
        Ok(store)
    }

    /// Opens an existing store for reading, beside its owner. Blocking.
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
            references: parking_lot::Mutex::default(),
            changes: AtomicU64::new(0),
            tags: AtomicUsize::new(tags::UNCOUNTED),
        }))
    }

    /// The data directory.
    pub fn directory(&self) -> &Path {
        self.0.paths.root()
    }

    fn index(&self) -> &Index {
        self.0.owned.get().map_or(&self.0.no_index, |owned| &owned.index)
    }

    /// Opens a blob for reading; `None` when it is not stored.
    pub async fn blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let found = blob::open(&self.0.paths, digest).await?;
        Ok(found.map(|blob| blob.held(self.0.usage.hold(digest))))
    }

    /// Whether blobs of the container runtime may be used.
    pub fn has_runtime(&self) -> bool {
        self.0.runtime.is_some()
    }

    /// Verifies and stores content in memory (a manifest). A damaged file with its name is replaced; open readers
    /// keep the old file. Blocking.
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

    /// Opens the partial blob of a digest, resuming an earlier download. Blocking.
    ///
    /// At most one per digest at a time: the caller must ensure that.
    pub fn partial(&self, digest: &Digest) -> Result<Partial, StoreError> {
        self.owner()?;
        Partial::open(self.clone(), digest)
    }

    /// The record of a tag.
    pub async fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        let path = self.0.paths.tag(repository, tag);
        tokio::task::spawn_blocking(move || refs::read(&path)).await?
    }

    /// Notes the use of a manifest that was not opened: a client resolved its tag.
    pub fn note_use(&self, digest: &Digest) {
        self.0.usage.note(digest);
    }

    /// Records the digest of a tag. Blocking.
    pub fn set_tag(&self, repository: &Repository, tag: &Tag, record: &TagRecord) -> Result<(), StoreError> {
        self.owner()?;
        let _only = self.0.references.lock();
        let path = self.0.paths.tag(repository, tag);
        // A pin belongs to the tag, whatever digest the registry returns.
        let old = refs::read::<TagRecord>(&path)?;
        if old.is_none() {
            self.count_new_tag();
        }
        let (pinned, held) = old.map_or((false, false), |old| (old.pinned, old.held));
        let record =
            TagRecord { pinned: record.pinned || pinned, held: record.held || held, ..record.clone() };
        refs::write(&self.0.paths, &path, &record)
    }

    /// Removes the record of a tag that the registry does not have. A pinned or imported tag stays. Blocking.
    pub fn remove_tag(&self, repository: &Repository, tag: &Tag) -> Result<(), StoreError> {
        self.owner()?;
        let _only = self.0.references.lock();
        let path = self.0.paths.tag(repository, tag);
        let kept = refs::read::<TagRecord>(&path)?.is_some_and(|record| record.is_kept());
        if kept { Ok(()) } else { refs::remove(&path) }
    }

    /// The record of a manifest in a repository; `None` when there is none.
    pub async fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<ManifestRecord>, StoreError> {
        let path = self.0.paths.manifest(repository, digest);
        tokio::task::spawn_blocking(move || refs::read(&path)).await?
    }

    /// The manifests that a repository has, by their records; unreadable ones are left out. Blocking.
    pub fn manifests_of(&self, repository: &Repository) -> Result<Vec<Digest>, StoreError> {
        let directory = self.0.paths.manifests(repository);
        if !directory.is_dir() {
            return Ok(Vec::new());
        }
        let names = facts::list(&directory)?;
        Ok(names.iter().filter_map(|path| facts::name_of(path)?.parse().ok()).collect())
    }

    /// Records that a repository has a manifest. Blocking.
    pub fn set_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        record: &ManifestRecord,
    ) -> Result<(), StoreError> {
        self.owner()?;
        let _only = self.0.references.lock();
        let path = self.0.paths.manifest(repository, digest);
        let (pinned, held) =
            refs::read::<ManifestRecord>(&path)?.map_or((false, false), |old| (old.pinned, old.held));
        let record =
            ManifestRecord { pinned: record.pinned || pinned, held: record.held || held, ..record.clone() };
        refs::write(&self.0.paths, &path, &record)
    }

    /// Rises when references were pinned, removed or imported: caches must read them again.
    pub fn reference_changes(&self) -> u64 {
        self.0.changes.load(Ordering::Acquire)
    }

    /// Notes such a change of references.
    pub fn note_reference_change(&self) {
        self.0.changes.fetch_add(1, Ordering::Release);
    }

    /// The total of stored blobs, as far as the index has counted.
    pub fn totals(&self) -> Totals {
        self.index().totals()
    }

    /// Counts the files when the index was lost or not closed cleanly. Blocking, for seconds at most; cache hits are
    /// served meanwhile.
    pub fn rebuild_index_if_needed(&self) -> Result<(), StoreError> {
        if !self.is_owner() {
            return Ok(());
        }
        self.index().rebuild_if_needed(&self.0.paths)
    }

    /// Whether everything on disk has been counted. Before that nothing may be evicted.
    pub fn is_counted(&self) -> bool {
        self.index().is_counted()
    }

    /// Whether this process had to rebuild the index.
    pub fn was_index_rebuilt(&self) -> bool {
        self.index().was_rebuilt()
    }

    /// Writes times of last use to the index in one batch. Blocking.
    pub fn flush_usage(&self) {
        if self.is_owner() {
            self.index().touch(self.0.usage.take());
        }
    }

    /// Saves everything before the process ends. Blocking.
    pub fn close(&self) {
        self.flush_usage();
        if let Some(owned) = self.0.owned.get() {
            owned.index.close();
            owned.release();
        }
    }
}

/// Whether a file contains these bytes; `false` when it cannot be read.
fn holds(path: &Path, bytes: &[u8]) -> bool {
    let same_size = std::fs::metadata(path).is_ok_and(|found| found.len() == bytes.len() as u64);
    same_size && std::fs::read(path).is_ok_and(|found| found == bytes)
}

#[cfg(test)]
mod crash;
#[cfg(test)]
mod tests;
