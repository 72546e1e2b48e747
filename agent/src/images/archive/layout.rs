//! OCI image layouts (image specification 1.1, "Image Layout").

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use oci::layout::{INDEX, MARK, REF_NAME, path_of};
use serde::Deserialize;

use super::{ArchiveError, naming::Entry};
use crate::types::{Digest, MAX_MANIFEST_BYTES, ManifestLinks, MediaType, Role};

/// containerd's and Docker's annotation with the whole name.
pub(super) const IMAGE_NAME: &str = "io.containerd.image.name";

#[derive(Deserialize)]
struct Layout {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<RawEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEntry {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The images in a layout. Pure.
pub(super) fn entries(layout: Option<&[u8]>, index: &[u8]) -> Result<Vec<Entry>, ArchiveError> {
    let layout = layout.ok_or_else(|| ArchiveError::document(MARK, "it is missing"))?;
    let layout: Layout =
        serde_json::from_slice(layout).map_err(|error| ArchiveError::document(MARK, error.to_string()))?;
    if layout.version != "1.0.0" {
        let reason = format!("version `{}` of the layout is not supported", layout.version);
        return Err(ArchiveError::document(MARK, reason));
    }
    let index: Index =
        serde_json::from_slice(index).map_err(|error| ArchiveError::document(INDEX, error.to_string()))?;
    index.manifests.iter().map(entry).collect()
}

fn entry(raw: &RawEntry) -> Result<Entry, ArchiveError> {
    let wrong = |reason: String| ArchiveError::document(INDEX, reason);
    let digest = raw.digest.parse::<Digest>().map_err(|error| wrong(error.to_string()))?;
    let media_type = MediaType::parse(&raw.media_type)
        .ok_or_else(|| wrong(format!("`{}` is not a media type", raw.media_type)))?;
    let names = [IMAGE_NAME, REF_NAME].iter().filter_map(|key| raw.annotations.get(*key).cloned()).collect();
    Ok(Entry { digest, size: Some(raw.size), media_type, names })
}

/// The files of a layout in a directory that an import needs: the documents, then the existing blobs that they refer
/// to.
pub(super) fn directory_members(directory: &Path) -> Result<Vec<(String, PathBuf)>, ArchiveError> {
    let read = |name: &str| read_bounded(&directory.join(name));
    let index = read(INDEX).map_err(|error| match error {
        ArchiveError::Read(error) if error.kind() == std::io::ErrorKind::NotFound => ArchiveError::Unknown,
        error => error,
    })?;
    let layout = read(MARK).ok();
    let mut members: Vec<_> = [MARK, INDEX].map(|name| (name.to_owned(), directory.join(name))).into();
    let mut open: Vec<(Digest, bool)> =
        entries(layout.as_deref(), &index)?.iter().rev().map(|entry| (entry.digest, true)).collect();
    let mut seen = HashSet::new();
    while let Some((digest, manifest)) = open.pop() {
        let name = path_of(&digest);
        let path = directory.join(&name);
        if !seen.insert(digest) || !path.exists() {
            continue;
        }
        if manifest && let Ok(links) = ManifestLinks::parse(&read_bounded(&path)?) {
            let below = links.descriptors.iter().rev();
            open.extend(below.map(|descriptor| (descriptor.digest, descriptor.role == Role::Manifest)));
        }
        members.push((name, path));
    }
    Ok(members)
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, ArchiveError> {
    let metadata = fs::metadata(path).map_err(ArchiveError::Read)?;
    if !metadata.is_file() || metadata.len() > MAX_MANIFEST_BYTES {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        return Err(ArchiveError::document(&name, "it is not a file, or too large for a manifest"));
    }
    fs::read(path).map_err(ArchiveError::Read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_lists_the_images_and_their_names() {
        let digest = Digest::of(b"m");
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[
                {{"mediaType":"a/b","digest":"{digest}","size":7,"annotations":
                    {{"{REF_NAME}":"v1","{IMAGE_NAME}":"r.test/a:v1"}}}},
                {{"mediaType":"a/b","digest":"{digest}","size":7}}]}}"#
        );
        let layout = Some(&br#"{"imageLayoutVersion":"1.0.0"}"#[..]);
        let found = entries(layout, index.as_bytes()).unwrap();
        assert_eq!(found[0].names, ["r.test/a:v1", "v1"]);
        assert!(found[1].names.is_empty());
        let wrong_digest = index.replace("sha256:", "md5:");
        for (layout, index) in [
            (None, index.as_str()),
            (Some(&br#"{"imageLayoutVersion":"2.0.0"}"#[..]), &index),
            (layout, "{"),
            (layout, &wrong_digest),
            (layout, &index.replace("a/b", "nonsense")),
        ] {
            assert!(matches!(entries(layout, index.as_bytes()), Err(ArchiveError::Document { .. })));
        }
    }
}
