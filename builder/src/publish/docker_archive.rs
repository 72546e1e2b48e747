//! Writes images into one file for `docker load`, `podman load` and `ctr image import`.
//!
//! ```text
//! blobs/sha256/<hex>    configurations and layers, compressed as they are
//! manifest.json         [{"Config":"blobs/..","RepoTags":["repository:tag"],"Layers":["blobs/..", ..]}]
//! ```
//!
//! The format knows no platforms: a tag has one image. The file is written aside and renamed, and the same images give
//! the same bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use oci::layout::path_of;
use serde_json::{Value, json};

use super::Publication;
use crate::{
    cache::{BUFFER, Cache, CacheError, Shelf},
    digest::Digest,
    image::{Image, canonical},
    registry::Repository,
    tree::FIXED_TIME,
};

/// Why an archive cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum DockerArchiveError {
    /// The file cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A tag stands for several platforms.
    #[error(
        "the tag `{0}` has images for several platforms, which an archive for `docker load` cannot hold: build one platform, or take the OCI layout"
    )]
    Platforms(String),
    /// A layer cannot be read.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Writes all images of a publication.
pub fn write(
    cache: &Cache,
    path: &Path,
    repository: &Repository,
    publication: &Publication<'_>,
) -> Result<(), DockerArchiveError> {
    let named = named(publication)?;
    let fail = |source| DockerArchiveError::Write { path: path.to_owned(), source };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let aside = tempfile::Builder::new().prefix(".hearth-").tempfile_in(directory).map_err(fail)?;
    aside.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(fail)?;
    let mut archive = tar::Builder::new(BufWriter::with_capacity(BUFFER, aside.as_file()));
    let mut seen = BTreeSet::new();
    for (image, _) in &named {
        let config = &image.config;
        if seen.insert(config.descriptor.digest) {
            let name = path_of(&config.descriptor.digest);
            append(&mut archive, &name, config.bytes.len() as u64, &config.bytes[..]).map_err(fail)?;
        }
        for layer in &image.layers {
            if seen.insert(layer.blob.digest) {
                let file = cache.open_content(Shelf::Blobs, &layer.blob)?;
                append(&mut archive, &path_of(&layer.blob.digest), layer.blob.size, file).map_err(fail)?;
            }
        }
    }
    let entries: Vec<Value> = named.iter().map(|(image, tags)| entry(image, tags, repository)).collect();
    let manifest = canonical(&Value::Array(entries));
    append(&mut archive, "manifest.json", manifest.len() as u64, &manifest[..]).map_err(fail)?;
    let mut out = archive.into_inner().map_err(fail)?;
    out.flush().map_err(fail)?;
    drop(out);
    aside.as_file().sync_all().map_err(fail)?;
    aside.persist(path).map(drop).map_err(|error| fail(error.error))
}

/// The images with their tags.
fn named<'a>(publication: &Publication<'a>) -> Result<Vec<(&'a Image, Vec<String>)>, DockerArchiveError> {
    let mut tags: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    for tag in &publication.tags {
        tags.entry(tag.document.descriptor.digest).or_default().push(tag.name.clone());
    }
    let mut found = Vec::new();
    for image in &publication.images {
        if let Some(tags) = tags.remove(&image.manifest.descriptor.digest) {
            found.push((*image, tags));
        }
    }
    // What is left points to an index.
    match tags.into_values().flatten().next() {
        Some(tag) => Err(DockerArchiveError::Platforms(tag)),
        None => Ok(found),
    }
}

fn entry(image: &Image, tags: &[String], repository: &Repository) -> Value {
    let layers: Vec<String> = image.layers.iter().map(|layer| path_of(&layer.blob.digest)).collect();
    let tags: Vec<String> = tags.iter().map(|tag| format!("{repository}:{tag}")).collect();
    json!({ "Config": path_of(&image.config.descriptor.digest), "RepoTags": tags, "Layers": layers })
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    name: &str,
    size: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(FIXED_TIME);
    archive.append_data(&mut header, name, content)
}
