//! A blob that is arriving: a sparse file, the set of byte ranges in it, and the hash of its contiguous beginning.
//!
//! Ranges are written in any order. The map is saved each time another piece's worth of bytes has arrived, so that
//! after a crash less than one piece per connection is fetched again. The map is not synced: after a power cut it may
//! list bytes that never reached the disk, which the final hash detects, and then everything is fetched again.
//!
//! Bytes from a peer are written by [`Unverified`]: they count only when they have the expected hash of the piece.
//!
//! Discarding bytes (another size, another version) starts a new epoch atomically with respect to writes and the
//! hash: a write of an earlier epoch, which an aborted request may still be doing, changes nothing.
//!
//! All functions block and belong on the blocking pool, except [`Partial::end_from`] and [`Partial::size`].

mod map;
mod unverified;

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;

use map::Map;
pub use unverified::{Accepted, Unverified};

use super::{
    Blob, RangeSet, Store, StoreError,
    paths::{self, Mode},
    usage::Hold,
};
use crate::types::{Digest, Hasher, Mismatch, Validator};

/// Bytes after which the map is saved again: one piece.
const SAVE_EVERY: u64 = 4 * 1024 * 1024;

/// Senders whose versions are recorded; more than any registry has endpoints and storage hosts.
const MAX_VALIDATORS: usize = 16;

/// Bytes read at once when the hash is updated from the file: they stay in a processor's cache while they are hashed.
const READ_BACK: usize = 64 * 1024;

/// See the module documentation.
#[derive(Debug)]
pub struct Partial {
    store: Store,
    digest: Digest,
    data_path: PathBuf,
    map_path: PathBuf,
    file: Arc<File>,
    state: Mutex<State>,
    hash: Mutex<Running>,
    /// Locked during writes, so that no byte is written twice: bytes that were hashed from memory are those in the
    /// file.
    writing: Mutex<()>,
    /// Locked while the map is saved: two requests may want to at once.
    saving: Mutex<()>,
    changes: AtomicU64,
    /// Ranges of the current [`Unverified`] writers.
    unverified: Mutex<Vec<Range<u64>>>,
    /// Protects the digest from eviction while the download runs, and from the moment the blob is complete.
    _hold: Hold,
}

#[derive(Debug)]
struct State {
    have: RangeSet,
    size: Option<u64>,
    validators: Vec<Validator>,
    unsaved: u64,
    /// Rises whenever everything is discarded.
    epoch: u64,
    /// Published, or about to be: nothing may be discarded any more.
    sealed: bool,
}

#[derive(Debug)]
struct Running {
    hasher: Hasher,
    position: u64,
    epoch: u64,
}

/// The result of verifying a complete partial blob.
#[derive(Debug, PartialEq, Eq)]
pub enum Finish {
    /// The digest matched.
    Verified,
    /// The digest did not match; the bytes must not be used.
    Mismatch {
        /// Digest of the bytes.
        found: Digest,
    },
}

