//! The pre-puller's records over restarts: one small JSON file. If it is lost or damaged, the images are resolved
//! again.

use serde::{Serialize, de::DeserializeOwned};

use super::{Store, StoreError, paths, refs};

impl Store {
    /// The last record; `None` when there is none. Blocking.
    pub fn prepulled<T: DeserializeOwned>(&self) -> Result<Option<T>, StoreError> {
        refs::read(&self.0.paths.prepulled())
    }

    /// Writes the record. Blocking.
    pub fn remember_prepulled<T: Serialize>(&self, document: &T) -> Result<(), StoreError> {
        self.owner()?;
        let bytes = serde_json::to_vec(document).expect("plain fields are always valid JSON");
        paths::write_atomically(&self.0.paths, &self.0.paths.prepulled(), &bytes, paths::Mode::Normal)
    }
}
