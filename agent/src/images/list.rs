//! The list of images for `hearth-agent ls`.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{all, links, naming, whole};
use crate::store::{Store, StoreError};

/// An image in the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// Digest of its manifest or index.
    pub digest: String,
    /// Its names, tags first.
    pub names: Vec<Name>,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Whether everything that a container runtime needs is stored.
    pub complete: bool,
    /// Stored bytes of the image, including those shared with other images.
    pub bytes: u64,
    /// Bytes that no other image shares: its removal frees them.
    pub own_bytes: u64,
    /// Blobs that stored manifests refer to and that are missing.
    pub missing_blobs: usize,
    /// Images of an index (platforms, attestations) that are not stored.
    pub missing_images: usize,
    /// Second since 1970 of its last use.
    pub last_used: u64,
}

/// One name of an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Name {
    /// `registry/repository:tag` or `registry/repository@digest`.
    pub name: String,
    /// Whether this name pins the image.
    pub pinned: bool,
}

/// All images, sorted by their first name.
pub fn list(store: &Store) -> Result<Vec<Listed>, StoreError> {
    store.flush_usage();
    let (images, blobs) = (all(store)?, store.blobs()?);
    let named = naming(&images);
    let blobs: HashMap<_, _> = blobs.iter().map(|blob| (blob.digest, blob)).collect();
    let size = |digest: &_| blobs.get(digest).map(|blob| blob.size);
    let mut listed: Vec<Listed> = images
        .iter()
        .map(|image| {
            let state = whole(&image.digest, &|digest| links(store, digest), &size);
            let mut roots: Vec<_> =
                image.references.iter().filter(|reference| reference.digest == image.digest).collect();
            roots.sort_by_key(|reference| (!reference.name.is_tag(), reference.to_string()));
            let name = |name: String, pinned| Name { name, pinned };
            Listed {
                digest: image.digest.to_string(),
                names: roots.into_iter().map(|one| name(one.to_string(), one.is_kept())).collect(),
                pinned: image.is_pinned(),
                complete: state.complete,
                bytes: image.content.iter().filter_map(size).sum(),
                own_bytes: image.own(&named).filter_map(size).sum(),
                missing_blobs: state.missing.len(),
                missing_images: state.absent.len(),
                last_used: image.last_use(&named, &blobs),
            }
        })
        .collect();
    listed.sort_by(|a, b| (a.names.first(), &a.digest).cmp(&(b.names.first(), &b.digest)));
    Ok(listed)
}
