//! Checks files on disk: whether a stored blob matches its digest, and quarantines it if not. Layout:
//! `<data>/quarantine-v1/<algorithm>-<hex>`, the last few damaged files, for analysis.
//!
//! A check does not count as a use: it does not protect a blob from eviction. The bytes it reads are dropped from the
//! page cache.

use std::{
    fs, io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
};

use super::{Store, StoreError, refs, shards};
use crate::types::{Digest, Hasher, Mismatch};

/// Most damaged files that are kept.
const QUARANTINED: usize = 4;

/// Number of parts in which the store's blobs are listed, in order.
pub const SHARDS: usize = shards::ALL_SHARDS;

/// A stored blob that is being read.
#[derive(Debug)]
pub struct Look {
    digest: Digest,
    file: fs::File,
    hasher: Hasher,
    position: u64,
}

/// What is wrong with a stored blob.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// The bytes do not match the digest.
    #[error(transparent)]
    Mismatch(#[from] Box<Mismatch>),
    /// The file cannot be read.
    #[error("cannot be read")]
    Unreadable(#[from] io::Error),
}

impl Damage {
    /// Whether the blob is lost. Otherwise only this check failed: no file descriptor left, no permission.
    pub fn is_lasting(&self) -> bool {
        use rustix::io::Errno;
        match self {
            Self::Mismatch(_) => true,
            // The errors of file systems for a bad block, or for a wrong checksum of their own.
            Self::Unreadable(error) => [Errno::IO, Errno::BADMSG, Errno::UCLEAN, Errno::NODATA]
                .iter()
                .any(|errno| error.raw_os_error() == Some(errno.raw_os_error())),
        }
    }
}

impl Look {
    /// Reads at most `bytes` more and returns how many were read; zero at the end, when the digest matched. Blocking.
    pub fn advance(&mut self, bytes: usize) -> Result<u64, Damage> {
        let mut buffer = vec![0; bytes];
        let read = self.file.read_at(&mut buffer, self.position)?;
        if read == 0 {
            let found = self.hasher.clone().finish();
            if found != self.digest {
                return Err(Box::new(Mismatch { expected: self.digest, found }).into());
            }
            return Ok(0);
        }
        self.hasher.update(&buffer[..read]);
        // Frees page cache; an error does not matter.
        let length = std::num::NonZeroU64::new(read as u64);
        let _ = rustix::fs::fadvise(&self.file, self.position, length, rustix::fs::Advice::DontNeed);
        self.position += read as u64;
        Ok(read as u64)
    }
}

impl Store {
    /// The blobs of one of [`SHARDS`] parts, in order. Blocking.
    pub fn shard(&self, shard: usize) -> Result<Vec<Digest>, StoreError> {
        let mut all: Vec<_> =
            shards::list_shard(&self.0.paths, shard)?.into_iter().map(|(digest, _)| digest).collect();
        all.sort();
        Ok(all)
    }

    /// Opens a stored blob for a check; `None` when it does not exist. Blocking.
    pub fn look(&self, digest: &Digest) -> Result<Option<Look>, Damage> {
        match fs::File::open(self.0.paths.blob(digest)) {
            Ok(file) => {
                let hasher = digest.algorithm().hasher();
                Ok(Some(Look { digest: *digest, file, hasher, position: 0 }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Moves a damaged blob out of the store, so that it is fetched again at the next request. Readers that have it
    /// open keep it. Blocking.
    ///
    /// Also works beside a running agent: the files are the truth, and the agent's index follows later.
    pub fn quarantine(&self, digest: &Digest) -> Result<(), StoreError> {
        let directory = self.0.paths.quarantine();
        super::paths::make_directory(&directory)?;
        let name = format!("{}-{}", digest.algorithm().as_str(), digest.hex());
        let target = directory.join(name);
        self.index().take_out(&self.0.paths, digest, |path| match fs::rename(path, &target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("move aside", path)(error))
            }
            _ => Ok(()),
        })?;
        keep_newest(&directory)
    }

    /// The position of the background check, if one was running. Blocking.
    pub fn check_mark<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        refs::read(&self.0.paths.check_mark()).ok().flatten()
    }

    /// Saves the position over restarts. Blocking.
    pub fn set_check_mark<T: serde::Serialize>(&self, mark: &T) -> Result<(), StoreError> {
        self.owner()?;
        refs::write(&self.0.paths, &self.0.paths.check_mark(), mark)
    }
}

fn keep_newest(directory: &Path) -> Result<(), StoreError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(StoreError::io("list", directory))? {
        let entry = entry.map_err(StoreError::io("list", directory))?;
        let moved = entry.metadata().map(|metadata| (metadata.ctime(), metadata.ctime_nsec()));
        files.push((moved.unwrap_or_default(), entry.path()));
    }
    files.sort();
    let surplus = files.len().saturating_sub(QUARANTINED);
    files[..surplus].iter().try_for_each(|(_, path)| refs::remove(path))
}

#[cfg(test)]
mod tests {
    use super::{super::Config, *};

    #[test]
    fn only_errors_of_the_disk_count_as_damage() {
        let of = |errno: rustix::io::Errno| Damage::from(io::Error::from(errno)).is_lasting();
        assert!(of(rustix::io::Errno::IO) && of(rustix::io::Errno::UCLEAN));
        assert!(!of(rustix::io::Errno::MFILE) && !of(rustix::io::Errno::ACCESS));
    }

    fn check(store: &Store, digest: &Digest) -> Result<(), Damage> {
        let mut look = store.look(digest).unwrap().unwrap();
        while look.advance(3)? > 0 {}
        Ok(())
    }

    #[tokio::test]
    async fn a_damaged_blob_is_quarantined_and_only_the_last_few_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&Config::of(directory.path())).unwrap();
        let texts: Vec<_> = (0..6).map(|n| format!("blob {n}")).collect();
        for text in &texts {
            let digest = Digest::of(text.as_bytes());
            store.put(&digest, text.as_bytes()).unwrap();
            assert!(check(&store, &digest).is_ok());
            let path = store.0.paths.blob(&digest);
            fs::remove_file(&path).unwrap();
            fs::write(&path, "rotten").unwrap();
            assert!(matches!(check(&store, &digest), Err(Damage::Mismatch(_))));
            store.quarantine(&digest).unwrap();
            assert!(store.blob(&digest).await.unwrap().is_none());
            assert!(store.look(&digest).unwrap().is_none());
        }
        assert_eq!(store.totals().blobs, 0);
        assert_eq!(fs::read_dir(store.0.paths.quarantine()).unwrap().count(), QUARANTINED);
        assert!(store.0.paths.quarantine().join(format!("sha256-{}", Digest::of(b"blob 5").hex())).exists());
        store.quarantine(&Digest::of(b"never seen")).unwrap();
    }
}
