//! Layers that a lock keeps as they are.
//!
//! A locked layer lists its files, and a lock records which layers each image has. An image is identified by the
//! digest over its files, not by its matrix entry:
//!
//! * An image whose files are those of a locked image gets exactly the layers of that image. So planning under the
//!   lock of a plan gives the same plan again.
//! * Any other image gets the locked layers that fit: it has each of their files byte for byte, and none of these
//!   files came with an earlier layer. Files that no locked layer covers are grouped anew.
//!
//! So matrix entries can be added, changed or removed, and the layers of all other images stay what they were.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::parts::{Files, LayerName, Planned};
use crate::{
    digest::Digest,
    tree::{Entry, ImagePath, Kind, Tree},
};

/// A layer of an earlier plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LockedLayer {
    /// What is in it.
    pub name: LayerName,
    /// Which part of a group that was cut, and of how many: it is in the label, and so in the image's history.
    pub part: (usize, usize),
    /// Digest over the names, attributes and contents of its files.
    pub tree: Digest,
    /// Names by directory.
    pub files: BTreeMap<String, Vec<String>>,
}

/// The layers of an earlier plan, and the images that had them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockedPlan {
    /// The layers, lowest first.
    pub layers: Vec<LockedLayer>,
    /// The layers of each image by their position; the key is the digest over the image's files.
    pub images: BTreeMap<Digest, Vec<usize>>,
}

impl LockedPlan {
    /// Records a plan. `images` are the files of the images in the order that the plan refers to.
    pub fn of<'a>(planned: &[Planned], images: impl Iterator<Item = &'a Files>) -> Self {
        let stack = |(at, files): (usize, &Files)| {
            let own = planned.iter().enumerate().filter(|(_, layer)| layer.images.contains(&at));
            (files.fingerprint(), own.map(|(position, _)| position).collect())
        };
        Self {
            layers: planned.iter().map(LockedLayer::of).collect(),
            images: images.enumerate().map(stack).collect(),
        }
    }
}

impl LockedLayer {
    /// Records a planned layer.
    pub fn of(planned: &Planned) -> Self {
        let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for path in planned.tree.keys() {
            let directory = path.parent().map_or_else(String::new, |parent| parent.as_str().to_owned());
            files.entry(directory).or_default().push(path.name().to_owned());
        }
        Self { name: planned.name, part: planned.part, tree: fingerprint(&planned.tree), files }
    }

    /// The layer's files as an image has them; `None` when it lacks one or has another.
    fn in_image(&self, entries: &BTreeMap<&str, Vec<&Entry>>, only: Option<&Tree>) -> Option<Tree> {
        let mut tree = Tree::new();
        for (directory, names) in &self.files {
            for name in names {
                let path = ImagePath::new(format!("{directory}/{name}").trim_start_matches('/')).ok()?;
                let found = entries.get(path.as_str())?;
                let wanted = only.and_then(|tree| tree.get(&path));
                let entry = match wanted {
                    Some(wanted) => found.iter().find(|entry| **entry == wanted)?,
                    None => found.first()?,
                };
                tree.insert(path, (*entry).clone());
            }
        }
        (fingerprint(&tree) == self.tree).then_some(tree)
    }
}

/// Digest over everything that a layer says about its files; independent of the compression.
pub fn fingerprint(tree: &Tree) -> Digest {
    Digest::of(&serde_json::to_vec(tree).expect("paths are strings"))
}

/// Assigns locked layers to images, in the order of the lock. The second value lists for each image the paths that
/// these layers cover.
pub fn claim(locked: &LockedPlan, images: &[Files]) -> (Vec<Planned>, Vec<BTreeSet<ImagePath>>) {
    let mut claimed: Vec<BTreeSet<ImagePath>> = vec![BTreeSet::new(); images.len()];
    let stacks: Vec<Option<&Vec<usize>>> =
        images.iter().map(|files| locked.images.get(&files.fingerprint())).collect();
    let entries: Vec<BTreeMap<&str, Vec<&Entry>>> = images.iter().map(by_path).collect();
    let mut planned = Vec::new();
    for (position, layer) in locked.layers.iter().enumerate() {
        let mut owners = Vec::new();
        let mut tree: Option<Tree> = None;
        for (image, entries) in entries.iter().enumerate() {
            if stacks[image].is_some_and(|stack| !stack.contains(&position)) {
                continue;
            }
            let Some(found) = layer.in_image(entries, tree.as_ref()) else { continue };
            let own = |(path, entry): (&ImagePath, &Entry)| {
                let covers = entry.kind != Kind::Directory || !inhabited(entries, path);
                covers.then(|| path.clone())
            };
            let covered: BTreeSet<ImagePath> = found.iter().filter_map(own).collect();
            if covered.is_empty() || !covered.is_disjoint(&claimed[image]) {
                continue;
            }
            claimed[image].extend(covered);
            owners.push(image);
            tree = Some(found);
        }
        if let Some(tree) = tree {
            planned.push(Planned { name: layer.name, part: layer.part, images: owners, tree });
        }
    }
    (planned, claimed)
}

fn by_path(files: &Files) -> BTreeMap<&str, Vec<&Entry>> {
    let mut entries: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for (_, path, entry) in files.entries() {
        entries.entry(path.as_str()).or_default().push(entry);
    }
    entries
}

fn inhabited(entries: &BTreeMap<&str, Vec<&Entry>>, directory: &ImagePath) -> bool {
    let prefix = format!("{directory}/").trim_start_matches('/').to_owned();
    entries.range(prefix.as_str()..).next().is_some_and(|(path, _)| path.starts_with(&prefix))
}
