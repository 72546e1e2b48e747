//! How layers are compressed.
//!
//! Gzip members and zstd frames can be concatenated, so a layer is a sequence of independently compressed
//! pieces. A piece holds at most [`PIECE`] raw bytes: that bounds memory whatever the size of a file, and the
//! loss of the compression window at its edges is under 0.1 %. (Layers of concatenated members and frames
//! were unpacked byte for byte by containerd, podman, buildah, skopeo and umoci.)
//!
//! Most of an image's bytes are compressed already (JARs, wheels' libraries less so), and gzip spends its time on them for
//! nothing: in blocks of 256 KiB, 29 % of the bytes of Spark 3.5 shrink by less than 2 %, and 56 % by less than 4 %. So a
//! look at a sixteenth of each block decides how much work it is worth, and blocks that are worth the same become one
//! member. Zstandard finds that out by itself.

use serde::{Deserialize, Serialize};

/// Raw bytes in one compressed piece.
pub const PIECE: usize = 4 * 1024 * 1024;

/// The level of zstd.
pub const ZSTD_LEVEL: i32 = 3;

/// The compression of layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Understood by every client.
    Gzip,
    /// Smaller and several times faster; needs containerd 1.5, Docker 23 or CRI-O 1.20 and newer.
    Zstd,
    /// The same for clients that know nothing else, with a frame for every chunk of a file and a table of contents: podman
    /// and CRI-O can fetch only what they lack ([`super::chunked`]).
    #[default]
    #[serde(rename = "zstd:chunked")]
    ZstdChunked,
}

impl std::fmt::Display for Codec {
    /// As specifications spell it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::ZstdChunked => "zstd:chunked",
        })
    }
}

impl Codec {
    /// Names the codec with everything its output depends on: the implementation, its version and level. It
    /// is part of cache keys and of the lock. A test compares the output with a fixed digest, so an update
    /// of a library that changes bytes cannot go unnoticed.
    pub fn id(self) -> &'static str {
        match self {
            Self::Gzip => "gzip-libdeflate-2-0.1.6",
            Self::Zstd => "zstd-1.5-3",
            Self::ZstdChunked => "zstd-chunked-1-1.5-3",
        }
    }

    /// The media type of a layer.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd | Self::ZstdChunked => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// A compressor; keeps its tables and output buffer between pieces.
    pub fn compressor(self) -> Compressor {
        match self {
            Self::Gzip => Compressor { engine: Engine::Gzip(Gzip::new()), out: Vec::new() },
            Self::Zstd | Self::ZstdChunked => {
                let engine = zstd::bulk::Compressor::new(ZSTD_LEVEL).expect("it is a level of zstd");
                Compressor { engine: Engine::Zstd(engine), out: Vec::new() }
            }
        }
    }
}

/// Bytes that are worth the same work.
const BLOCK: usize = 256 * 1024;

/// Bytes that are looked at, out of so many: four samples of a block.
const LOOK: (usize, usize) = (4 * 1024, BLOCK / 4);

/// Shares, in thousandths, by which a sample must shrink to be worth some work, and to be worth more.
const WORTH: (usize, usize) = (25, 200);

/// How much work a block is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// None: it is stored.
    Nothing,
    /// Level 1.
    Some,
    /// Level 6.
    More,
}

/// One compressor for each amount of work.
struct Gzip {
    stored: libdeflater::Compressor,
    quick: libdeflater::Compressor,
    thorough: libdeflater::Compressor,
    sample: Vec<u8>,
    trial: Vec<u8>,
}

impl Gzip {
    fn new() -> Self {
        let of = |level| {
            let level = libdeflater::CompressionLvl::new(level).expect("0 to 12 are levels of libdeflate");
            libdeflater::Compressor::new(level)
        };
        Self { stored: of(0), quick: of(1), thorough: of(6), sample: Vec::new(), trial: Vec::new() }
    }

    /// By how many thousandths a sample of `block` shrinks.
    fn shrinks(&mut self, block: &[u8]) -> usize {
        self.sample.clear();
        for step in block.chunks(LOOK.1) {
            self.sample.extend_from_slice(&step[..step.len().min(LOOK.0)]);
        }
        self.trial.resize(self.quick.deflate_compress_bound(self.sample.len()), 0);
        let packed = self.quick.deflate_compress(&self.sample, &mut self.trial);
        let packed = packed.expect("the buffer has the bound's size");
        self.sample.len().saturating_sub(packed) * 1_000 / self.sample.len()
    }

    /// What `block` is worth; one of a few samples' length is compressed sooner than looked at.
    fn worth(&mut self, block: &[u8]) -> Work {
        if block.len() <= LOOK.1 {
            return Work::More;
        }
        match self.shrinks(block) {
            share if share < WORTH.0 => Work::Nothing,
            share if share < WORTH.1 => Work::Some,
            _ => Work::More,
        }
    }

