//! A stored blob that could not be read is read once more from its beginning to its end, beside everything else. When it
//! cannot be, or is another by now, it is taken out, and the next client that wants it has it fetched again; a disk that
//! faltered once loses nothing.

use std::sync::Arc;

use super::{context::Context, error::FetchError};
use crate::{
    store::{Damage, Store},
    types::{Digest, chain},
};

use crate::limits::download::recheck::CHUNK;

/// Has a stored blob looked at that gave an error.
pub(super) fn start(context: &Arc<Context>, digest: Digest, error: &FetchError) {
    tracing::error!(%digest, error = %chain(error), "stored blob cannot be read: checked");
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
                    tracing::warn!(%digest, error = %chain(&damage), "stored blob not checked");
                }
                Ok(Some((damage, Some(taken)))) => {
                    context.metrics.bad_blobs.inc();
                    tracing::error!(%digest, error = %chain(&damage), "stored blob is damaged: taken out, fetched again when wanted");
                    if let Err(error) = taken {
                        tracing::error!(%digest, error = %chain(&error), "it could not be taken out");
                    }
                }
                Err(error) => tracing::error!(%digest, %error, "the check of a stored blob failed"),
            }
        });
}

/// Blocking.
fn read_through(store: &Store, digest: &Digest, stopped: impl Fn() -> bool) -> Result<(), Damage> {
    let Some(mut look) = store.look(digest)? else { return Ok(()) };
    while look.advance(CHUNK)? > 0 {
        if stopped() {
            return Ok(());
        }
    }
    Ok(())
}
