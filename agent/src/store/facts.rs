//! The contents of the store, for decisions about eviction, and the functions that remove them. All functions block.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    Limits, ManifestRecord, Space, Store, StoreError, TagRecord, paths::Paths, refs, shards::Entry, space,
};
use crate::types::{Algorithm, Digest, MAX_MANIFEST_BYTES, RegistryHost, Repository, Tag};

/// A whole blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobFact {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Second since 1970 of its last use.
    pub used: u64,
    /// Whether the blob is being read or downloaded.
    pub held: bool,
}

/// The name under which a reference points to a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RefName {
    /// A tag.
    Tag(Tag),
    /// The digest itself.
    Digest,
}

impl RefName {
    /// Whether it is a tag.
    pub fn is_tag(&self) -> bool {
        matches!(self, Self::Tag(_))
    }
}

/// A record that a repository has a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RefFact {
    /// The repository.
    pub repository: Repository,
    /// The tag, or the digest.
    pub name: RefName,
    /// The manifest.
    pub digest: Digest,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Whether a pre-pull set keeps it.
    pub held: bool,
}

impl RefFact {
    /// Whether it is never evicted, for any reason.
    pub fn is_kept(&self) -> bool {
        self.pinned || self.held
    }
}

impl std::fmt::Display for RefFact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            RefName::Tag(tag) => write!(f, "{}:{tag}", self.repository),
            RefName::Digest => write!(f, "{}@{}", self.repository, self.digest),
        }
    }
}

/// An unfinished download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialFact {
    /// Digest of the blob.
    pub digest: Digest,
    /// Bytes on disk.
    pub bytes: u64,
    /// Second since 1970 of its last byte.
    pub modified: u64,
    /// Whether the download is running.
    pub held: bool,
}

impl Store {
    /// Every blob; use times are those of the last flush.
    pub fn blobs(&self) -> Result<Vec<BlobFact>, StoreError> {
        let fact = |(digest, entry): (Digest, Entry)| {
            let held = self.0.usage.is_open(&digest);
            BlobFact { digest, size: entry.size, used: entry.used, held }
        };
        Ok(self.index().entries(&self.0.paths)?.into_iter().map(fact).collect())
    }

    /// Every reference.
    pub fn references(&self) -> Result<Vec<RefFact>, StoreError> {
        let mut found = Vec::new();
        each_directory(&self.0.paths, &mut |directory, repository| {
            references_in(directory, repository, &mut found)
        })?;
        Ok(found)
    }

    /// Every partial blob.
    pub fn partials(&self) -> Result<Vec<PartialFact>, StoreError> {
        let mut found = Vec::new();
        for path in list(&self.0.paths.partials())? {
            let digest = name_of(&path).and_then(|name| name.strip_suffix(".data")).and_then(|name| {
                let (algorithm, hex) = name.split_once('-')?;
                let algorithm = Algorithm::ALL.into_iter().find(|one| one.as_str() == algorithm)?;
                Digest::from_parts(algorithm, hex)
            });
            // It may have been finished since then.
            let (Some(digest), Ok(metadata)) = (digest, fs::metadata(&path)) else { continue };
            let modified = u64::try_from(metadata.mtime()).unwrap_or(0);
            let held = self.0.usage.is_open(&digest);
            found.push(PartialFact { digest, bytes: on_disk(&metadata), modified, held });
        }
        Ok(found)
    }

    /// The space that the store uses and may use, and how much has to be evicted.
    pub fn space(&self, partials: &[PartialFact]) -> Result<(Space, u64), StoreError> {
        let file_system = space::file_system(self.0.paths.root())?;
        let used = self.totals().bytes + partials.iter().map(|partial| partial.bytes).sum::<u64>();
        let space = self.0.limits.space(file_system, used);
        Ok((space, self.0.limits.excess(space)))
    }

    /// The configured limits.
    pub fn limits(&self) -> Limits {
        self.0.limits
    }

    /// A manifest's bytes; `None` when it is not stored or too large to be one.
    pub fn read_small(&self, digest: &Digest) -> Option<Vec<u8>> {
        let path = self.0.paths.blob(digest);
        let size = fs::metadata(&path).ok()?.len();
        if size > MAX_MANIFEST_BYTES {
            return None;
        }
        fs::read(&path).ok().filter(|bytes| digest.verify(bytes).is_ok())
    }

    /// Removes a blob unless it is open: first from the index, then the file. A concurrent reader keeps its open
    /// file. Returns the size; `None` when the blob was not removed.
    pub fn remove_blob(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.owner()?;
        if self.0.usage.is_open(digest) {
            return Ok(None);
        }
        self.index().remove(&self.0.paths, digest)
    }

    /// Removes a partial blob unless its download is running. Returns the bytes freed.
    pub fn remove_partial(&self, digest: &Digest) -> Result<u64, StoreError> {
        self.owner()?;
        if self.0.usage.is_open(digest) {
            return Ok(0);
        }
        let data = self.0.paths.partial_data(digest);
        let bytes = fs::metadata(&data).map_or(0, |metadata| on_disk(&metadata));
        refs::remove(&self.0.paths.partial_map(digest))?;
        refs::remove(&data).map(|()| bytes)
    }

