//! Images made in code: the right shape for every client, with random or given layers.

use std::io::{self, Write};

use serde_json::json;

use super::FakeUpstream;

/// Media type of an image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A layer to put into an image.
#[derive(Clone, Debug)]
pub enum Layer {
    /// These bytes.
    Bytes(Vec<u8>),
    /// So many random bytes from a seed; never held in memory.
    Random {
        /// Different seeds give different bytes.
        seed: u64,
        /// How many.
        length: u64,
    },
}

impl Layer {
    /// A layer of `length` random bytes.
    pub fn random(seed: u64, length: u64) -> Self {
        Self::Random { seed, length }
    }
}

/// An image in the registry.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its repository.
    pub repository: String,
    /// Its tag.
    pub tag: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Digest of its config.
    pub config: String,
    /// Digests and sizes of its layers.
    pub layers: Vec<(String, u64)>,
    /// Size of the manifest.
    pub size: u64,
}

impl Image {
    /// Digests of everything that is fetched as a blob.
    pub fn blobs(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.config.as_str()).chain(self.layers.iter().map(|(digest, _)| digest.as_str()))
    }
}

impl FakeUpstream {
    /// Stores an image with these layers under a tag.
    pub async fn image(&self, repository: &str, tag: &str, layers: impl IntoIterator<Item = Layer>) -> Image {
        let mut stored = Vec::new();
        for layer in layers {
            stored.push(match layer {
                Layer::Bytes(bytes) => self.write_blob(repository, move |out| out.write_all(&bytes)).await,
                Layer::Random { seed, length } => {
                    self.write_blob(repository, move |out| write_random(out, seed, length)).await
                }
            });
        }
        let diff_ids: Vec<_> = stored.iter().map(|(digest, _)| digest).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z",
            "rootfs": { "type": "layers", "diff_ids": diff_ids }, "config": { "Labels": { "tag": tag } },
        })
        .to_string();
        let config_size = config.len();
        let config = self.blob(repository, config.as_bytes()).await;
        let layers: Vec<_> = stored
            .iter()
            .map(|(digest, size)| {
                json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size },
        })
        .to_string();
        let size = manifest.len() as u64;
        let digest = self.manifest(repository, tag, MANIFEST, manifest);
        Image { repository: repository.to_owned(), tag: tag.to_owned(), digest, config, layers: stored, size }
    }

    /// Stores an index over an image for `linux/amd64` under a tag and gives its digest.
    pub fn index(&self, tag: &str, image: &Image) -> String {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [{
            "mediaType": MANIFEST, "digest": image.digest, "size": image.size,
            "platform": { "architecture": "amd64", "os": "linux" },
        }]});
        self.manifest(&image.repository, tag, INDEX, index.to_string())
    }

    /// Stores a blob of `length` random bytes and gives its digest.
    pub async fn random_blob(&self, repository: &str, seed: u64, length: u64) -> String {
        self.write_blob(repository, move |out| write_random(out, seed, length)).await.0
    }
}

/// `length` random bytes from a seed: the same ones that [`Layer::Random`] has.
pub fn random_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    write_random(&mut bytes, seed, length as u64).expect("writing to memory");
    bytes
}

/// SplitMix64: fast, seedable, and incompressible enough.
fn write_random(out: &mut dyn Write, seed: u64, length: u64) -> io::Result<()> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ length;
    let mut block = vec![0; 64 << 10];
    let mut left = length;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
        }
        let now = left.min(block.len() as u64);
        out.write_all(&block[..usize::try_from(now).unwrap_or(block.len())])?;
        left -= now;
    }
    Ok(())
}

/// A digest that nothing here has: 32 bytes of one value.
pub fn absent_digest(byte: u8) -> String {
    format!("sha256:{}", hex::encode([byte; 32]))
}
