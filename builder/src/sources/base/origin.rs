//! The two places that finished images come from: registries and OCI layouts.

use std::{io, path::Path};

use oci::layout::{INDEX, REF_NAME, path_of};
use serde::Deserialize;

use super::context::{BaseError, Context, DOCUMENT_LIMIT};
use crate::{
    cache::{Content, Shelf},
    digest::Digest,
    image::Descriptor,
    registry::Registry,
};

/// Where the parts of a finished image come from.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'a> {
    /// A registry and the reference.
    Registry(&'a Registry, &'a str),
    /// An OCI layout and the name of one of its images.
    Layout(&'a Path, Option<&'a str>),
}

/// A manifest or an index, as far as a base needs it.
#[derive(Deserialize)]
pub(super) struct Manifest {
    #[serde(default)]
    pub(super) manifests: Vec<Descriptor>,
    #[serde(default)]
    pub(super) layers: Vec<Descriptor>,
    pub(super) config: Option<Descriptor>,
}

impl Origin<'_> {
    /// What the base is called.
    pub(super) fn name(self) -> String {
        match self {
            Self::Registry(_, image) => image.to_owned(),
            Self::Layout(path, _) => {
                path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
            }
        }
    }

    fn online(
        self,
        context: Context<'_>,
        what: impl FnOnce() -> String,
        hint: &'static str,
    ) -> Result<(), BaseError> {
        if context.offline {
            Err(BaseError::Offline { name: self.name(), what: what(), hint })
        } else {
            Ok(())
        }
    }

    /// The bytes of the outermost manifest or index and their digest.
    pub(super) async fn top(self, context: Context<'_>) -> Result<(Vec<u8>, Digest), BaseError> {
        match self {
            Self::Registry(registry, image) => {
                if let Some((_, digest)) = image.split_once('@')
                    && let Ok(digest) = digest.parse()
                {
                    return self.manifest(context, digest).await;
                }
                // Only a lock says what a tag meant.
                let hint = ": write a lock with `hearth lock` while it can be asked";
                self.online(context, || format!("what the tag in `{image}` means"), hint)?;
                let manifest = registry.manifest(image).await;
                let (bytes, digest) =
                    manifest.map_err(|source| BaseError::Registry { name: self.name(), source })?;
                context.cache.put(Shelf::Blobs, &mut &bytes[..])?;
                Ok((bytes.to_vec(), digest))
            }
            Self::Layout(path, wanted) => {
                let index = read_document(&path.join(INDEX))?;
                let unsuitable = |problem: String| BaseError::Unsuitable { name: self.name(), problem };
                let index: Manifest = serde_json::from_slice(&index)
                    .map_err(|error| unsuitable(format!("its `index.json` cannot be read: {error}")))?;
                // Documents about images lie beside them.
                let images = || index.manifests.iter().filter(|entry| entry.artifact_type.is_none());
                let named = |entry: &Descriptor| entry.annotations.get(REF_NAME).cloned();
                let names: Vec<String> = images().filter_map(named).collect();
                let chosen = match wanted {
                    Some(wanted) => images().find(|entry| named(entry).as_deref() == Some(wanted)),
                    None if images().count() == 1 => images().next(),
                    None => None,
                };
                let chosen = chosen.ok_or_else(|| {
                    unsuitable(format!(
                        "say with `base.ref` which of its images is meant: `{}`",
                        names.join("`, `")
                    ))
                })?;
                self.manifest(context, chosen.digest).await
            }
        }
    }

    /// The bytes of a manifest or index by digest.
    pub(super) async fn manifest(
        self,
        context: Context<'_>,
        digest: Digest,
    ) -> Result<(Vec<u8>, Digest), BaseError> {
        match self {
            Self::Registry(registry, image) => {
                // What a digest names does not change: a build with a lock needs no registry.
                if let Ok(bytes) = read_document(&context.cache.path(Shelf::Blobs, &digest))
                    && Digest::of(&bytes) == digest
                {
                    return Ok((bytes, digest));
                }
                self.online(context, || format!("the manifest `{digest}`"), "")?;
                let pinned = pinned(image, digest);
                let manifest = registry.manifest(&pinned).await;
                let (bytes, digest) =
                    manifest.map_err(|source| BaseError::Registry { name: self.name(), source })?;
                context.cache.put(Shelf::Blobs, &mut &bytes[..])?;
                Ok((bytes.to_vec(), digest))
            }
            Self::Layout(path, _) => {
                let path = path.join(path_of(&digest));
                let bytes = read_document(&path)?;
                let found = Digest::of(&bytes);
                if found == digest { Ok((bytes, digest)) } else { Err(BaseError::Damaged { path, found }) }
            }
        }
    }

    /// Brings a blob into the cache.
    pub(super) async fn blob(
        self,
        context: Context<'_>,
        digest: Digest,
        label: &str,
        size: u64,
    ) -> Result<Content, BaseError> {
        if let Some(path) = context.cache.find(Shelf::Blobs, &Content { digest, size }) {
            tracing::debug!(path = %path.display(), "in the cache");
            return Ok(Content { digest, size });
        }
        let bar = context.progress.bytes(&format!("fetching {label}"), size);
        match self {
            Self::Registry(registry, image) => {
                self.online(context, || format!("the blob `{digest}`"), "")?;
                let blob = registry.blob(context.cache, image, digest, &bar).await;
                blob.map_err(|source| BaseError::Registry { name: self.name(), source })
            }
            Self::Layout(path, _) => {
                let path = path.join(path_of(&digest));
                let file = std::fs::File::open(&path)
                    .map_err(|source| BaseError::Read { path: path.clone(), source })?;
                let content = context.cache.put(Shelf::Blobs, &mut bar.reader(file))?;
                let found = content.digest;
                if found == digest { Ok(content) } else { Err(BaseError::Damaged { path, found }) }
            }
        }
    }
}

/// A reference to one manifest of an image's repository.
pub fn pinned(image: &str, digest: Digest) -> String {
    format!("{}@{digest}", repository_of(image))
}

/// A reference without its tag and digest.
pub fn repository_of(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    match name.rsplit_once(':') {
        // A colon before a slash belongs to the port.
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

fn read_document(path: &Path) -> Result<Vec<u8>, BaseError> {
    let fail = |source| BaseError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(fail)?;
    io::Read::read_to_end(&mut io::Read::take(file, DOCUMENT_LIMIT), &mut bytes).map_err(fail)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_lose_tag_and_digest_but_not_the_port() {
        for (image, expected) in [
            ("docker.io/library/debian:12", "docker.io/library/debian"),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b"),
            ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b"),
            ("debian@sha256:00", "debian"),
            ("debian:12@sha256:00", "debian"),
        ] {
            assert_eq!(repository_of(image), expected);
        }
    }
}
