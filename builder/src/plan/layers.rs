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

use serde::{Deserialize, Serialize};

use super::{
    cut::{self, Division},
    locked::{self, LockedPlan},
};
use crate::{
    digest::Digest,
    tree::{self, Entry, ImagePath, Kind, Tree},
};

/// Which part of an image a file belongs to; files of different parts share no layer unless one is too small.
/// The order is that of the layers, and of who wins where two parts have the same path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerName {
    /// A Java runtime.
    Java,
    /// A Python.
    Python,
    /// `/opt/spark/jars` but Spark's own.
    SparkJars,
    /// Spark's own JARs: every release has others, while what it depends on mostly stays.
    SparkOwnJars,
    /// The rest of the Spark distribution.
    Spark,
    /// JARs by Maven coordinates.
    Jars,
    /// Python packages.
    Wheels,
    /// Entry point, users and directories.
    Hearth,
    /// The user's own files.
    Files,
}

impl LayerName {
    /// As shown to people and in the image's history.
    pub fn label(self) -> &'static str {
        match self {
            Self::Java => "Java runtime",
            Self::Python => "Python",
            Self::SparkJars => "Spark JARs",
            Self::SparkOwnJars => "Spark's own JARs",
            Self::Spark => "Spark programs, Python package and examples",
            Self::Jars => "JARs",
            Self::Wheels => "Python packages",
            Self::Hearth => "entry point, user and directories",
            Self::Files => "files",
        }
    }

    /// The first word of the names of its inputs in a lock.
    pub fn word(self) -> &'static str {
        match self {
            Self::Java => "java",
            Self::Python => "python",
            Self::SparkJars | Self::SparkOwnJars | Self::Spark => "spark",
            Self::Jars => "jar",
            Self::Wheels => "wheel",
            Self::Hearth => "hearth",
            Self::Files => "file",
        }
    }

    /// The part of a file of the Spark distribution.
    pub fn of_spark(path: &ImagePath) -> Self {
        let is_jar = path.as_str().split('/').any(|part| part == "jars");
        match (is_jar, path.name().starts_with("spark-")) {
            (true, true) => Self::SparkOwnJars,
            (true, false) => Self::SparkJars,
            (false, _) => Self::Spark,
        }
    }

    /// Whether its files are JARs that change one by one; Spark's own change all together.
    pub(super) fn is_jars(self) -> bool {
        matches!(self, Self::SparkJars | Self::Jars)
    }

    /// Whether it lies on top: it changes more often than what is below.
    fn on_top(self) -> bool {
        matches!(self, Self::Hearth | Self::Files)
    }
}

/// Bounds of a plan, in uncompressed bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Layers of an image, its base's included. Overlay file systems stop at 127.
    pub layers: usize,
    /// Smaller groups are copied instead of shared.
    pub smallest: u64,
    /// Larger groups are cut.
    pub largest: u64,
    /// Groups of JARs are divided into portions of about this size.
    pub portion: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { layers: 24, smallest: 4 << 20, largest: 256 << 20, portion: 48 << 20 }
    }
}

/// The files that one image adds to its base.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// How many layers the base has.
    pub base_layers: usize,
    /// The files, by part.
    pub parts: BTreeMap<LayerName, Tree>,
}

impl Files {
    /// Digest over all files and the parts that they belong to.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&serde_json::to_vec(&self.parts).expect("paths are strings"))
    }

    /// Every file with its part.
    pub(super) fn entries(&self) -> impl Iterator<Item = (LayerName, &ImagePath, &Entry)> {
        self.parts.iter().flat_map(|(name, tree)| tree.iter().map(|(path, entry)| (*name, path, entry)))
    }
}

/// One layer and the images that have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What is in it.
    pub name: LayerName,
    /// Which part of a group that was cut, and of how many.
    pub part: (usize, usize),
    /// The images, by their position.
    pub images: Vec<usize>,
    /// The files.
    pub tree: Tree,
}

impl Planned {
    /// As shown to people and in the image's history. It says nothing about the other images: an image must
    /// not change because another one is added.
    pub fn label(&self) -> String {
        match self.part {
            (_, 1) => self.name.label().to_owned(),
            (part, of) => format!("{} ({part}/{of})", self.name.label()),
        }
    }
}

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
