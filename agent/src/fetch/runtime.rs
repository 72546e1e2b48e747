//! Blobs that the container runtime of this node already has: read from there instead of from a registry.
//!
//! Only what a manifest names that the agent itself could read: what a runtime pulled with a pod's own secret does not
//! become readable for everybody on the node.

use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{
    FetchError, Fetcher,
    flight::{Flight, Phase, blocking},
};
use crate::{
    store::{Blob, Finish, Partial, RuntimeBlob, StoreError},
    types::Mismatch,
};

/// The runtime's name among those who send bytes.
const ORIGIN: &str = "the container runtime's content";

/// What the runtime has of the flight's blob.
pub(super) enum Found {
    /// The same file is a blob of the store now.
    Linked(Blob),
    /// A file to copy.
    File(RuntimeBlob),
}

/// Looks, unless the runtime's file was wrong a moment ago.
pub(super) async fn find(fetcher: &Fetcher, flight: &Flight) -> Result<Option<Found>, FetchError> {
    let (store, digest) = (fetcher.0.store.clone(), *flight.digest());
    let Some(size) = flight.described_size().filter(|_| store.has_runtime()) else { return Ok(None) };
    let distrust = flight.distrust();
    if distrust.last.iter().chain(&distrust.never).any(|origin| origin == ORIGIN) {
        return Ok(None);
    }
    let found = blocking(move || {
        let Some(file) = store.runtime_blob(&digest, size) else { return Ok(None) };
        Ok(Some(store.link_runtime_blob(&file).map_or(Found::File(file), Found::Linked)))
    })
    .await?;
    if let Some(Found::Linked(blob)) = &found {
        fetcher.0.metrics.runtime_bytes.inc_by(blob.size());
    }
    Ok(found)
}

/// Fills the flight's partial blob from the runtime's file. Readers get the bytes as they land, and an early end, as
/// from any sender, when they turn out to be wrong.
pub(super) async fn copy(
    fetcher: &Fetcher,
    flight: &Arc<Flight>,
    partial: &Arc<Partial>,
    file: RuntimeBlob,
) -> Result<Vec<String>, FetchError> {
    let size = file.size();
    let (task, partial, stop) = (flight.clone(), partial.clone(), fetcher.0.stop.clone());
    let finish = blocking(move || fill(&task, &partial, &file, &stop)).await?;
    match finish {
        Some(Finish::Verified) => {
            fetcher.0.metrics.runtime_bytes.inc_by(size);
            Ok(vec![ORIGIN.to_owned()])
        }
        Some(Finish::Mismatch { found }) => {
            let registry = flight.source(0).map(|source| source.registry).ok_or(FetchError::Stopping)?;
            let mismatch = Arc::new(Mismatch { expected: *flight.digest(), found });
            Err(FetchError::Corrupt { registry, origins: vec![ORIGIN.to_owned()], mismatch })
        }
        None => Err(FetchError::Stopping),
    }
}

/// `None` when told to stop. A file that cannot be read to its end counts as wrong, with the hash of nothing.
fn fill(
    flight: &Flight,
    partial: &Partial,
    file: &RuntimeBlob,
    stop: &CancellationToken,
) -> Result<Option<Finish>, StoreError> {
    partial.set_size(file.size())?;
    flight.enter(Phase::Streaming);
    let mut position = 0;
    while position < file.size() {
        if stop.is_cancelled() {
            return Ok(None);
        }
        let bytes = match file.read(position) {
            Ok(bytes) if !bytes.is_empty() => Bytes::from(bytes),
            outcome => {
                tracing::warn!(digest = %flight.digest().short(), error = ?outcome.err(), "the runtime's blob cannot be read");
                let found = partial.digest().algorithm().hasher().finish();
                partial.forget()?;
                return Ok(Some(Finish::Mismatch { found }));
            }
        };
        let keep = usize::try_from(file.size() - position).unwrap_or(usize::MAX).min(bytes.len());
        partial.write(position, &[bytes.slice(..keep)])?;
        position += keep as u64;
        flight.wrote();
    }
    partial.finish().map(Some)
}
