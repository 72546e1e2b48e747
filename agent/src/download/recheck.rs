//! Checks a stored blob after a failed read by reading it again completely, in the background. A blob that cannot be
//! read or does not match its digest is quarantined, and fetched again at the next request. A disk error that does
//! not repeat loses nothing.

use std::sync::Arc;

use super::{context::Context, error::FetchError};
use crate::{
    store::{Damage, Store},
    types::{Digest, chain},
};

use crate::limits::download::recheck::CHUNK;

/// Starts the check of a stored blob whose read failed.
pub(super) fn start(context: &Arc<Context>, digest: Digest, error: &FetchError) {
    tracing::error!(%digest, error = %chain(error), "stored blob cannot be read: checking it");
    let context = context.clone();
    context.tasks.clone().spawn("recheck", async move {
            let Ok(_turn) = context.rechecks.try_acquire() else { return };
            let (store, stop) = (context.store.clone(), context.stop.clone());
            let checked = tokio::task::spawn_blocking(move || {
                let damage = read_through(&store, &digest, || stop.is_cancelled()).err()?;
                let taken = damage.is_lasting().then(|| store.quarantine(&digest));
                Some((damage, taken))
            });
            match checked.await {
                Ok(None) => {}
                Ok(Some((damage, None))) => {
                    tracing::warn!(%digest, error = %chain(&damage), "check of a stored blob aborted");
                }
                Ok(Some((damage, Some(taken)))) => {
                    context.metrics.bad_blobs.inc();
                    tracing::error!(%digest, error = %chain(&damage), "stored blob is damaged: quarantined, will be fetched again at the next request");
                    if let Err(error) = taken {
                        tracing::error!(%digest, error = %chain(&error), "cannot quarantine a damaged blob");
                    }
                }
                Err(error) => tracing::error!(%digest, %error, "check of a stored blob failed"),
            }
        });
}

/// Reads a blob completely. Blocking.
fn read_through(store: &Store, digest: &Digest, stopped: impl Fn() -> bool) -> Result<(), Damage> {
    let Some(mut look) = store.look(digest)? else { return Ok(()) };
    while look.advance(CHUNK)? > 0 {
        if stopped() {
            return Ok(());
        }
    }
    Ok(())
}
