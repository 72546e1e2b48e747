//! Signatures of images by keys, as cosign and Sigstore write them. Verification needs no network, certificate or
//! transparency log: a signature counts when a given key made it and the signed bytes name the digest of the image.
//!
//! | format | place | signed bytes |
//! | --- | --- | --- |
//! | simple signing (cosign 1 and 2) | manifest under the tag `sha256-<hex>.sig`, or a referrer: a layer for each signature | the layer: a JSON document with the image's digest |
//! | Sigstore bundle (cosign 3) | a referrer of the image, with the bundle as its layer | a DSSE envelope around an in-toto statement with the image's digest; or the image's manifest itself |
//!
//! Sources: `specs/SIGNATURE_SPEC.md` and `specs/BUNDLE_SPEC.md` of cosign, `sigstore_bundle.proto`, the DSSE protocol.

mod bundle;
mod key;
mod simple;

use serde::Deserialize;

pub use self::{
    bundle::check_bundle,
    key::{KeyError, PublicKey},
    simple::check_simple,
};
use crate::{Digest, Tag};

/// Media type of the payload of simple signing.
pub const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// Annotation of such a layer: the signature, in Base64.
pub const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";

/// Media type of a Sigstore bundle, as an artifact and as its layer.
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// Statements of this type are signatures of images; others, such as the provenance, are documents about images.
pub const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

/// Annotation of a referrer: the type of the statement in its bundle.
const PREDICATE_ANNOTATION: &str = "dev.sigstore.bundle.predicateType";

/// Bundles of all versions.
const BUNDLES: &str = "application/vnd.dev.sigstore.bundle";

/// Simple signing as a referrer.
const SIMPLE_ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

/// What indexes show for a bundle when the registry, or the client that wrote the index, copied the configuration's type
/// instead of the artifact's.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Why a signature does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Made by another key, or the signed bytes were changed.
    #[error("made by none of the listed keys, or changed afterwards")]
    Key,
    /// A valid signature of something else.
    #[error("made for another image: `{0}`")]
    Image(String),
    /// A valid signature of a document about the image.
    #[error("a document about the image (`{0}`), not a signature of it")]
    Predicate(String),
    /// Not of a known format.
    #[error("not readable: {0}")]
    Format(String),
}

/// A signature that a manifest refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signature {
    /// Simple signing.
    Simple {
        /// The signed payload.
        payload: Digest,
        /// Its size in bytes.
        size: u64,
        /// The signature in Base64.
        signature: String,
    },
    /// A Sigstore bundle.
    Bundle {
        /// The bundle.
        bundle: Digest,
        /// Its size in bytes.
        size: u64,
    },
}

impl Signature {
    /// The blob that has to be fetched, and its size in bytes.
    pub fn blob(&self) -> (Digest, u64) {
        match self {
            Self::Simple { payload: blob, size, .. } | Self::Bundle { bundle: blob, size } => (*blob, *size),
        }
    }

    /// Checks the signature with the content of its blob, for an image with this digest and manifest. Returns the position
    /// of the key that made it.
    pub fn check(
        &self,
        blob: &[u8],
        image: &Digest,
        manifest: &[u8],
        keys: &[PublicKey],
    ) -> Result<usize, Refused> {
        match self {
            Self::Simple { signature, .. } => check_simple(blob, signature, image, keys),
            Self::Bundle { .. } => check_bundle(blob, image, manifest, keys),
        }
    }
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

impl Descriptor {
    /// Absent and `null` are the same: registries write both.
    fn annotation(&self, name: &str) -> Option<&String> {
        self.annotations.as_ref()?.get(name)
    }
}

/// The tag under which cosign 1 and 2 keep the signatures of an image.
pub fn signature_tag(image: &Digest) -> Tag {
    tag(image, ".sig")
}

/// The tag of an image's referrers, in registries without the referrers API (OCI distribution specification, "Referrers Tag
/// Schema").
pub fn referrers_tag(image: &Digest) -> Tag {
    tag(image, "")
}

fn tag(image: &Digest, suffix: &str) -> Tag {
    // A tag has at most 128 characters: the hex digits of SHA-512 alone are as many.
    let hex: String = image.hex().chars().take(64).collect();
    format!("{}-{hex}{suffix}", image.algorithm().as_str())
        .parse()
        .expect("letters, digits, `-` and `.` are a tag")
}

/// The signatures that a manifest refers to.
pub fn signatures(manifest: &[u8]) -> Result<Vec<Signature>, Refused> {
    let manifest: Manifest = read(manifest)?;
    let signature = |layer: &Descriptor| {
        let (blob, size) = (layer.digest.parse().ok()?, layer.size);
        if layer.media_type == SIMPLE_SIGNING {
            let signature = layer.annotation(SIGNATURE_ANNOTATION)?.clone();
            Some(Signature::Simple { payload: blob, size, signature })
        } else {
            layer.media_type.starts_with(BUNDLES).then_some(Signature::Bundle { bundle: blob, size })
        }
    };
    Ok(manifest.layers.iter().filter_map(signature).collect())
}

/// The referrers of an image that may be signatures, the likely ones first.
pub fn candidates(index: &[u8]) -> Result<Vec<Digest>, Refused> {
    let index: Index = read(index)?;
    let rank = |entry: &Descriptor| match entry.artifact_type.as_deref() {
        Some(kind) if kind.starts_with(BUNDLES) || kind == SIMPLE_ARTIFACT => Some(0),
        None | Some("" | EMPTY) => Some(1),
        Some(_) => None,
    };
    let about = |entry: &Descriptor| {
        entry.annotation(PREDICATE_ANNOTATION).is_some_and(|predicate| predicate != SIGN_PREDICATE)
    };
    let ranked = |entry: &Descriptor| Some((rank(entry)?, entry.digest.parse().ok()?));
    let mut found: Vec<(u8, Digest)> =
        index.manifests.iter().filter(|entry| !about(entry)).filter_map(ranked).collect();
    found.sort_by_key(|(rank, _)| *rank);
    Ok(found.into_iter().map(|(_, digest)| digest).collect())
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Refused> {
    serde_json::from_slice(bytes).map_err(|error| Refused::Format(error.to_string()))
}

#[cfg(test)]
mod tests;
