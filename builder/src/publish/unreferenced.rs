//! Blobs of a layout that no image needs any more, after images were replaced.
//!
//! Only what hearth has put there is removed: blobs that the replaced entries of the index led to, and hard links to the
//! cache. Whatever the new index leads to stays, and so does what nothing led to before: another program may have begun
//! to write an image.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _},
    path::Path,
};

use serde_json::Value;

use crate::digest::Digest;

/// Manifests and indexes are far smaller; a larger blob is no document.
const LIMIT: u64 = 8 << 20;

/// Every digest that entries of an index lead to, themselves included.
pub(super) fn reachable<'v>(blobs: &Path, entries: impl Iterator<Item = &'v Value>) -> BTreeSet<Digest> {
    let mut found = BTreeSet::new();
    let mut open: Vec<Value> = entries.cloned().collect();
    while let Some(descriptor) = open.pop() {
        let digest = descriptor["digest"].as_str().and_then(|text| text.parse::<Digest>().ok());
        let Some(digest) = digest.filter(|digest| found.insert(*digest)) else { continue };
        let kind = descriptor["mediaType"].as_str().unwrap_or_default();
        if !["manifest", "index"].iter().any(|word| kind.contains(word)) {
            continue;
        }
        let Some(document) = document(&blobs.join(digest.hex())) else { continue };
        open.extend(document.get("config").cloned());
        for key in ["manifests", "layers"] {
            open.extend(document[key].as_array().into_iter().flatten().cloned());
        }
    }
    found
}

fn document(path: &Path) -> Option<Value> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(LIMIT).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// What a document about an image is about.
pub(super) fn subject(blobs: &Path, entry: &Value) -> Option<Digest> {
    entry.get("artifactType")?;
    let digest: Digest = entry["digest"].as_str()?.parse().ok()?;
    document(&blobs.join(digest.hex()))?["subject"]["digest"].as_str()?.parse().ok()
}

/// Removes blobs that are not `needed` and that are `ours`.
pub(super) fn remove(
    blobs: &Path,
    needed: &BTreeSet<Digest>,
    ours: impl Fn(&Digest, &Path) -> bool,
) -> io::Result<()> {
    for entry in fs::read_dir(blobs)? {
        let path = entry?.path();
        let digest = path.file_name().and_then(|name| Digest::from_hex(name.to_str()?));
        if let Some(digest) = digest.filter(|digest| !needed.contains(digest))
            && ours(&digest, &path)
        {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
