//! Determines which parts of an image are stored. Pure except for its two functions that read the store.

use std::collections::HashSet;

use super::MAX_DEPTH;
use crate::types::{Digest, ManifestLinks, Role};

/// The stored and missing parts of an image.
///
/// An index is complete as soon as one of its images is: runtimes fetch only their own platform. Layers with other
/// sources (`urls`, non-distributable types) may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    /// Whether a runtime can pull the image from the store.
    pub complete: bool,
    /// The stored manifest and all stored complete parts of it; each once.
    pub content: Vec<Digest>,
    /// The manifests among the content.
    pub manifests: Vec<Digest>,
    /// Content of a stored manifest that is missing, or has another size.
    pub missing: Vec<Digest>,
    /// Images of an index that are not stored.
    pub absent: Vec<Digest>,
}

/// Examines an image. `links` reads a stored manifest, `size` returns the size of stored content.
pub fn whole(
    root: &Digest,
    links: &dyn Fn(&Digest) -> Option<ManifestLinks>,
    size: &dyn Fn(&Digest) -> Option<u64>,
) -> Whole {
    let mut found = look(root, MAX_DEPTH, links, size);
    for list in [&mut found.content, &mut found.manifests, &mut found.missing, &mut found.absent] {
        let mut seen = HashSet::new();
        list.retain(|digest| seen.insert(*digest));
    }
    found
}

fn look(
    digest: &Digest,
    depth: u32,
    links: &dyn Fn(&Digest) -> Option<ManifestLinks>,
    size: &dyn Fn(&Digest) -> Option<u64>,
) -> Whole {
    let Some(links_here) = links(digest).filter(|_| depth > 0) else {
        return Whole { missing: vec![*digest], ..Whole::default() };
    };
    let mut found =
        Whole { complete: true, content: vec![*digest], manifests: vec![*digest], ..Whole::default() };
    let (mut images, mut complete_images) = (0, 0);
    for descriptor in &links_here.descriptors {
        let here = size(&descriptor.digest);
        match descriptor.role {
            Role::Manifest => {
                images += 1;
                match here {
                    None => {
                        found.absent.push(descriptor.digest);
                        continue;
                    }
                    Some(size) if size != descriptor.size => {
                        found.missing.push(descriptor.digest);
                        continue;
                    }
                    Some(_) => {}
                }
                let part = look(&descriptor.digest, depth - 1, links, size);
                if part.complete {
                    complete_images += 1;
                    found.content.extend(part.content);
                    found.manifests.extend(part.manifests);
                }
                found.missing.extend(part.missing);
                found.absent.extend(part.absent);
            }
            Role::Foreign if here.is_none() => {}
            Role::Config | Role::Layer | Role::Foreign => {
                if here == Some(descriptor.size) {
                    found.content.push(descriptor.digest);
                } else {
                    found.missing.push(descriptor.digest);
                    found.complete = false;
                }
            }
        }
    }
    found.complete &= images == 0 || complete_images > 0;
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Descriptor;

    fn name(n: u8) -> Digest {
        Digest::of(&[n])
    }

    /// 1: index of 2 and 3; 2: image of 4 and 5; 3: image of 4 and 6 (foreign); 9: index of itself. Sizes are numbers.
    fn links(digest: &Digest) -> Option<ManifestLinks> {
        let link = |n: u8, role| Descriptor { digest: name(n), size: u64::from(n), role };
        let descriptors = match (0..=9).find(|n| name(*n) == *digest)? {
            1 => vec![link(2, Role::Manifest), link(3, Role::Manifest)],
            2 => vec![link(4, Role::Config), link(5, Role::Layer)],
            3 => vec![link(4, Role::Config), link(6, Role::Foreign)],
            9 => vec![link(9, Role::Manifest)],
            _ => return None,
        };
        Some(ManifestLinks { descriptors })
    }

    #[test]
    fn an_image_is_whole_with_everything_and_an_index_with_one_image() {
        // stored digests, complete, content, missing, absent
        for (root, here, complete, content, missing, absent) in [
            (2, &[2, 4, 5][..], true, &[2, 4, 5][..], &[][..], &[][..]),
            (2, &[2, 4], false, &[2, 4], &[5], &[]),
            (2, &[4, 5], false, &[], &[2], &[]),
            (3, &[3, 4], true, &[3, 4], &[], &[]),
            (3, &[3, 4, 6], true, &[3, 4, 6], &[], &[]),
            (1, &[1, 2, 3, 4, 5], true, &[1, 2, 4, 5, 3], &[], &[]),
            (1, &[1, 3, 4], true, &[1, 3, 4], &[], &[2]),
            (1, &[1, 2, 3, 4], true, &[1, 3, 4], &[5], &[]),
            (1, &[1, 2, 4], false, &[1], &[5], &[3]),
            (1, &[1], false, &[1], &[], &[2, 3]),
            (9, &[9], false, &[9], &[9], &[]),
        ] {
            let here_links =
                |digest: &Digest| here.iter().find(|n| name(**n) == *digest).and_then(|_| links(digest));
            let size = |digest: &Digest| here.iter().find(|n| name(**n) == *digest).map(|n| u64::from(*n));
            let names = |list: &[u8]| list.iter().map(|n| name(*n)).collect::<Vec<_>>();
            let found = whole(&name(root), &here_links, &size);
            let of = (found.complete, found.content, found.missing, found.absent);
            let expected = (complete, names(content), names(missing), names(absent));
            assert_eq!(of, expected, "{root} {here:?}");
            let is_manifest = |n: &&u8| matches!(**n, 1..=3 | 9);
            let manifests: Vec<_> = content.iter().filter(is_manifest).map(|n| name(*n)).collect();
            assert_eq!(found.manifests, manifests);
        }
        let wrong_size = |_: &Digest| Some(7);
        assert!(!whole(&name(2), &links, &wrong_size).complete);
    }
}
