//! A stored blob that could not be read is read once more from its beginning to its end, beside everything else. When it
//! cannot be, or is another by now, it is taken out, and the next client that wants it has it fetched again; a disk that
//! faltered once loses nothing.

use tokio::sync::Semaphore;

use super::{FetchError, Fetcher, chain};
use crate::{
    store::{Damage, Store},
    types::Digest,
};

use crate::limits::download::recheck::CHUNK;

/// One at a time; what fails meanwhile is met again.
#[derive(Debug)]
pub(super) struct Recheck(Semaphore);

impl Default for Recheck {
    fn default() -> Self {
        Self(Semaphore::new(1))
    }
}

impl Fetcher {
    /// Has a stored blob looked at that gave an error.
    pub(super) fn recheck(&self, digest: Digest, error: &FetchError) {
        tracing::error!(%digest, error = %chain(error), "stored blob cannot be read: checked");
        let fetcher = self.clone();
        self.0.tasks.spawn("recheck", async move {
            let Ok(_turn) = fetcher.0.recheck.0.try_acquire() else { return };
            let (store, stop) = (fetcher.0.store.clone(), fetcher.0.stop.clone());
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
                    fetcher.0.metrics.bad_blobs.inc();
                    tracing::error!(%digest, error = %chain(&damage), "stored blob is damaged: taken out, fetched again when wanted");
                    if let Err(error) = taken {
                        tracing::error!(%digest, error = %chain(&error), "it could not be taken out");
                    }
                }
                Err(error) => tracing::error!(%digest, %error, "the check of a stored blob failed"),
            }
        });
    }
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
