//! The images in the store: references combined with the content of their manifests.
//!
//! An image is a manifest (or index) that a repository has, with everything it refers to. A manifest that is part of
//! an index and has no tag of its own belongs to that index. References on disk are the truth; nothing is cached
//! here, every call reads them again. All functions block.
//!
//! | part | owns |
//! | --- | --- |
//! | `whole` | stored and missing parts of an image (pure) |
//! | `list` | the list of images |
//! | [`archive`] | import and export |
//! | `edit` | pin, unpin, remove; the plan of a removal (pure) |

pub mod archive;
mod edit;
mod list;
mod whole;

use std::collections::{HashMap, HashSet};

pub use edit::{Removed, pin, remove};
pub use list::{Listed, Name, list};
pub use whole::{Whole, whole};

use crate::{
    store::{BlobFact, RefFact, RefName, Store, StoreError},
    types::{Descriptor, Digest, ImageName, ManifestLinks, Role},
};

/// Deepest nesting of indexes.
pub const MAX_DEPTH: u32 = 3;

/// Why an image cannot be shown or changed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No reference of this name.
    #[error("`{0}` is not in the store; `hearth-agent ls` lists its images")]
    NotHere(String),
    /// The image is pinned.
    #[error("`{name}` is pinned: `hearth-agent unpin {name}` first")]
    Pinned {
        /// The pinned reference.
        name: String,
    },
    /// The image belongs to a pre-pull set.
    #[error("`{name}` is kept by a pre-pull set: remove it from the set first")]
    Held {
        /// The reference.
        name: String,
    },
    /// The name stands for a part of another image.
    #[error("`{name}` is part of `{whole}`: use that name")]
    Part {
        /// The given name.
        name: String,
        /// A name of the image that it is part of.
        whole: String,
    },
    /// The image is stored only in part.
    #[error("`{name}` is not complete in the store, `{missing}` is missing: pull it through the agent first")]
    Incomplete {
        /// Name of the image.
        name: String,
        /// The first missing digest.
        missing: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A referenced manifest, and everything that it refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its manifest or index.
    pub digest: Digest,
    /// The references to it or a part of it.
    pub references: Vec<RefFact>,
    /// Itself, the manifests in it, configurations, layers; each once, stored or not.
    pub content: Vec<Digest>,
}

impl Image {
    /// Second since 1970 of its last use. The use of a blob counts for an image only when no other image needs the
    /// blob.
    pub fn last_use(&self, named: &HashMap<Digest, u32>, blobs: &HashMap<Digest, &BlobFact>) -> u64 {
        let root = blobs.get(&self.digest).map_or(0, |blob| blob.used);
        self.own(named).filter_map(|digest| blobs.get(digest)).map(|blob| blob.used).fold(root, u64::max)
    }

    /// The content that no other image refers to.
    pub fn own(&self, named: &HashMap<Digest, u32>) -> impl Iterator<Item = &Digest> {
        self.content.iter().filter(|digest| named.get(*digest) == Some(&1))
    }

    /// Whether it is pinned, or belongs to a pre-pull set.
    pub fn is_pinned(&self) -> bool {
        self.references.iter().any(RefFact::is_kept)
    }

    /// A name for messages: a tag if it has one.
    fn name(&self) -> String {
        let tagged = self.references.iter().find(|reference| reference.name.is_tag());
        tagged.or(self.references.first()).map_or_else(|| self.digest.to_string(), ToString::to_string)
    }
}

/// The number of images that refer to each digest.
pub fn naming(images: &[Image]) -> HashMap<Digest, u32> {
    let mut named = HashMap::new();
    for digest in images.iter().flat_map(|image| &image.content) {
        *named.entry(*digest).or_default() += 1;
    }
    named
}

/// All images: referenced manifests, without untagged parts of another image.
pub fn all(store: &Store) -> Result<Vec<Image>, StoreError> {
    let mut named: HashMap<Digest, Vec<RefFact>> = HashMap::new();
    for reference in store.references()? {
        named.entry(reference.digest).or_default().push(reference);
    }
    Ok(group(named, &|digest| links(store, digest)))
}

/// Configurations and layers of the stored manifests of an image, each once. Of an index these are the images that a client has
/// requested.
pub fn parts(store: &Store, root: &Digest) -> Vec<Descriptor> {
    let (mut open, mut parts) = (vec![(*root, MAX_DEPTH)], Vec::<Descriptor>::new());
    while let Some((digest, depth)) = open.pop() {
        for found in links(store, &digest).map(|links| links.descriptors).unwrap_or_default() {
            match found.role {
                Role::Manifest if depth > 0 => open.push((found.digest, depth - 1)),
                Role::Config | Role::Layer if parts.iter().all(|known| known.digest != found.digest) => {
                    parts.push(found);
                }
                _ => {}
            }
        }
    }
    parts
}

