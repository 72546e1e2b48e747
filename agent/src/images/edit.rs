//! Pins, unpins and removes images. The plan of a removal is pure.

use serde::{Deserialize, Serialize};

use super::{Image, ImageError, all, find, naming};
use crate::{
    store::{RefFact, RefName, Store},
    types::{Digest, ImageName, Reference},
};

/// The result of a removal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Removed {
    /// Removed names.
    pub names: Vec<String>,
    /// Number of removed blobs.
    pub blobs: usize,
    /// Bytes freed.
    pub bytes: u64,
    /// Blobs that are being read: evicted when space is needed.
    pub in_use: usize,
}

/// Pins or unpins an image; returns the changed names.
pub fn pin(store: &Store, name: &ImageName, pinned: bool) -> Result<Vec<String>, ImageError> {
    let images = all(store)?;
    let (_, mut meant) = find(&images, name)?;
    // A pin of a tag covers only this name; a pin of a digest is in the digest's own record.
    if matches!(name.reference(), Reference::Digest(_)) {
        meant.retain(|fact| fact.name == RefName::Digest);
    }
    let mut changed = Vec::new();
    for fact in meant {
        if store.set_pin(fact, pinned)? {
            changed.push(fact.to_string());
        }
    }
    if changed.is_empty() { Err(ImageError::NotHere(name.to_string())) } else { Ok(changed) }
}

/// Removes a name, and with the last name of an image the blobs that no other image needs.
pub fn remove(store: &Store, name: &ImageName) -> Result<Removed, ImageError> {
    let images = all(store)?;
    let (image, meant) = find(&images, name)?;
    if meant.iter().all(|fact| fact.digest != image.digest) {
        return Err(ImageError::Part { name: name.to_string(), whole: image.name() });
    }
    let plan = plan(&images, image, &meant)?;
    let mut removed = Removed::default();
    for reference in &plan.references {
        store.remove_reference(reference)?;
        if reference.digest == image.digest {
            removed.names.push(reference.to_string());
        }
    }
    let before = store.totals().bytes;
    for blob in &plan.blobs {
        if store.remove_blob(blob)?.is_some() { removed.blobs += 1 } else { removed.in_use += 1 }
    }
    removed.bytes = before.saturating_sub(store.totals().bytes);
    Ok(removed)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Removal {
    references: Vec<RefFact>,
    blobs: Vec<Digest>,
}

/// The references to remove: the named ones; with a repository's last tag of the image also its records of the
/// manifests, unless another image needs them. With the image's last reference, the blobs that no other image needs.
fn plan(images: &[Image], image: &Image, meant: &[&RefFact]) -> Result<Removal, ImageError> {
    let doomed = |fact: &RefFact| meant.contains(&fact);
    let named = naming(images);
    let last_tag_goes = |fact: &RefFact| {
        let of_repository = |other: &&RefFact| {
            other.repository == fact.repository && other.digest == image.digest && other.name.is_tag()
        };
        meant.iter().any(|doomed| doomed.repository == fact.repository)
            && image.references.iter().filter(of_repository).all(doomed)
    };
    let goes = |fact: &RefFact| {
        let record = fact.name == RefName::Digest && named.get(&fact.digest) == Some(&1);
        doomed(fact) || (record && last_tag_goes(fact))
    };
    let (references, left): (Vec<_>, Vec<_>) = image.references.iter().cloned().partition(goes);
    if let Some(pinned) = references.iter().find(|fact| fact.pinned) {
        return Err(ImageError::Pinned { name: pinned.to_string() });
    }
    if let Some(held) = references.iter().find(|fact| fact.held) {
        return Err(ImageError::Held { name: held.to_string() });
    }
    // Records of parts that another image needs do not keep this image.
    let kept = left.iter().any(|fact| fact.digest == image.digest);
    let blobs = if kept { Vec::new() } else { image.own(&named).copied().collect() };
    Ok(Removal { references, blobs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: u8) -> Digest {
        Digest::of(&[n])
    }

    fn fact(repository: &str, tag: &str, n: u8) -> RefFact {
        let repository = repository.parse::<ImageName>().unwrap().repository;
        let name_of = if tag.is_empty() { RefName::Digest } else { RefName::Tag(tag.parse().unwrap()) };
        RefFact { repository, name: name_of, digest: name(n), pinned: false, held: false }
    }

    fn image(content: &[u8], references: Vec<RefFact>) -> Image {
        Image { digest: name(content[0]), references, content: content.iter().map(|n| name(*n)).collect() }
    }

    #[test]
    fn the_last_name_is_removed_with_the_records_and_the_blobs() {
        let references = || vec![fact("r.test/a", "v1", 1), fact("r.test/a", "", 1), fact("r.test/a", "", 2)];
        let more = |fact: RefFact| references().into_iter().chain([fact]).collect::<Vec<_>>();
        let other = || image(&[5, 3], vec![fact("r.test/x", "v1", 5)]);
        // the image's references, other images, removed references, removed blobs
        for (references, others, gone, blobs) in [
            (references(), vec![], vec![0, 1, 2], vec![1, 2, 3]),
            (references(), vec![other()], vec![0, 1, 2], vec![1, 2]),
            (more(fact("r.test/a", "v2", 1)), vec![], vec![0], vec![]),
            (more(fact("r.test/b", "", 1)), vec![], vec![0, 1, 2], vec![]),
            (references(), vec![image(&[6, 2], vec![fact("r.test/a", "w", 6)])], vec![0, 1], vec![1, 3]),
        ] {
            let mut images = others;
            images.push(image(&[1, 2, 3], references.clone()));
            let of = images.last().unwrap();
            let removal = plan(&images, of, &[&references[0]]).unwrap();
            let gone: Vec<_> = gone.into_iter().map(|at: usize| references[at].clone()).collect();
            assert_eq!(removal.references, gone, "{references:?}");
            assert_eq!(removal.blobs, blobs.into_iter().map(name).collect::<Vec<_>>(), "{references:?}");
        }
    }

    #[test]
    fn a_pinned_name_stays_and_another_name_of_the_image_is_removed() {
        let mut references = vec![fact("r.test/a", "v1", 1), fact("r.test/a", "v2", 1)];
        references[0].pinned = true;
        let images = [image(&[1, 3], references.clone())];
        let refused = plan(&images, &images[0], &[&references[0]]).unwrap_err();
        assert!(matches!(refused, ImageError::Pinned { .. }), "{refused}");
        let mut held = images.clone();
        held[0].references[0] = RefFact { pinned: false, held: true, ..references[0].clone() };
        let refused = plan(&held, &held[0], &[&held[0].references[0]]).unwrap_err();
        assert!(matches!(refused, ImageError::Held { .. }), "{refused}");
        let removal = plan(&images, &images[0], &[&references[1]]).unwrap();
        assert_eq!((removal.references, removal.blobs), (vec![references[1].clone()], vec![]));
    }
}
