//! Verification of what is read from the cache: content is hashed while it is read, and damaged files are removed.
//!
//! A disk that flips a bit, or a program that edits a file of the cache, must not change an image. The last bytes of a
//! damaged file are never handed out: the reader gets an error in their place. The file is removed, so the next
//! attempt makes or downloads it again. Content that this process has written or verified is not hashed twice.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{BUFFER, Cache, CacheError, Content, Shelf};
use crate::digest::{Digest, Hasher};

/// A file of the cache that is hashed while it is read.
#[derive(Debug)]
pub struct Verified {
    cache: Cache,
    path: PathBuf,
    file: File,
    expected: Content,
    left: u64,
    /// Absent when this process has verified the file already.
    hasher: Option<Hasher>,
}

impl Verified {
    /// Reads the first `expected.size` bytes of an open file, which must have the digest `expected.digest`.
    pub(crate) fn new(cache: &Cache, path: PathBuf, file: File, expected: Content) -> Self {
        let known = cache.state.verified().contains(&path);
        let hasher = (!known).then(Hasher::default);
        Self { cache: cache.clone(), path, file, left: expected.size, expected, hasher }
    }

    /// Hashes the bytes even when this process has verified the file before.
    #[must_use]
    pub fn always(mut self) -> Self {
        self.hasher = Some(Hasher::default());
        self
    }

    /// What the file must hold.
    pub fn expected(&self) -> Content {
        self.expected
    }

    fn finish(&mut self) -> io::Result<()> {
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        if hasher.finish() == self.expected.digest {
            self.cache.trust(&self.path);
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, self.cache.discard(&self.path)))
    }
}

impl Read for Verified {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return if self.left == 0 { self.finish().map(|()| 0) } else { Ok(0) };
        }
        let count = self.file.read(&mut buffer[..most])?;
        self.left -= count as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        // A file that ends early is as damaged as one with other bytes.
        if count == 0 || self.left == 0 {
            self.finish()?;
        }
        Ok(count)
    }
}

impl Cache {
    /// Opens content of the cache; it is verified while it is read.
    pub fn open_content(&self, shelf: Shelf, content: &Content) -> Result<Verified, CacheError> {
        let path = self.path(shelf, &content.digest);
        let file = File::open(&path).map_err(|source| self.fault("open", &path, source))?;
        let length = file.metadata().map_err(|source| self.fault("read", &path, source))?.len();
        if length == content.size {
            return Ok(Verified::new(self, path, file, *content));
        }
        Err(self.discard(&path))
    }

    /// Verifies content whole, for readers that jump within it; gives its path.
    pub fn verified(&self, shelf: Shelf, content: &Content) -> Result<PathBuf, CacheError> {
        let path = self.path(shelf, &content.digest);
        if !self.state.verified().contains(&path) {
            let mut reader = self.open_content(shelf, content)?;
            drain(&mut reader).map_err(|source| self.read_fault(&path, source))?;
        }
        Ok(path)
    }

    /// Verifies an archive that lies in the cache; one of the user's was hashed when its digest was taken.
    pub fn verify_archive(&self, path: &Path, digest: Digest) -> Result<(), CacheError> {
        if path != self.path(Shelf::Files, &digest) {
            return Ok(());
        }
        let size = fs::metadata(path).map_err(|source| self.fault("read", path, source))?.len();
        self.verified(Shelf::Files, &Content { digest, size }).map(drop)
    }

