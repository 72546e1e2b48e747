//! Compressed files in the cache: each content is compressed once per codec, ever.
//!
//! ```text
//! member file  =  pieces  chunks  trailer
//! chunks       =  nothing, or with zstd:chunked where the chunks of the content lie in the pieces (JSON)
//! trailer      =  hearthm3, the lengths of pieces and chunks (little endian), the SHA-256 of both
//! ```
//!
//! The magic and the lengths tell a whole member from one that a power cut left short without reading it; the digest is
//! verified while the rest is read.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use super::{
    chunked::Stored,
    codec::{Codec, Compressor, PIECE},
};
use crate::{
    cache::{Cache, CacheError, Content, Shelf, verify::Verified},
    digest::{Digest, Hasher},
    progress::Bar,
};

/// Files below this size are compressed together with their neighbours' headers when a layer is assembled:
/// that is cheap, compresses better, and spares the cache thousands of tiny files.
pub const INLINE: u64 = 16 * 1024;

const MAGIC: &[u8; 8] = b"hearthm3";
const TRAILER: usize = 56;

/// An open member: reads as its pieces.
#[derive(Debug)]
pub struct Compressed {
    file: Verified,
    pieces: u64,
    chunks: u64,
}

impl Read for Compressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.by_ref().take(self.pieces).read(buffer)?;
        self.pieces -= count as u64;
        Ok(count)
    }
}

impl Compressed {
    /// Where the chunks lie, once the pieces are read; nothing for codecs that have none.
    pub fn stored(mut self) -> io::Result<Stored> {
        if self.chunks == 0 {
            return Ok(Stored::default());
        }
        let mut json = Vec::new();
        self.file.read_to_end(&mut json)?;
        Ok(serde_json::from_slice(&json)?)
    }
}

/// Opens a member; `None` when it has to be made (again).
pub fn open(cache: &Cache, codec: Codec, content: &Content) -> Option<Compressed> {
    open_path(cache, cache.member_path(codec.id(), &content.digest))
}

/// The length of a member that was made before.
pub fn length(cache: &Cache, codec: Codec, content: &Content) -> Option<u64> {
    open(cache, codec, content).map(|member| member.pieces)
}

/// Verifies every member of the cache, whatever its codec, and removes the damaged ones.
pub fn verify_all(cache: &Cache) {
    for path in cache.members() {
        if let Some(mut member) = open_path(cache, path) {
            // A damaged file is removed and counted; one that cannot be read is made again where it is needed.
            let _ = io::copy(&mut member.file, &mut io::sink());
        }
    }
}

fn open_path(cache: &Cache, path: PathBuf) -> Option<Compressed> {
    let mut file = File::open(&path).ok()?;
    let meta = file.metadata().ok()?;
    Cache::mark_used(&path, &meta);
    let length = meta.len().checked_sub(TRAILER as u64)?;
    let mut trailer = [0; TRAILER];
    file.seek(SeekFrom::Start(length)).ok()?;
    file.read_exact(&mut trailer).ok()?;
    let ([magic, pieces, chunks], digest) = (trailer.as_chunks::<8>().0.first_chunk()?, &trailer[24..]);
    let (pieces, chunks) = (u64::from_le_bytes(*pieces), u64::from_le_bytes(*chunks));
    if magic != MAGIC || pieces.checked_add(chunks) != Some(length) {
        return None;
    }
    file.rewind().ok()?;
    let digest = Digest::Sha256(digest.try_into().ok()?);
    let file = Verified::new(cache, path, file, Content { digest, size: length });
    Some(Compressed { file, pieces, chunks })
}