    /// Removes a reference, and directories that become empty. A reference that has changed since stays.
    pub fn remove_reference(&self, reference: &RefFact) -> Result<(), StoreError> {
        self.owner()?;
        let _only = self.0.references.lock();
        let path = match &reference.name {
            RefName::Tag(tag) => {
                let path = self.0.paths.tag(&reference.repository, tag);
                let now = refs::read::<TagRecord>(&path)?;
                if now.is_some_and(|record| record.digest != reference.digest) {
                    return Ok(());
                }
                path
            }
            RefName::Digest => self.0.paths.manifest(&reference.repository, &reference.digest),
        };
        refs::remove(&path)?;
        remove_empty_above(&self.0.paths, &path);
        self.note_reference_change();
        Ok(())
    }

    /// Marks exactly the references that `wanted` selects as kept by sets. Returns how many were changed.
    pub fn hold(&self, wanted: &dyn Fn(&RefFact) -> bool) -> Result<usize, StoreError> {
        self.owner()?;
        let mut changed = 0;
        for fact in self.references()? {
            let held = wanted(&fact);
            if fact.held != held && self.set_kept(&fact, None, Some(held))? {
                changed += 1;
            }
        }
        Ok(changed)
    }

    /// Pins or unpins a reference. `false` when it does not exist, or has changed.
    pub fn set_pin(&self, reference: &RefFact, pinned: bool) -> Result<bool, StoreError> {
        self.owner()?;
        self.set_kept(reference, Some(pinned), None)
    }

    fn set_kept(
        &self,
        reference: &RefFact,
        pinned: Option<bool>,
        held: Option<bool>,
    ) -> Result<bool, StoreError> {
        let _only = self.0.references.lock();
        let paths = &self.0.paths;
        match &reference.name {
            RefName::Tag(tag) => {
                let path = paths.tag(&reference.repository, tag);
                let now = refs::read::<TagRecord>(&path)?;
                let Some(now) = now.filter(|record| record.digest == reference.digest) else {
                    return Ok(false);
                };
                let (pinned, held) = (pinned.unwrap_or(now.pinned), held.unwrap_or(now.held));
                refs::write(paths, &path, &TagRecord { pinned, held, ..now })?;
            }
            RefName::Digest => {
                let path = paths.manifest(&reference.repository, &reference.digest);
                let Some(now) = refs::read::<ManifestRecord>(&path)? else { return Ok(false) };
                let (pinned, held) = (pinned.unwrap_or(now.pinned), held.unwrap_or(now.held));
                refs::write(paths, &path, &ManifestRecord { pinned, held, ..now })?;
            }
        }
        self.note_reference_change();
        Ok(true)
    }
}

/// Space of a sparse file: `st_blocks` counts units of 512 bytes on every file system (stat(3type)).
fn on_disk(metadata: &fs::Metadata) -> u64 {
    metadata.blocks() * 512
}

pub(super) fn remove_empty_above(paths: &Paths, path: &Path) {
    let root = paths.refs();
    let above = path.ancestors().skip(1).take_while(|directory| *directory != root);
    for directory in above {
        // Ends at the first directory that is not empty.
        if fs::remove_dir(directory).is_err() {
            return;
        }
    }
}

/// Calls `look` with each directory of references and its repository.
pub(super) fn each_directory(
    paths: &Paths,
    look: &mut dyn FnMut(&Path, &Repository) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    for registry in list(&paths.refs())? {
        let host = name_of(&registry).and_then(|name| name.parse::<RegistryHost>().ok());
        let Some(host) = host else { continue };
        let mut open = vec![(registry, String::new())];
        while let Some((directory, name)) = open.pop() {
            for path in list(&directory)? {
                let Some(part) = name_of(&path) else { continue };
                let below = if name.is_empty() { part.to_owned() } else { format!("{name}/{part}") };
                match (part, name.parse()) {
                    ("_tags" | "_manifests", Ok(name)) => {
                        look(&path, &Repository { registry: host.clone(), name })?;
                    }
                    _ if path.is_dir() => open.push((path, below)),
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

fn references_in(
    directory: &Path,
    repository: &Repository,
    found: &mut Vec<RefFact>,
) -> Result<(), StoreError> {
    let tags = directory.ends_with("_tags");
    for path in list(directory)? {
        let Some(name) = name_of(&path) else { continue };
        let fact = if tags {
            let (Ok(tag), Some(record)) = (name.parse(), refs::read::<TagRecord>(&path)?) else { continue };
            (RefName::Tag(tag), record.digest, record.pinned, record.held)
        } else {
            let (Ok(digest), Some(record)) = (name.parse(), refs::read::<ManifestRecord>(&path)?) else {
                continue;
            };
            (RefName::Digest, digest, record.pinned, record.held)
        };
        let (name, digest, pinned, held) = fact;
        found.push(RefFact { repository: repository.clone(), name, digest, pinned, held });
    }
    Ok(())
}

/// Paths in a directory; empty when it does not exist.
pub(super) fn list(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut all = Vec::new();
    each_in(directory, &mut |path| {
        all.push(path);
        Ok(())
    })?;
    Ok(all)
}

/// Calls `look` with each path in a directory, if it exists, without holding all of them in memory.
pub(super) fn each_in(
    directory: &Path,
    look: &mut dyn FnMut(PathBuf) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StoreError::io("list", directory)(error)),
    };
    for entry in entries {
        look(entry.map_err(StoreError::io("list", directory))?.path())?;
    }
    Ok(())
}

pub(super) fn name_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}