impl Partial {
    pub(super) fn open(store: Store, digest: &Digest) -> Result<Self, StoreError> {
        let hold = store.0.usage.hold(digest);
        let data_path = store.0.paths.partial_data(digest);
        let map_path = store.0.paths.partial_map(digest);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&data_path)
            .map_err(StoreError::io("open", &data_path))?;
        let length = file.metadata().map_err(StoreError::io("inspect", &data_path))?.len();
        let map = Map::read(&map_path, length);
        Ok(Self {
            store,
            digest: *digest,
            data_path,
            map_path,
            file: Arc::new(file),
            state: Mutex::new(State {
                have: RangeSet::from_ranges(map.have.iter().map(|(start, end)| *start..*end)),
                size: map.size,
                validators: map.validators,
                unsaved: 0,
                epoch: 0,
                sealed: false,
            }),
            hash: Mutex::new(Running { hasher: digest.algorithm().hasher(), position: 0, epoch: 0 }),
            writing: Mutex::new(()),
            saving: Mutex::new(()),
            changes: AtomicU64::new(0),
            unverified: Mutex::default(),
            _hold: hold,
        })
    }

    /// The digest that the bytes have to match.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The file that readers read from.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The blob's size, once known.
    pub fn size(&self) -> Option<u64> {
        self.state.lock().size
    }

    /// End of the contiguous bytes from `position` on.
    pub fn end_from(&self, position: u64) -> u64 {
        self.state.lock().have.end_from(position)
    }

    /// The missing parts of `within`.
    pub fn gaps(&self, within: Range<u64>) -> Vec<Range<u64>> {
        self.state.lock().have.gaps(within)
    }

    /// The ranges that have arrived.
    pub fn have(&self) -> RangeSet {
        self.state.lock().have.clone()
    }

    /// Contiguous bytes that are not hashed yet; zero while another thread hashes.
    pub fn unhashed(&self) -> u64 {
        let position = self.hash.try_lock().map(|running| running.position);
        position.map_or(0, |position| self.end_from(position) - position)
    }

    /// Number of bytes that have arrived.
    pub fn total(&self) -> u64 {
        self.state.lock().have.total()
    }

    /// Sets the size according to the registry. If it differs from an earlier size, the bytes belong to other content
    /// and are discarded.
    pub fn set_size(&self, size: u64) -> Result<(), StoreError> {
        let _writing = self.writing.lock();
        {
            let mut state = self.state.lock();
            if state.sealed || state.size.is_none_or(|old| old == size) {
                state.size = state.size.or(Some(size));
                return Ok(());
            }
        }
        tracing::warn!(digest = %self.digest.short(), size, "the registry sent another size of a partial blob: starting over");
        self.start_over(Some(size))
    }

    /// Discards everything. The caller holds `writing`.
    fn start_over(&self, size: Option<u64>) -> Result<(), StoreError> {
        let epoch = {
            let mut state = self.state.lock();
            if state.sealed {
                return Ok(());
            }
            let epoch = state.epoch + 1;
            let have = RangeSet::default();
            *state = State { have, size, validators: Vec::new(), unsaved: 0, epoch, sealed: false };
            epoch
        };
        *self.hash.lock() = Running { hasher: self.digest.algorithm().hasher(), position: 0, epoch };
        self.file.set_len(0).map_err(StoreError::io("truncate", &self.data_path))
    }

    /// Rises before bytes are discarded or replaced: bytes that were read meanwhile may be old or new.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The current epoch, for [`Self::write_in`].
    pub fn epoch(&self) -> u64 {
        self.state.lock().epoch
    }

    /// The versions of the content that its bytes come from, by sender.
    pub fn validators(&self) -> Vec<Validator> {
        self.state.lock().validators.clone()
    }

    /// Records a version; only the first one of each sender, while its bytes are kept.
    pub fn note_validator(&self, validator: &Validator) {
        let mut state = self.state.lock();
        let known = state.validators.iter().any(|known| known.origin == validator.origin);
        if !known && state.validators.len() < MAX_VALIDATORS {
            state.validators.push(validator.clone());
        }
    }

    /// Discards everything including the size, after contradictory information about the content.
    pub fn forget(&self) -> Result<(), StoreError> {
        let _writing = self.writing.lock();
        self.start_over(None)?;
        self.save_map()
    }

    /// Writes bytes at their position, except those that have arrived already. Readers see them when this returns.
    pub fn write(&self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError> {
        self.write_in(self.epoch(), offset, chunks, |_| ())
    }

    /// The same, unless everything was discarded since `epoch`. `written` receives the ranges that this call writes,
    /// before they become visible.
    pub fn write_in(
        &self,
        epoch: u64,
        offset: u64,
        chunks: &[Bytes],
        written: impl FnOnce(&[Range<u64>]),
    ) -> Result<(), StoreError> {
        let end = offset + chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        let writing = self.writing.lock();
        if self.epoch() != epoch {
            return Ok(());
        }
        let gaps = self.gaps(offset..end);
        for gap in &gaps {
            self.write_gap(offset, chunks, gap)?;
        }
        written(&gaps);
        let due = self.note(offset..end);
        drop(writing);
        if gaps == [offset..end] {
            self.hash_written(epoch, offset, chunks);
        }
        self.save_if(due);
        Ok(())
    }

    /// Adds a range. Returns whether the map is due to be saved.
    fn note(&self, range: Range<u64>) -> bool {
        let mut state = self.state.lock();
        state.unsaved += range.end - range.start;
        state.have.insert(range);
        let due = state.unsaved >= SAVE_EVERY;
        if due {
            state.unsaved = 0;
        }
        due
    }

    /// The map only helps the next process; an error does not fail the download.
    fn save_if(&self, due: bool) {
        if due && let Err(error) = self.save_map() {
            tracing::warn!(digest = %self.digest.short(), %error, "cannot save the map of a partial blob");
        }
    }

    /// Discards a range.
    pub fn give_up(&self, range: Range<u64>) -> Result<(), StoreError> {
        let _writing = self.writing.lock();
        let restart = {
            let mut state = self.state.lock();
            if state.sealed {
                return Ok(());
            }
            self.changes.fetch_add(1, Ordering::AcqRel);
            state.have.remove(&range);
            (range.start, state.epoch)
        };
        self.hash_again_from(restart);
        self.save_map()
    }

    /// Restarts the hash when it has passed a position where bytes have changed.
    fn hash_again_from(&self, (place, epoch): (u64, u64)) {
        let mut running = self.hash.lock();
        if running.position > place {
            *running = Running { hasher: self.digest.algorithm().hasher(), position: 0, epoch };
        }
    }

    /// Writes bytes even if others have arrived. Returns whether there were different ones.
    pub fn replace(&self, offset: u64, bytes: &Bytes) -> Result<bool, StoreError> {
        let range = offset..offset + bytes.len() as u64;
        let _writing = self.writing.lock();
        let (whole, restart) = {
            let state = self.state.lock();
            if state.sealed {
                return Ok(false);
            }
            (state.have.gaps(range.clone()), (offset, state.epoch))
        };
        if whole.is_empty() {
            let mut before = vec![0; bytes.len()];
            self.file
                .read_exact_at(&mut before, offset)
                .map_err(StoreError::io("read back", &self.data_path))?;
            if before == *bytes {
                return Ok(false);
            }
        }
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.file.write_all_at(bytes, offset).map_err(StoreError::io("write", &self.data_path))?;
        self.note(range.clone());
        self.hash_again_from(restart);
        Ok(whole != [range])
    }

    fn write_gap(&self, offset: u64, chunks: &[Bytes], gap: &Range<u64>) -> Result<(), StoreError> {
        let mut position = offset;
        for chunk in chunks {
            let next = position + chunk.len() as u64;
            let (from, to) = (gap.start.max(position), gap.end.min(next));
            if from < to {
                let part = usize::try_from(from - position)
                    .and_then(|from| usize::try_from(to - position).map(|to| from..to));
                let part = part.expect("a part of a chunk in memory fits its length");
                self.file
                    .write_all_at(&chunk[part], from)
                    .map_err(StoreError::io("write", &self.data_path))?;
            }
            position = next;
        }
        Ok(())
    }

    /// Adds bytes in memory to the hash when they continue it. When another thread hashes, that thread or
    /// [`Self::finish`] reads these bytes from the file later.
    fn hash_written(&self, epoch: u64, offset: u64, chunks: &[Bytes]) {
        let Some(mut running) = self.hash.try_lock() else { return };
        if (running.epoch, running.position) == (epoch, offset) {
            for chunk in chunks {
                running.hasher.update(chunk);
                running.position += chunk.len() as u64;
            }
        }
    }

    /// Hashes further contiguous bytes from the file (usually from the page cache).
    pub fn hash_forward(&self) -> Result<(), StoreError> {
        let mut running = self.hash.lock();
        loop {
            let end = self.end_from(running.position);
            if end == running.position {
                return Ok(());
            }
            self.read_back(&mut running, end)?;
        }
    }

    /// Adds the file's bytes up to `end` to a hash.
    fn read_back(&self, running: &mut Running, end: u64) -> Result<(), StoreError> {
        let length = |left: u64| usize::try_from(left).unwrap_or(READ_BACK).min(READ_BACK);
        let mut buffer = vec![0; length(end.saturating_sub(running.position))];
        while running.position < end {
            let wanted = length(end - running.position);
            self.file
                .read_exact_at(&mut buffer[..wanted], running.position)
                .map_err(StoreError::io("read back", &self.data_path))?;
            running.hasher.update(&buffer[..wanted]);
            running.position += wanted as u64;
        }
        Ok(())
    }

    /// The hash of everything before `position`, to continue elsewhere; `None` when bytes are missing.
    pub fn hash_up_to(&self, position: u64) -> Result<Option<Hasher>, StoreError> {
        if self.end_from(0) < position {
            return Ok(None);
        }
        let mut running = {
            let running = self.hash.lock();
            let fits = running.position <= position;
            let (hasher, start) = if fits {
                (running.hasher.clone(), running.position)
            } else {
                (self.digest.algorithm().hasher(), 0)
            };
            Running { hasher, position: start, epoch: running.epoch }
        };
        self.read_back(&mut running, position)?;
        Ok(Some(running.hasher))
    }

    /// Verifies the digest of the complete content. After a mismatch the caller discards the bytes.
    pub fn finish(&self) -> Result<Finish, StoreError> {
        self.hash_forward()?;
        let found = self.hash.lock().hasher.clone().finish();
        Ok(if found == self.digest { Finish::Verified } else { Finish::Mismatch { found } })
    }

    /// Publishes verified content: fsync, rename, fsync of the directory, index.
    ///
    /// The digest is verified again with the running hash, so that no order of calls can publish other content.
    pub fn commit(&self) -> Result<Blob, StoreError> {
        let _writing = self.writing.lock();
        let found = self.hash.lock().hasher.clone().finish();
        if found != self.digest {
            return Err(Box::new(Mismatch { expected: self.digest, found }).into());
        }
        self.state.lock().sealed = true;
        self.file.sync_all().map_err(StoreError::io("sync", &self.data_path))?;
        let target = self.store.0.paths.blob(&self.digest);
        paths::publish(&self.data_path, &target, Mode::ReadOnly)?;
        remove_if_there(&self.map_path)?;
        let blob = Blob::of(self.file.try_clone().map_err(StoreError::io("reopen", &target))?)
            .map_err(StoreError::io("inspect", &target))?
            .held(self.store.0.usage.hold(&self.digest));
        self.store.index().insert(&self.digest, blob.size());
        self.store.0.health.recovered();
        Ok(blob)
    }

    /// Removes the files; open readers keep them.
    pub fn discard(&self) -> Result<(), StoreError> {
        remove_if_there(&self.map_path)?;
        remove_if_there(&self.data_path)
    }

    /// Saves the map so that a later process can continue; an empty partial blob is removed.
    pub fn park(&self) -> Result<(), StoreError> {
        if self.total() == 0 { self.discard() } else { self.save_map() }
    }

    fn save_map(&self) -> Result<(), StoreError> {
        // Locked before the snapshot, so that an older map never replaces a newer one.
        let _saving = self.saving.lock();
        let map = {
            let state = self.state.lock();
            Map {
                size: state.size,
                have: state.have.iter().map(|range| (range.start, range.end)).collect(),
                validators: state.validators.clone(),
            }
        };
        map.write(&self.map_path)
    }
}

fn remove_if_there(path: &PathBuf) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