    /// Appends `raw` as gzip members, one for each run of blocks that are worth the same.
    fn members(&mut self, raw: &[u8], out: &mut Vec<u8>) {
        let works: Vec<Work> = raw.chunks(BLOCK).map(|block| self.worth(block)).collect();
        let mut rest = raw;
        for run in works.chunk_by(PartialEq::eq) {
            let (now, later) = rest.split_at(rest.len().min(run.len() * BLOCK));
            self.member(run[0], now, out);
            rest = later;
        }
    }

    fn member(&mut self, work: Work, raw: &[u8], out: &mut Vec<u8>) {
        let engine = match work {
            Work::Nothing => &mut self.stored,
            Work::Some => &mut self.quick,
            Work::More => &mut self.thorough,
        };
        let start = out.len();
        out.resize(start + engine.gzip_compress_bound(raw.len()), 0);
        let length = engine.gzip_compress(raw, &mut out[start..]).expect("the buffer has the bound's size");
        out.truncate(start + length);
    }
}

enum Engine {
    Gzip(Gzip),
    Zstd(zstd::bulk::Compressor<'static>),
}

/// Compresses pieces, one at a time.
pub struct Compressor {
    engine: Engine,
    out: Vec<u8>,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl Compressor {
    /// Complete gzip members or one zstd frame that hold `raw`.
    pub fn piece(&mut self, raw: &[u8]) -> &[u8] {
        debug_assert!(raw.len() <= PIECE, "pieces bound the memory of a build");
        self.out.clear();
        match &mut self.engine {
            Engine::Gzip(gzip) => gzip.members(raw, &mut self.out),
            Engine::Zstd(engine) => {
                self.out.resize(zstd::zstd_safe::compress_bound(raw.len()), 0);
                let length = engine
                    .compress_to_buffer(raw, self.out.as_mut_slice())
                    .expect("the buffer has the bound's size");
                self.out.truncate(length);
            }
        }
        &self.out
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::digest::Digest;

    /// Text-like, incompressible and empty parts, the same on every machine.
    fn sample() -> Vec<u8> {
        let mut state = 1u64;
        let mut bytes = Vec::new();
        for number in 0..40_000u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(number);
            bytes.extend_from_slice(format!("line {} of the sample\n", state >> 50).as_bytes());
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn the_bytes_of_a_codec_do_not_change_under_the_same_name() {
        // When this fails after a dependency update, give the codec a new id: cached members and locks that
        // name the old one must not be mixed with the new output.
        let cases = [
            (Codec::Gzip, "sha256:5a6f6401f152abf5be4edd03c359de33c93a627c01f2c207e14303bf3e98663f"),
            (Codec::Zstd, "sha256:91b5997d77107903c6ff89584b7b701c4d196bcf9334a51ba76b228d09bdf878"),
            (Codec::ZstdChunked, "sha256:91b5997d77107903c6ff89584b7b701c4d196bcf9334a51ba76b228d09bdf878"),
        ];
        for (codec, expected) in cases {
            let digest = Digest::of(codec.compressor().piece(&sample()));
            assert_eq!(digest.to_string(), expected, "{}", codec.id());
        }
    }

    #[test]
    fn a_look_decides_how_much_work_a_piece_is_worth() {
        let noise = || -> Vec<u8> {
            let mut state = 7_u64;
            let next = |state: &mut u64| {
                *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (*state >> 33).to_le_bytes()[0]
            };
            (0..1 << 20).map(|_| next(&mut state)).collect()
        };
        let text = b"one line like every other\n".repeat(40_000);
        // Every tenth block of it is text.
        let mut mixed = noise();
        for block in mixed.chunks_mut(1_600) {
            let (length, start) = (block.len(), block.len() - block.len() / 10);
            block[start..length].fill(b' ');
        }
        let mut gzip = Gzip::new();
        let blocks = [noise(), mixed, text.clone()].map(|raw| raw[..BLOCK].to_vec());
        let worth = blocks.each_ref().map(|block| gzip.worth(block));
        assert_eq!(worth, [Work::Nothing, Work::Some, Work::More]);
        assert_eq!(gzip.worth(&noise()[..1_000]), Work::More, "short pieces cost nothing");
        let mut compressor = Codec::Gzip.compressor();
        let noise = noise();
        let stored = compressor.piece(&noise).len();
        assert!(stored < noise.len() + noise.len() / 1_000, "stored costs next to nothing");
        let both = [&noise[..3 * BLOCK], &text[..BLOCK + 5]].concat();
        let length = compressor.piece(&both).len();
        assert!(length < 3 * BLOCK + BLOCK / 10, "each part gets its own work: {length}");
    }

    #[test]
    fn concatenated_pieces_read_as_one_stream() {
        let sample = sample();
        for codec in [Codec::Gzip, Codec::Zstd] {
            let mut packed = Vec::new();
            let mut compressor = codec.compressor();
            for piece in sample.chunks(100_000) {
                packed.extend_from_slice(compressor.piece(piece));
            }
            let mut raw = Vec::new();
            let mut reader = oci::archive::decompressed(&packed[..]).unwrap();
            reader.read_to_end(&mut raw).unwrap();
            assert!(raw == sample, "{codec:?}");
            assert!(packed.len() < sample.len(), "{codec:?}");
        }
    }
}
