//! Writes a layer blob from the parts of its archive, in order.

use std::io::Read;

use super::{
    chunked::{Annotations, Entry, Stored, Table},
    codec::{Codec, Compressor, PIECE},
    error::LayerError,
    header::Member,
    member,
};
use crate::{
    cache::{BUFFER, Cache, CacheError, Content, ContentWriter, Shelf},
    digest::{Digest, Hasher},
};

/// A file in the layer: where it begins, its chunks and its digest.
pub type Placed = (u64, Stored, Digest);

/// A layer that grows.
#[derive(Debug)]
pub struct Assembler<'a> {
    writer: ContentWriter<'a>,
    compressor: Compressor,
    /// Headers, padding and, without a table, small files that are not compressed yet.
    pending: Vec<u8>,
    /// The table of contents, where the codec has one.
    table: Option<Table>,
    /// For files that are cut into chunks.
    buffer: Vec<u8>,
}

impl<'a> Assembler<'a> {
    /// An empty layer in the cache.
    pub fn new(cache: &'a Cache, codec: Codec) -> Result<Self, CacheError> {
        Ok(Self {
            writer: cache.writer(Shelf::Blobs)?,
            compressor: codec.compressor(),
            pending: Vec::new(),
            table: (codec == Codec::ZstdChunked).then(Table::default),
            buffer: Vec::new(),
        })
    }

    /// Adds headers or padding.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        if let Some(table) = &mut self.table {
            table.raw(bytes);
        }
        self.gather(bytes)
    }

    /// Adds the entry whose header came last to the table.
    pub fn entry(&mut self, entry: impl FnOnce() -> Entry, placed: Option<&Placed>) {
        if let Some(table) = &mut self.table {
            let placed = placed.map(|(start, stored, digest)| (*start, stored, *digest));
            table.entry(entry(), placed);
        }
    }

    /// Goes on without a table.
    pub fn drop_table(&mut self) {
        self.table = None;
    }

    /// Adds a small file. With a table it has a frame of its own, and where that begins is returned.
    pub fn small(&mut self, bytes: &[u8]) -> Result<Option<(u64, Stored)>, CacheError> {
        if self.table.is_none() {
            return self.gather(bytes).map(|()| None);
        }
        self.flush()?;
        let start = self.writer.length();
        let frame = self.compressor.piece(bytes);
        self.writer.write(frame)?;
        Ok(Some((start, Stored::one(bytes, frame.len()))))
    }

    /// Copies a file of the cache that was compressed before.
    pub fn large(
        &mut self,
        cache: &Cache,
        codec: Codec,
        member: &Member<'_>,
        content: &Content,
    ) -> Result<Placed, LayerError> {
        self.flush()?;
        let start = self.writer.length();
        let file = cache.member_path(codec.id(), &content.digest);
        let missing = || LayerError::Missing { path: member.path.clone(), file };
        let mut compressed = member::open(cache, codec, content).ok_or_else(missing)?;
        let read = |source| LayerError::Read { path: member.path.clone(), source };
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = compressed.read(&mut buffer).map_err(read)?;
            if count == 0 {
                return Ok((start, compressed.stored().map_err(read)?, content.digest));
            }
            self.writer.write(&buffer[..count])?;
        }
    }

    /// Adds a file of `size` bytes from a stream, each chunk a frame. The stream may end before.
    pub fn stream(&mut self, reader: impl Read, size: u64) -> Result<Placed, CacheError> {
        self.flush()?;
        let (start, mut whole) = (self.writer.length(), Hasher::default());
        let writer = &mut self.writer;
        let each = |raw: &[u8], frame: &[u8]| {
            whole.update(raw);
            writer.write(frame)
        };
        let stored =
            Stored::pack(reader, size, &mut self.buffer, &mut self.compressor, CacheError::Input, each)?;
        Ok((start, stored, whole.finish()))
    }

    /// The finished layer and the annotations of its descriptor.
    pub fn finish(mut self) -> Result<(Content, Annotations), CacheError> {
        self.flush()?;
        let end = self.table.take().and_then(|table| table.finish(self.writer.length()));
        let (tail, annotations) = end.unwrap_or_default();
        self.writer.write(&tail)?;
        Ok((self.writer.keep()?, annotations))
    }

    fn gather(&mut self, mut bytes: &[u8]) -> Result<(), CacheError> {
        if self.pending.len() + bytes.len() > PIECE {
            self.flush()?;
        }
        while bytes.len() > PIECE {
            let (piece, rest) = bytes.split_at(PIECE);
            self.writer.write(self.compressor.piece(piece))?;
            bytes = rest;
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CacheError> {
        if !self.pending.is_empty() {
            self.writer.write(self.compressor.piece(&self.pending))?;
            self.pending.clear();
        }
        Ok(())
    }
}
