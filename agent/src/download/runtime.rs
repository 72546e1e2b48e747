//! Blobs that the container runtime of this node already has: read from its disk instead of from a registry.
//!
//! All of a blob is hashed before any of it is sent, so that a damaged file costs only time. Only content of
//! manifests that the agent itself could read is used: images that a runtime pulled with a pod's own secret do not
//! become readable for everybody on the node.

use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{blocking::blocking, context::Context, error::FetchError, state::Download};
use crate::store::{Blob, Finish, Partial, RuntimeBlob, StoreError};

/// The name of the runtime as an origin of bytes.
pub(super) const ORIGIN: &str = "the container runtime's content";

/// How the runtime has the download's blob.
pub(super) enum Found {
    /// The runtime's file was linked into the store.
    Linked(Blob),
    /// A file to copy.
    File(RuntimeBlob),
}

/// Looks up the download's blob in the runtime's content.
pub(super) async fn find(context: &Context, download: &Download) -> Result<Option<Found>, FetchError> {
    let (store, digest) = (context.store.clone(), *download.digest());
    let Some(size) = download.described_size().filter(|_| store.has_runtime()) else { return Ok(None) };
    let found = blocking(move || {
        let Some(file) = store.runtime_blob(&digest, size) else { return Ok(None) };
        Ok(Some(store.link_runtime_blob(&file).map_or(Found::File(file), Found::Linked)))
    })
    .await?;
    if let Some(Found::Linked(blob)) = &found {
        context.metrics.runtime_bytes.inc_by(blob.size());
    }
    Ok(found)
}

/// Fills a partial blob from the runtime's file; `false` when the file does not match its digest, and then the
/// partial blob has to be opened again.
pub(super) async fn copy(
    context: &Context,
    partial: Arc<Partial>,
    file: RuntimeBlob,
) -> Result<bool, FetchError> {
    let (size, digest, stop) = (file.size(), *partial.digest(), context.stop.clone());
    match blocking(move || fill(&partial, &file, &stop)).await? {
        Filled::Right => {
            context.metrics.runtime_bytes.inc_by(size);
            Ok(true)
        }
        Filled::Wrong => {
            tracing::warn!(digest = %digest.short(), "the container runtime's file does not match its digest: skipped");
            Ok(false)
        }
        Filled::Stopped => Err(FetchError::Stopping),
    }
}

enum Filled {
    Right,
    Wrong,
    Stopped,
}

fn fill(partial: &Partial, file: &RuntimeBlob, stop: &CancellationToken) -> Result<Filled, StoreError> {
    partial.set_size(file.size())?;
    let mut position = 0;
    while position < file.size() {
        if stop.is_cancelled() {
            return Ok(Filled::Stopped);
        }
        let Some(bytes) = file.read(position).ok().filter(|bytes| !bytes.is_empty()) else {
            partial.discard()?;
            return Ok(Filled::Wrong);
        };
        let length = bytes.len() as u64;
        partial.write(position, &[Bytes::from(bytes)])?;
        position += length;
    }
    Ok(match partial.finish()? {
        Finish::Verified => Filled::Right,
        Finish::Mismatch { .. } => Filled::Wrong,
    })
}
