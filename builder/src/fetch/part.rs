//! A download under way: a file that grows, survives its process and is moved to its shelf when it is right.
//!
//! It lies in `downloads-v1/<key>.part`, locked against other processes: two that want the same file take turns,
//! and the second finds the work done. What an interrupted run left is hashed again and continued.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::PathBuf,
    time::Duration,
};

use crate::{
    cache::{BUFFER, Cache, CacheError, Content, Shelf},
    checksum::{Checker, Checksum},
    digest::{Digest, Hasher},
};

/// A partly downloaded file, locked against other processes.
#[derive(Debug)]
pub struct Part {
    cache: Cache,
    shelf: Shelf,
    expected: Checksum,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    checker: Checker,
}

/// Why a finished download cannot be kept.
#[derive(Debug)]
pub enum PartError {
    /// It is something else.
    Checksum(Checksum),
    /// The cache failed.
    Cache(CacheError),
}

impl Part {
    /// Opens what is there and takes its lock. Waits while another process downloads the same file.
    pub async fn open(cache: &Cache, shelf: Shelf, expected: Checksum) -> Result<Self, CacheError> {
        let path = cache.download_path(&format!("{shelf:?} {expected}"));
        let fault = |source| cache.fault("open", &path, source);
        let file = loop {
            let mut options = OpenOptions::new();
            let file =
                options.read(true).write(true).create(true).truncate(false).open(&path).map_err(fault)?;
            let locked = match file.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(source)) => return Err(fault(source)),
            };
            // A file that another process has finished and moved away is no longer behind this name.
            let current =
                std::fs::metadata(&path).ok().map(|meta| std::os::unix::fs::MetadataExt::ino(&meta));
            let ours = std::os::unix::fs::MetadataExt::ino(&file.metadata().map_err(fault)?);
            if locked && current == Some(ours) {
                break file;
            }
            if !locked {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let mut part = Self {
            cache: cache.clone(),
            shelf,
            expected,
            path: path.clone(),
            file,
            hasher: Hasher::default(),
            checker: expected.checker(),
        };
        part.rehash().map_err(fault)?;
        Ok(part)
    }

    fn rehash(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = self.file.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            self.hasher.update(&buffer[..count]);
            self.checker.update(&buffer[..count]);
        }
    }

    /// Whether the whole file is on its shelf already; drops the empty part file then.
    pub fn done(&self) -> Result<Option<Content>, CacheError> {
        let known = known(&self.cache, self.shelf, self.expected);
        if known.is_some() {
            std::fs::remove_file(&self.path)
                .map_err(|source| self.cache.fault("remove", &self.path, source))?;
        }
        Ok(known)
    }

    /// Bytes that are there.
    pub fn length(&self) -> u64 {
        self.hasher.length()
    }

    /// Forgets what is there.
    pub fn restart(&mut self) -> Result<(), CacheError> {
        self.hasher = Hasher::default();
        self.checker = self.expected.checker();
        let emptied = self.file.set_len(0).and_then(|()| io::Seek::rewind(&mut self.file));
        emptied.map_err(|source| self.cache.fault("empty", &self.path, source))
    }

    /// Appends bytes. The write blocks; at a few hundred kilobytes of page cache that is microseconds.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        self.hasher.update(bytes);
        self.checker.update(bytes);
        self.file.write_all(bytes).map_err(|source| self.cache.fault("write", &self.path, source))
    }

    /// Checks the checksum and puts the file on its shelf; a wrong one is removed.
    pub fn finish(self) -> Result<Content, PartError> {
        let size = self.hasher.length();
        let digest = self.hasher.finish();
        if let Err(found) = self.checker.finish(digest) {
            // Best effort: the next run finds a wrong checksum again at worst.
            let _ = std::fs::remove_file(&self.path);
            return Err(PartError::Checksum(found));
        }
        let target = self.cache.path(self.shelf, &digest);
        let fault = |source| PartError::Cache(self.cache.fault("keep", &target, source));
        self.file.sync_all().map_err(fault)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o444);
        self.file.set_permissions(mode).map_err(fault)?;
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(fault)?;
        }
        std::fs::rename(&self.path, &target).map_err(fault)?;
        self.cache.trust(&target);
        let content = Content { digest, size };
        if self.expected.digest().is_none() {
            self.cache.leave_note("checked-v2", &key(self.expected), &content).map_err(PartError::Cache)?;
        }
        Ok(content)
    }
}

/// What has a checksum, when the cache has it. Only SHA-256 names files; for the others a note was left.
pub fn known(cache: &Cache, shelf: Shelf, checksum: Checksum) -> Option<Content> {
    let Some(digest) = checksum.digest() else {
        let content = cache.note::<Content>("checked-v2", &key(checksum))?;
        return cache.find(shelf, &content).map(|_| content);
    };
    let path = cache.path(shelf, &digest);
    let meta = std::fs::metadata(&path).ok()?;
    Cache::mark_used(&path, &meta);
    let size = meta.len();
    (size > 0 || digest == Digest::of(b"")).then_some(Content { digest, size })
}

fn key(checksum: Checksum) -> Digest {
    Digest::of(checksum.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_interrupted_download_is_continued_and_a_wrong_one_removed() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let sha1 = Checksum::sha1("a9993e364706816aba3e25717850c26c9cd0d89d").unwrap();
        for (expected, bytes) in [(Checksum::Sha256(Digest::of(b"spark")), b"spark" as &[u8]), (sha1, b"abc")]
        {
            let open = async || Part::open(&cache, Shelf::Files, expected).await.unwrap();
            open().await.write(&bytes[..2]).unwrap();
            let mut part = open().await;
            assert_eq!(part.length(), 2);
            part.write(&bytes[2..]).unwrap();
            let content = part.finish().unwrap();
            assert_eq!(content, Content { digest: Digest::of(bytes), size: bytes.len() as u64 });
            assert_eq!(open().await.done().unwrap(), Some(content));
        }
        let other = Checksum::Sha256(Digest::of(b"other"));
        let mut part = Part::open(&cache, Shelf::Files, other).await.unwrap();
        part.write(b"wrong").unwrap();
        let found = Checksum::Sha256(Digest::of(b"wrong"));
        assert!(matches!(part.finish(), Err(PartError::Checksum(sum)) if sum == found));
        assert_eq!(Part::open(&cache, Shelf::Files, other).await.unwrap().length(), 0);
    }
}