    /// Verifies finished layers on `jobs` threads: what is published is hashed in each run.
    pub fn verify_blobs(&self, blobs: &[Content], jobs: usize) -> Result<(), CacheError> {
        let next = AtomicUsize::new(0);
        let check = || {
            while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.verified(Shelf::Blobs, blob)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..jobs.clamp(1, blobs.len().max(1))).map(|_| scope.spawn(check)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("hashing does not panic"))
        })
    }

    /// Notes that this process knows the bytes of a file: it has written or verified them.
    pub(crate) fn trust(&self, path: &Path) {
        self.state.verified().insert(path.to_owned());
    }

    /// Removes a damaged file, so that it is made or downloaded again.
    pub(crate) fn discard(&self, path: &Path) -> CacheError {
        self.state.damaged.fetch_add(1, Ordering::Relaxed);
        self.state.verified().remove(path);
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                self.fault("remove the damaged file", path, source)
            }
            _ => CacheError::Damaged { path: path.to_owned() },
        }
    }

    /// How many damaged files were removed since the last call.
    pub fn take_damaged(&self) -> usize {
        self.state.damaged.swap(0, Ordering::Relaxed)
    }

    /// Verifies every file of the cache that the digest of its bytes names, and removes the damaged ones: where one byte is wrong,
    /// more may be.
    pub fn verify_all(&self) {
        for shelf in [Shelf::Files, Shelf::Blobs] {
            for path in files_below(&self.root.join(shelf.directory())) {
                let digest = path.file_name().and_then(|name| Digest::from_hex(name.to_str()?));
                let size = fs::metadata(&path).map(|meta| meta.len());
                if let (Some(digest), Ok(size)) = (digest, size) {
                    // A damaged file is removed and counted; one that cannot be read fails where it is needed.
                    let _ = self.verified(shelf, &Content { digest, size });
                }
            }
        }
    }

    /// The compressed files of all codecs.
    pub(crate) fn members(&self) -> Vec<PathBuf> {
        files_below(&self.root.join("members-v3"))
    }

    /// An error of a read that may come from the verification.
    pub(crate) fn read_fault(&self, path: &Path, source: io::Error) -> CacheError {
        match source.downcast::<CacheError>() {
            Ok(error) => error,
            Err(source) => self.fault("read", path, source),
        }
    }
}

/// All files below a directory; what cannot be listed is left out.
pub(super) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

fn drain(reader: &mut impl Read) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    while reader.read(&mut buffer)? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        (directory, cache)
    }

    /// Flips one bit of a file.
    fn flip(path: &Path, at: usize) {
        let mut bytes = fs::read(path).unwrap();
        bytes[at] ^= 1;
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_flipped_bit_fails_the_read_and_removes_the_file() {
        for size in [1, 5, BUFFER - 1, BUFFER, BUFFER + 1] {
            for at in [0, size / 2, size - 1] {
                let (directory, cache) = cache();
                let content = cache.put(Shelf::Files, &mut &vec![7; size][..]).unwrap();
                let path = cache.path(Shelf::Files, &content.digest);
                flip(&path, at);
                // Another process has not written the file itself.
                let cache = Cache::open(directory.path()).unwrap();
                let mut read = Vec::new();
                let error = cache.open_content(Shelf::Files, &content).unwrap().read_to_end(&mut read);
                let error = cache.read_fault(&path, error.unwrap_err());
                assert!(matches!(error, CacheError::Damaged { .. }), "{size} {at}: {error}");
                assert!(read.len() < size, "{size} {at}: the last bytes are not handed out");
                assert!(!path.exists() && cache.take_damaged() == 1);
            }
        }
    }

    #[test]
    fn content_is_verified_once_in_a_process_unless_it_leaves() {
        let (_directory, cache) = cache();
        let content = cache.put(Shelf::Blobs, &mut &b"layer"[..]).unwrap();
        let path = cache.verified(Shelf::Blobs, &content).unwrap();
        flip(&path, 2);
        cache.verify_blobs(&[content], 2).unwrap();
        let mut leaving = cache.open_content(Shelf::Blobs, &content).unwrap().always();
        assert!(drain(&mut leaving).is_err());
        assert!(cache.verified(Shelf::Blobs, &content).is_err(), "it is gone");
    }

    #[test]
    fn a_search_removes_every_damaged_file() {
        let (directory, cache) = cache();
        let contents: Vec<Content> =
            [b"a", b"b", b"c"].map(|bytes| cache.put(Shelf::Files, &mut &bytes[..]).unwrap()).to_vec();
        let paths: Vec<PathBuf> =
            contents.iter().map(|content| cache.path(Shelf::Files, &content.digest)).collect();
        flip(&paths[0], 0);
        flip(&paths[2], 0);
        let cache = Cache::open(directory.path()).unwrap();
        cache.verify_all();
        assert_eq!(paths.iter().map(|path| path.exists()).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(cache.take_damaged(), 2);
    }
}
