//! A tree of the cache as files on this disk.

use std::{
    fs::{self, File, FileTimes, Permissions},
    io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tempfile::TempDir;

use super::error::SandboxError;
use crate::{
    cache::{Cache, Shelf},
    tree::{Entry, ImagePath, Kind, Tree},
};

/// Names resolve to this and nothing else in a sandbox.
const HOSTS: &str = "127.0.0.1 localhost\n";

/// Directories that programs expect and that many images leave to the container runtime.
const EXPECTED: [&str; 5] = ["dev", "dev/shm", "etc", "proc", "tmp"];

/// The files of an image in a directory that is removed when this is dropped.
#[derive(Debug)]
pub struct Root {
    directory: TempDir,
}

impl Root {
    /// Writes a tree. Symbolic links come last, so no file can be written through one.
    pub fn assemble(cache: &Cache, tree: &Tree) -> Result<Self, SandboxError> {
        let root = Self { directory: cache.temporary_directory()? };
        let fault = |path: &Path, source| SandboxError::Cache(cache.fault("write", path, source));
        for name in EXPECTED {
            let path = root.directory.path().join(name);
            fs::create_dir_all(&path).map_err(|source| fault(&path, source))?;
        }
        let links = |entry: &Entry| matches!(entry.kind, Kind::Symlink(_));
        for (path, entry) in tree.iter().filter(|(_, entry)| !links(entry)) {
            let place = root.place(path);
            if let Some(content) = entry.content() {
                let kept = cache.verified(Shelf::Files, &content)?;
                write(&kept, &place, entry).map_err(|source| fault(&place, source))?;
            } else if entry.kind == Kind::Directory {
                fs::create_dir_all(&place).map_err(|source| fault(&place, source))?;
            }
        }
        let hosts = root.directory.path().join("etc/hosts");
        fs::write(&hosts, HOSTS).map_err(|source| fault(&hosts, source))?;
        for (path, entry) in tree {
            let Kind::Symlink(target) = &entry.kind else { continue };
            let place = root.place(path);
            match above(&place).and_then(|()| symlink(target, &place)) {
                Ok(()) => {}
                // A directory that is expected or in use, such as `/etc/hosts` and what lies behind a link.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(fault(&place, source)),
            }
        }
        Ok(root)
    }

    /// Adds a small file.
    pub fn add(&self, cache: &Cache, name: &str, bytes: &[u8]) -> Result<(), SandboxError> {
        let place = self.path(name);
        above(&place)
            .and_then(|()| fs::write(&place, bytes))
            .map_err(|source| cache.fault("write", &place, source).into())
    }

    /// Where a path of the image is on this disk. Links in it are not resolved: use it for directories of hearth only.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn place(&self, path: &ImagePath) -> PathBuf {
        self.directory.path().join(path.as_str())
    }
}

fn above(place: &Path) -> io::Result<()> {
    place.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Copies content with the mode and the time that it has in the image.
fn write(kept: &Path, place: &Path, entry: &Entry) -> io::Result<()> {
    above(place)?;
    fs::copy(kept, place)?;
    // Nothing here runs with more rights than its caller.
    fs::set_permissions(place, Permissions::from_mode(entry.mode & 0o777 | 0o600))?;
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(entry.mtime);
    File::options().write(true).open(place)?.set_times(FileTimes::new().set_modified(time))
}
