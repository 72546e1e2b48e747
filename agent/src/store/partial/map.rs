//! The description of a partial blob, on disk beside its bytes: one JSON object.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{store::StoreError, types::Validator};

#[derive(Default, Serialize, Deserialize)]
pub(super) struct Map {
    pub(super) size: Option<u64>,
    /// First byte, and one past the last.
    pub(super) have: Vec<(u64, u64)>,
    #[serde(default)]
    pub(super) validators: Vec<Validator>,
}

impl Map {
    /// A missing or damaged map means that no bytes have arrived; ranges past the file's end are ignored.
    pub(super) fn read(path: &Path, length: u64) -> Self {
        let map = fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        let Some(map) = map else { return Self::default() };
        let fits = |end: u64| end <= length && map.size.is_none_or(|size| end <= size);
        let sane = map.have.iter().all(|(start, end)| start < end && fits(*end));
        if sane { map } else { Self { size: map.size, ..Self::default() } }
    }

    /// Replaces the map atomically.
    pub(super) fn write(&self, path: &Path) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(self).expect("numbers and strings are always valid JSON");
        let aside = path.with_extension("map-new");
        fs::write(&aside, bytes).map_err(StoreError::io("write", &aside))?;
        fs::rename(&aside, path).map_err(StoreError::io("rename into", path))
    }
}
