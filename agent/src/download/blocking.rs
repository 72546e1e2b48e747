//! Store work off the runtime's threads.

use super::error::FetchError;
use crate::store::StoreError;

/// Runs store work off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, FetchError> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(StoreError::from)??)
}
