//! How large the cache is, and removing what was not used for a while.
//!
//! The modification time of a file of the cache says when it was last used: finding it moves the time on, at most once a
//! day, so that looking costs next to nothing. Access times would say the same, but many file systems do not keep them.
//!
//! Every process holds a shared lock on `<cache>/lock`. A process that gets the lock alone knows that no other process uses the
//! cache: then temporary files are leftovers of killed ones, and old files can be removed.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    path::Path,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use super::{Cache, CacheError, DIRECTORIES, verify::files_below};

/// How often the last use of a file is written down.
const DAY: Duration = Duration::from_hours(24);

/// What a directory of the cache takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// The directory's name: what kind of object is in it.
    pub kind: String,
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What was removed, and what is left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pruned {
    /// Files that were removed.
    pub removed_files: u64,
    /// Their bytes.
    pub removed_bytes: u64,
    /// Bytes that are left.
    pub kept_bytes: u64,
}

impl Cache {
    /// What every directory takes.
    pub fn usage(&self) -> Vec<Usage> {
        let of = |kind: &str| {
            let sizes = files_below(&self.root.join(kind)).into_iter();
            let sizes: Vec<u64> =
                sizes.filter_map(|path| Some(fs::symlink_metadata(path).ok()?.len())).collect();
            Usage { kind: kind.to_owned(), files: sizes.len() as u64, bytes: sizes.iter().sum() }
        };
        DIRECTORIES.into_iter().map(of).collect()
    }

    /// Removes what was not used for so long, or only counts it. Fails while another process uses the cache.
    pub fn prune(&self, unused: Duration, dry: bool) -> Result<Pruned, CacheError> {
        if !self.is_alone() {
            return Err(CacheError::InUse { path: self.root.clone() });
        }
        let now = SystemTime::now();
        let mut pruned = Pruned::default();
        for path in DIRECTORIES.iter().flat_map(|kind| files_below(&self.root.join(kind))) {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let age = meta.modified().ok().and_then(|used| now.duration_since(used).ok()).unwrap_or_default();
            if age < unused {
                pruned.kept_bytes += meta.len();
                continue;
            }
            if !dry {
                fs::remove_file(&path).map_err(|source| self.fault("remove", &path, source))?;
            }
            pruned.removed_files += 1;
            pruned.removed_bytes += meta.len();
        }
        self.share();
        Ok(pruned)
    }

    /// Notes that a file was used, at most once a day. Best effort: at worst it is made again some day.
    pub(crate) fn mark_used(path: &Path, meta: &fs::Metadata) {
        let age = meta.modified().ok().and_then(|used| SystemTime::now().duration_since(used).ok());
        if age.is_some_and(|age| age > DAY)
            && let Ok(file) = File::open(path)
        {
            let _ = file.set_modified(SystemTime::now());
        }
    }

    /// Opens the file that processes share a lock on; `None` where the file system has no locks.
    pub(super) fn open_lock(root: &Path) -> Option<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(root.join("lock")).ok()
    }

    /// Whether no other process uses the cache. The answer holds until [`Cache::share`].
    pub(super) fn is_alone(&self) -> bool {
        match self.lock.as_deref().map(File::try_lock) {
            Some(Ok(())) => true,
            Some(Err(TryLockError::WouldBlock)) => {
                self.share();
                false
            }
            // Without locks nothing is known.
            Some(Err(TryLockError::Error(_))) | None => false,
        }
    }

    /// Lets other processes use the cache beside this one; waits while one prunes it.
    pub(super) fn share(&self) {
        if let Some(lock) = &self.lock {
            // A file system that cannot lock has none to wait for.
            let _ = lock.lock_shared();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Shelf;

    fn age(path: &Path, days: u32) {
        let time = SystemTime::now() - DAY * days;
        File::open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn what_was_not_used_is_removed_and_what_was_found_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let [old, used, new] =
            [b"old", b"use", b"new"].map(|bytes| cache.put(Shelf::Files, &mut &bytes[..]).unwrap());
        for content in [&old, &used] {
            age(&cache.path(Shelf::Files, &content.digest), 40);
        }
        assert!(cache.find(Shelf::Files, &used).is_some(), "it is used now");
        let month = DAY * 30;
        let dry = cache.prune(month, true).unwrap();
        assert_eq!(dry, Pruned { removed_files: 1, removed_bytes: 3, kept_bytes: 6 });
        assert!(cache.path(Shelf::Files, &old.digest).exists(), "only counted");
        assert_eq!(cache.prune(month, false).unwrap(), dry);
        let there = [old, used, new].map(|content| cache.find(Shelf::Files, &content).is_some());
        assert_eq!(there, [false, true, true]);
        let files = cache.usage().into_iter().find(|usage| usage.kind == "files-v1").unwrap();
        assert_eq!((files.files, files.bytes), (2, 6));
        assert_eq!(cache.prune(Duration::ZERO, false).unwrap().kept_bytes, 0);
    }

    #[test]
    fn a_cache_in_use_is_neither_pruned_nor_swept() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let running = cache.temporary().unwrap();
        let second = Cache::open(directory.path()).unwrap();
        assert!(running.path().exists(), "its process is alive");
        assert!(matches!(second.prune(Duration::ZERO, false), Err(CacheError::InUse { .. })));
        drop(cache);
        // A process that was killed leaves its file, but not its lock.
        let left = running.into_temp_path().keep().unwrap();
        assert_eq!(second.prune(DAY, false).unwrap().removed_files, 0);
        drop(second);
        Cache::open(directory.path()).unwrap();
        assert!(!left.exists(), "it is removed at the next start");
    }
}
