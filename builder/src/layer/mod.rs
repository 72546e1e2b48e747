//! Turns trees of files into layer blobs, the same bytes on every machine.
//!
//! ```text
//! layer blob   =  piece(headers, small files, padding ..)  member(large file)  piece(..)  member(..)  ..
//! ```
//!
//! Large files are compressed once and kept in the cache ([`member`]); a layer is then assembled by copying.
//! What lies between them (tar headers, small files, padding) is gathered and compressed on the spot. Where
//! the pieces begin and end depends on nothing but the files, so neither the number of threads nor what the
//! cache already had can change a byte.
//!
//! The digest of the *uncompressed* archive (the `diffID`) is computed by a second thread from the raw files
//! while the first one copies. Meanwhile the files of the next layer are compressed: putting a layer together
//! waits for the disk (layers are synced), compressing waits for processors.

pub mod codec;
pub mod estimate;
pub mod header;
pub mod member;

use std::{
    collections::HashMap,
    io::{self, Read},
    path::PathBuf,
    sync::mpsc,
};

use serde::{Deserialize, Serialize};

use self::{
    codec::{Codec, Compressor, PIECE},
    header::Member,
    member::INLINE,
};
use crate::{
    cache::{BUFFER, Cache, CacheError, Content, ContentWriter, Shelf},
    digest::{Digest, Hasher},
    progress::Bar,
    tree::{Entry, ImagePath, Kind, Tree},
};

/// A finished layer in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The compressed blob.
    pub blob: Content,
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// The blob's media type.
    pub media_type: String,
}

/// Why a layer could not be written.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A content of the cache cannot be read.
    #[error("cannot read `{path}` from the cache")]
    Read {
        /// The file in the image.
        path: ImagePath,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A compressed file is missing that was made a moment ago.
    #[error("the compressed form of `{path}` is no longer in the cache at `{}`", file.display())]
    Missing {
        /// The file in the image.
        path: ImagePath,
        /// The file in the cache.
        file: PathBuf,
    },
}

/// What makes a layer what it is: with the same key the same blob comes out.
pub fn key(tree: &Tree, codec: Codec) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(format!("layer {} {}\n", header::VERSION, codec.id()).as_bytes());
    let entries = serde_json::to_vec(tree).expect("paths are strings");
    hasher.update(&entries);
    hasher.finish()
}

/// The layer of a tree, when an earlier build has written it.
pub fn known(cache: &Cache, tree: &Tree, codec: Codec) -> Option<Layer> {
    let layer = cache.note::<Layer>("layers-v2", &key(tree, codec))?;
    cache.find(Shelf::Blobs, &layer.blob).map(|_| layer)
}

/// Writes a layer, or finds it in the cache.
pub fn write(cache: &Cache, tree: &Tree, codec: Codec, jobs: usize, bar: Bar) -> Result<Layer, LayerError> {
    let written = write_all(cache, std::iter::once((tree, bar)), codec, jobs)?;
    Ok(written.into_iter().next().expect("one layer for one tree"))
}

/// Writes layers, or finds them in the cache; they come back in the order of `trees`. At most two are under way:
/// one whose files are compressed and one that is put together.
pub fn write_all<'t>(
    cache: &Cache,
    trees: impl Iterator<Item = (&'t Tree, Bar)>,
    codec: Codec,
    jobs: usize,
) -> Result<Vec<Layer>, LayerError> {
    let (ready, next) = mpsc::sync_channel(0);
    std::thread::scope(|scope| {
        let together = scope.spawn(move || -> Result<Vec<Layer>, LayerError> {
            let finish = |(tree, bar, known): (_, _, Option<Layer>)| {
                known.map_or_else(|| put_together(cache, tree, codec, &bar), Ok)
            };
            next.into_iter().map(finish).collect()
        });
        let mut compressed = Ok(());
        for (tree, bar) in trees {
            let known = known(cache, tree, codec);
            if known.is_some() {
                bar.advance(crate::tree::bytes(tree));
            } else {
                let contents = tree.values().filter_map(Entry::content);
                compressed = member::prepare(cache, codec, contents, jobs, &bar);
            }
            // Nobody takes it: putting together has failed, and says why.
            if compressed.is_err() || ready.send((tree, bar, known)).is_err() {
                break;
            }
        }
        drop(ready);
        let layers = together.join().expect("putting together does not panic");
        compressed?;
        layers
    })
}

