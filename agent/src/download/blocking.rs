//! Store operations that block, run on the blocking thread pool.

use super::error::FetchError;
use crate::store::StoreError;

/// Runs a blocking store operation on the blocking thread pool.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, FetchError> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(StoreError::from)??)
}
