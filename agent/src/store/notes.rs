//! What the pre-puller remembers over restarts: one small JSON file. Lost or damaged, the images are looked for again.

use serde::{Serialize, de::DeserializeOwned};

use super::{Store, StoreError, paths, refs};

impl Store {
    /// What was last remembered; nothing when there is none. Blocking.
    pub fn prepulled<T: DeserializeOwned>(&self) -> Result<Option<T>, StoreError> {
        refs::read(&self.0.paths.prepulled())
    }

    /// Remembers it. Blocking.
    pub fn remember_prepulled<T: Serialize>(&self, document: &T) -> Result<(), StoreError> {
        self.owner()?;
        let bytes = serde_json::to_vec(document).expect("plain fields are always valid JSON");
        paths::write_atomically(&self.0.paths, &self.0.paths.prepulled(), &bytes, paths::Mode::Normal)
    }
}
