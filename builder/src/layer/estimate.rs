//! How large a layer will be, without writing it: for plans.
//!
//! What an earlier build has compressed is counted exactly. Of everything else samples are compressed: `SAMPLE` of each
//! `STEP` of a large file, and every eighth of the smaller ones. That is about a sixteenth of the work, and the real
//! layers of Spark come to within a few per cent of it.

use std::os::unix::fs::FileExt as _;

use super::{
    codec::{Codec, Compressor, PIECE},
    key,
    member::{self, INLINE},
    members,
};
use crate::{
    cache::{Cache, Content, Shelf},
    digest::Digest,
    tree::Tree,
};

/// Bytes that are compressed at once.
const SAMPLE: u64 = 64 * 1024;

/// Bytes that a sample stands for. Smaller files are sampled as a group.
const STEP: u64 = 1024 * 1024;

/// One out of so many smaller files is looked at.
const EVERY: usize = 8;

/// Bytes of a tar header.
const HEADER: u64 = 512;

/// About how many bytes the layer of a tree will have.
pub fn estimate(cache: &Cache, tree: &Tree, codec: Codec) -> u64 {
    let note = Digest::of(format!("estimate 1 {}", key(tree, codec)).as_bytes());
    if let Some(bytes) = cache.note::<u64>("trees-v2", &note) {
        return bytes;
    }
    let bytes = estimated(cache, tree, codec);
    // Only saves time: the next plan looks again when the note is not there.
    if let Err(error) = cache.leave_note("trees-v2", &note, &bytes) {
        tracing::debug!(error = %error, "an estimate is not kept");
    }
    bytes
}

fn estimated(cache: &Cache, tree: &Tree, codec: Codec) -> u64 {
    let mut compressor = codec.compressor();
    let contents: Vec<Content> = members(tree).iter().filter_map(super::content).collect();
    let (small, others): (Vec<Content>, Vec<Content>) =
        contents.iter().partition(|content| content.size < INLINE);
    let mut sum = 0;
    let mut unknown = Vec::new();
    for content in others {
        match member::length(cache, codec, &content) {
            Some(length) => sum += length,
            None => unknown.push(content),
        }
    }
    let (large, medium): (Vec<Content>, Vec<Content>) =
        unknown.into_iter().partition(|content| content.size >= STEP);
    for content in large {
        let samples = (0..content.size / STEP).map(|at| read(cache, &content, at * STEP));
        let ratio = packed(&mut compressor, samples);
        sum += ratio.of(content.size);
    }
    let some = |contents: &[Content]| contents.iter().step_by(EVERY).copied().collect::<Vec<_>>();
    let samples = some(&medium);
    let ratio = packed(&mut compressor, samples.iter().map(|content| read(cache, content, 0)));
    sum += ratio.of(medium.iter().map(|content| content.size).sum());
    // Small files are compressed together with the headers around them.
    let mut joined = Vec::new();
    for content in some(&small) {
        joined.extend(read(cache, &content, 0));
        joined.truncate(PIECE);
    }
    let ratio = packed(&mut compressor, joined.chunks(PIECE).map(<[u8]>::to_vec));
    let headers = (tree.len() as u64).saturating_mul(HEADER) / 8;
    sum + ratio.of(small.iter().map(|content| content.size).sum()) + headers
}

/// Compressed bytes out of raw ones.
#[derive(Debug, Clone, Copy, Default)]
struct Ratio {
    packed: u64,
    raw: u64,
}

impl Ratio {
    fn of(self, bytes: u64) -> u64 {
        let scaled = u128::from(bytes) * u128::from(self.packed) / u128::from(self.raw.max(1));
        if self.raw == 0 { bytes } else { u64::try_from(scaled).unwrap_or(u64::MAX) }
    }
}

fn packed(compressor: &mut Compressor, samples: impl Iterator<Item = Vec<u8>>) -> Ratio {
    let add = |sum: Ratio, sample: Vec<u8>| Ratio {
        packed: sum.packed + compressor.piece(&sample).len() as u64,
        raw: sum.raw + sample.len() as u64,
    };
    samples.filter(|sample| !sample.is_empty()).fold(Ratio::default(), add)
}

/// A sample; empty where the file cannot be read: the build says so when it needs the file.
fn read(cache: &Cache, content: &Content, offset: u64) -> Vec<u8> {
    let length = usize::try_from(SAMPLE.min(content.size.saturating_sub(offset))).unwrap_or_default();
    let mut buffer = vec![0; length];
    let file = std::fs::File::open(cache.path(Shelf::Files, &content.digest));
    match file.and_then(|file| file.read_exact_at(&mut buffer, offset)) {
        Ok(()) => buffer,
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layer,
        progress::Bar,
        tree::{Entry, ImagePath, Kind},
    };

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33).to_le_bytes()[0]
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn an_estimate_is_near_what_a_build_comes_to() {
        for codec in [Codec::Gzip, Codec::Zstd] {
            let directory = tempfile::tempdir().unwrap();
            let cache = Cache::open(directory.path()).unwrap();
            let mut tree = Tree::new();
            let mut add = |name: &str, bytes: &[u8]| {
                let content = cache.put(Shelf::Files, &mut &*bytes).unwrap();
                tree.insert(ImagePath::new(name).unwrap(), Entry::file(content, 0o644));
            };
            let lines = (0..400_000_u64).map(|line| format!("line {} of a text\n", line * 7919));
            let text = lines.collect::<Vec<_>>().concat();
            add("large.jar", &noise(1, 6 << 20));
            add("large.txt", text.as_bytes());
            for number in 0..40_usize {
                add(&format!("m/{number}.so"), &[noise(number as u64, 30_000), vec![0; 50_000]].concat());
                add(&format!("s/{number}.py"), &text.as_bytes()[number * 3_000..][..5_000]);
            }
            // A hard link has no content of its own.
            let content = tree["large.jar"].content().unwrap();
            for name in ["large.jar", "link.jar"] {
                let kind = Kind::File { content, link: Some(1) };
                tree.insert(ImagePath::known(name), Entry { kind, ..Entry::file(content, 0o644) });
            }
            let guess = estimate(&cache, &tree, codec);
            assert_eq!(estimate(&cache, &tree, codec), guess);
            let real = layer::write(&cache, &tree, codec, 1, Bar::hidden()).unwrap().blob.size;
            assert!(guess.abs_diff(real) * 10 < real, "{codec:?}: {guess} for {real}");
        }
    }
}