/// Writes a layer whose large files are compressed.
fn put_together(cache: &Cache, tree: &Tree, codec: Codec, bar: &Bar) -> Result<Layer, LayerError> {
    let members = members(tree);
    let (blob, diff_id) = std::thread::scope(|scope| {
        let diff_id = scope.spawn(|| diff_id(cache, &members));
        let blob = assemble(cache, &members, codec, bar);
        (blob, diff_id.join().expect("hashing does not panic"))
    });
    let layer = Layer { blob: blob?, diff_id: diff_id?, media_type: codec.media_type().to_owned() };
    cache.leave_note("layers-v2", &key(tree, codec), &layer)?;
    Ok(layer)
}

/// Pairs hard links with the first of their names, which carries the content.
fn members(tree: &Tree) -> Vec<Member<'_>> {
    let mut first: HashMap<u32, &ImagePath> = HashMap::new();
    tree.iter()
        .map(|(path, entry)| {
            let mut same_as = None;
            if let Kind::File { link: Some(number), .. } = entry.kind {
                same_as = first.get(&number).copied();
                first.entry(number).or_insert(path);
            }
            Member { path, entry, same_as }
        })
        .collect()
}

/// The content of a member that has one of its own.
fn content(member: &Member<'_>) -> Option<Content> {
    if member.same_as.is_some() { None } else { member.entry.content() }
}

