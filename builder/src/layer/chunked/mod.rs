//! Tables of contents of zstd:chunked layers: clients that know the format fetch only the chunks that they lack.
//!
//! ```text
//! layer blob    =  data frames  skippable(table)  skippable(tar-split)  skippable(footer)
//! table         =  zstd of {"version":1,"entries":[..],"tarSplitDigest":".."}
//! tar-split     =  zstd of one JSON object a line: the bytes of the archive that are no file's content
//! footer        =  eight little-endian words: where the other two are, a magic number
//! skippable(x)  =  50 2a 4d 18, the length of x (32 bits, little endian), x
//! ```
//!
//! Programs that do not know the format see a zstd layer: skippable frames are no content (RFC 8878, 3.1.2). Clients that
//! know it find the table by annotations of the layer's descriptor, which name its digest; so the digest of the manifest
//! vouches for every chunk. Every chunk of a file is a frame of its own. With tar-split a client puts the archive
//! together again and compares it with the `diffID`.
//!
//! The format is that of container-libs `storage/pkg/chunked`; tar-split is github.com/vbatts/tar-split. Both readers
//! parse every header and refuse a table that says something else, so what cannot be said in both is not given a table.

pub mod crc;
pub mod cut;
mod format;
mod reader;

use std::io::{self, Read, Write};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use self::{
    crc::Crc,
    cut::Chunks,
    format::{CHECKSUM, KIND, LARGEST, Line, MAGIC, POSITION, SKIPPABLE, TAR_SPLIT, is_default},
};
pub use self::{
    format::{Annotations, Entry, PREFIX, xattr},
    reader::{Reader, TableError, check},
};
use super::codec::{Compressor, ZSTD_LEVEL};
use crate::digest::{Digest, Hashing};

/// A chunk of a file in a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Bytes of the file.
    pub size: u64,
    /// Bytes of the frame.
    pub packed: u64,
    /// SHA-256 of the bytes of the file.
    pub digest: Digest,
    /// Whether it is all zeros.
    #[serde(default, skip_serializing_if = "is_default")]
    pub zeros: bool,
}

/// The content of a file as it lies in a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its chunks, one frame each.
    pub chunks: Vec<Chunk>,
    /// CRC-64 of the file.
    pub crc: u64,
}

impl Stored {
    /// A file of one chunk.
    pub fn one(bytes: &[u8], packed: usize) -> Self {
        let mut crc = Crc::default();
        crc.update(bytes);
        let chunk = Chunk {
            size: bytes.len() as u64,
            packed: packed as u64,
            digest: Digest::of(bytes),
            zeros: false,
        };
        Self { chunks: vec![chunk], crc: crc.finish() }
    }

    /// Cuts a file of `size` bytes and gives each chunk with its frame to `each`.
    pub fn pack<E>(
        reader: impl Read,
        size: u64,
        buffer: &mut Vec<u8>,
        compressor: &mut Compressor,
        unreadable: impl Fn(io::Error) -> E,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut cut = Chunks::new(reader, size, std::mem::take(buffer));
        let (mut chunks, mut crc) = (Vec::new(), Crc::default());
        while let Some((raw, zeros)) = cut.chunk().map_err(&unreadable)? {
            let frame = compressor.piece(raw);
            crc.update(raw);
            let (size, packed) = (raw.len() as u64, frame.len() as u64);
            chunks.push(Chunk { size, packed, digest: Digest::of(raw), zeros });
            each(raw, frame)?;
        }
        *buffer = cut.into_buffer();
        Ok(Self { chunks, crc: crc.finish() })
    }
}

/// Compresses JSON as it comes.
struct Packed {
    encoder: zstd::Encoder<'static, Hashing<Vec<u8>>>,
    length: u64,
}

impl Packed {
    fn new() -> Self {
        let encoder = zstd::Encoder::new(Hashing::new(Vec::new()), ZSTD_LEVEL);
        Self { encoder: encoder.expect("it is a level of zstd"), length: 0 }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.encoder.write_all(bytes).expect("memory takes everything");
        self.length += bytes.len() as u64;
    }

    /// The compressed bytes, their digest, and how many there were.
    fn finish(self) -> (Vec<u8>, Digest, u64) {
        let (bytes, hasher) = self.encoder.finish().expect("memory takes everything").into_parts();
        (bytes, hasher.finish(), self.length)
    }
}

/// A table of contents that grows with its layer. Memory: the compressed table and tar-split data.
pub struct Table {
    entries: Packed,
    tar_split: Packed,
    /// Bytes of the archive since the last entry: padding and headers.
    segment: Vec<u8>,
    lines: u64,
    empty: bool,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").finish_non_exhaustive()
    }
}

