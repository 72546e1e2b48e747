//! Reads layers by their table of contents, as clients do that fetch single chunks.

use std::{
    collections::HashMap,
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Range,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::{
    crc::Crc,
    format::{Annotations, CHECKSUM, Entry, KIND, LARGEST, Line, POSITION, TAR_SPLIT},
};
use crate::digest::{Digest, Hasher, Mismatch};

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The blob cannot be read.
    #[error("cannot read the layer")]
    Read(#[from] io::Error),
    /// An annotation is absent or has another form.
    #[error("the annotation `{0}` of the layer is missing or has another form than zstd:chunked gives it")]
    Annotation(&'static str),
    /// Something has another digest than what names it.
    #[error("{what} has the digest `{found}`, not `{expected}`",
        found = .mismatch.found, expected = .mismatch.expected)]
    Digest {
        /// What.
        what: String,
        /// The digest of its bytes, and the expected one.
        mismatch: Box<Mismatch>,
    },
    /// The table contradicts itself, the tar-split data or the layer.
    #[error("the table of contents cannot be used: {0}")]
    Contents(String),
}

/// Where something lies in a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    range: Range<u64>,
    /// Bytes without compression.
    length: u64,
}

/// What a table holds.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    version: u32,
    entries: Vec<Entry>,
    tar_split_digest: Option<Digest>,
}

/// A layer with its table.
#[derive(Debug)]
pub struct Reader<R> {
    blob: R,
    /// What the layer holds, in the order of the archive; further chunks of a file follow it.
    pub entries: Vec<Entry>,
    tar_split: Vec<u8>,
}

/// Whether a layer of `size` bytes has the table that its annotations name. Memory: none that depends on the table.
pub fn check(mut blob: impl Read + Seek, size: u64, annotations: &Annotations) -> Result<(), TableError> {
    let (place, checksum) = table(annotations, size)?;
    blob.seek(SeekFrom::Start(place.range.start))?;
    let mut hasher = Hasher::default();
    let mut frame = blob.take(place.range.end - place.range.start);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match frame.read(&mut buffer)? {
            0 => return expect("the table of contents", hasher.finish(), checksum),
            count => hasher.update(&buffer[..count]),
        }
    }
}

fn table(annotations: &Annotations, size: u64) -> Result<(Place, Digest), TableError> {
    let checksum = annotations.get(CHECKSUM).and_then(|text| text.parse().ok());
    Ok((place(annotations, POSITION, size)?, checksum.ok_or(TableError::Annotation(CHECKSUM))?))
}

impl<R: Read + Seek> Reader<R> {
    /// Reads and verifies the table and the tar-split data of a layer of `size` bytes.
    pub fn open(mut blob: R, size: u64, annotations: &Annotations) -> Result<Self, TableError> {
        let (place_of_table, checksum) = table(annotations, size)?;
        let json = unpacked(&mut blob, &place_of_table, "the table of contents", checksum)?;
        let document: Document =
            serde_json::from_slice(&json).map_err(|error| TableError::Contents(error.to_string()))?;
        if document.version != 1 {
            return Err(TableError::Contents(format!("its version is {}", document.version)));
        }
        let tar_split = match document.tar_split_digest {
            Some(digest) => {
                unpacked(&mut blob, &place(annotations, TAR_SPLIT, size)?, "the tar-split data", digest)?
            }
            None => Vec::new(),
        };
        Ok(Self { blob, entries: document.entries, tar_split })
    }

    /// Reads every chunk by itself and compares it with the table; says how many there were.
    pub fn verify(&mut self) -> Result<usize, TableError> {
        let mut count = 0;
        for file in files(&self.entries) {
            count += content(&mut self.blob, file, &mut io::sink())?;
        }
        Ok(count)
    }

    /// Puts the archive together again.
    pub fn archive(&mut self, out: &mut impl Write) -> Result<(), TableError> {
        let files: HashMap<&str, &[Entry]> =
            files(&self.entries).map(|file| (file[0].name.as_str(), file)).collect();
        for line in self.tar_split.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let wrong = |what: &str| TableError::Contents(format!("its tar-split data {what}"));
            let line: Line = serde_json::from_slice(line).map_err(|error| wrong(&error.to_string()))?;
            let payload = STANDARD.decode(line.payload.unwrap_or_default());
            let payload = payload.map_err(|error| wrong(&error.to_string()))?;
            if line.kind == 2 {
                out.write_all(&payload)?;
            } else if line.size > 0 {
                let file = files.get(line.name.as_str());
                let file = file.ok_or_else(|| wrong(&format!("has `{}`, which it has not", line.name)))?;
                let mut sum = Summed { inner: &mut *out, crc: Crc::default() };
                content(&mut self.blob, file, &mut sum)?;
                if sum.crc.finish().to_be_bytes()[..] != payload[..] {
                    return Err(wrong(&format!("has another checksum for `{}`", line.name)));
                }
            }
        }
        Ok(())
    }
}

