//! Reads an archive: every content is staged and hashed, and the few documents that describe it are kept in memory.
//! Nothing is decided here.

use std::{
    collections::HashMap,
    io::{self, Read},
};

use oci::{
    archive::decompressed,
    layout::{self, INDEX, MARK},
};
use tokio_util::sync::CancellationToken;

use super::{
    ArchiveError,
    tar::{self, Kind},
};
use crate::{
    store::{Staged, Store},
    types::{Algorithm, Digest, MAX_MANIFEST_BYTES, format_size},
};

/// Documents that are kept in memory.
pub(super) const DOCKER: &str = "manifest.json";

/// Links that are followed for one name.
const MAX_LINKS: usize = 16;

/// The contents of an archive.
#[derive(Debug)]
pub(super) struct Intake {
    store: Store,
    documents: HashMap<String, Vec<u8>>,
    staged: HashMap<Digest, Staged>,
    files: HashMap<String, Digest>,
    links: HashMap<String, String>,
}

impl Intake {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            documents: HashMap::new(),
            staged: HashMap::new(),
            files: HashMap::new(),
            links: HashMap::new(),
        }
    }

    /// Reads a tar to its end. `limit` bounds what it may unpack to.
    pub(super) fn read_tar(&mut self, reader: impl Read + Send, limit: u64) -> Result<(), ArchiveError> {
        let mut bounded = Bounded { inner: decompressed(reader)?, left: limit };
        let outcome = tar::read(&mut bounded, |name, kind, content| match kind {
            Kind::File(size) => self.take(name, size, content),
            Kind::Link(target) => {
                self.links.insert(name.to_owned(), target);
                Ok(())
            }
        });
        match outcome {
            Err(ArchiveError::Read(_)) if bounded.left == 0 => Err(too_large(limit)),
            Err(error) => Err(error),
            Ok(()) => {
                // The checksum of a compressed archive stands behind the end mark.
                io::copy(&mut bounded, &mut io::sink()).map(drop).map_err(ArchiveError::Read)
            }
        }
    }

    /// Reads one file.
    pub(super) fn take(&mut self, name: &str, size: u64, content: &mut dyn Read) -> Result<(), ArchiveError> {
        if matches!(name, MARK | INDEX | DOCKER) {
            if size > MAX_MANIFEST_BYTES {
                return Err(ArchiveError::document(name, format!("it is too large ({size} bytes)")));
            }
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).map_err(ArchiveError::Read)?;
            self.documents.insert(name.to_owned(), bytes);
            return Ok(());
        }
        let promised = layout::blob_of(name);
        if promised.is_none() && name.starts_with("blobs/") {
            // A leftover of an interrupted tool; no image can refer to it.
            return Ok(());
        }
        let algorithm = promised.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let staged = self.store.stage(algorithm, content)?;
        if staged.size() != size {
            return Err(ArchiveError::Truncated);
        }
        let digest = *staged.digest();
        if promised.is_some_and(|promised| promised != digest) {
            return Err(ArchiveError::member(name, &format!("its content has the digest `{digest}`")));
        }
        self.files.insert(name.to_owned(), digest);
        self.staged.insert(digest, staged);
        Ok(())
    }

    /// Adds a document that the import has created.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<Digest, ArchiveError> {
        let staged = self.store.stage(Algorithm::Sha256, &mut &*bytes)?;
        let digest = *staged.digest();
        self.staged.insert(digest, staged);
        Ok(digest)
    }

    pub(super) fn document(&self, name: &str) -> Option<&[u8]> {
        self.documents.get(name).map(Vec::as_slice)
    }

    pub(super) fn content(&self, digest: &Digest) -> Option<&Staged> {
        self.staged.get(digest)
    }

    /// A content by its name in the archive, with links resolved.
    pub(super) fn file(&self, name: &str) -> Option<&Staged> {
        let mut name = name;
        for _ in 0..MAX_LINKS {
            match self.links.get(name) {
                Some(target) => name = target,
                None => return self.content(self.files.get(name)?),
            }
        }
        None
    }

    /// The bytes of a manifest or configuration; `None` when it does not exist or is too large.
    pub(super) fn small(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.content(digest)?.read_small().ok()?
    }

    /// Removes and returns a content.
    pub(super) fn remove(&mut self, digest: &Digest) -> Option<Staged> {
        self.staged.remove(digest)
    }
}

pub(super) fn too_large(limit: u64) -> ArchiveError {
    ArchiveError::TooLarge(format!(
        "it unpacks to more than the {} that the store is allowed to hold: raise `store.limit`, lower `store.minFree`, or make \
         room on the disk",
        format_size(limit)
    ))
}

/// Bytes that one byte of a compressed layer may unpack to. Deflate reaches 1,032 at most (zlib's technical details); zstd
/// has no bound, and a few hundred KiB would be hashed for minutes.
const MAX_RATIO: u64 = 1_100;

/// Bytes to which any layer may unpack, however small it is.
const SMALL_LAYER: u64 = 64 << 20;

/// The digest of a layer's content without its compression.
pub(super) fn uncompressed_digest(
    content: &Staged,
    stop: &CancellationToken,
) -> Result<Digest, ArchiveError> {
    let limit = content.size().saturating_mul(MAX_RATIO).saturating_add(SMALL_LAYER);
    let mut reader = Bounded { inner: decompressed(content.open()?)?, left: limit };
    let mut hasher = Algorithm::Sha256.hasher();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        if stop.is_cancelled() {
            return Err(ArchiveError::Read(io::Error::other("the agent is stopping")));
        }
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(_) if reader.left == 0 => {
                return Err(ArchiveError::TooLarge(format!(
                    "a layer of {} unpacks to more than {}, which no real layer does",
                    format_size(content.size()),
                    format_size(limit)
                )));
            }
            Err(error) => return Err(ArchiveError::Read(error)),
        }
    }
}

/// Fails beyond its limit: a small archive may unpack to more than any disk holds.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            self.left = 0;
            io::Error::other("the limit is reached")
        })?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Config;

    /// A layer of a few KiB whose content is as long as one likes.
    fn bomb(store: &Store, mebibytes: usize) -> Staged {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        for _ in 0..mebibytes {
            io::Write::write_all(&mut encoder, &vec![0; 1 << 20]).unwrap();
        }
        store.stage(Algorithm::Sha256, &mut encoder.finish().unwrap().as_slice()).unwrap()
    }

    #[test]
    fn a_layer_that_unpacks_to_more_than_any_real_one_is_refused_early() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&Config::of(home.path())).unwrap();
        let never = CancellationToken::new();
        let small = uncompressed_digest(&bomb(&store, 3), &never).unwrap();
        assert_eq!(small, Digest::of(&vec![0; 3 << 20]));
        let large = bomb(&store, 200);
        assert!(large.size() < 1 << 20, "{}", large.size());
        let refused = uncompressed_digest(&large, &never).unwrap_err();
        assert!(matches!(&refused, ArchiveError::TooLarge(_)), "{refused:?}");
    }

    #[test]
    fn an_agent_that_is_told_to_end_does_not_hash_on() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&Config::of(home.path())).unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        let ended = uncompressed_digest(&bomb(&store, 3), &stop).unwrap_err();
        assert!(matches!(&ended, ArchiveError::Read(_)), "{ended:?}");
    }
}
