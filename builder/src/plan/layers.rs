//! Distributes the files of all images of a matrix over layers.
//!
//! Files with the same path, bytes, mode and owner are grouped by the set of images that have them, so a layer
//! holds what exactly these images share and is stored, pushed and pulled once for all of them. Three rules keep
//! the number of layers sensible:
//!
//! * A group below [`Limits::smallest`] that only some images share is not worth a request: each of them gets a
//!   copy in the layer of its own files. What all images share stays one layer, however small.
//! * A group that is too large is cut (`cut`), and groups of JARs and of Python packages are divided such that a changed one
//!   takes few others along.
//! * An image with more than [`Limits::layers`] gets its smallest shared groups as copies, too.
//!
//! The order is the same in every image: what most images share lies lowest, so that the snapshots of container
//! runtimes, which are shared by prefix, are shared as well. Our own scripts lie on top: they change with every
//! version of hearth and would otherwise invalidate what is above them.
//!
//! Images come in an order that does not depend on how a specification lists them: positions decide between equals.
//!
//! Every layer names the directories above its files, with their attributes, so no layer depends on another.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

pub use super::parts::{Files, LayerName, Limits, Planned};
use super::{
    cut::{self, Division},
    locked::{self, LockedPlan},
};
use crate::{
    digest::Digest,
    tree::{self, Entry, ImagePath, Kind, Tree},
};

/// Groups of files by part and by the images that have them.
type Groups = BTreeMap<(LayerName, Vec<usize>), Tree>;

/// Plans the layers of all images, in the order in which each image stacks those that it has. Files that `locked`
/// layers cover stay in them; the rest is grouped.
pub fn layers(images: &[Files], locked: &LockedPlan, limits: Limits) -> Vec<Planned> {
    let (kept, claimed) = locked::claim(locked, images);
    let mut groups = group(images, &claimed);
    copy_small(&mut groups, images.len(), limits);
    join_small(&mut groups, limits);
    let suffices = |division: &Division| {
        (0..images.len())
            .all(|image| stacked(&groups, images, &kept, image, limits, *division) <= limits.layers)
    };
    let division = Division::ALL.into_iter().find(suffices).unwrap_or(Division::Nothing);
    bound_layers(&mut groups, images, &kept, limits, division);
    let mut planned: Vec<Planned> = groups
        .iter()
        .flat_map(|((name, members), tree)| cut::cut(*name, members, tree, limits, division))
        .collect();
    for layer in &mut planned {
        add_directories(layer, &images[layer.images[0]]);
    }
    let mut planned = merge_equal(planned);
    planned.sort_by_key(|layer| {
        let top = layer.name.on_top();
        (top, Reverse(layer.images.len()), layer.name, layer.images.clone(), layer.part)
    });
    // The order among kept layers is that of the lock: another one would be another image.
    let (mut stacked, mut tops): (Vec<Planned>, Vec<Planned>) =
        kept.into_iter().partition(|layer| !layer.name.on_top());
    let (new, new_tops): (Vec<Planned>, Vec<Planned>) =
        planned.into_iter().partition(|layer| !layer.name.on_top());
    stacked.extend(new);
    tops.extend(new_tops);
    stacked.extend(tops);
    stacked
}

fn group(images: &[Files], claimed: &[BTreeSet<ImagePath>]) -> Groups {
    let mut members: HashMap<(LayerName, &ImagePath, &Entry, u64), Vec<usize>> = HashMap::new();
    for (at, files) in images.iter().enumerate() {
        let directories: BTreeMap<&ImagePath, &Entry> = files
            .entries()
            .filter(|(_, _, entry)| entry.kind == Kind::Directory)
            .map(|(_, path, entry)| (path, entry))
            .collect();
        let inhabited: BTreeSet<ImagePath> =
            files.entries().filter_map(|(_, path, _)| path.parent()).collect();
        for (name, path, entry) in files.entries() {
            // Directories come with their files; only empty ones are files of their own.
            let comes_along = entry.kind == Kind::Directory && inhabited.contains(path);
            if comes_along || claimed[at].contains(path) {
                continue;
            }
            // Files under directories of different attributes cannot share a layer, which names both.
            let mut lineage = DefaultHasher::new();
            path.ancestors()
                .filter_map(|above| directories.get(&above))
                .for_each(|entry| entry.hash(&mut lineage));
            members.entry((name, path, entry, lineage.finish())).or_default().push(at);
        }
    }
    let mut groups = Groups::new();
    for ((name, path, entry, _), members) in members {
        groups.entry((name, members)).or_default().insert(path.clone(), entry.clone());
    }
    groups
}

