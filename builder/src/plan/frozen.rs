//! Layers that a lock keeps as they are.
//!
//! A frozen layer names its files, not the images that have it: an image gets the layer when it has every one of
//! these files byte for byte and none of them came with an earlier layer. So a cell can be added, changed or
//! removed, and the layers of all other cells stay what they were; what is not covered is grouped anew.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::layers::{Files, LayerName, Planned};
use crate::{
    digest::Digest,
    tree::{Entry, ImagePath, Kind, Tree},
};

/// A layer of an earlier plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Frozen {
    /// What is in it.
    pub name: LayerName,
    /// Which part of a group that was cut, and of how many: it is in the label, and so in the image's history.
    pub part: (usize, usize),
    /// Digest over the names, attributes and contents of its files.
    pub tree: Digest,
    /// Names by directory.
    pub files: BTreeMap<String, Vec<String>>,
}

impl Frozen {
    /// Remembers a planned layer.
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

/// Gives images the frozen layers whose files they have, in the order of the lock; and says for each image which
/// paths these layers cover.
pub fn claim(frozen: &[Frozen], images: &[Files]) -> (Vec<Planned>, Vec<BTreeSet<ImagePath>>) {
    let mut claimed: Vec<BTreeSet<ImagePath>> = vec![BTreeSet::new(); images.len()];
    let entries: Vec<BTreeMap<&str, Vec<&Entry>>> = images
        .iter()
        .map(|files| {
            let mut entries: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
            for (_, path, entry) in files.entries() {
                entries.entry(path.as_str()).or_default().push(entry);
            }
            entries
        })
        .collect();
    let mut planned = Vec::new();
    for layer in frozen {
        let mut members = Vec::new();
        let mut tree: Option<Tree> = None;
        for (image, entries) in entries.iter().enumerate() {
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
            members.push(image);
            tree = Some(found);
        }
        if let Some(tree) = tree {
            planned.push(Planned { name: layer.name, part: layer.part, images: members, tree });
        }
    }
    (planned, claimed)
}

fn inhabited(entries: &BTreeMap<&str, Vec<&Entry>>, directory: &ImagePath) -> bool {
    let prefix = format!("{directory}/").trim_start_matches('/').to_owned();
    entries.range(prefix.as_str()..).next().is_some_and(|(path, _)| path.starts_with(&prefix))
}
