//! The files of a base with their contents, for programs that run in them while an image is built.

use std::{ops::Bound, sync::Arc};

use super::Base;
use crate::{
    cache::{Cache, Shelf},
    digest::Digest,
    sources::{
        archive::{self, Flavour},
        tarball::{ArchiveError, Limits},
    },
    tree::{Entry, ImagePath, Kind, Tree},
};

impl Base {
    /// All files of the base; the contents are in the cache. Layers of an image are unpacked for this.
    pub fn files(&self, cache: &Cache) -> Result<Arc<Tree>, ArchiveError> {
        if let Some(tree) = &self.tree {
            return Ok(tree.clone());
        }
        let mut files = Tree::new();
        for layer in &self.layers {
            let key = Digest::of(format!("files 1 {}", layer.blob.digest).as_bytes());
            let known = cache.note::<Tree>("trees-v2", &key).filter(|tree| {
                tree.values()
                    .filter_map(Entry::content)
                    .all(|content| cache.find(Shelf::Files, &content).is_some())
            });
            let tree = if let Some(tree) = known {
                tree
            } else {
                let blob = cache.open_content(Shelf::Blobs, &layer.blob)?;
                let tree = archive::unpack(cache, blob, Flavour::RootFileSystem, Limits::default())?;
                cache.leave_note("trees-v2", &key, &tree)?;
                tree
            };
            apply(&mut files, tree);
        }
        Ok(Arc::new(files))
    }
}

/// Puts a layer on top of the files below it, with the whiteouts of the OCI image specification ("layer.md").
fn apply(files: &mut Tree, layer: Tree) {
    let (marks, entries): (Tree, Tree) =
        layer.into_iter().partition(|(path, _)| path.name().starts_with(".wh."));
    for path in marks.keys() {
        let parent = path.parent();
        if path.name() == ".wh..wh..opq" {
            remove_below(files, parent.as_ref());
        } else if let Some(hidden) = path.name().strip_prefix(".wh.") {
            let hidden = match &parent {
                Some(parent) => parent.join(hidden),
                None => ImagePath::new(hidden),
            };
            if let Ok(hidden) = hidden {
                files.remove(&hidden);
                remove_below(files, Some(&hidden));
            }
        }
    }
    for (path, entry) in entries {
        if entry.kind != Kind::Directory {
            remove_below(files, Some(&path));
        }
        files.insert(path, entry);
    }
}

fn remove_below(files: &mut Tree, directory: Option<&ImagePath>) {
    match directory {
        None => files.clear(),
        Some(directory) => {
            let prefix = format!("{}/", directory.as_str());
            let doomed: Vec<ImagePath> = files
                .range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded))
                .map(|(path, _)| path)
                .take_while(|path| path.as_str().starts_with(&prefix))
                .cloned()
                .collect();
            for path in doomed {
                files.remove(&path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(paths: &[&str]) -> Tree {
        paths.iter().map(|path| (ImagePath::new(path).unwrap(), Entry::symlink("x"))).collect()
    }

    #[test]
    fn layers_hide_what_they_say() {
        let mut files = tree(&["etc/a", "etc/b", "opt/c/d", "opt/e", "srv/f", "srv/g"]);
        apply(&mut files, tree(&["etc/.wh.a", "opt/c", "srv/.wh..wh..opq", "srv/h"]));
        let left: Vec<&str> = files.keys().map(ImagePath::as_str).collect();
        assert_eq!(left, ["etc/b", "opt/c", "opt/e", "srv/h"]);
        apply(&mut files, tree(&[".wh..wh..opq", "new"]));
        assert_eq!(files.keys().map(ImagePath::as_str).collect::<Vec<_>>(), ["new"]);
    }
}
