//! Work that blocks, and work that is done again because the cache was damaged.

use super::BuildError;
use crate::{cache::Cache, layer::member};

/// Repairs of a damaged cache in one command; a disk that damages more than that is broken.
const REPAIRS: usize = 3;

/// Runs a command again when it has met damaged content of the cache: that has been removed, and what it was made of
/// makes it again.
pub(super) async fn repaired<T>(
    cache: &Cache,
    mut attempt: impl AsyncFnMut() -> Result<T, BuildError>,
) -> Result<T, BuildError> {
    for _ in 0..REPAIRS {
        match attempt().await {
            Err(error) if cache.take_damaged() > 0 => {
                tracing::warn!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "damaged cache: repairing it"
                );
                blocking(|| {
                    cache.verify_all();
                    member::verify_all(cache);
                });
                let removed = cache.take_damaged();
                tracing::warn!(removed, "all other files of the cache verified: building again");
            }
            result => return result,
        }
    }
    attempt().await
}

/// Compression and disk work for seconds: the runtime moves its other tasks away from this thread.
pub(super) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