/// Gives each image of a group its own copy of the files.
fn copy(groups: &mut Groups, key: &(LayerName, Vec<usize>)) {
    let Some(tree) = groups.remove(key) else { return };
    for image in &key.1 {
        groups.entry((key.0, vec![*image])).or_default().extend(tree.clone());
    }
}

fn copy_small(groups: &mut Groups, images: usize, limits: Limits) {
    let small: Vec<_> = groups
        .iter()
        .filter(|((_, members), tree)| {
            (2..images).contains(&members.len()) && tree::bytes(tree) < limits.smallest
        })
        .map(|(key, _)| key.clone())
        .collect();
    for key in small {
        copy(groups, &key);
    }
}

/// Puts parts that the same images have together where one of them is too small for a layer: the smallest goes to
/// the largest, until none is too small.
fn join_small(groups: &mut Groups, limits: Limits) {
    let sets: BTreeSet<Vec<usize>> = groups.keys().map(|(_, members)| members.clone()).collect();
    for members in sets {
        loop {
            let mut own: Vec<(u64, LayerName)> = groups
                .iter()
                .filter(|((name, of), _)| !name.on_top() && *of == members)
                .map(|((name, _), tree)| (tree::bytes(tree), *name))
                .collect();
            own.sort_unstable();
            let (Some((size, from)), Some((_, to))) = (own.first(), own.last()) else { break };
            if own.len() < 2 || *size >= limits.smallest {
                break;
            }
            let tree = groups.remove(&(*from, members.clone())).unwrap_or_default();
            groups.entry((*to, members.clone())).or_default().extend(tree);
        }
    }
}

/// The layers that an image would have, those of its base included.
fn stacked(
    groups: &Groups,
    images: &[Files],
    kept: &[Planned],
    image: usize,
    limits: Limits,
    division: Division,
) -> usize {
    let own = groups.iter().filter(|((_, members), _)| members.contains(&image));
    let own: usize = own.map(|((name, _), tree)| cut::count(*name, tree, limits, division)).sum();
    own + images[image].base_layers + kept.iter().filter(|layer| layer.images.contains(&image)).count()
}

fn bound_layers(groups: &mut Groups, images: &[Files], kept: &[Planned], limits: Limits, division: Division) {
    for image in 0..images.len() {
        while stacked(groups, images, kept, image, limits, division) > limits.layers {
            let shared =
                groups.iter().filter(|((_, members), _)| members.len() > 1 && members.contains(&image));
            let smallest = shared.min_by_key(|(key, tree)| (tree::bytes(tree), *key));
            let Some(key) = smallest.map(|(key, _)| key.clone()) else { break };
            copy(groups, &key);
        }
    }
}

/// Copies can make layers of several images equal: they are one layer, and a lock could not tell them apart.
fn merge_equal(planned: Vec<Planned>) -> Vec<Planned> {
    let mut merged: Vec<Planned> = Vec::new();
    let mut known: HashMap<(LayerName, (usize, usize), Digest), usize> = HashMap::new();
    for layer in planned {
        let position =
            *known.entry((layer.name, layer.part, locked::fingerprint(&layer.tree))).or_insert(merged.len());
        match merged.get_mut(position) {
            Some(same) => {
                same.images.extend(layer.images);
                same.images.sort_unstable();
            }
            None => merged.push(layer),
        }
    }
    merged
}

fn add_directories(layer: &mut Planned, files: &Files) {
    let above: BTreeSet<ImagePath> = layer.tree.keys().flat_map(ImagePath::ancestors).collect();
    for (_, path, entry) in files.entries() {
        if entry.kind == Kind::Directory && above.contains(path) {
            layer.tree.entry(path.clone()).or_insert_with(|| entry.clone());
        }
    }
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