/// The entries of each file that is not empty.
fn files(entries: &[Entry]) -> impl Iterator<Item = &[Entry]> {
    entries.chunk_by(|_, next| next.kind == "chunk").filter(|file| file[0].digest.is_some())
}

/// Writes a file, chunk by chunk; gives the number of chunks.
fn content(blob: &mut (impl Read + Seek), file: &[Entry], out: &mut impl Write) -> Result<usize, TableError> {
    let mut whole = Hasher::default();
    for (at, chunk) in file.iter().enumerate() {
        let end = file.get(at + 1).map_or(file[0].end_offset, |next| next.offset);
        let (size, digest) = match chunk.chunk_digest {
            Some(digest) => (chunk.chunk_size, digest),
            None => (file[0].size, file[0].digest.unwrap_or(Digest::of(b""))),
        };
        blob.seek(SeekFrom::Start(chunk.offset))?;
        let frame = Read::take(&mut *blob, end.saturating_sub(chunk.offset));
        let mut raw = zstd::Decoder::new(frame)?;
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = raw.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            whole.update(&buffer[..count]);
            out.write_all(&buffer[..count])?;
        }
        let name = &file[0].name;
        if hasher.length() != size || (chunk.chunk_type == "zeros" && size == 0) {
            let found = hasher.length();
            let problem = format!("a chunk of `{name}` has {found} bytes, not {size}");
            return Err(TableError::Contents(problem));
        }
        expect(&format!("a chunk of `{name}`"), hasher.finish(), digest)?;
    }
    let (name, expected) = (&file[0].name, file[0].digest.unwrap_or(Digest::of(b"")));
    expect(&format!("`{name}`"), whole.finish(), expected)?;
    Ok(file.len())
}

fn expect(what: &str, found: Digest, expected: Digest) -> Result<(), TableError> {
    expected.check(found).map_err(|mismatch| TableError::Digest { what: what.to_owned(), mismatch })
}

/// Reads a compressed part of the layer whose digest is known.
fn unpacked(
    blob: &mut (impl Read + Seek),
    place: &Place,
    what: &str,
    digest: Digest,
) -> Result<Vec<u8>, TableError> {
    let mut packed = Vec::new();
    blob.seek(SeekFrom::Start(place.range.start))?;
    blob.take(place.range.end - place.range.start).read_to_end(&mut packed)?;
    expect(what, Digest::of(&packed), digest)?;
    let mut raw = Vec::new();
    zstd::Decoder::new(&packed[..])?.take(place.length + 1).read_to_end(&mut raw)?;
    if raw.len() as u64 == place.length {
        return Ok(raw);
    }
    Err(TableError::Contents(format!("{what} has {} bytes or more, not {}", raw.len(), place.length)))
}

/// The place that an annotation names: within the layer, and no larger than clients take.
fn place(annotations: &Annotations, name: &'static str, size: u64) -> Result<Place, TableError> {
    let parse = || {
        let text = annotations.get(name)?;
        let numbers: Vec<u64> = text.split(':').map(|number| number.parse().ok()).collect::<Option<_>>()?;
        let (start, packed, length) = match (name, &numbers[..]) {
            (POSITION, [start, packed, length, KIND]) | (TAR_SPLIT, [start, packed, length]) => {
                (*start, *packed, *length)
            }
            _ => return None,
        };
        let end = start.checked_add(packed).filter(|end| *end <= size)?;
        (packed.max(length) <= LARGEST).then_some(Place { range: start..end, length })
    };
    parse().ok_or(TableError::Annotation(name))
}

struct Summed<W> {
    inner: W,
    crc: Crc,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.crc.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::{super::*, *};
    use crate::layer::codec::Codec;

