//! Loads images of sets into the node's container runtime.
//!
//! Loaded images are pinned in the runtime, if it allows that, and unpinned when no set wants them any more.
//! The list of loaded images is kept in memory only: an image of a set that was removed while no agent ran
//! stays pinned until an administrator removes it.

use std::collections::BTreeSet;

use parking_lot::{Mutex, MutexGuard};

use super::pull::Problem;
use crate::{
    runtime::{Pin, Runtime, RuntimeError, Stopped},
    types::ImageName,
};

/// The access to the runtime.
#[derive(Debug)]
pub(super) struct Loader {
    runtime: Option<Runtime>,
    loaded: Mutex<BTreeSet<String>>,
}

impl Loader {
    pub(super) fn new(runtime: Option<Runtime>) -> Self {
        Self { runtime, loaded: Mutex::default() }
    }

    /// Why the agent does not call the runtime any more, if so.
    pub(super) fn stopped(&self) -> Option<Stopped> {
        self.runtime.as_ref()?.stopped()
    }

    fn loaded(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.loaded.lock()
    }

    /// Loads an image from the cache into the runtime.
    pub(super) async fn load(&self, image: &ImageName) -> Result<(), Problem> {
        let Some(runtime) = &self.runtime else {
            let message = "the image is in the agent's cache, but the container runtime is not configured: set `runtime.socket`";
            return Err(Problem::new("NoRuntime", message));
        };
        let name = image.to_string();
        let loaded = runtime.load(&name, None).await.map_err(|error| problem(&error))?;
        if self.loaded().insert(name) {
            let pinned = loaded.pin == Pin::Held;
            tracing::info!(%image, id = loaded.id, pinned, "image loaded into the container runtime");
        }
        Ok(())
    }

    /// Unpins images that no set wants any more; `false` when that has to be retried.
    pub(super) async fn keep_only(&self, wanted: &BTreeSet<String>) -> bool {
        let Some(runtime) = &self.runtime else { return true };
        let unwanted: Vec<_> = self.loaded().difference(wanted).cloned().collect();
        let mut done = true;
        for image in unwanted {
            match runtime.release(&image).await {
                Ok(()) => drop(self.loaded().remove(&image)),
                Err(error) => {
                    tracing::warn!(image, error = %error, "cannot unpin an image in the container runtime: retrying");
                    done = false;
                }
            }
        }
        done
    }
}

fn problem(error: &RuntimeError) -> Problem {
    let reason = if matches!(error, RuntimeError::Stopped(_)) { "RuntimeStopped" } else { "RuntimeFailed" };
    Problem::new(
        reason,
        format!(
            "the image is in the agent's cache, but not in the container runtime: {}",
            super::chain(error)
        ),
    )
}
