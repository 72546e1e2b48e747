//! The index: sizes and last use of blobs, in sled. The only file that uses sled.
//!
//! Layout: tree `blobs`, key = algorithm byte and raw digest, value = size and last use (two big-endian u64);
//! default tree, key `clean`: the totals, present only after a clean close.
//!
//! Disposable: it contains nothing unique. Opening it can fail, and in sled 0.34 can panic, after a crash; then it is
//! moved aside, and an empty one is filled from the files. If an operation fails or panics later, the next start does
//! the same, and the index is not used until then. Without any index (a full or read-only disk) the agent continues.
//!
//! The rebuild goes shard by shard, each under the lock that changes take, so that blobs that are stored and removed
//! meanwhile are counted once. Cache hits do not use the index.

use std::{
    collections::HashMap,
    fs, io,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::{
    StoreError,
    paths::Paths,
    refs,
    shards::{ALL_SHARDS, Entry, decode, digest_of, encode, key, list_shard, prefix, shard_of},
    usage,
};
use crate::types::Digest;

/// sled's page cache, in bytes. Its default of 1 GiB is larger than the agent.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;

/// How long the previous owner of the index may still have its files open, and how often that is checked.
const RELEASE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(10));

/// The file that sled locks.
const DATABASE: &str = "db";

/// The total number and size of stored blobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Whole, verified blobs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

#[derive(Debug)]
pub(super) struct Index {
    trees: Option<Trees>,
    /// An operation failed: the trees are neither read nor written any more.
    broken: AtomicBool,
    /// Number of shards whose files are counted; locked during changes of entries.
    counted: Mutex<usize>,
    /// Locked during a rebuild.
    counting: Mutex<()>,
    blobs: AtomicU64,
    bytes: AtomicU64,
    rebuilt: AtomicBool,
}

#[derive(Debug)]
struct Trees {
    database: sled::Db,
    blobs: sled::Tree,
}

const CLEAN: &[u8] = b"clean";

impl Index {
    pub(super) fn open(paths: &Paths) -> Self {
        let directory = paths.index();
        let trees = open_trees(&directory).or_else(|problem| {
            if problem.disk {
                return Err(problem);
            }
            tracing::warn!(path = %directory.display(), error = %problem.text, "cannot open the index: moved it aside, rebuilding it from the files");
            move_aside(&directory).map_err(|error| Problem::of_disk(&error))?;
            open_trees(&directory)
        });
        match trees {
            Ok(trees) => {
                let index = Self::new(Some(trees));
                index.take_clean_totals();
                index
            }
            Err(problem) => {
                tracing::warn!(path = %directory.display(), error = %problem.text, "cannot create an index: times of last use are not saved");
                Self::new(None)
            }
        }
    }

    /// Without an index.
    pub(super) fn none() -> Self {
        Self::new(None)
    }

    fn new(trees: Option<Trees>) -> Self {
        Self {
            trees,
            broken: AtomicBool::new(false),
            counted: Mutex::new(0),
            counting: Mutex::default(),
            blobs: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            rebuilt: AtomicBool::new(false),
        }
    }

    /// Runs an operation on the trees; `None` without an index, and after the first failure or panic.
    fn with<T>(&self, work: impl FnOnce(&Trees) -> sled::Result<T>) -> Option<T> {
        let trees = self.trees.as_ref().filter(|_| !self.broken.load(Ordering::Relaxed))?;
        let reason = match panic::catch_unwind(AssertUnwindSafe(|| work(trees))) {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "sled panicked".to_owned(),
        };
        self.broken.store(true, Ordering::Relaxed);
        tracing::warn!(error = %reason, "the index failed: times of last use are not saved until the next start rebuilds it");
        None
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.counted.lock()
    }

    /// Uses the stored entries only if the last process closed the index; removes the mark before anything is
    /// changed.
    fn take_clean_totals(&self) {
        let clean = self.with(|trees| {
            let clean = trees.database.remove(CLEAN)?;
            trees.database.flush()?;
            Ok(clean)
        });
        let Some(totals) = clean.flatten().and_then(|value| decode(&value)) else { return };
        self.blobs.store(totals.size, Ordering::Relaxed);
        self.bytes.store(totals.used, Ordering::Relaxed);
        *self.lock() = ALL_SHARDS;
    }

