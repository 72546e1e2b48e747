//! Reads tar archives (plain, gzip or zstd) into the cache, and refuses those that mean harm.
//!
//! Two kinds of archive are read. A *root file system* may hold anything a file system can: absolute
//! symbolic links, devices, set-id files, extended attributes; members behind a symbolic link to a directory
//! are put where the link leads, inside the tree. A *source archive* holds a project's files: links must stay
//! inside the archive, devices are refused. In both, an absolute path or one with `..` is refused, and so is
//! an archive that unpacks to more than the limit or that ends early.
//!
//! Nothing is ever written under a path that the archive names: contents go to the cache under their digest,
//! so no archive can reach outside it.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    ops::Bound,
    path::Path,
};

use oci::archive::{End, decompressed, for_each_member};

use super::{
    sparse::{self, Sparse},
    tarball::{ArchiveError, Limits},
};
use crate::{
    cache::{Cache, CacheError, Content, Shelf},
    tree::{self, Entry, ImagePath, Kind, Tree},
};

/// Symbolic links followed for one path before it counts as a loop, as in the Linux kernel.
pub const LINK_LIMIT: usize = 40;

/// What kind of archive is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// A whole root file system.
    RootFileSystem,
    /// A project's files.
    Source,
}

impl Flavour {
    /// For cache keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::RootFileSystem => "root file system",
            Self::Source => "source",
        }
    }
}

/// Reads an archive into the cache and describes it.
pub fn unpack(
    cache: &Cache,
    reader: impl Read + Send,
    flavour: Flavour,
    limits: Limits,
) -> Result<Tree, ArchiveError> {
    let mut reader = decompressed(reader)?;
    let mut unpacker = Unpacker { cache, flavour, limits, tree: Tree::new(), bytes: 0, links: 0 };
    let each = |member: &mut tar::Entry<'_, _>| unpacker.member(member);
    let end = for_each_member(&mut reader, limits.bounds(), ArchiveError::from, each)?;
    let mut tree = unpacker.tree;
    if end == End::Bare {
        return Err(ArchiveError::Truncated);
    }
    // The checksum of a compressed archive stands behind the last member.
    io::copy(&mut reader, &mut io::sink()).map_err(ArchiveError::Read)?;
    tree::complete(&mut tree);
    Ok(tree)
}

/// Opens and reads an archive file.
pub fn unpack_file(cache: &Cache, path: &Path, flavour: Flavour) -> Result<Tree, ArchiveError> {
    let file =
        std::fs::File::open(path).map_err(|source| ArchiveError::Open { path: path.to_owned(), source })?;
    unpack(cache, file, flavour, Limits::default())
}

struct Unpacker<'a> {
    cache: &'a Cache,
    flavour: Flavour,
    limits: Limits,
    tree: Tree,
    bytes: u64,
    links: u32,
}

