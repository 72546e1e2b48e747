//! Turns trees of files into layer blobs, the same bytes on every machine.
//!
//! ```text
//! layer blob   =  piece(headers, small files, padding ..)  member(large file)  piece(..)  member(..)  ..
//! zstd:chunked =  piece(headers, padding ..)  piece(small file)  piece(..)  member(large file)  ..  table of contents
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

pub(crate) mod assembler;
pub mod chunked;
pub mod codec;
mod error;
pub mod estimate;
pub mod header;
pub mod member;

use std::{collections::HashMap, io::Read, sync::mpsc};

use serde::{Deserialize, Serialize};

pub use self::error::LayerError;
use self::{assembler::Assembler, chunked::Annotations, codec::Codec, header::Member, member::INLINE};
use crate::{
    cache::{BUFFER, Cache, Content, Shelf},
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
    /// Annotations of its descriptor in manifests: where its table of contents lies.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
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
    let ((blob, annotations), diff_id) = (blob?, diff_id?);
    let layer = Layer { blob, diff_id, media_type: codec.media_type().to_owned(), annotations };
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

fn assemble(
    cache: &Cache,
    members: &[Member<'_>],
    codec: Codec,
    bar: &Bar,
) -> Result<(Content, Annotations), LayerError> {
    let mut out = Assembler::new(cache, codec)?;
    let mut header = Vec::new();
    for member in members {
        header.clear();
        header::write(member, &mut header);
        out.raw(&header)?;
        let stored = match content(member) {
            Some(content) if content.size >= INLINE => Some(out.large(cache, codec, member, &content)?),
            Some(content) if content.size > 0 => {
                let bytes = cache.read_small(&content, INLINE)?;
                bar.advance(content.size);
                out.small(&bytes)?.map(|(start, stored)| (start, stored, content.digest))
            }
            _ => None,
        };
        out.entry(|| header::table_entry(member), stored.as_ref());
        out.raw(&header::END[..member.padding()])?;
    }
    out.raw(&header::END)?;
    Ok(out.finish()?)
}

#[cfg(test)]
mod tests;
