//! Content of an import that must not be visible before the whole import was checked.

use std::{
    fs,
    io::{self, Read, Write as _},
    path::PathBuf,
};

use super::{
    Store, StoreError,
    paths::{self, Mode},
    usage::Hold,
};
use crate::types::{Algorithm, Digest, MAX_MANIFEST_BYTES};

const BUFFER: usize = 256 * 1024;

/// Why content could not be staged.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The source cannot be read.
    #[error("the content cannot be read")]
    Read(#[source] io::Error),
    /// The store cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A temporary file with content of a known digest. Dropping it removes the file.
#[derive(Debug)]
pub struct Staged {
    store: Store,
    path: PathBuf,
    digest: Digest,
    size: u64,
}

/// Protects a blob from eviction.
#[derive(Debug)]
pub struct Kept {
    store: Store,
    digest: Digest,
    size: u64,
    _hold: Hold,
}

impl Store {
    /// Writes content to a temporary file and hashes it. Blocking.
    pub fn stage(&self, algorithm: Algorithm, content: &mut dyn Read) -> Result<Staged, StageError> {
        self.owner()?;
        let path = self.0.paths.aside();
        let mut file = fs::File::create_new(&path).map_err(StoreError::io("make", &path))?;
        // From here on, dropping removes the file.
        let mut staged = Staged { store: self.clone(), path, digest: Digest::of(b""), size: 0 };
        let mut hasher = algorithm.hasher();
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(StageError::Read(error)),
            };
            file.write_all(&buffer[..read]).map_err(StoreError::io("write", &staged.path))?;
            hasher.update(&buffer[..read]);
            staged.size += read as u64;
        }
        staged.digest = hasher.finish();
        Ok(staged)
    }

    /// Protects a stored blob from eviction; `None` when it is not stored. Blocking.
    pub fn keep(&self, digest: &Digest) -> Result<Option<Kept>, StoreError> {
        // Protected first: a blob that is found after that stays.
        let hold = self.0.usage.hold(digest);
        let path = self.0.paths.blob(digest);
        match fs::metadata(&path) {
            Ok(metadata) => {
                Ok(Some(Kept { store: self.clone(), digest: *digest, size: metadata.len(), _hold: hold }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("inspect", path)(error)),
        }
    }
}

impl Staged {
    /// Digest of the content.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Opens the content for another read.
    pub fn open(&self) -> Result<fs::File, StoreError> {
        fs::File::open(&self.path).map_err(StoreError::io("open", &self.path))
    }

    /// The content of a manifest or configuration; `None` when it is too large to be one.
    pub fn read_small(&self) -> Result<Option<Vec<u8>>, StoreError> {
        if self.size > MAX_MANIFEST_BYTES {
            return Ok(None);
        }
        fs::read(&self.path).map(Some).map_err(StoreError::io("read", &self.path))
    }

    /// Makes it a blob: fsync, rename, fsync of the directory, index. An existing blob is replaced by the same bytes,
    /// so that an eviction in between does not matter.
    pub fn commit(self) -> Result<(), StoreError> {
        self.open()?.sync_all().map_err(StoreError::io("sync", &self.path))?;
        paths::publish(&self.path, &self.store.0.paths.blob(&self.digest), Mode::ReadOnly)?;
        self.store.index().insert(&self.digest, self.size);
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a commit the file was moved; a leftover file is removed at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

impl Kept {
    /// The digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The content. Blocking.
    pub fn open(&self) -> Result<fs::File, StoreError> {
        let path = self.store.0.paths.blob(&self.digest);
        let file = fs::File::open(&path).map_err(StoreError::io("open", &path))?;
        // It must not have been replaced by a shorter one.
        if file.metadata().is_ok_and(|found| found.len() == self.size) {
            return Ok(file);
        }
        Err(StoreError::io("read", path)(io::Error::other("its size changed")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn staged_content_is_invisible_until_it_is_committed() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&super::super::Config::of(directory.path())).unwrap();
        let digest = Digest::of(b"content");
        let aside = || fs::read_dir(directory.path().join("tmp")).unwrap().count();
        let staged = store.stage(Algorithm::Sha256, &mut &b"content"[..]).unwrap();
        assert_eq!((staged.digest(), staged.size(), aside()), (&digest, 7, 1));
        assert!(store.blob(&digest).await.unwrap().is_none());
        drop(staged);
        assert_eq!(aside(), 0);
        store.stage(Algorithm::Sha256, &mut &b"content"[..]).unwrap().commit().unwrap();
        assert_eq!(store.blob(&digest).await.unwrap().unwrap().size(), 7);
        assert_eq!((aside(), store.totals().blobs), (0, 1));
        let kept = store.keep(&digest).unwrap().unwrap();
        assert!(store.remove_blob(&digest).unwrap().is_none(), "it is protected");
        assert_eq!(io::read_to_string(kept.open().unwrap()).unwrap(), "content");
        assert!(store.keep(&Digest::of(b"other")).unwrap().is_none());
    }
}
