//! Blobs that the container runtime of this node already has: read from its disk instead of from a registry.
//!
//! All of a blob is hashed before any of it is sent, so that a damaged file costs only time.
//!
//! Images that a runtime pulled with a pod's own secret do not become readable for everybody on the node. A manifest that
//! names a blob proves nothing, because anyone can write one who has its digest and size. So the registry has to show that it
//! gives this content to the agent, by a few bytes at a place that it cannot foresee.

use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{blocking::blocking, context::Context, error::FetchError, state::Download};
use crate::{
    store::{Blob, Finish, Partial, RuntimeBlob, StoreError},
    upstream::{OriginPenalties, Span},
};

/// The name of the runtime as an origin of bytes.
pub(super) const ORIGIN: &str = "the container runtime's content";

/// Bytes that a registry must send of a blob before the runtime's copy is used.
const SAMPLE: u64 = 4_096;

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
    let (first, last) = sample(size);
    let looking = store.clone();
    let found = blocking(move || {
        let Some(file) = looking.runtime_blob(&digest, size) else { return Ok(None) };
        let Ok(mut bytes) = file.read(first) else { return Ok(None) };
        bytes.truncate(usize::try_from(last - first).unwrap_or(usize::MAX));
        Ok(Some((file, bytes)))
    })
    .await?;
    let Some((file, bytes)) = found else { return Ok(None) };
    if !registry_has(context, download, first, &bytes).await {
        tracing::info!(digest = %digest.short(), "container runtime's blob not used: registry did not show that it has it");
        return Ok(None);
    }
    let found =
        blocking(move || Ok(Some(store.link_runtime_blob(&file).map_or(Found::File(file), Found::Linked))))
            .await?;
    if let Some(Found::Linked(blob)) = &found {
        context.metrics.runtime_bytes.inc_by(blob.size());
    }
    Ok(found)
}

/// The bytes that are requested from the registry: first, and one past the last.
fn sample(size: u64) -> (u64, u64) {
    use std::hash::{BuildHasher as _, RandomState};
    let length = size.min(SAMPLE);
    let first = RandomState::new().hash_one(size) % (size - length + 1);
    (first, first + length)
}

/// Whether the registry sends exactly these bytes of the blob, of this repository.
async fn registry_has(context: &Context, download: &Download, first: u64, expected: &[u8]) -> bool {
    let Some(repository) = download.source(0).filter(|_| !expected.is_empty()) else { return false };
    let span = Span { start: first, end: Some(first + expected.len() as u64) };
    let (upstream, none) = (&context.upstream, OriginPenalties::default());
    let request = async {
        let mut body = upstream.blob(&repository, download.digest(), span, &[], &none).await.ok()?;
        let mut rest = (body.offset == first).then_some(expected)?;
        while !rest.is_empty() {
            let chunk = body.chunk().await.ok()??;
            let length = chunk.len().min(rest.len());
            rest = rest.strip_prefix(&chunk[..length])?;
        }
        Some(())
    };
    context.stop.run_until_cancelled(request).await.flatten().is_some()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_lies_within_the_blob() {
        for size in [0, 1, SAMPLE - 1, SAMPLE, SAMPLE + 1, 10 * SAMPLE] {
            for _ in 0..20 {
                let (first, last) = sample(size);
                assert!(
                    first <= last && last <= size && last - first == size.min(SAMPLE),
                    "{size}: {first} {last}"
                );
            }
        }
    }
}
