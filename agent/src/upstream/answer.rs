//! What upstream gives.

use bytes::Bytes;
use http::HeaderMap;

use super::{UpstreamError, endpoint::Reply};
use crate::types::{Digest, MediaType, Validator};

/// A manifest, complete and verified.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// What it hashes to.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// Its bytes.
    pub bytes: Bytes,
}

/// What upstream says of a manifest without sending it.
#[derive(Clone, Debug)]
pub struct ManifestHead {
    /// The digest, when the registry sends one.
    pub digest: Option<Digest>,
    /// Its media type, when usable.
    pub media_type: Option<MediaType>,
    /// Its size in bytes, when sent.
    pub size: Option<u64>,
}

/// A listing that is passed on as it is.
#[derive(Clone, Debug)]
pub struct Listing {
    /// `Content-Type`, `Link` and `OCI-Filters-Applied`, as far as present.
    pub headers: HeaderMap,
    /// The document.
    pub bytes: Bytes,
}

/// Part of a blob on its way.
#[derive(Debug)]
pub struct BlobBody {
    /// Where its first byte belongs.
    pub offset: u64,
    /// The whole blob's size in bytes, when upstream says so.
    pub size: Option<u64>,
    /// The host that sends the bytes, for blame.
    pub origin: String,
    /// Which version of the content this is, when the host says so.
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
pub struct Distrust {
    /// Asked when all others have failed.
    pub last: Vec<String>,
    /// Not asked.
    pub never: Vec<String>,
}