impl Default for Table {
    fn default() -> Self {
        let mut entries = Packed::new();
        entries.write(br#"{"version":1,"entries":["#);
        Self { entries, tar_split: Packed::new(), segment: Vec::new(), lines: 0, empty: true }
    }
}

impl Table {
    /// Adds bytes of the archive that are no file's content.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.segment.extend_from_slice(bytes);
    }

    /// Adds the entry whose headers were added last; `stored` says where its
    /// content begins in the layer, what its chunks are, and its digest.
    pub fn entry(&mut self, mut entry: Entry, stored: Option<(u64, &Stored, Digest)>) {
        self.segment();
        let crc = stored.map(|(_, stored, _)| STANDARD.encode(stored.crc.to_be_bytes()));
        self.line(1, entry.name.clone(), entry.size, crc);
        let Some((start, stored, digest)) = stored else { return self.push(&entry) };
        let end = start + stored.chunks.iter().map(|chunk| chunk.packed).sum::<u64>();
        (entry.digest, entry.offset, entry.end_offset) = (Some(digest), start, end);
        if stored.chunks.len() == 1 {
            return self.push(&entry);
        }
        let name = entry.name.clone();
        let (mut offset, mut chunk_offset) = (start, 0);
        for (at, chunk) in stored.chunks.iter().enumerate() {
            if at > 0 {
                entry = Entry { kind: "chunk".to_owned(), name: name.clone(), ..Entry::default() };
                // Without it, clients take the chunk to reach to the next file.
                entry.end_offset = if at + 1 == stored.chunks.len() { end } else { 0 };
            }
            entry.offset = offset;
            entry.chunk_offset = chunk_offset;
            entry.chunk_size = chunk.size;
            entry.chunk_digest = Some(chunk.digest);
            if chunk.zeros {
                "zeros".clone_into(&mut entry.chunk_type);
            }
            self.push(&entry);
            offset += chunk.packed;
            chunk_offset += chunk.size;
        }
    }

    /// The frames that end a layer whose data frames end at `offset`, and the annotations; `None` when the table is
    /// larger than clients take.
    pub fn finish(mut self, offset: u64) -> Option<(Vec<u8>, Annotations)> {
        self.segment();
        let (tar_split, tar_split_digest, tar_split_length) = self.tar_split.finish();
        self.entries.write(format!(r#"],"tarSplitDigest":"{tar_split_digest}"}}"#).as_bytes());
        let (table, checksum, length) = self.entries.finish();
        if length.max(tar_split_length) > LARGEST {
            return None;
        }
        let mut out = Vec::with_capacity(table.len() + tar_split.len() + 100);
        let mut frame = |bytes: &[u8]| {
            out.extend_from_slice(&SKIPPABLE);
            let length = u32::try_from(bytes.len()).expect("compressed tables are below 4 GiB");
            out.extend_from_slice(&length.to_le_bytes());
            let at = offset + out.len() as u64;
            out.extend_from_slice(bytes);
            at
        };
        let (table_at, tar_split_at) = (frame(&table), frame(&tar_split));
        let (table_packed, tar_split_packed) = (table.len() as u64, tar_split.len() as u64);
        let words = [table_at, table_packed, length, KIND, tar_split_at, tar_split_packed, tar_split_length];
        let footer: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).chain(*MAGIC).collect();
        frame(&footer);
        let annotations = [
            (CHECKSUM, checksum.to_string()),
            (POSITION, format!("{table_at}:{table_packed}:{length}:{KIND}")),
            (TAR_SPLIT, format!("{tar_split_at}:{tar_split_packed}:{tar_split_length}")),
        ];
        Some((out, annotations.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()))
    }

    fn segment(&mut self) {
        let payload = STANDARD.encode(&self.segment);
        self.segment.clear();
        self.line(2, String::new(), 0, Some(payload));
    }

    fn line(&mut self, kind: u8, name: String, size: u64, payload: Option<String>) {
        let line = Line { kind, name, size, payload, position: self.lines };
        let mut json = serde_json::to_vec(&line).expect("names are strings");
        json.push(b'\n');
        self.tar_split.write(&json);
        self.lines += 1;
    }

    fn push(&mut self, entry: &Entry) {
        if !self.empty {
            self.entries.write(b",");
        }
        self.empty = false;
        self.entries.write(&serde_json::to_vec(entry).expect("keys are strings"));
    }
}
