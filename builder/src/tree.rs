//! Files as an image sees them: paths, entries and trees of entries.
//!
//! A [`Tree`] never holds file contents, only what the cache needs to find them. Paths are kept in byte
//! order, so a directory comes before what is in it and the same files always give the same sequence.

use std::{borrow::Borrow, collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::cache::Content;

/// The modification time of every file that the builder lays out itself: 1980-01-01T00:00:00Z, the earliest
/// that zip archives can express (`shutil.make_archive` and wheels fail on anything older).
///
/// It is a constant and not `SOURCE_DATE_EPOCH`: CI systems set that to the commit's time, and every
/// commit would give every layer a new digest. Only `created` in the image configuration follows it.
pub const FIXED_TIME: u64 = 315_532_800;

/// A path inside an image: relative to its root, no empty, `.` or `..` component.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImagePath(String);

/// Why a text is no path inside an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It starts at the root of the file system.
    #[error("the path `{0}` is absolute")]
    Absolute(String),
    /// It climbs.
    #[error("the path `{0}` contains `..`")]
    Climbs(String),
    /// It has a zero byte or nothing at all in it.
    #[error("the path `{0}` is empty or has a zero byte")]
    Unusable(String),
}

impl ImagePath {
    /// Checks a relative path; `.` components and doubled slashes are dropped.
    pub fn new(text: &str) -> Result<Self, PathError> {
        if text.starts_with('/') {
            return Err(PathError::Absolute(text.to_owned()));
        }
        let mut clean = String::with_capacity(text.len());
        for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
            if part == ".." {
                return Err(PathError::Climbs(text.to_owned()));
            }
            if !clean.is_empty() {
                clean.push('/');
            }
            clean.push_str(part);
        }
        if clean.is_empty() || clean.contains('\0') {
            return Err(PathError::Unusable(text.to_owned()));
        }
        Ok(Self(clean))
    }

    /// A path that is written in this program.
    pub fn known(text: &'static str) -> Self {
        Self::new(text).expect("paths in the program are relative and clean")
    }

    /// The path as text, without a leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path of `name` in this directory.
    pub fn join(&self, name: &str) -> Result<Self, PathError> {
        Self::new(&format!("{}/{name}", self.0))
    }

    /// The directory this is in; `None` when that is the root.
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(parent, _)| Self(parent.to_owned()))
    }

    /// The last component.
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&self.0, |(_, name)| name)
    }

    /// What is left of this path below `directory`.
    pub fn below(&self, directory: &str) -> Option<&str> {
        self.0.strip_prefix(directory)?.strip_prefix('/')
    }

    /// Every directory above, nearest the root first.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> + '_ {
        self.0.match_indices('/').map(|(at, _)| Self(self.0[..at].to_owned()))
    }
}

impl Borrow<str> for ImagePath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

impl fmt::Debug for ImagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Files of an image, in the order in which they are written.
pub type Tree = BTreeMap<ImagePath, Entry>;

/// One file, directory or link with everything a tar header says about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Modification time in seconds.
    pub mtime: u64,
    /// Extended attributes (file capabilities), hex-encoded values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Its bytes.
        content: Content,
        /// Entries of one tree with the same number are hard links of each other.
        link: Option<u32>,
    },
    /// A symbolic link and its target as written.
    Symlink(String),
    /// A character device.
    Character {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

impl Entry {
    /// A directory laid out by the builder, owned by root.
    pub fn directory(mode: u32) -> Self {
        Self::plain(Kind::Directory, mode)
    }

    /// A file laid out by the builder, owned by root.
    pub fn file(content: Content, mode: u32) -> Self {
        Self::plain(Kind::File { content, link: None }, mode)
    }

    /// A symbolic link laid out by the builder.
    pub fn symlink(target: &str) -> Self {
        Self::plain(Kind::Symlink(target.to_owned()), 0o777)
    }

    fn plain(kind: Kind, mode: u32) -> Self {
        Self { kind, mode, uid: 0, gid: 0, mtime: FIXED_TIME, xattrs: BTreeMap::new() }
    }

    /// The content of a regular file.
    pub fn content(&self) -> Option<Content> {
        match self.kind {
            Kind::File { content, .. } => Some(content),
            _ => None,
        }
    }
}

/// Bytes of all regular files of a tree.
pub fn bytes(tree: &Tree) -> u64 {
    tree.values().filter_map(Entry::content).map(|content| content.size).sum()
}

/// Adds the directories that an archive left out, as extraction programs would make them.
pub fn complete(tree: &mut Tree) {
    let missing: Vec<ImagePath> =
        tree.keys().flat_map(ImagePath::ancestors).filter(|path| !tree.contains_key(path)).collect();
    for path in missing {
        tree.insert(path, Entry::directory(0o755));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_or_refused() {
        let path = |text: &str| ImagePath::new(text).map(|path| path.as_str().to_owned());
        assert_eq!(path("./usr//bin/./sh"), Ok("usr/bin/sh".to_owned()));
        assert_eq!(path("a"), Ok("a".to_owned()));
        assert_eq!(path("/etc/passwd"), Err(PathError::Absolute("/etc/passwd".to_owned())));
        assert_eq!(path("a/../b"), Err(PathError::Climbs("a/../b".to_owned())));
        for text in ["", ".", "./", "a\0b"] {
            assert!(matches!(path(text), Err(PathError::Unusable(_))), "{text:?}");
        }
    }

    #[test]
    fn a_path_knows_its_family() {
        let path = ImagePath::known("opt/spark/jars");
        assert_eq!(path.parent(), Some(ImagePath::known("opt/spark")));
        assert_eq!(ImagePath::known("opt").parent(), None);
        assert_eq!(path.name(), "jars");
        assert_eq!(path.below("opt"), Some("spark/jars"));
        assert_eq!(path.below("op"), None);
        let above: Vec<String> = path.ancestors().map(|path| path.to_string()).collect();
        assert_eq!(above, ["/opt", "/opt/spark"]);
    }

    #[test]
    fn left_out_directories_are_added() {
        let mut tree = Tree::new();
        tree.insert(ImagePath::known("a/b/c"), Entry::symlink("x"));
        tree.insert(ImagePath::known("a"), Entry::directory(0o700));
        complete(&mut tree);
        let modes: Vec<(String, u32)> =
            tree.iter().map(|(path, entry)| (path.to_string(), entry.mode)).collect();
        assert_eq!(
            modes,
            [("/a".to_owned(), 0o700), ("/a/b".to_owned(), 0o755), ("/a/b/c".to_owned(), 0o777)]
        );
    }
}