impl Unpacker<'_> {
    fn member(&mut self, member: &mut tar::Entry<'_, impl Read>) -> Result<(), ArchiveError> {
        use tar::EntryType as Type;
        let sparse = sparse::of(member).map_err(ArchiveError::Read)?;
        let name = sparse.as_ref().and_then(|sparse| sparse.name.clone());
        let name = text(&name.unwrap_or_else(|| member.path_bytes().into_owned()), "its name")?;
        if matches!(name.trim_end_matches('/'), "." | "") {
            return Ok(());
        }
        let path = ImagePath::new(&name).map_err(ArchiveError::Path)?;
        let refuse = |reason: &str| ArchiveError::Member { member: name.clone(), reason: reason.to_owned() };
        if path.name().starts_with(".wh.") {
            return Err(refuse("names that start with `.wh.` mean deletion in an image layer"));
        }
        let path = self.place(&path).map_err(|reason| refuse(&reason))?;
        let kind = match member.header().entry_type() {
            Type::XGlobalHeader => return Ok(()),
            Type::Directory => Kind::Directory,
            Type::Regular | Type::Continuous | Type::GNUSparse => {
                Kind::File { content: self.content(member, sparse)?, link: None }
            }
            Type::Symlink => {
                let target = link_target(member)?.ok_or_else(|| refuse("the link has no target"))?;
                self.check_symlink(&path, &target).map_err(|reason| refuse(&reason))?;
                Kind::Symlink(target)
            }
            Type::Link => {
                let target = link_target(member)?.ok_or_else(|| refuse("the link has no target"))?;
                let entry = self.hard_link(&target).map_err(|reason| refuse(&reason))?;
                self.tree.insert(path, entry);
                return Ok(());
            }
            kind @ (Type::Char | Type::Block | Type::Fifo) if self.flavour == Flavour::RootFileSystem => {
                special(kind, member.header()).ok_or_else(|| refuse("its device numbers cannot be read"))?
            }
            _ => return Err(refuse("only files, directories and links are expected here")),
        };
        let entry = Self::describe(kind, member)?;
        self.insert(path, entry);
        Ok(())
    }

    /// Reads a file into the cache.
    fn content(
        &mut self,
        member: &mut tar::Entry<'_, impl Read>,
        sparse: Option<Sparse>,
    ) -> Result<Content, ArchiveError> {
        let size = sparse.as_ref().map_or_else(|| member.size(), |sparse| sparse.size);
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes {
            return Err(ArchiveError::TooLarge { limit: self.limits.bytes, unit: "bytes" });
        }
        let content = match sparse {
            None => self.cache.put(Shelf::Files, member),
            Some(sparse) => {
                self.cache.put(Shelf::Files, &mut sparse.content(member).map_err(ArchiveError::Read)?)
            }
        };
        content.map_err(|error| match error {
            CacheError::Input(source) => ArchiveError::Read(source),
            other => other.into(),
        })
    }

    /// A directory that comes again only changes its attributes; anything else replaces what was there, with
    /// everything below it, as extraction does.
    fn insert(&mut self, path: ImagePath, entry: Entry) {
        if entry.kind != Kind::Directory {
            let prefix = format!("{}/", path.as_str());
            let below = self
                .tree
                .range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded))
                .map(|(other, _)| other);
            let doomed: Vec<_> =
                below.take_while(|other| other.as_str().starts_with(&prefix)).cloned().collect();
            for other in doomed {
                self.tree.remove(&other);
            }
        }
        self.tree.insert(path, entry);
    }

    fn describe(kind: Kind, member: &mut tar::Entry<'_, impl Read>) -> Result<Entry, ArchiveError> {
        let header = member.header();
        let mut entry = Entry {
            kind,
            mode: header.mode().map_err(ArchiveError::Read)? & 0o7777,
            uid: header.uid().map_err(ArchiveError::Read)?,
            gid: header.gid().map_err(ArchiveError::Read)?,
            mtime: header.mtime().map_err(ArchiveError::Read)?,
            xattrs: BTreeMap::new(),
        };
        // `tar` applies `path`, `linkpath` and `size` of extended headers itself.
        let Some(extensions) = member.pax_extensions().map_err(ArchiveError::Read)? else { return Ok(entry) };
        for extension in extensions {
            let extension = extension.map_err(ArchiveError::Read)?;
            let key = text(extension.key_bytes(), "an extended header")?;
            let number = || extension.value().ok().and_then(|value| value.parse::<u64>().ok());
            match key.as_str() {
                "uid" => entry.uid = number().unwrap_or(entry.uid),
                "gid" => entry.gid = number().unwrap_or(entry.gid),
                _ => {
                    if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                        entry.xattrs.insert(name.to_owned(), hex::encode(extension.value_bytes()));
                    }
                }
            }
        }
        Ok(entry)
    }

    /// Where a member goes: behind the symbolic links of the directories in its path.
    fn place(&self, path: &ImagePath) -> Result<ImagePath, String> {
        let Some(parent) = path.parent() else { return Ok(path.clone()) };
        let resolved = resolve(&parent, |path| match self.tree.get(path).map(|entry| &entry.kind) {
            Some(Kind::Symlink(target)) => Some(target.clone()),
            _ => None,
        })
        .ok_or("its directory is a loop of symbolic links")?;
        if self.flavour == Flavour::Source && resolved.as_ref() != Some(&parent) {
            return Err(format!("it lies behind the symbolic link `{parent}`"));
        }
        let placed = match &resolved {
            None => ImagePath::new(path.name()),
            Some(directory) => directory.join(path.name()),
        };
        let placed = placed.map_err(|error| error.to_string())?;
        let blocked = placed
            .ancestors()
            .find(|above| self.tree.get(above).is_some_and(|entry| entry.kind != Kind::Directory));
        match blocked {
            Some(above) => Err(format!("`{above}` is a file and not a directory")),
            None => Ok(placed),
        }
    }

    fn check_symlink(&self, path: &ImagePath, target: &str) -> Result<(), String> {
        if self.flavour == Flavour::RootFileSystem {
            return Ok(());
        }
        let inside = !target.starts_with('/') && {
            let mut depth = path.ancestors().count();
            target.split('/').filter(|part| !part.is_empty() && *part != ".").all(|part| {
                if part == ".." {
                    let stays = depth > 0;
                    depth = depth.saturating_sub(1);
                    stays
                } else {
                    depth += 1;
                    true
                }
            })
        };
        if inside { Ok(()) } else { Err(format!("it is a link to `{target}`, outside the archive")) }
    }

    /// A hard link is the entry of its target under another name.
    fn hard_link(&mut self, target: &str) -> Result<Entry, String> {
        let path = ImagePath::new(target).map_err(|error| error.to_string())?;
        let path = self.place(&path)?;
        let number = self.links;
        let entry = self.tree.get_mut(&path).ok_or_else(|| {
            format!("it is a hard link to `{target}`, which is not among the members before it")
        })?;
        if let Kind::File { link, .. } = &mut entry.kind {
            if link.is_none() {
                *link = Some(number);
                self.links += 1;
            }
            Ok(entry.clone())
        } else {
            Err(format!("it is a hard link to `{target}`, which is no regular file"))
        }
    }
}