fn links(store: &Store, digest: &Digest) -> Option<ManifestLinks> {
    ManifestLinks::parse(&store.read_small(digest)?).ok()
}

/// Groups references into images. Pure except for `links`.
fn group(
    mut named: HashMap<Digest, Vec<RefFact>>,
    links: &dyn Fn(&Digest) -> Option<ManifestLinks>,
) -> Vec<Image> {
    let mut images: Vec<Image> = named
        .keys()
        .map(|digest| {
            let (mut content, mut seen) = (Vec::new(), HashSet::new());
            gather(digest, true, MAX_DEPTH, links, &mut content, &mut seen);
            Image { digest: *digest, references: Vec::new(), content }
        })
        .collect();
    let tagged = |references: &[RefFact]| references.iter().any(|reference| reference.name.is_tag());
    // A part's record belongs to the whole image.
    let mut parts: HashMap<Digest, Digest> = HashMap::new();
    for image in &images {
        for part in image.content.iter().skip(1) {
            if named.get(part).is_some_and(|references| !tagged(references)) {
                parts.insert(*part, image.digest);
            }
        }
    }
    images.retain(|image| !parts.contains_key(&image.digest));
    for image in &mut images {
        image.references = named.remove(&image.digest).unwrap_or_default();
        for part in image.content.iter().skip(1).filter(|part| parts.contains_key(*part)) {
            image.references.extend(named.remove(part).unwrap_or_default());
        }
    }
    images.sort_by_key(|image| image.digest);
    images
}

fn gather(
    digest: &Digest,
    manifest: bool,
    depth: u32,
    links: &dyn Fn(&Digest) -> Option<ManifestLinks>,
    content: &mut Vec<Digest>,
    seen: &mut HashSet<Digest>,
) {
    if !seen.insert(*digest) {
        return;
    }
    content.push(*digest);
    if !manifest || depth == 0 {
        return;
    }
    for descriptor in links(digest).map(|links| links.descriptors).unwrap_or_default() {
        gather(&descriptor.digest, descriptor.role == Role::Manifest, depth - 1, links, content, seen);
    }
}

/// The image that a name stands for, and the references with this name.
fn find<'a>(images: &'a [Image], name: &ImageName) -> Result<(&'a Image, Vec<&'a RefFact>), ImageError> {
    use crate::types::Reference;
    let meant = |fact: &RefFact| {
        fact.repository == name.repository
            && match (name.reference(), &fact.name) {
                (Reference::Tag(tag), RefName::Tag(named)) => tag == *named,
                (Reference::Digest(digest), _) => digest == fact.digest,
                (Reference::Tag(_), RefName::Digest) => false,
            }
    };
    for image in images {
        let found: Vec<_> = image.references.iter().filter(|fact| meant(fact)).collect();
        if !found.is_empty() {
            return Ok((image, found));
        }
    }
    let whole = ImageName { reference: Some(name.reference()), ..name.clone() };
    Err(ImageError::NotHere(whole.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: RefName, digest: Digest) -> RefFact {
        let repository =
            crate::types::Repository { registry: "r.test".parse().unwrap(), name: "a".parse().unwrap() };
        RefFact { repository, name, digest, pinned: false, held: false }
    }

    #[test]
    fn a_manifest_of_an_index_is_part_of_it_unless_it_has_a_tag() {
        let [index, child, tagged, layer] = [b"i", b"c", b"t", b"l"].map(|text| Digest::of(text));
        let links = |digest: &Digest| {
            let link = |digest, role| Descriptor { digest, size: 1, role };
            let descriptors = if *digest == index {
                vec![link(child, Role::Manifest), link(tagged, Role::Manifest), link(index, Role::Manifest)]
            } else {
                vec![link(layer, Role::Layer)]
            };
            Some(ManifestLinks { descriptors })
        };
        let mut references: HashMap<Digest, Vec<RefFact>> = [index, child, tagged]
            .into_iter()
            .map(|digest| (digest, vec![named(RefName::Digest, digest)]))
            .collect();
        for (digest, tag) in [(index, "v1"), (tagged, "v1-amd64")] {
            references.get_mut(&digest).unwrap().push(named(RefName::Tag(tag.parse().unwrap()), digest));
        }
        let images = group(references, &links);
        let find = |digest| images.iter().find(|image| image.digest == digest);
        assert_eq!(images.len(), 2);
        assert_eq!(find(index).unwrap().content, [index, child, layer, tagged]);
        assert_eq!(find(index).unwrap().references.len(), 3, "with the record of its part");
        assert_eq!(find(tagged).unwrap().content, [tagged, layer]);
    }
}
