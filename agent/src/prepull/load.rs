//! Images of sets that want them in the node's container runtime too.
//!
//! What was loaded is pinned there, as far as the runtime lets others pin, and let go of when no set wants it any more. Which
//! images these are is known to this process only: what a set lost while no agent ran stays pinned until somebody removes
//! it.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::pull::Problem;
use crate::{
    runtime::{Pin, Runtime, RuntimeError, Stopped},
    types::ImageName,
};

/// The way into the runtime.
#[derive(Debug)]
pub(super) struct Loader {
    runtime: Option<Runtime>,
    loaded: Mutex<BTreeSet<String>>,
}

impl Loader {
    pub(super) fn new(runtime: Option<Runtime>) -> Self {
        Self { runtime, loaded: Mutex::default() }
    }

    /// Why the runtime is not called any more, when that is so.
    pub(super) fn stopped(&self) -> Option<Stopped> {
        self.runtime.as_ref()?.stopped()
    }

    fn loaded(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads an image that is in the cache, so that the runtime finds it there.
    pub(super) async fn load(&self, image: &ImageName) -> Result<(), Problem> {
        let Some(runtime) = &self.runtime else {
            let message = "it is in the agent's cache; the agent was not told of the node's container runtime: set `runtime.socket`";
            return Err(Problem::new("NoRuntime", message));
        };
        let name = image.to_string();
        let loaded = runtime.load(&name, None).await.map_err(|error| problem(&error))?;
        if self.loaded().insert(name) {
            let pinned = loaded.pin == Pin::Held;
            tracing::info!(%image, id = loaded.id, pinned, "image is in the container runtime");
        }
        Ok(())
    }

    /// Lets go of what is not wanted any more; `false` when that has to be tried again.
    pub(super) async fn keep_only(&self, wanted: &BTreeSet<String>) -> bool {
        let Some(runtime) = &self.runtime else { return true };
        let unwanted: Vec<_> = self.loaded().difference(wanted).cloned().collect();
        let mut done = true;
        for image in unwanted {
            match runtime.release(&image).await {
                Ok(()) => drop(self.loaded().remove(&image)),
                Err(error) => {
                    tracing::warn!(image, error = %error, "image stays pinned in the container runtime: tried again");
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
        format!("it is in the agent's cache, but not in the container runtime: {}", super::chain(error)),
    )
}
