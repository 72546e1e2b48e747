//! The container runtime's content on this node: blobs that need not be fetched.
//!
//! ```text
//! <directory>/blobs/<algorithm>/<hex>     containerd's `io.containerd.content.v1.content`
//! ```
//!
//! Neither names nor sizes there are trusted. A blob is taken over by hashing it while it is copied or, when linking
//! is allowed, by linking it aside, hashing it, and moving it to its place. The runtime may remove a file at any
//! time; then it counts as missing. The agent never writes there.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use super::{
    Blob, Store, StoreError,
    paths::{self, Mode},
};
use crate::types::Digest;

/// Bytes read at once.
const BUFFER: usize = 256 * 1024;

/// Where the runtime keeps blobs, and whether they may be linked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeContent {
    /// The directory with `blobs/sha256/...`.
    pub directory: PathBuf,
    /// A blob may be linked if both directories are on one file system, so that it takes space only once.
    pub link: bool,
}

/// A file of the runtime that may be a blob: open, regular, of the size in the manifest.
#[derive(Debug)]
pub struct RuntimeBlob {
    file: File,
    path: PathBuf,
    digest: Digest,
    size: u64,
}

impl Store {
    /// The runtime's file with this name, if it has this size. Blocking.
    pub fn runtime_blob(&self, digest: &Digest, size: u64) -> Option<RuntimeBlob> {
        let content = self.0.runtime.as_ref()?;
        let path = content.directory.join("blobs").join(digest.algorithm().as_str()).join(digest.hex());
        // Most blobs are missing there, and a directory that cannot be read counts as empty.
        let file = open_regular(&path).ok()?;
        let fits = file.metadata().is_ok_and(|found| found.len() == size);
        fits.then_some(RuntimeBlob { file, path, digest: *digest, size })
    }

    /// Links the runtime's file into the store. `None` when that is not possible: linking is not allowed, the file is
    /// on another file system or mounted read-only, does not match its digest, or was removed. Blocking.
    pub fn link_runtime_blob(&self, found: &RuntimeBlob) -> Option<Blob> {
        if !self.is_owner() || !self.0.runtime.as_ref()?.link {
            return None;
        }
        let aside = self.0.paths.aside();
        let linked = self.link(found, &aside);
        // After success it was moved; a leftover file is removed at the next start.
        let _ = fs::remove_file(&aside);
        linked.unwrap_or_else(|error| {
            tracing::debug!(digest = %found.digest.short(), %error, "cannot link the container runtime's file: copying it");
            None
        })
    }

    fn link(&self, found: &RuntimeBlob, aside: &Path) -> Result<Option<Blob>, StoreError> {
        // Linked first: the hashed file then stays, whatever happens to the runtime's own name.
        fs::hard_link(&found.path, aside).map_err(StoreError::io("link", &found.path))?;
        let file = open_regular(aside).map_err(StoreError::io("open", aside))?;
        let version = |file: &File| {
            let found = file.metadata().map_err(StoreError::io("inspect", aside))?;
            Ok::<_, StoreError>((found.len(), found.mtime(), found.mtime_nsec()))
        };
        let before = version(&file)?;
        let hash = hash(&file, &found.digest).map_err(StoreError::io("read", &found.path))?;
        if hash != found.digest || version(&file)? != before {
            tracing::warn!(path = %found.path.display(), "the container runtime's file does not match its digest: skipped");
            return Ok(None);
        }
        let target = self.0.paths.blob(&found.digest);
        // The permissions are the runtime's and stay.
        paths::publish(aside, &target, Mode::Normal)?;
        let blob = Blob::of(file).map_err(StoreError::io("inspect", &target))?;
        self.index().insert(&found.digest, blob.size());
        Ok(Some(blob.held(self.0.usage.hold(&found.digest))))
    }
}

impl RuntimeBlob {
    /// Its size in bytes, according to a manifest.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The next bytes at `position`, never past the expected size; empty at the end of the file. Blocking.
    pub fn read(&self, position: u64) -> io::Result<Vec<u8>> {
        let left = self.size.saturating_sub(position);
        let mut buffer = vec![0; usize::try_from(left).unwrap_or(BUFFER).min(BUFFER)];
        let read = self.file.read_at(&mut buffer, position)?;
        buffer.truncate(read);
        Ok(buffer)
    }
}

/// Without following a link, and without waiting for the other end of a pipe.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

fn hash(file: &File, digest: &Digest) -> io::Result<Digest> {
    let mut hasher = digest.algorithm().hasher();
    let (mut buffer, mut position) = (vec![0; BUFFER], 0);
    loop {
        match file.read_at(&mut buffer, position)? {
            0 => return Ok(hasher.finish()),
            read => {
                hasher.update(&buffer[..read]);
                position += read as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Config, Limits},
        *,
    };

    fn put(directory: &Path, name: &Digest, content: &[u8]) -> PathBuf {
        let path = directory.join("blobs/sha256").join(name.hex());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn store(home: &Path, link: bool) -> Store {
        let runtime = Some(RuntimeContent { directory: home.join("runtime"), link });
        Store::open(&Config { data_dir: home.join("data"), limits: Limits::default(), runtime }).unwrap()
    }

    #[tokio::test]
    async fn a_blob_of_the_runtime_is_linked_when_its_bytes_are_right() {
        let home = tempfile::tempdir().unwrap();
        let store = store(home.path(), true);
        let (right, wrong) = (Digest::of(b"right"), Digest::of(b"other"));
        let path = put(&home.path().join("runtime"), &right, b"right");
        put(&home.path().join("runtime"), &wrong, b"wrong");
        assert!(store.runtime_blob(&right, 4).is_none(), "of another size");
        assert!(store.runtime_blob(&Digest::of(b"no"), 2).is_none());
        let found = store.runtime_blob(&right, 5).unwrap();
        assert_eq!(found.read(0).unwrap(), b"right");
        assert!(found.read(5).unwrap().is_empty());
        drop(store.link_runtime_blob(&found).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().nlink(), 2, "one copy serves both");
        fs::remove_file(path).unwrap();
        assert_eq!(store.blob(&right).await.unwrap().unwrap().read_all().await.unwrap(), &b"right"[..]);
        let found = store.runtime_blob(&wrong, 5).unwrap();
        assert!(store.link_runtime_blob(&found).is_none());
        assert!(store.blob(&wrong).await.unwrap().is_none());
        assert_eq!(fs::read_dir(home.path().join("data/tmp")).unwrap().count(), 0);
    }

    #[test]
    fn links_pipes_and_directories_are_not_opened_and_nothing_is_linked_unless_allowed() {
        let home = tempfile::tempdir().unwrap();
        let store = store(home.path(), false);
        let digest = Digest::of(b"x");
        let path = put(&home.path().join("runtime"), &digest, b"x");
        let found = store.runtime_blob(&digest, 1).unwrap();
        assert!(store.link_runtime_blob(&found).is_none());
        fs::rename(&path, home.path().join("x")).unwrap();
        std::os::unix::fs::symlink(home.path().join("x"), &path).unwrap();
        assert!(store.runtime_blob(&digest, 1).is_none());
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        assert!(store.runtime_blob(&digest, 0).is_none());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(store.runtime_blob(&digest, fs::metadata(&path).unwrap().len()).is_none());
    }
}