/// Makes the members that are missing, on `jobs` threads, largest first so that no thread is left with a
/// large file at the end. Memory: two pieces per thread.
pub fn prepare(
    cache: &Cache,
    codec: Codec,
    contents: impl Iterator<Item = Content>,
    jobs: usize,
    bar: &Bar,
) -> Result<(), CacheError> {
    let mut missing: Vec<Content> = contents
        .filter(|content| content.size >= INLINE)
        .filter(|content| {
            let there = open(cache, codec, content).is_some();
            if there {
                bar.advance(content.size);
            }
            !there
        })
        .collect();
    missing.sort_unstable_by_key(|content| (std::cmp::Reverse(content.size), content.digest));
    missing.dedup();
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, missing.len().max(1)) {
            scope.spawn(|| {
                let mut compressor = codec.compressor();
                let mut buffer = Vec::new();
                while let Some(content) = missing.get(next.fetch_add(1, Ordering::Relaxed))
                    && !stop.load(Ordering::Relaxed)
                {
                    if let Err(error) = make(cache, codec, content, &mut compressor, &mut buffer, bar) {
                        stop.store(true, Ordering::Relaxed);
                        failure.lock().expect("no thread panics with the lock").get_or_insert(error);
                    }
                }
            });
        }
    });
    match failure.into_inner().expect("all threads have ended") {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn make(
    cache: &Cache,
    codec: Codec,
    content: &Content,
    compressor: &mut Compressor,
    buffer: &mut Vec<u8>,
    bar: &Bar,
) -> Result<(), CacheError> {
    let path = cache.member_path(codec.id(), &content.digest);
    let mut raw = cache.open_content(Shelf::Files, content)?;
    let mut file = cache.temporary()?;
    let mut written = Hasher::default();
    let mut put = |bytes: &[u8]| {
        written.update(bytes);
        file.write_all(bytes).map_err(|source| cache.fault("write", &path, source))
    };
    let read = |source| cache.read_fault(&path, source);
    let mut chunks = Vec::new();
    if codec == Codec::ZstdChunked {
        let each = |raw: &[u8], frame: &[u8]| {
            bar.advance(raw.len() as u64);
            put(frame)
        };
        let stored = Stored::pack(&mut raw, content.size, buffer, compressor, read, each)?;
        chunks = serde_json::to_vec(&stored).expect("keys are strings");
    } else {
        loop {
            fill(&mut raw, buffer).map_err(read)?;
            if buffer.is_empty() {
                break;
            }
            put(compressor.piece(buffer))?;
            bar.advance(buffer.len() as u64);
        }
    }
    put(&chunks)?;
    let (chunks, all) = (chunks.len() as u64, written.length());
    let mut trailer = MAGIC.to_vec();
    trailer.extend_from_slice(&(all - chunks).to_le_bytes());
    trailer.extend_from_slice(&chunks.to_le_bytes());
    trailer.extend_from_slice(written.finish().as_bytes());
    file.write_all(&trailer).map_err(|source| cache.fault("write", &path, source))?;
    cache.keep(file, &path, false)?;
    cache.trust(&path);
    Ok(())
}

/// Reads up to one piece.
fn fill(reader: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    reader.take(PIECE as u64).read_to_end(buffer)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_made_once_and_a_short_one_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let large = vec![7u8; PIECE + 1];
        let contents: Vec<Content> = [large.clone(), vec![1; 20_000], vec![2; 100]]
            .iter()
            .map(|bytes| cache.put(Shelf::Files, &mut bytes.as_slice()).unwrap())
            .collect();
        let prepare = || prepare(&cache, Codec::Gzip, contents.iter().copied(), 3, &Bar::hidden()).unwrap();
        prepare();
        let mut raw = Vec::new();
        let mut member = open(&cache, Codec::Gzip, &contents[0]).unwrap();
        flate2::read::MultiGzDecoder::new(&mut member).read_to_end(&mut raw).unwrap();
        assert!(raw == large);
        assert!(open(&cache, Codec::Gzip, &contents[2]).is_none(), "small files are compressed inline");

        let path = cache.member_path(Codec::Gzip.id(), &contents[1].digest);
        let made = std::fs::metadata(&path).unwrap().modified().unwrap();
        prepare();
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), made, "made once");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        assert!(open(&cache, Codec::Gzip, &contents[1]).is_none());
        prepare();
        assert!(open(&cache, Codec::Gzip, &contents[1]).is_some());
    }
}
