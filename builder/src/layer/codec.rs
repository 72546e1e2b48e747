//! How layers are compressed.
//!
//! Gzip members and zstd frames can be concatenated, so a layer is a sequence of independently compressed
//! pieces. A piece holds at most [`PIECE`] raw bytes: that bounds memory whatever the size of a file, and the
//! loss of the compression window at its edges is under 0.1 %. (Layers of concatenated members and frames
//! were unpacked byte for byte by containerd, podman, buildah, skopeo and umoci.)

use serde::{Deserialize, Serialize};

/// Raw bytes in one compressed piece.
pub const PIECE: usize = 4 * 1024 * 1024;

/// The compression of layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Understood by every client.
    #[default]
    Gzip,
    /// Smaller and several times faster; needs containerd 1.5, Docker 23 or CRI-O 1.20 and newer.
    Zstd,
}

impl Codec {
    /// Names the codec with everything its output depends on: the implementation, its version and level. It
    /// is part of cache keys and of the lock. A test compares the output with a fixed digest, so an update
    /// of a library that changes bytes cannot go unnoticed.
    pub fn id(self) -> &'static str {
        match self {
            Self::Gzip => "gzip-libdeflate-1-6",
            Self::Zstd => "zstd-1.5-3",
        }
    }

    /// The media type of a layer.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// A compressor; keeps its tables and output buffer between pieces.
    pub fn compressor(self) -> Compressor {
        match self {
            Self::Gzip => {
                let level = libdeflater::CompressionLvl::new(6).expect("6 is a level of libdeflate");
                Compressor { engine: Engine::Gzip(libdeflater::Compressor::new(level)), out: Vec::new() }
            }
            Self::Zstd => {
                let engine = zstd::bulk::Compressor::new(3).expect("3 is a level of zstd");
                Compressor { engine: Engine::Zstd(engine), out: Vec::new() }
            }
        }
    }
}

enum Engine {
    Gzip(libdeflater::Compressor),
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
    /// One complete gzip member or zstd frame that holds `raw`.
    pub fn piece(&mut self, raw: &[u8]) -> &[u8] {
        debug_assert!(raw.len() <= PIECE, "pieces bound the memory of a build");
        let length = match &mut self.engine {
            Engine::Gzip(engine) => {
                self.out.resize(engine.gzip_compress_bound(raw.len()), 0);
                engine.gzip_compress(raw, &mut self.out).expect("the buffer has the bound's size")
            }
            Engine::Zstd(engine) => {
                self.out.resize(zstd::zstd_safe::compress_bound(raw.len()), 0);
                engine
                    .compress_to_buffer(raw, self.out.as_mut_slice())
                    .expect("the buffer has the bound's size")
            }
        };
        &self.out[..length]
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
        ];
        for (codec, expected) in cases {
            let digest = Digest::of(codec.compressor().piece(&sample()));
            assert_eq!(digest.to_string(), expected, "{}", codec.id());
        }
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
            let mut reader = crate::sources::tarball::decompressed(&packed[..]).unwrap();
            reader.read_to_end(&mut raw).unwrap();
            assert!(raw == sample, "{codec:?}");
            assert!(packed.len() < sample.len(), "{codec:?}");
        }
    }
}
