//! Decides what to evict. Pure.
//!
//! In this order, until enough is free: abandoned partial blobs; unreferenced blobs; whole images by least recent
//! use. A blob is removed with the last image that references it; pinned, open and arriving content is never removed.

use std::collections::{HashMap, HashSet};

use crate::{
    images::{Image, naming},
    store::{BlobFact, PartialFact, RefFact},
    types::Digest,
};

/// Seconds without a new byte after which a partial blob is removed even if no space is needed: a day.
const PARTIAL_AGE: u64 = 24 * 60 * 60;

/// Seconds for which an unreferenced blob stays, because its manifest may follow: ten minutes.
const GRACE: u64 = 10 * 60;

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// An abandoned partial blob.
    Partial(Digest),
    /// An unreferenced blob.
    Orphan(Digest),
    /// An image: its references, and the blobs that no other image needs.
    Image {
        /// Digest of the image.
        digest: Digest,
        /// Second since 1970 of its last use.
        used: u64,
        /// References to remove.
        references: Vec<RefFact>,
        /// Blobs to remove.
        blobs: Vec<Digest>,
    },
}

/// Steps, and the bytes that they free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in the order of execution.
    pub steps: Vec<Step>,
    /// Bytes that become free.
    pub freed: u64,
}

/// The input of a decision.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Second since 1970.
    pub now: u64,
    /// Bytes to free.
    pub wanted: u64,
    /// Whole blobs.
    pub blobs: &'a [BlobFact],
    /// Partial blobs.
    pub partials: &'a [PartialFact],
    /// Images.
    pub images: &'a [Image],
}

/// Makes the plan.
pub fn plan(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    take_partials(view, &mut plan);
    let named = naming(view.images);
    take_orphans(view, &named, &mut plan);
    take_images(view, named, &mut plan);
    plan
}

fn take_partials(view: &View<'_>, plan: &mut Plan) {
    let mut idle: Vec<_> = view.partials.iter().filter(|partial| !partial.held).collect();
    idle.sort_by_key(|partial| partial.modified);
    for partial in idle {
        let aged = view.now.saturating_sub(partial.modified) >= PARTIAL_AGE;
        if aged || plan.freed < view.wanted {
            plan.freed += partial.bytes;
            plan.steps.push(Step::Partial(partial.digest));
        }
    }
}

fn take_orphans(view: &View<'_>, named: &HashMap<Digest, u32>, plan: &mut Plan) {
    let settled = |blob: &&BlobFact| {
        !blob.held && !named.contains_key(&blob.digest) && view.now.saturating_sub(blob.used) >= GRACE
    };
    let mut orphans: Vec<_> = view.blobs.iter().filter(settled).collect();
    orphans.sort_by_key(|blob| blob.used);
    for blob in orphans {
        if plan.freed >= view.wanted {
            return;
        }
        plan.freed += blob.size;
        plan.steps.push(Step::Orphan(blob.digest));
    }
}

fn take_images(view: &View<'_>, mut named: HashMap<Digest, u32>, plan: &mut Plan) {
    if plan.freed >= view.wanted {
        return;
    }
    let blobs: HashMap<Digest, &BlobFact> = view.blobs.iter().map(|blob| (blob.digest, blob)).collect();
    let in_flight: HashSet<Digest> =
        view.partials.iter().filter(|partial| partial.held).map(|partial| partial.digest).collect();
    let mut candidates = Vec::new();
    for image in view.images {
        let busy = image.own(&named).filter_map(|digest| blobs.get(digest)).any(|blob| blob.held)
            || image.content.iter().any(|digest| in_flight.contains(digest));
        if busy || image.is_pinned() {
            continue;
        }
        candidates.push((image.last_use(&named, &blobs), image));
    }
    candidates.sort_by_key(|(used, image)| (*used, image.digest));
    for (used, image) in candidates {
        if plan.freed >= view.wanted {
            return;
        }
        let mut going = Vec::new();
        for digest in &image.content {
            let Some(count) = named.get_mut(digest) else { continue };
            *count -= 1;
            if let (0, Some(blob)) = (*count, blobs.get(digest))
                && !blob.held
            {
                plan.freed += blob.size;
                going.push(*digest);
            }
        }
        plan.steps.push(Step::Image {
            digest: image.digest,
            used,
            references: references_that_go(image, &named),
            blobs: going,
        });
    }
}

