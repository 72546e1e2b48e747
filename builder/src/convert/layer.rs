//! One layer becomes zstd:chunked: the same archive, byte for byte, in frames of its own, with a table of contents.

use std::{
    collections::HashSet,
    fs::File,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    io::{self, BufReader, Read},
};

use serde::{Deserialize, Serialize};

use super::{
    ConvertError,
    headers::{self, Problem},
};
use crate::{
    cache::{BUFFER, Cache, Content, Shelf},
    digest::{Digest, Hashing},
    layer::{
        Layer,
        assembler::Assembler,
        chunked::{self, Annotations, Entry},
        codec::{Codec, PIECE},
        header::BLOCK,
    },
    progress::Bar,
    sources::tarball::Limits,
};

/// Windows of zstd layers up to 32 MiB: no usual level of zstd uses a larger one, and each layer under way needs one.
const WINDOW: u32 = 25;

/// Bytes after an archive's end mark that a table takes up; programs pad archives to 10 KiB.
const TRAILING: usize = 1 << 20;

/// What became of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Converted {
    /// The layer.
    pub layer: Layer,
    /// Why it has no table of contents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain: Option<String>,
    /// Whether it was zstd:chunked before.
    #[serde(skip)]
    pub passed: bool,
}

/// Converts a layer of the cache, or remembers what an earlier run made of it. `diff_id` is what it must unpack to.
pub fn convert(
    cache: &Cache,
    blob: &Content,
    annotations: &Annotations,
    diff_id: Digest,
    bar: &Bar,
) -> Result<Converted, ConvertError> {
    let path = cache.verified(Shelf::Blobs, blob)?;
    let chunked: Annotations =
        annotations.iter().filter(|(name, _)| name.starts_with(chunked::PREFIX)).map(own).collect();
    if !chunked.is_empty() {
        let file = File::open(&path).map_err(|source| cache.fault("open", &path, source))?;
        match chunked::check(BufReader::new(file), blob.size, &chunked) {
            Ok(()) => {
                let media_type = Codec::ZstdChunked.media_type().to_owned();
                let layer = Layer { blob: *blob, diff_id, media_type, annotations: chunked };
                bar.advance(blob.size);
                return Ok(Converted { layer, plain: None, passed: true });
            }
            Err(error) => tracing::warn!(
                layer = %blob.digest,
                error = format!("{:#}", anyhow::Error::new(error)),
                "the layer's table of contents cannot be used: writing a new one"
            ),
        }
    }
    let key = Digest::of(format!("converted 1 {} {}", Codec::ZstdChunked.id(), blob.digest).as_bytes());
    if let Some(known) = cache.note::<Converted>("layers-v2", &key)
        && cache.find(Shelf::Blobs, &known.layer.blob).is_some()
        && known.layer.diff_id == diff_id
    {
        cache.verified(Shelf::Blobs, &known.layer.blob)?;
        bar.advance(blob.size);
        return Ok(known);
    }
    let file = cache.open_content(Shelf::Blobs, blob)?;
    let converted = rewrite(cache, bar.reader(file), blob.digest, diff_id)?;
    cache.leave_note("layers-v2", &key, &converted)?;
    Ok(converted)
}

fn own((name, value): (&String, &String)) -> (String, String) {
    (name.clone(), value.clone())
}

/// The archive in a layer, by the first bytes of the blob.
fn decompressed<'a>(mut blob: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut magic = Vec::new();
    blob.by_ref().take(4).read_to_end(&mut magic)?;
    let whole = BufReader::with_capacity(BUFFER, io::Cursor::new(magic.clone()).chain(blob));
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        // A frame, or a skippable one.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            let mut decoder = zstd::Decoder::with_buffer(whole)?;
            decoder.window_log_max(WINDOW)?;
            Box::new(decoder)
        }
        _ => Box::new(whole),
    })
}

