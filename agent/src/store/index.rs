//! The index: sizes and last use of blobs, in sled. The only file that names sled.
//!
//! Layout: tree `blobs`, key = algorithm byte and raw digest, value = size and last use (two big-endian u64);
//! default tree, key `clean`, present only after a clean close.
//!
//! Disposable: nothing here is unique. Opening it can fail, and in sled 0.34 can panic, after a crash; both mean
//! "move it aside, start empty, count again from the files". Without any index (read-only disk) the agent goes on.

use std::{
    fs, panic,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use super::{StoreError, paths::Paths, usage};
use crate::types::{Algorithm, Digest};

/// sled's page cache, in bytes. Its default of 1 GiB is larger than the agent.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;

/// How much is stored.
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
    /// The files have to be counted before the totals can be believed.
    stale: AtomicBool,
    blobs: AtomicU64,
    bytes: AtomicU64,
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
        let trees = open_trees(&directory).or_else(|error| {
            tracing::warn!(path = %directory.display(), error, "index cannot be opened: moved aside, will be rebuilt");
            move_aside(&directory).and_then(|()| open_trees(&directory))
        });
        let trees = match trees {
            Ok(trees) => Some(trees),
            Err(error) => {
                tracing::warn!(path = %directory.display(), error, "no index: use times are not kept");
                None
            }
        };
        let index =
            Self { trees, stale: AtomicBool::new(true), blobs: AtomicU64::new(0), bytes: AtomicU64::new(0) };
        index.take_clean_totals();
        index
    }

    /// Believes the stored entries only if the last process closed the index; takes the mark away either way.
    fn take_clean_totals(&self) {
        let Some(trees) = &self.trees else { return };
        if !matches!(trees.database.remove(CLEAN), Ok(Some(_))) {
            return;
        }
        let mut totals = Totals::default();
        for entry in &trees.blobs {
            let Some((size, _)) = entry.ok().and_then(|(_, value)| decode(&value)) else { return };
            totals.blobs += 1;
            totals.bytes += size;
        }
        self.set_totals(totals);
        self.stale.store(false, Ordering::Release);
    }

    fn set_totals(&self, totals: Totals) {
        self.blobs.store(totals.blobs, Ordering::Relaxed);
        self.bytes.store(totals.bytes, Ordering::Relaxed);
    }

    pub(super) fn totals(&self) -> Totals {
        Totals { blobs: self.blobs.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    pub(super) fn insert(&self, digest: &Digest, size: u64) {
        let known = match &self.trees {
            Some(trees) => match trees.blobs.insert(key(digest), &encode(size, usage::now())) {
                Ok(previous) => previous.is_some(),
                Err(error) => {
                    tracing::warn!(digest = %digest.short(), %error, "index entry not written");
                    false
                }
            },
            None => false,
        };
        if !known {
            self.blobs.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(size, Ordering::Relaxed);
        }
    }

    /// Every blob with size and last use. Without an index the files themselves, and when they were made.
    pub(super) fn entries(&self, paths: &Paths) -> Result<Vec<(Digest, u64, u64)>, StoreError> {
        let Some(trees) = &self.trees else {
            let mut found = Vec::new();
            for algorithm in Algorithm::ALL {
                walk(&paths.blobs(algorithm), algorithm, &mut |digest, size, made| {
                    found.push((digest, size, made));
                })?;
            }
            return Ok(found);
        };
        let entries = trees.blobs.iter().filter_map(Result::ok);
        let known = entries.filter_map(|(key, value)| {
            let (size, used) = decode(&value)?;
            Some((digest_of(&key)?, size, used))
        });
        Ok(known.collect())
    }

    /// Forgets a blob that is about to be removed.
    pub(super) fn remove(&self, digest: &Digest) {
        let Some(trees) = &self.trees else { return };
        match trees.blobs.remove(key(digest)) {
            Ok(Some(value)) => {
                let size = decode(&value).map_or(0, |(size, _)| size);
                let less = |count: &AtomicU64, by| {
                    let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                        Some(now.saturating_sub(by))
                    });
                };
                less(&self.blobs, 1);
                less(&self.bytes, size);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(digest = %digest.short(), %error, "index entry not removed"),
        }
    }

    pub(super) fn touch(&self, used: Vec<(Digest, u64)>) {
        let Some(trees) = &self.trees else { return };
        for (digest, second) in used {
            let outcome = trees.blobs.fetch_and_update(key(&digest), |old| {
                old.and_then(decode).map(|(size, _)| encode(size, second).to_vec())
            });
            if let Err(error) = outcome {
                tracing::warn!(%error, "use times not written");
                return;
            }
        }
    }

    /// Walks the blobs on disk. Entries that are known keep their use time; entries without a file go.
    pub(super) fn rebuild_if_needed(&self, paths: &Paths) -> Result<(), StoreError> {
        if !self.stale.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let mut totals = Totals::default();
        let mut seen = std::collections::HashSet::new();
        for algorithm in Algorithm::ALL {
            walk(&paths.blobs(algorithm), algorithm, &mut |digest, size, modified| {
                totals.blobs += 1;
                totals.bytes += size;
                seen.insert(digest);
                self.learn(&digest, size, modified);
            })?;
        }
        self.forget_others(&seen);
        self.set_totals(totals);
        tracing::info!(blobs = totals.blobs, bytes = totals.bytes, "index rebuilt from the files");
        Ok(())
    }

    fn learn(&self, digest: &Digest, size: u64, modified: u64) {
        let Some(trees) = &self.trees else { return };
        let outcome = trees.blobs.fetch_and_update(key(digest), |old| {
            let used = old.and_then(decode).map_or(modified, |(_, used)| used);
            Some(encode(size, used).to_vec())
        });
        if let Err(error) = outcome {
            tracing::warn!(digest = %digest.short(), %error, "index entry not written");
        }
    }

    fn forget_others(&self, seen: &std::collections::HashSet<Digest>) {
        let Some(trees) = &self.trees else { return };
        for entry in trees.blobs.iter().keys().flatten() {
            if !digest_of(&entry).is_some_and(|digest| seen.contains(&digest))
                && let Err(error) = trees.blobs.remove(entry)
            {
                tracing::warn!(%error, "stale index entry not removed");
                return;
            }
        }
    }

    pub(super) fn close(&self) {
        let Some(trees) = &self.trees else { return };
        let clean = !self.stale.load(Ordering::Acquire);
        let outcome = if clean { trees.database.insert(CLEAN, b"").map(drop) } else { Ok(()) };
        if let Err(error) = outcome.and_then(|()| trees.database.flush().map(drop)) {
            tracing::warn!(%error, "index not closed cleanly: it will be rebuilt");
        }
    }
}