/// The image's references, except those to parts that another image needs as well: it could not be pulled without
/// them.
fn references_that_go(image: &Image, left: &HashMap<Digest, u32>) -> Vec<RefFact> {
    let needed =
        |digest: &Digest| *digest != image.digest && left.get(digest).is_some_and(|count| *count > 0);
    image.references.iter().filter(|reference| !needed(&reference.digest)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::RefName;

    const NOW: u64 = 1_000_000;

    fn name(n: u8) -> Digest {
        Digest::of(&[n])
    }

    fn blob(n: u8, size: u64, used: u64) -> BlobFact {
        BlobFact { digest: name(n), size, used, held: false }
    }

    fn image(content: &[u8], pinned: bool) -> Image {
        let repository =
            crate::types::Repository { registry: "r.test".parse().unwrap(), name: "a".parse().unwrap() };
        let reference =
            RefFact { repository, name: RefName::Digest, digest: name(content[0]), pinned, held: false };
        Image {
            digest: name(content[0]),
            references: vec![reference],
            content: content.iter().map(|n| name(*n)).collect(),
        }
    }

    fn gone(plan: &Plan) -> Vec<Digest> {
        let of = |step: &Step| match step {
            Step::Partial(_) => Vec::new(),
            Step::Orphan(digest) => vec![*digest],
            Step::Image { blobs, .. } => blobs.clone(),
        };
        plan.steps.iter().flat_map(of).collect()
    }

    #[test]
    fn orphans_are_removed_before_images_and_shared_blobs_with_the_last_image() {
        let blobs = [blob(1, 1, 10), blob(2, 1, 20), blob(3, 50, 5), blob(4, 30, 10), blob(9, 7, 900)];
        let images = [image(&[1, 3, 4], false), image(&[2, 3], false)];
        for (wanted, expected) in [
            (0, vec![]),
            (7, vec![9]),
            (8, vec![9, 1, 4]),
            (39, vec![9, 1, 4, 2, 3]),
            (10_000, vec![9, 1, 4, 2, 3]),
        ] {
            let plan = plan(&View { now: NOW, wanted, blobs: &blobs, partials: &[], images: &images });
            let expected: Vec<_> = expected.into_iter().map(name).collect();
            assert_eq!(gone(&plan), expected, "{wanted}");
        }
    }

    #[test]
    fn partial_blobs_are_removed_after_a_day_and_at_once_when_space_is_needed() {
        let partial = |n, age, held| PartialFact { digest: name(n), bytes: 10, modified: NOW - age, held };
        let partials = [partial(1, PARTIAL_AGE, false), partial(2, 5, false), partial(3, PARTIAL_AGE, true)];
        for (wanted, expected) in [(0, vec![1]), (15, vec![1, 2]), (100, vec![1, 2])] {
            let plan = plan(&View { now: NOW, wanted, blobs: &[], partials: &partials, images: &[] });
            let expected: Vec<_> = expected.into_iter().map(|n| Step::Partial(name(n))).collect();
            assert_eq!(plan.steps, expected, "{wanted}");
        }
    }

    #[test]
    fn an_unreferenced_blob_stays_for_a_grace_period() {
        let blobs = [blob(1, 10, NOW - GRACE + 1)];
        let plan = plan(&View { now: NOW, wanted: 10, blobs: &blobs, partials: &[], images: &[] });
        assert_eq!(plan, Plan::default());
    }

    proptest! {
        #[test]
        fn needed_blobs_stay_and_the_target_is_reached_when_possible(
            sizes in proptest::collection::vec((1_u64..100, 0_u64..2_000_000, proptest::bool::weighted(0.1)), 24),
            images in proptest::collection::vec(
                (proptest::collection::btree_set(0_u8..24, 1..8), proptest::bool::weighted(0.2)), 0..8),
            wanted in 0_u64..2_000,
        ) {
            let blobs: Vec<_> = (0_u8..24).zip(&sizes)
                .map(|(n, (size, used, held))| BlobFact { held: *held, ..blob(n, *size, *used) }).collect();
            let images: Vec<_> = images.iter()
                .map(|(content, pinned)| image(&content.iter().copied().collect::<Vec<_>>(), *pinned)).collect();
            let plan = plan(&View { now: NOW, wanted, blobs: &blobs, partials: &[], images: &images });
            let gone = gone(&plan);
            let set: HashSet<_> = gone.iter().copied().collect();
            prop_assert_eq!(set.len(), gone.len(), "each blob once");
            let size = |digest: &Digest| blobs.iter().find(|blob| blob.digest == *digest).unwrap();
            prop_assert_eq!(plan.freed, gone.iter().map(|digest| size(digest).size).sum::<u64>());
            prop_assert!(gone.iter().all(|digest| !size(digest).held), "open blobs stay");
            let evicted: HashSet<_> = plan.steps.iter().filter_map(|step| match step {
                Step::Image { references, blobs, .. } => Some((references.clone(), blobs.clone())),
                _ => None,
            }).collect();
            let pinned = images.iter().filter(|image| image.references[0].pinned);
            for image in pinned {
                prop_assert!(image.content.iter().all(|digest| !set.contains(digest)), "pinned content stays");
            }
            if plan.freed < wanted {
                // Remaining images are held, young, or needed by a pinned or busy image.
                prop_assert!(evicted.len() <= images.len());
                for blob in blobs.iter().filter(|blob| !set.contains(&blob.digest) && !blob.held) {
                    let named = images.iter().any(|image| image.content.contains(&blob.digest));
                    let young = NOW.saturating_sub(blob.used) < GRACE;
                    let kept = images.iter().any(|image| image.content.contains(&blob.digest)
                        && (image.references[0].pinned
                            || image.content.iter().any(|digest| size(digest).held)));
                    prop_assert!((!named && young) || kept, "{:?}", blob);
                }
            }
        }
    }
}