fn rewrite(
    cache: &Cache,
    blob: impl Read + Send,
    name: Digest,
    diff_id: Digest,
) -> Result<Converted, ConvertError> {
    let fail = |source| ConvertError::Layer { layer: name, source };
    let limit = Limits::default().bytes;
    // One more than allowed: what is cut off then is noticed.
    let mut archive = Hashing::new(decompressed(blob).map_err(fail)?.take(limit + 1));
    let mut out = Assembler::new(cache, Codec::ZstdChunked)?;
    let plain = match members(&mut archive, &mut out) {
        Ok(()) => None,
        Err(Stop::Unsupported(reason)) => Some(reason),
        Err(Stop::Failed(error)) => return Err(error.of_layer(name)),
    };
    if plain.is_some() {
        out.drop_table();
    }
    let mut rest = Vec::new();
    loop {
        rest.clear();
        archive.by_ref().take(PIECE as u64).read_to_end(&mut rest).map_err(fail)?;
        if rest.is_empty() {
            break;
        }
        out.raw(&rest)?;
    }
    let hasher = archive.into_parts().1;
    if hasher.length() > limit {
        return Err(fail(io::Error::other(format!("it unpacks to more than {} GiB", limit >> 30))));
    }
    let checked = diff_id.check(hasher.finish());
    checked.map_err(|mismatch| ConvertError::DiffId { layer: name, mismatch })?;
    let (blob, annotations) = out.finish()?;
    let plain = match plain {
        None if annotations.is_empty() => {
            Some("its table of contents would be larger than clients take".to_owned())
        }
        plain => plain,
    };
    let media_type = Codec::ZstdChunked.media_type().to_owned();
    Ok(Converted { layer: Layer { blob, diff_id, media_type, annotations }, plain, passed: false })
}

/// Why the members were not read to the end.
enum Stop {
    Failed(ConvertError),
    Unsupported(String),
}

impl<T: Into<ConvertError>> From<T> for Stop {
    fn from(error: T) -> Self {
        Self::Failed(error.into())
    }
}

/// Copies member after member, and what follows the end mark.
fn members(archive: &mut impl Read, out: &mut Assembler<'_>) -> Result<(), Stop> {
    let mut names = Names::default();
    let mut raw = Vec::new();
    loop {
        raw.clear();
        let entry = headers::next(archive, &mut raw);
        out.raw(&raw)?;
        let entry = match entry {
            Ok(Some(entry)) => entry,
            Ok(None) => return trailing(archive, out),
            Err(Problem::Read(source)) => return Err(Stop::Failed(ConvertError::Archive(source))),
            Err(Problem::Unsupported(reason)) => return Err(Stop::Unsupported(format!("it has {reason}"))),
        };
        names.add(&entry)?;
        let mut placed = None;
        if entry.size > 0 {
            let size = entry.size;
            let file = out.stream(archive.by_ref().take(size), size)?;
            let found: u64 = file.1.chunks.iter().map(|chunk| chunk.size).sum();
            if found < size {
                return Err(Stop::Unsupported(format!("`{}` is cut short", entry.name)));
            }
            placed = Some(file);
        }
        let padding = entry.size.next_multiple_of(BLOCK as u64) - entry.size;
        out.entry(|| entry, placed.as_ref());
        raw.clear();
        archive.by_ref().take(padding).read_to_end(&mut raw).map_err(ConvertError::Archive)?;
        out.raw(&raw)?;
        if raw.len() as u64 != padding {
            return Err(Stop::Unsupported("it is cut short".to_owned()));
        }
    }
}

/// Copies the zeros after the end mark; other bytes would be taken for a header.
fn trailing(archive: &mut impl Read, out: &mut Assembler<'_>) -> Result<(), Stop> {
    let mut rest = Vec::new();
    archive.by_ref().take(TRAILING as u64 + 1).read_to_end(&mut rest).map_err(ConvertError::Archive)?;
    out.raw(&rest)?;
    if rest.len() > TRAILING || rest.iter().any(|byte| *byte != 0) {
        return Err(Stop::Unsupported("it has content after its end mark".to_owned()));
    }
    Ok(())
}

/// The names that came before. Clients refuse tables with a name twice.
#[derive(Default)]
struct Names {
    seen: HashSet<u64>,
    hasher: BuildHasherDefault<DefaultHasher>,
}

impl Names {
    fn add(&mut self, entry: &Entry) -> Result<(), Stop> {
        // Two names with one hash of 64 bits cost a table, no more.
        if self.seen.insert(self.hasher.hash_one(clean(&entry.name))) {
            return Ok(());
        }
        Err(Stop::Unsupported(format!("it has `{}` twice", entry.name)))
    }
}