/// Opens the trees; a panic inside sled becomes an error text.
fn open_trees(directory: &Path) -> Result<Trees, String> {
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
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("sled panicked while opening".to_owned()),
    }
}

fn move_aside(directory: &Path) -> Result<(), String> {
    let aside = directory.with_extension("broken");
    let remove = |path: &Path| if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if aside.symlink_metadata().is_ok() {
        remove(&aside).map_err(|error| error.to_string())?;
    }
    fs::rename(directory, &aside).map_err(|error| error.to_string())
}

/// Calls `found` with digest, size and modification second of every blob file. Foreign names are passed over.
fn walk(
    root: &Path,
    algorithm: Algorithm,
    found: &mut impl FnMut(Digest, u64, u64),
) -> Result<(), StoreError> {
    for shard in fs::read_dir(root).map_err(StoreError::io("list", root))? {
        let shard = shard.map_err(StoreError::io("list", root))?.path();
        if !shard.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&shard).map_err(StoreError::io("list", &shard))? {
            let entry = entry.map_err(StoreError::io("list", &shard))?;
            let digest = entry.file_name().to_str().and_then(|name| Digest::from_parts(algorithm, name));
            let (Some(digest), Ok(metadata)) = (digest, entry.metadata()) else { continue };
            let modified = metadata
                .modified()
                .ok()
                .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
                .map_or(0, |elapsed| elapsed.as_secs());
            found(digest, metadata.len(), modified);
        }
    }
    Ok(())
}

fn key(digest: &Digest) -> Vec<u8> {
    let tag = match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    };
    [&[tag], digest.as_bytes()].concat()
}

fn digest_of(key: &[u8]) -> Option<Digest> {
    match key.split_first()? {
        (1, raw) => raw.try_into().ok().map(Digest::Sha256),
        (2, raw) => raw.try_into().ok().map(Digest::Sha512),
        _ => None,
    }
}

fn encode(size: u64, used: u64) -> [u8; 16] {
    let mut value = [0; 16];
    value[..8].copy_from_slice(&size.to_be_bytes());
    value[8..].copy_from_slice(&used.to_be_bytes());
    value
}

fn decode(value: &[u8]) -> Option<(u64, u64)> {
    let (size, used) = value.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*size), u64::from_be_bytes(used.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_index_the_files_say_what_there_is() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        for directory in paths.directories() {
            fs::create_dir_all(directory).unwrap();
        }
        let digest = Digest::of(b"x");
        let path = paths.blob(&digest);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"x").unwrap();
        let none = Index {
            trees: None,
            stale: AtomicBool::new(true),
            blobs: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        };
        let found: Vec<_> =
            none.entries(&paths).unwrap().into_iter().map(|(digest, size, _)| (digest, size)).collect();
        assert_eq!(found, [(digest, 1)], "eviction finds blobs although their index cannot be opened");
    }
}