fn special(kind: tar::EntryType, header: &tar::Header) -> Option<Kind> {
    if kind == tar::EntryType::Fifo {
        return Some(Kind::Fifo);
    }
    let (major, minor) = (header.device_major().ok()??, header.device_minor().ok()??);
    Some(if kind == tar::EntryType::Char {
        Kind::Character { major, minor }
    } else {
        Kind::Block { major, minor }
    })
}

fn link_target(member: &tar::Entry<'_, impl Read>) -> Result<Option<String>, ArchiveError> {
    match member.link_name_bytes() {
        Some(bytes) if !bytes.is_empty() => text(&bytes, "its link target").map(Some),
        _ => Ok(None),
    }
}

fn text(bytes: &[u8], what: &str) -> Result<String, ArchiveError> {
    match str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(ArchiveError::Member {
            member: String::from_utf8_lossy(bytes).into_owned(),
            reason: format!("{what} is not UTF-8"),
        }),
    }
}

/// Follows symbolic links in every component of `path`, inside a tree whose root nothing leaves (as in a
/// container). `link` gives the target where a path is a symbolic link. The result is `Some(None)` for the
/// root itself and `None` for a loop. Components that do not exist are taken as they are.
pub fn resolve(path: &ImagePath, link: impl Fn(&str) -> Option<String>) -> Option<Option<ImagePath>> {
    let mut pending: Vec<String> = path.as_str().rsplit('/').map(str::to_owned).collect();
    let mut done: Vec<String> = Vec::new();
    let mut followed = 0;
    while let Some(part) = pending.pop() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                done.pop();
                continue;
            }
            _ => done.push(part),
        }
        if let Some(target) = link(&done.join("/")) {
            followed += 1;
            if followed > LINK_LIMIT {
                return None;
            }
            done.pop();
            if target.starts_with('/') {
                done.clear();
            }
            pending.extend(target.rsplit('/').map(str::to_owned));
        }
    }
    if done.is_empty() {
        return Some(None);
    }
    Some(ImagePath::new(&done.join("/")).ok())
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
