//! Small JSON files that record the digests of tags, and which repository has which manifest.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    StoreError,
    paths::{self, Paths},
};
use crate::types::Digest;

/// The digest that a tag resolved to at the last request to the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TagRecord {
    /// The manifest.
    #[serde(with = "digest_text")]
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
    /// Second since 1970 at which the registry last confirmed it: to the peers that reported it, when it is
    /// `unconfirmed`.
    pub confirmed: u64,
    /// Pinned: the image is never evicted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// Kept for a pre-pull set: the image is never evicted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// Imported, and not confirmed by the registry since then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub imported: bool,
    /// Agreed on by peers while the registry could not confirm it; removed at the registry's next answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unconfirmed: bool,
}

impl TagRecord {
    /// Whether the record stays even if the registry does not have the tag.
    pub fn is_kept(&self) -> bool {
        self.pinned || self.held || self.imported
    }
}

/// A manifest that a repository has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestRecord {
    /// Its media type, from the registry.
    pub media_type: String,
    /// Pinned: the image is never evicted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// Kept for a pre-pull set: the image is never evicted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}

impl ManifestRecord {
    /// A record without a pin.
    pub fn new(media_type: &str) -> Self {
        Self { media_type: media_type.to_owned(), pinned: false, held: false }
    }
}

/// Reads a record. A damaged file (from a crash of an early version, or another program) counts as missing: the
/// registry is requested again and the file is replaced.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("read", path)(error)),
    };
    match serde_json::from_slice(&bytes) {
        Ok(record) => Ok(Some(record)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "reference file is damaged: ignoring it");
            Ok(None)
        }
    }
}

pub(super) fn write<T: Serialize>(paths: &Paths, path: &Path, record: &T) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(record).expect("a record of plain fields is always valid JSON");
    paths::write_atomically(paths, path, &bytes, paths::Mode::Normal)
}

pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::io("remove", path)(error)),
    }
}

mod digest_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::types::Digest;

    pub(super) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(digest)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
