//! The responses of a registry.

use bytes::Bytes;
use http::HeaderMap;

use super::{UpstreamError, endpoint::Reply};
use crate::types::{Digest, MediaType, Validator};

/// A manifest, complete and verified.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// Its bytes.
    pub bytes: Bytes,
}

/// A registry's response to a HEAD request for a manifest.
#[derive(Clone, Debug)]
pub struct ManifestHead {
    /// The digest, when the registry sends one.
    pub digest: Option<Digest>,
    /// Its media type, when usable.
    pub media_type: Option<MediaType>,
    /// Its size in bytes, when sent.
    pub size: Option<u64>,
}

/// A listing that is forwarded unchanged.
#[derive(Clone, Debug)]
pub struct Listing {
    /// `Content-Type`, `Link` and `OCI-Filters-Applied`, as far as present.
    pub headers: HeaderMap,
    /// The document.
    pub bytes: Bytes,
}

/// A part of a blob that is arriving.
#[derive(Debug)]
pub struct BlobBody {
    /// Offset of its first byte in the blob.
    pub offset: u64,
    /// The whole blob's size in bytes, if the registry sent it.
    pub size: Option<u64>,
    /// The host that sends the bytes, to be blamed for wrong ones.
    pub origin: String,
    /// The version of the content, if the host sent it.
    pub validator: Option<Validator>,
    pub(super) reply: Reply,
}

impl BlobBody {
    /// The next bytes; `None` at the end of the body. Cancel-safe.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        self.reply.chunk().await
    }
}

/// Endpoints, by their names in [`BlobBody::origin`], that sent wrong bytes for a blob.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginPenalties {
    /// Endpoints that are used when all others have failed.
    pub last: Vec<String>,
    /// Endpoints that are not used.
    pub never: Vec<String>,
}