    /// A layer of one directory, one file of two chunks and an empty file, with made-up headers.
    fn layer() -> (Vec<u8>, Annotations, Vec<u8>) {
        let entry = |kind: &str, name: &str, size| Entry {
            kind: kind.to_owned(),
            name: name.to_owned(),
            mode: 0o644,
            size,
            ..Entry::default()
        };
        let (mut blob, mut archive) = (Vec::new(), Vec::new());
        let mut compressor = Codec::ZstdChunked.compressor();
        let mut table = Table::default();
        let header = |blob: &mut Vec<u8>, table: &mut Table, archive: &mut Vec<u8>, bytes: &[u8]| {
            blob.extend_from_slice(Codec::ZstdChunked.compressor().piece(bytes));
            archive.extend_from_slice(bytes);
            table.raw(bytes);
        };
        header(&mut blob, &mut table, &mut archive, b"[header of a]");
        table.entry(entry("dir", "a/", 0), None);
        header(&mut blob, &mut table, &mut archive, b"[header of a/b]");
        let start = blob.len() as u64;
        let mut stored = Stored::default();
        let mut crc = Crc::default();
        for (bytes, zeros) in [(&b"first chunk"[..], false), (&[0; 20][..], true)] {
            let frame = compressor.piece(bytes);
            let (size, packed) = (bytes.len() as u64, frame.len() as u64);
            stored.chunks.push(Chunk { size, packed, digest: Digest::of(bytes), zeros });
            blob.extend_from_slice(frame);
            archive.extend_from_slice(bytes);
            crc.update(bytes);
        }
        stored.crc = crc.finish();
        let digest = Digest::of(&[&b"first chunk"[..], &[0; 20]].concat());
        table.entry(entry("reg", "a/b", 31), Some((start, &stored, digest)));
        header(&mut blob, &mut table, &mut archive, b"[padding][header of a/c]");
        table.entry(entry("reg", "a/c", 0), None);
        header(&mut blob, &mut table, &mut archive, b"[end]");
        let (tail, annotations) = table.finish(blob.len() as u64).unwrap();
        blob.extend(tail);
        (blob, annotations, archive)
    }

    #[test]
    fn a_layer_reads_as_its_archive_with_and_without_its_table() {
        let (blob, annotations, expected) = layer();
        assert_eq!(zstd::decode_all(&blob[..]).unwrap(), expected, "as any zstd layer");
        check(Cursor::new(&blob), blob.len() as u64, &annotations).unwrap();
        let mut reader = Reader::open(Cursor::new(&blob), blob.len() as u64, &annotations).unwrap();
        assert_eq!(reader.verify().unwrap(), 2, "chunks");
        let mut archive = Vec::new();
        reader.archive(&mut archive).unwrap();
        assert_eq!(archive, expected);
        let kinds: Vec<&str> = reader.entries.iter().map(|entry| entry.kind.as_str()).collect();
        assert_eq!(kinds, ["dir", "reg", "chunk", "reg"]);
        assert_eq!((reader.entries[1].chunk_size, reader.entries[2].chunk_offset), (11, 11));
        assert_eq!(reader.entries[2].chunk_type, "zeros");
        assert_eq!(reader.entries[2].end_offset, reader.entries[1].end_offset);
    }

    #[test]
    fn the_footer_says_where_the_annotations_point() {
        let (blob, annotations, _) = layer();
        let words: Vec<u64> =
            blob[blob.len() - 64..].as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        assert_eq!(annotations[POSITION], format!("{}:{}:{}:{}", words[0], words[1], words[2], words[3]));
        assert_eq!(annotations[TAR_SPLIT], format!("{}:{}:{}", words[4], words[5], words[6]));
        assert_eq!(words[7].to_le_bytes(), *b"GNUlInUx");
    }

    #[test]
    fn what_is_not_what_its_digest_says_is_refused() {
        let (blob, annotations, _) = layer();
        let size = blob.len() as u64;
        let open = |blob: &[u8], annotations: &Annotations| {
            let mut reader = Reader::open(Cursor::new(blob.to_vec()), size, annotations)?;
            reader.verify()?;
            reader.archive(&mut io::sink())
        };
        let table: usize = annotations[POSITION].split(':').next().unwrap().parse().unwrap();
        let tar_split: usize = annotations[TAR_SPLIT].split(':').next().unwrap().parse().unwrap();
        let chunk = zstd::decode_all(&blob[..]).map(|_| 60).unwrap();
        for (at, what) in [(table + 9, "the table"), (tar_split + 9, "the tar-split"), (chunk, "a chunk")] {
            let mut damaged = blob.clone();
            damaged[at] ^= 1;
            assert!(open(&damaged, &annotations).is_err(), "{what}");
        }
        let damaged = |name: &str, value: &str| {
            let mut annotations = annotations.clone();
            annotations.insert(name.to_owned(), value.to_owned());
            open(&blob, &annotations).unwrap_err()
        };
        for value in ["", "1:2", "0:10:10:2", "-1:2:3:1", "18446744073709551615:2:3:1", "0:9999999:1:1"] {
            assert!(matches!(damaged(POSITION, value), TableError::Annotation(POSITION)), "{value}");
        }
        assert!(matches!(damaged(CHECKSUM, "sha256:1"), TableError::Annotation(CHECKSUM)));
        assert!(matches!(damaged(TAR_SPLIT, "0:10:157286401"), TableError::Annotation(TAR_SPLIT)));
    }
}