fn diff_id(cache: &Cache, members: &[Member<'_>]) -> Result<Digest, LayerError> {
    let mut hasher = Hasher::default();
    let mut header = Vec::new();
    let mut buffer = vec![0; BUFFER];
    for member in members {
        header.clear();
        header::write(member, &mut header);
        hasher.update(&header);
        if let Some(content) = content(member) {
            let mut file = cache.open_content(Shelf::Files, &content)?;
            let read = |source| LayerError::Read { path: member.path.clone(), source };
            loop {
                let count = file.read(&mut buffer).map_err(read)?;
                if count == 0 {
                    break;
                }
                hasher.update(&buffer[..count]);
            }
            hasher.update(&header::END[..member.padding()]);
        }
    }
    hasher.update(&header::END);
    Ok(hasher.finish())
}

fn assemble(cache: &Cache, members: &[Member<'_>], codec: Codec, bar: &Bar) -> Result<Content, LayerError> {
    let mut out = Assembler {
        writer: cache.writer(Shelf::Blobs)?,
        compressor: codec.compressor(),
        pending: Vec::with_capacity(PIECE),
    };
    let mut buffer = vec![0; BUFFER];
    for member in members {
        let mut header = Vec::new();
        header::write(member, &mut header);
        out.small(&header)?;
        let Some(content) = content(member) else { continue };
        if content.size < INLINE {
            let bytes = cache.read_small(&content, INLINE)?;
            out.small(&bytes)?;
            bar.advance(content.size);
        } else {
            out.flush()?;
            let file = cache.member_path(codec.id(), &content.digest);
            let missing = || LayerError::Missing { path: member.path.clone(), file };
            let mut compressed = member::open(cache, codec, &content).ok_or_else(missing)?;
            loop {
                let read = |source| LayerError::Read { path: member.path.clone(), source };
                let count = compressed.read(&mut buffer).map_err(read)?;
                if count == 0 {
                    break;
                }
                out.writer.write(&buffer[..count])?;
            }
        }
        out.small(&header::END[..member.padding()])?;
    }
    out.small(&header::END)?;
    out.flush()?;
    Ok(out.writer.keep()?)
}

struct Assembler<'a> {
    writer: ContentWriter<'a>,
    compressor: Compressor,
    pending: Vec<u8>,
}

impl Assembler<'_> {
    fn small(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        if self.pending.len() + bytes.len() > PIECE {
            self.flush()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        (directory, cache)
    }

    fn sample(cache: &Cache) -> Tree {
        let put = |bytes: &[u8]| cache.put(Shelf::Files, &mut &*bytes).unwrap();
        let large = put(&b"0123456789abcdef".repeat(PIECE / 8));
        let small = put(b"small");
        let mut tree = Tree::new();
        tree.insert(ImagePath::known("opt"), Entry::directory(0o755));
        tree.insert(ImagePath::known("opt/large"), Entry::file(large, 0o644));
        for name in ["opt/linked", "opt/also"] {
            let kind = Kind::File { content: small, link: Some(3) };
            tree.insert(ImagePath::known(name), Entry { kind, ..Entry::file(small, 0o600) });
        }
        tree.insert(ImagePath::known("opt/empty"), Entry::file(put(b""), 0o644));
        tree
    }

    /// Names, link targets and contents as another program's reader sees them.
    fn listing(cache: &Cache, layer: &Layer) -> (Vec<(String, Option<String>, u64)>, Digest) {
        let file = cache.open_content(Shelf::Blobs, &layer.blob).unwrap();
        let mut raw = Vec::new();
        crate::sources::tarball::decompressed(file).unwrap().read_to_end(&mut raw).unwrap();
        let mut archive = tar::Archive::new(&raw[..]);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let list = archive
            .entries()
            .unwrap()
            .map(Result::unwrap)
            .map(|mut member| {
                let mut content = Vec::new();
                member.read_to_end(&mut content).unwrap();
                assert_eq!(content.len() as u64, member.size());
                let link = member.link_name_bytes().map(|bytes| text(&bytes));
                (text(&member.path_bytes()), link, member.size())
            })
            .collect();
        (list, Digest::of(&raw))
    }

    #[test]
    fn a_layer_holds_the_tree_and_its_diff_id_is_that_of_the_archive() {
        let (_directory, cache) = cache();
        let tree = sample(&cache);
        for codec in [Codec::Gzip, Codec::Zstd] {
            let layer = write(&cache, &tree, codec, 2, Bar::hidden()).unwrap();
            let (list, digest) = listing(&cache, &layer);
            let expected = [
                ("opt/", None, 0),
                ("opt/also", None, 5),
                ("opt/empty", None, 0),
                ("opt/large", None, 2 * PIECE as u64),
                ("opt/linked", Some("opt/also"), 0),
            ];
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(name, link, size)| (name.to_owned(), link.map(str::to_owned), size))
                .collect();
            assert_eq!(list, expected);
            assert_eq!(layer.diff_id, digest);
        }
    }

    #[test]
    fn threads_and_what_the_cache_had_change_no_byte() {
        let (_first_directory, first) = cache();
        let (_second_directory, second) = cache();
        let layer = write(&first, &sample(&first), Codec::Gzip, 1, Bar::hidden()).unwrap();
        let mut part = sample(&second);
        part.remove(&ImagePath::known("opt/also"));
        write(&second, &part, Codec::Gzip, 1, Bar::hidden()).unwrap();
        assert_eq!(write(&second, &sample(&second), Codec::Gzip, 4, Bar::hidden()).unwrap(), layer);
    }

    #[test]
    fn damaged_files_and_members_are_refused_and_removed() {
        for damaged in ["opt/also", "opt/large", "member of opt/large"] {
            let (directory, cache) = cache();
            let tree = sample(&cache);
            let layer = write(&cache, &tree, Codec::Gzip, 1, Bar::hidden()).unwrap();
            let name = damaged.trim_start_matches("member of ");
            let content = tree[name].content().unwrap();
            let path = if name == damaged {
                cache.path(Shelf::Files, &content.digest)
            } else {
                cache.member_path(Codec::Gzip.id(), &content.digest)
            };
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 3;
            bytes[middle] ^= 1;
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
            std::fs::remove_dir_all(directory.path().join("layers-v2")).unwrap();
            let cache = Cache::open(directory.path()).unwrap();
            let write = || write(&cache, &tree, Codec::Gzip, 1, Bar::hidden());
            assert!(write().is_err(), "{damaged}");
            assert!(!path.exists() && cache.take_damaged() > 0, "{damaged}");
            sample(&cache);
            assert_eq!(write().unwrap(), layer, "{damaged}: it is made again");
        }
    }
}