    pub(super) fn totals(&self) -> Totals {
        Totals { blobs: self.blobs.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    /// Whether every file has been counted.
    pub(super) fn is_counted(&self) -> bool {
        *self.lock() == ALL_SHARDS
    }

    /// Whether this process had to count the files.
    pub(super) fn was_rebuilt(&self) -> bool {
        self.rebuilt.load(Ordering::Relaxed)
    }

    /// Adds a blob whose file was just published.
    pub(super) fn insert(&self, digest: &Digest, size: u64) {
        let counted = self.lock();
        let entry = Entry { size, used: usage::now() };
        let known = self.with(|trees| trees.blobs.insert(key(digest), &encode(entry)));
        // If the shard has not been counted yet, the blob is counted with it.
        if known.flatten().is_none() && shard_of(digest) < *counted {
            self.blobs.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(size, Ordering::Relaxed);
        }
    }

    /// Removes a blob from the index, then its file. Returns its size.
    pub(super) fn remove(&self, paths: &Paths, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.take_out(paths, digest, refs::remove)
    }

    /// Removes a blob from the index, then calls `take` for its file. Returns its size.
    pub(super) fn take_out(
        &self,
        paths: &Paths,
        digest: &Digest,
        take: impl FnOnce(&Path) -> Result<(), StoreError>,
    ) -> Result<Option<u64>, StoreError> {
        let path = paths.blob(digest);
        let counted = self.lock();
        let size = fs::metadata(&path).ok().map(|metadata| metadata.len());
        let known = self.with(|trees| trees.blobs.remove(key(digest))).flatten();
        if size.is_some() {
            take(&path)?;
        }
        // A file that was removed by another process was counted nevertheless.
        let gone = size.or_else(|| Some(decode(&known?)?.size));
        if let Some(bytes) = gone.filter(|_| shard_of(digest) < *counted) {
            let less = |count: &AtomicU64, by: u64| {
                let _ = count
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(now.saturating_sub(by)));
            };
            less(&self.blobs, 1);
            less(&self.bytes, bytes);
        }
        Ok(size)
    }

    /// Every blob. Without an index, from the files and their modification times.
    pub(super) fn entries(&self, paths: &Paths) -> Result<Vec<(Digest, Entry)>, StoreError> {
        let indexed = self.with(|trees| {
            let known = trees.blobs.iter().map(|entry| {
                let (key, value) = entry?;
                Ok(digest_of(&key).zip(decode(&value)))
            });
            known.filter_map(Result::transpose).collect::<sled::Result<Vec<_>>>()
        });
        if let Some(found) = indexed {
            return Ok(found);
        }
        let mut found = Vec::new();
        for shard in 0..ALL_SHARDS {
            found.extend(list_shard(paths, shard)?);
        }
        Ok(found)
    }

    /// Writes times of last use, in one batch.
    pub(super) fn touch(&self, used: Vec<(Digest, u64)>) {
        if used.is_empty() {
            return;
        }
        let _counted = self.lock();
        self.with(|trees| {
            let mut batch = sled::Batch::default();
            for (digest, used) in used {
                let key = key(&digest);
                if let Some(old) = trees.blobs.get(&key)?.and_then(|old| decode(&old)) {
                    batch.insert(key, &encode(Entry { used, ..old }));
                }
            }
            trees.blobs.apply_batch(batch)
        });
    }

    /// Counts the files when the stored totals cannot be used. Known entries keep their time of use; entries without
    /// a file are removed. Only one caller counts; others return at once.
    pub(super) fn rebuild_if_needed(&self, paths: &Paths) -> Result<(), StoreError> {
        let Some(_counting) = self.counting.try_lock() else { return Ok(()) };
        let mut next = *self.lock();
        if next == ALL_SHARDS {
            return Ok(());
        }
        self.rebuilt.store(true, Ordering::Relaxed);
        while next < ALL_SHARDS {
            let mut counted = self.lock();
            let files = list_shard(paths, next)?;
            self.blobs.fetch_add(files.len() as u64, Ordering::Relaxed);
            self.bytes.fetch_add(files.iter().map(|(_, entry)| entry.size).sum(), Ordering::Relaxed);
            self.with(|trees| update_shard(trees, next, files));
            next += 1;
            *counted = next;
        }
        let totals = self.totals();
        tracing::info!(blobs = totals.blobs, bytes = totals.bytes, "index rebuilt from the files");
        Ok(())
    }

    pub(super) fn close(&self) {
        let clean = self.is_counted();
        let totals = self.totals();
        let closed = self.with(|trees| {
            if clean {
                trees.database.insert(CLEAN, &encode(Entry { size: totals.blobs, used: totals.bytes }))?;
            }
            trees.database.flush()
        });
        if self.trees.is_some() && closed.is_none() {
            tracing::warn!("the index was not closed cleanly: the next start rebuilds it");
        }
    }
}

/// Replaces a shard's entries according to its files.
fn update_shard(trees: &Trees, shard: usize, files: Vec<(Digest, Entry)>) -> sled::Result<()> {
    let mut known: HashMap<sled::IVec, Option<Entry>> = HashMap::new();
    for entry in trees.blobs.scan_prefix(prefix(shard)) {
        let (key, value) = entry?;
        known.insert(key, decode(&value));
    }
    let mut batch = sled::Batch::default();
    for (digest, file) in files {
        let key = sled::IVec::from(key(&digest));
        match known.remove(&key).flatten() {
            Some(entry) if entry.size == file.size => {}
            Some(entry) => batch.insert(key, &encode(Entry { used: entry.used, ..file })),
            None => batch.insert(key, &encode(file)),
        }
    }
    for (key, _) in known {
        batch.remove(key);
    }
    trees.blobs.apply_batch(batch)
}

/// Why the trees cannot be opened, and whether the disk is the reason.
struct Problem {
    text: String,
    disk: bool,
}

impl Problem {
    fn of_disk(error: &io::Error) -> Self {
        Self { text: error.to_string(), disk: true }
    }
}

/// Waits until no process has the database open. An agent that stops unlocks the data directory first, while sled's
/// threads keep their files open a little longer: treating that as a broken index would lose the times of use.
fn await_release(directory: &Path) {
    let Ok(file) = fs::File::open(directory.join(DATABASE)) else { return };
    let (most, step) = RELEASE;
    let deadline = Instant::now() + most;
    while flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
        && Instant::now() < deadline
    {
        thread::sleep(step);
    }
}

/// Opens the trees; a panic inside sled becomes an error.
fn open_trees(directory: &Path) -> Result<Trees, Problem> {
    await_release(directory);
    let opened = panic::catch_unwind(|| {
        let database = sled::Config::new()
            .path(directory)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(Some(5_000))
            .open()?;
        let blobs = database.open_tree("blobs")?;
        Ok::<_, sled::Error>(Trees { database, blobs })
    });
    match opened {
        Ok(Ok(trees)) => Ok(trees),
        Ok(Err(error)) => {
            let disk = matches!(&error, sled::Error::Io(error) if matches!(error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem));
            Err(Problem { text: error.to_string(), disk })
        }
        Err(_) => Err(Problem { text: "sled panicked while opening".to_owned(), disk: false }),
    }
}

fn move_aside(directory: &Path) -> io::Result<()> {
    let aside = directory.with_extension("broken");
    match aside.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&aside)?,
        Ok(_) => fs::remove_file(&aside)?,
        Err(_) => {}
    }
    fs::rename(directory, &aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_index_the_blobs_are_found_by_their_files() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        for directory in paths.directories() {
            fs::create_dir_all(directory).unwrap();
        }
        let digest = Digest::of(b"x");
        let path = paths.blob(&digest);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"x").unwrap();
        let none = Index::new(None);
        let found: Vec<_> =
            none.entries(&paths).unwrap().into_iter().map(|(digest, entry)| (digest, entry.size)).collect();
        assert_eq!(found, [(digest, 1)], "eviction finds blobs although their index cannot be opened");
    }

    /// Creates a blob file without a store: its bytes do not matter here.
    fn lay_down(paths: &Paths, n: u32) -> Digest {
        let digest = Digest::of(&n.to_be_bytes());
        let (aside, path) = (paths.root().join("aside"), paths.blob(&digest));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&aside, n.to_be_bytes()).unwrap();
        fs::rename(aside, path).unwrap();
        digest
    }

    fn blobs(paths: &Paths, count: u32) -> Vec<Digest> {
        (0..count).map(|n| lay_down(paths, n)).collect()
    }

    #[test]
    fn blobs_that_are_added_and_removed_during_the_count_are_counted_once() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        let there = blobs(&paths, 2_000);
        let index = Index::open(&paths);
        assert!(!index.is_counted());
        thread::scope(|scope| {
            scope.spawn(|| index.rebuild_if_needed(&paths).unwrap());
            for (n, digest) in (10_000_u32..).zip(&there[..500]) {
                assert_eq!(index.remove(&paths, digest).unwrap(), Some(4));
                let new = lay_down(&paths, n);
                index.insert(&new, 4);
            }
        });
        assert!(index.is_counted());
        assert_eq!(index.totals(), Totals { blobs: 2_000, bytes: 8_000 });
        assert_eq!(index.entries(&paths).unwrap().len(), 2_000);
    }

    /// The index of three blobs, counted and closed, while its files are still open.
    fn closed(paths: &Paths) -> Index {
        blobs(paths, 3);
        let index = Index::open(paths);
        index.rebuild_if_needed(paths).unwrap();
        index.close();
        index
    }

    #[test]
    fn opening_waits_for_an_index_that_is_still_open() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        let index = closed(&paths);
        let opened = thread::spawn(move || Index::open(&paths));
        thread::sleep(Duration::from_millis(300));
        assert!(!opened.is_finished());
        drop(index);
        let index = opened.join().unwrap();
        assert!(index.is_counted() && !index.was_rebuilt());
    }

    #[test]
    fn a_crash_after_the_clean_mark_was_taken_means_counting_again() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        drop(closed(&paths));
        let index = Index::open(&paths);
        assert!(index.is_counted() && !index.was_rebuilt());
        assert_eq!(index.totals(), Totals { blobs: 3, bytes: 12 });
        // As after kill -9 at this moment.
        let copy = directory.path().join("copy");
        fs::create_dir(&copy).unwrap();
        for file in ["conf", DATABASE] {
            fs::copy(paths.index().join(file), copy.join(file)).unwrap();
        }
        drop(index);
        fs::remove_dir_all(paths.index()).unwrap();
        fs::rename(&copy, paths.index()).unwrap();
        assert!(!Index::open(&paths).is_counted());
    }
}
