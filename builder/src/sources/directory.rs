//! Reads files and directories of this disk into the cache.
//!
//! Directories `__pycache__` are left out: compiled Python files hold times and belong to the Python that made them.
//! Owners and times of the disk are dropped (who checked the files out, and when, says nothing about them), and
//! permission bits are reduced to "executable or not", so that a umask changes no image.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::{
    cache::{Cache, CacheError, Content, Shelf},
    digest::Digest,
    tree::Entry,
};

/// A directory with more is a mistake, such as `/`.
const LIMIT: usize = 200_000;

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Something in it cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its name cannot be written into an image.
    #[error("the name of `{}` is not UTF-8", .0.display())]
    Name(PathBuf),
    /// It is something else than a file, a directory or a link.
    #[error("`{}` is no file, directory or link", .0.display())]
    Kind(PathBuf),
    /// It holds too much.
    #[error("it holds more than {LIMIT} files")]
    Large,
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Everything below a directory, by its path below it, sorted.
pub fn read(cache: &Cache, root: &Path) -> Result<Vec<(String, Entry)>, DirectoryError> {
    let mut found = Vec::new();
    let mut open = vec![(root.to_owned(), String::new())];
    while let Some((directory, below)) = open.pop() {
        let fail = |source| DirectoryError::Read { path: directory.clone(), source };
        for entry in fs::read_dir(&directory).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| DirectoryError::Name(path.clone()))?;
            if name == "__pycache__" {
                continue;
            }
            let below = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
            let fail = |source| DirectoryError::Read { path: path.clone(), source };
            let kind = fs::symlink_metadata(&path).map_err(fail)?.file_type();
            let entry = if kind.is_symlink() {
                let target = fs::read_link(&path).map_err(fail)?;
                Entry::symlink(target.to_str().ok_or_else(|| DirectoryError::Name(path.clone()))?)
            } else if kind.is_dir() {
                open.push((path, below.clone()));
                Entry::directory(0o755)
            } else if kind.is_file() {
                let (content, executable) = file(cache, &path)?;
                Entry::file(content, if executable { 0o755 } else { 0o644 })
            } else {
                return Err(DirectoryError::Kind(path));
            };
            found.push((below, entry));
            if found.len() > LIMIT {
                return Err(DirectoryError::Large);
            }
        }
    }
    found.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
    Ok(found)
}

/// A digest over names, bits and contents.
pub fn digest(files: &[(String, Entry)]) -> Digest {
    Digest::of(&serde_json::to_vec(files).expect("entries are JSON"))
}

/// The content of a file, and whether its owner may execute it.
pub fn file(cache: &Cache, path: &Path) -> Result<(Content, bool), DirectoryError> {
    let fail = |source| DirectoryError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(fail)?;
    let mode = file.metadata().map_err(fail)?.permissions().mode();
    let content = cache.put(Shelf::Files, &mut file).map_err(|error| match error {
        CacheError::Input(source) => fail(source),
        other => other.into(),
    })?;
    Ok((content, mode & 0o100 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Kind;

    #[test]
    fn a_directory_is_read_without_what_belongs_to_the_disk() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::open(&home.path().join("cache")).unwrap();
        let root = home.path().join("conf");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(root.join("sub/run.sh"), "x").unwrap();
        fs::set_permissions(root.join("sub/run.sh"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(root.join("plain"), "y").unwrap();
        fs::create_dir(root.join("sub/__pycache__")).unwrap();
        fs::write(root.join("sub/__pycache__/a.cpython-311.pyc"), "holds a time").unwrap();
        fs::set_permissions(root.join("plain"), fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("plain", root.join("link")).unwrap();
        let read = read(&cache, &root).unwrap();
        let shown: Vec<(&str, u32)> = read.iter().map(|(path, entry)| (path.as_str(), entry.mode)).collect();
        assert_eq!(shown, [("link", 0o777), ("plain", 0o644), ("sub", 0o755), ("sub/run.sh", 0o755)]);
        assert_eq!(read[0].1.kind, Kind::Symlink("plain".to_owned()));
        assert!(read.iter().all(|(_, entry)| entry.uid == 0 && entry.mtime == crate::tree::FIXED_TIME));
    }
}
