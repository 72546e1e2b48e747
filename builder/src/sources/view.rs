//! What the builder knows about the file system below the files it adds.
//!
//! A base is given as layers whose bytes are kept as they are, so only names, links and the contents of a
//! few small files are remembered. Paths are resolved as in a running container: through the base's symbolic
//! links to directories (`/bin -> usr/bin`), never out of its root. Writing `bin/tool` as a real directory
//! entry over such a link would hide the whole of `/usr/bin`'s link.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    archive::resolve,
    elf::{Binary, Interest, Libc},
};
use crate::{
    cache::{Cache, CacheError, Content, Shelf},
    platform::Platform,
    tree::{ImagePath, Kind, Tree},
};

/// Files whose contents are remembered: none is larger than this in any real base.
pub const SMALL: u64 = 256 * 1024;

/// What lies at a path of the base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Node {
    /// A directory.
    Directory,
    /// A file, with its contents when they are of interest (see [`of_interest`]).
    File {
        /// Permission bits.
        mode: u32,
        /// The contents, where they matter.
        text: Option<String>,
        /// What an ELF file says about itself, where it matters.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        binary: Option<Binary>,
    },
    /// A symbolic link.
    Symlink(String),
    /// A device or pipe.
    Special,
}

/// The base's files by path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    nodes: BTreeMap<String, Node>,
}

/// Whether the builder reads this file's contents: the users, and the `release` files of Java runtimes.
pub fn of_interest(path: &str) -> bool {
    matches!(path, "etc/passwd" | "etc/group") || path.ends_with("/release")
}

fn read_binary(cache: &Cache, content: &Content, interest: Interest) -> Result<Option<Binary>, CacheError> {
    let file = cache.open_content(Shelf::Files, content)?;
    interest
        .read(file)
        .map_err(|error| cache.fault("read", &cache.path(Shelf::Files, &content.digest), error))
}

impl Node {
    /// A file of which only the permission bits matter.
    pub fn file(mode: u32) -> Self {
        Self::File { mode, text: None, binary: None }
    }
}

impl View {
    /// The view of a tree whose contents are in the cache.
    pub fn of_tree(cache: &Cache, tree: &Tree) -> Result<Self, CacheError> {
        let mut view = Self::default();
        for (path, entry) in tree {
            let node = match &entry.kind {
                Kind::Directory => Node::Directory,
                Kind::Symlink(target) => Node::Symlink(target.clone()),
                Kind::File { content, .. } => {
                    let read = of_interest(path.as_str()) && content.size <= SMALL;
                    let bytes = if read { Some(cache.read_small(content, SMALL)?) } else { None };
                    let text = bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                    let binary = match Interest::of(path.as_str()) {
                        Some(interest) => read_binary(cache, content, interest)?,
                        None => None,
                    };
                    Node::File { mode: entry.mode, text, binary }
                }
                Kind::Character { .. } | Kind::Block { .. } | Kind::Fifo => Node::Special,
            };
            view.put(path.as_str(), node);
        }
        Ok(view)
    }

    /// Sets what is at a path; a non-directory removes what was below.
    pub fn put(&mut self, path: &str, node: Node) {
        if node != Node::Directory && self.nodes.get(path) == Some(&Node::Directory) {
            self.remove_below(path);
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// Removes a path and everything below it (a whiteout).
    pub fn remove(&mut self, path: &str) {
        self.nodes.remove(path);
        self.remove_below(path);
    }

    /// Removes everything below a directory (an opaque whiteout).
    pub fn remove_below(&mut self, path: &str) {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let doomed: Vec<String> = self
            .nodes
            .range(prefix.clone()..)
            .map(|(path, _)| path)
            .take_while(|path| path.starts_with(&prefix))
            .cloned()
            .collect();
        for path in doomed {
            self.nodes.remove(&path);
        }
    }

    /// Every path with what lies there.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// Where a path really is when all its symbolic links are followed; `None` for a loop or the root.
    pub fn real(&self, path: &ImagePath) -> Option<ImagePath> {
        resolve(path, |path| match self.nodes.get(path) {
            Some(Node::Symlink(target)) => Some(target.clone()),
            _ => None,
        })
        .flatten()
    }

    /// What lies at a path, links followed.
    pub fn get(&self, path: &ImagePath) -> Option<&Node> {
        self.nodes.get(self.real(path)?.as_str())
    }

    /// Whether a program lies at a path, links followed.
    pub fn has_program(&self, path: &ImagePath) -> bool {
        matches!(self.get(path), Some(Node::File { mode, .. }) if mode & 0o111 != 0)
    }

    /// Where to write a file so that it appears at `path`: its directory resolved, its own name kept.
    pub fn place(&self, path: &ImagePath) -> Option<ImagePath> {
        match path.parent() {
            None => Some(path.clone()),
            Some(parent) => self.real(&parent)?.join(path.name()).ok(),
        }
    }

    /// Whether the base has a real directory here.
    pub fn is_directory(&self, path: &str) -> bool {
        self.nodes.get(path) == Some(&Node::Directory)
    }

    /// What the ELF file at a path says about itself, links followed.
    pub fn binary(&self, path: &ImagePath) -> Option<&Binary> {
        match self.get(path) {
            Some(Node::File { binary, .. }) => binary.as_ref(),
            _ => None,
        }
    }

    /// The C library that a program uses: that of its loader, for its platform.
    pub fn libc(&self, program: &ImagePath, platform: Platform) -> Option<Libc> {
        let loader = self.binary(program)?.loader.as_deref()?;
        let musl = loader.contains("ld-musl-");
        let libraries = self.nodes.values().filter_map(|node| match node {
            Node::File { binary: Some(binary), .. } if binary.is_for(platform) => binary.libc,
            _ => None,
        });
        libraries.filter(|libc| matches!(libc, Libc::Musl(..)) == musl).min()
    }

    /// The remembered text of a file, links followed.
    pub fn text(&self, path: &ImagePath) -> Option<&str> {
        match self.get(path) {
            Some(Node::File { text: Some(text), .. }) => Some(text),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Node {
        Node::file(0o755)
    }

    fn merged_usr() -> View {
        let mut view = View::default();
        view.put("bin", Node::Symlink("usr/bin".to_owned()));
        view.put("usr", Node::Directory);
        view.put("usr/bin", Node::Directory);
        view.put("usr/bin/python3", Node::Symlink("python3.11".to_owned()));
        view.put("usr/bin/python3.11", file());
        view
    }

    #[test]
    fn paths_go_through_the_links_of_the_base() {
        let view = merged_usr();
        assert_eq!(view.place(&ImagePath::known("bin/tool")), Some(ImagePath::known("usr/bin/tool")));
        assert_eq!(view.real(&ImagePath::known("bin/python3")), Some(ImagePath::known("usr/bin/python3.11")));
        assert!(view.has_program(&ImagePath::known("bin/python3")));
        assert!(!view.has_program(&ImagePath::known("bin")));
    }

    #[test]
    fn a_whiteout_removes_what_is_below_and_nothing_beside() {
        let mut view = merged_usr();
        view.put("usr/binary", file());
        view.remove("usr/bin");
        let left: Vec<&str> = view.nodes().map(|(path, _)| path).collect();
        assert_eq!(left, ["bin", "usr", "usr/binary"]);
        view.remove_below("");
        assert_eq!(view.nodes().count(), 0);
    }

    #[test]
    fn a_file_over_a_directory_hides_it() {
        let mut view = merged_usr();
        view.put("usr/bin", file());
        assert!(view.get(&ImagePath::known("usr/bin/python3.11")).is_none());
    }
}