/// A name as clients compare it (`path/filepath.Clean` of Go).
fn clean(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if name.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    let root = if name.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        (directory, cache)
    }

    /// An archive as GNU tar writes them: long names in headers of their own, padded to 10 KiB.
    fn archive(names: &[&str]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (number, name) in names.iter().enumerate() {
            let content = name.repeat(1 << (4 * number)).into_bytes();
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(1_700_000_000);
            archive.append_data(&mut header, name, &content[..]).unwrap();
        }
        let mut bytes = archive.into_inner().unwrap();
        bytes.resize(bytes.len().next_multiple_of(20 * BLOCK), 0);
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn converted(cache: &Cache, blob: &[u8], diff_id: Digest) -> Result<Converted, ConvertError> {
        let blob = cache.put(Shelf::Blobs, &mut &*blob).unwrap();
        convert(cache, &blob, &Annotations::new(), diff_id, &Bar::hidden())
    }

    #[test]
    fn layers_of_every_compression_become_the_same_layer_with_a_table() {
        let raw = archive(&["a", "b/c", &format!("{}d", "long/".repeat(60)), "e", "f"]);
        let diff_id = Digest::of(&raw);
        let mut made: Vec<Converted> = Vec::new();
        for blob in [raw.clone(), gzip(&raw), zstd::encode_all(&raw[..], 19).unwrap()] {
            let (_directory, cache) = cache();
            let converted = converted(&cache, &blob, diff_id).unwrap();
            assert_eq!(converted.plain, None);
            let path = cache.path(Shelf::Blobs, &converted.layer.blob.digest);
            let file = || File::open(&path).unwrap();
            assert_eq!(zstd::decode_all(file()).unwrap(), raw);
            let size = converted.layer.blob.size;
            let mut reader = chunked::Reader::open(file(), size, &converted.layer.annotations).unwrap();
            assert_eq!(reader.entries.iter().filter(|entry| entry.kind == "reg").count(), 5);
            reader.verify().unwrap();
            let mut again = Vec::new();
            reader.archive(&mut again).unwrap();
            assert_eq!(again, raw);
            made.push(converted);
        }
        assert!(made.iter().all(|one| *one == made[0] && one.plain.is_none()));
    }

    #[test]
    fn a_layer_that_has_a_table_is_passed_on_unless_the_table_is_wrong() {
        let (_directory, cache) = cache();
        let raw = archive(&["a", "b"]);
        let first = converted(&cache, &raw, Digest::of(&raw)).unwrap().layer;
        let again = |annotations: &Annotations| {
            convert(&cache, &first.blob, annotations, first.diff_id, &Bar::hidden()).unwrap()
        };
        let passed = again(&first.annotations);
        assert!(passed.passed && passed.layer == first);
        let wrong = first.annotations.iter().map(|(name, value)| (name.clone(), value.replace('1', "2")));
        let rewritten = again(&wrong.collect());
        assert!(!rewritten.passed && rewritten.layer == first, "the same bytes come out");
    }

    #[test]
    fn archives_without_a_table_are_still_converted() {
        let twice = archive(&["a", "./a"]);
        let whole = archive(&["a", "b", "c", "d"]);
        let mut garbage = whole.clone();
        *garbage.last_mut().unwrap() = 1;
        let cut = whole[..5_000].to_vec();
        for (raw, reason) in [
            (twice, "twice"),
            (garbage, "after its end mark"),
            (cut, "cut short"),
            (b"no archive".to_vec(), "cut short"),
        ] {
            let (_directory, cache) = cache();
            let found = converted(&cache, &gzip(&raw), Digest::of(&raw)).unwrap();
            assert!(found.plain.as_ref().is_some_and(|plain| plain.contains(reason)), "{reason}: {found:?}");
            assert!(found.layer.annotations.is_empty());
            let path = cache.path(Shelf::Blobs, &found.layer.blob.digest);
            assert_eq!(zstd::decode_all(File::open(path).unwrap()).unwrap(), raw, "{reason}");
        }
    }

    #[test]
    fn what_does_not_unpack_to_its_diff_id_is_refused() {
        let (directory, cache) = cache();
        let raw = archive(&["a"]);
        let error = converted(&cache, &raw, Digest::of(b"other")).unwrap_err();
        assert!(matches!(error, ConvertError::DiffId { .. }), "{error}");
        let packed = gzip(&raw);
        let error = converted(&cache, &packed[..packed.len() - 9], Digest::of(&raw)).unwrap_err();
        assert!(matches!(error, ConvertError::Layer { .. }), "{error}");
        assert_eq!(
            std::fs::read_dir(directory.path().join("tmp-v1")).unwrap().count(),
            0,
            "nothing is left over"
        );
    }

    #[test]
    fn names_are_compared_as_clients_do() {
        for (name, expected) in [
            ("a", "a"),
            ("./a/", "a"),
            ("a//b/../c", "a/c"),
            ("/../a", "/a"),
            ("../../a", "../../a"),
            ("./", ""),
        ] {
            assert_eq!(clean(name), expected, "{name}");
        }
    }
}
