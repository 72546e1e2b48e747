//! The cache on disk: everything that is expensive to make or to fetch, by digest.
//!
//! ```text
//! <cache>/files-v1/ab/abcd..            contents of single files and downloaded archives, by SHA-256
//! <cache>/members-v3/<codec>/ab/abcd..  the same contents compressed, by SHA-256 of the *raw* bytes
//! <cache>/blobs-v1/ab/abcd..            finished layers and base layers, by SHA-256
//! <cache>/layers-v2/<key>               which blob a layer plan came to
//! <cache>/trees-v2/<key>                what an archive or a base layer holds
//! <cache>/checked-v2/<key>              which file another checksum than SHA-256 names
//! <cache>/downloads-v1/<key>.part       downloads under way; resumed by the next run
//! <cache>/tmp-v1/                       files being written
//! ```
//!
//! Invariants: a name outside `downloads-v1` and `tmp-v1` exists only once its content is whole (write
//! aside, rename), so a killed process leaves nothing to repair. Everything is verified while it is read
//! (`verify`): content against the digest in its name, compressed files and notes against a digest that
//! they carry. A damaged file is removed and made again. Formats carry their version in the directory name; nothing
//! is ever migrated.
//!
//! The cache does not shrink by itself: `hearth cache prune` removes what was not used for a while (`usage`),
//! and every directory in it can be deleted while no build runs. Temporary files of killed processes are removed by the
//! next one that has the cache for itself.

mod state;
pub mod usage;
pub mod verify;

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Serialize, de::DeserializeOwned};
use tempfile::{NamedTempFile, TempDir};

use self::state::State;
use crate::digest::{Digest, Hasher};

/// Copies go through buffers of this size: large enough for full-speed disk reads, small beside the
/// memory bound of the whole program.
pub const BUFFER: usize = 256 * 1024;

/// Temporary files are removed when older than this, even if another process uses the cache.
const STALE: Duration = Duration::from_hours(24);

/// The directories of the cache.
const DIRECTORIES: [&str; 8] =
    ["files-v1", "members-v3", "blobs-v1", "layers-v2", "trees-v2", "checked-v2", "downloads-v1", "tmp-v1"];

/// Hex digits of a digest.
const DIGITS: usize = 64;

/// A problem with the cache directory.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A file of the cache cannot be read or written.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The data that was to be kept cannot be read.
    #[error("cannot read the data to store")]
    Input(#[source] io::Error),
    /// A file is not what it was when it was written.
    #[error("`{}` was damaged and has been removed from the cache: run the same command again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Another process reads what would be removed.
    #[error("another hearth uses the cache `{}`: try again when it has ended", path.display())]
    InUse {
        /// The cache.
        path: PathBuf,
    },
    /// The disk is full.
    #[error("no space left on the disk of `{}`: free some, or choose another place with --cache-dir", path.display())]
    Full {
        /// The cache.
        path: PathBuf,
    },
}

/// Kinds of content that are stored by digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shelf {
    /// Single files and archives.
    Files,
    /// Layers.
    Blobs,
}

impl Shelf {
    fn directory(self) -> &'static str {
        match self {
            Self::Files => "files-v1",
            Self::Blobs => "blobs-v1",
        }
    }
}

/// The content of one file: enough to find it and to know that it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, serde::Deserialize)]
pub struct Content {
    /// SHA-256 of the bytes.
    pub digest: Digest,
    /// How many there are.
    pub size: u64,
}

/// A handle on the cache directory.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    /// Shared with other processes while this one uses the cache.
    lock: Option<Arc<fs::File>>,
    state: Arc<State>,
}

impl Cache {
    /// Opens the cache, makes what is missing and removes what killed runs left half-written.
    pub fn open(root: &Path) -> Result<Self, CacheError> {
        let mut cache = Self { root: root.to_owned(), lock: None, state: Arc::default() };
        for name in DIRECTORIES {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(|source| cache.fault("create", &path, source))?;
        }
        cache.lock = Self::open_lock(root).map(Arc::new);
        let stale = if cache.is_alone() { Duration::ZERO } else { STALE };
        cache.sweep("tmp-v1", stale);
        cache.share();
        Ok(cache)
    }

    /// Where `content` is, if it is there and whole.
    pub fn find(&self, shelf: Shelf, content: &Content) -> Option<PathBuf> {
        let path = self.path(shelf, &content.digest);
        let meta = fs::metadata(&path).ok().filter(|meta| meta.is_file() && meta.len() == content.size)?;
        Self::mark_used(&path, &meta);
        Some(path)
    }

    /// Reads small content whole (scripts, `release` files); larger than `limit` is an error.
    pub fn read_small(&self, content: &Content, limit: u64) -> Result<Vec<u8>, CacheError> {
        let path = self.path(Shelf::Files, &content.digest);
        if content.size > limit {
            let text = format!("{} bytes are more than the {limit} expected here", content.size);
            return Err(self.fault("read", &path, io::Error::new(io::ErrorKind::FileTooLarge, text)));
        }
        let mut bytes = Vec::new();
        let mut file = self.open_content(Shelf::Files, content)?;
        file.read_to_end(&mut bytes).map_err(|source| self.read_fault(&path, source))?;
        Ok(bytes)
    }

    /// Stores everything `reader` gives and says what it was.
    pub fn put(&self, shelf: Shelf, reader: &mut impl Read) -> Result<Content, CacheError> {
        let mut writer = self.writer(shelf)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(CacheError::Input(error)),
            };
            writer.write(&buffer[..count])?;
        }
        writer.keep()
    }

    /// Starts content whose digest is known only at its end.
    pub fn writer(&self, shelf: Shelf) -> Result<ContentWriter<'_>, CacheError> {
        Ok(ContentWriter { cache: self, shelf, file: self.temporary()?, hasher: Hasher::default() })
    }

    /// A file beside the final places; gone when dropped unless it is kept.
    pub fn temporary(&self) -> Result<NamedTempFile, CacheError> {
        let directory = self.root.join("tmp-v1");
        NamedTempFile::new_in(&directory).map_err(|source| self.fault("create a file in", &directory, source))
    }

    /// A directory for files that are needed for a moment; gone when dropped.
    pub fn temporary_directory(&self) -> Result<TempDir, CacheError> {
        let directory = self.root.join("tmp-v1");
        TempDir::new_in(&directory).map_err(|source| self.fault("create a directory in", &directory, source))
    }

    /// Moves a finished temporary file to its place. Layers are synced first: they are what gets published.
    pub fn keep(&self, file: NamedTempFile, path: &Path, durable: bool) -> Result<(), CacheError> {
        if durable {
            file.as_file().sync_all().map_err(|source| self.fault("sync", path, source))?;
        }
        // Contents are shared by name: nobody may edit them, whatever the umask says.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o444);
        file.as_file().set_permissions(mode).map_err(|source| self.fault("protect", path, source))?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|source| self.fault("create", parent, source))?;
        }
        file.persist(path).map_err(|error| self.fault("write", path, error.error))?;
        Ok(())
    }

    /// The place of content on a shelf, whether it is there or not.
    pub fn path(&self, shelf: Shelf, digest: &Digest) -> PathBuf {
        fan_out(&self.root.join(shelf.directory()), digest)
    }

    /// The place of a compressed member.
    pub fn member_path(&self, codec: &str, digest: &Digest) -> PathBuf {
        fan_out(&self.root.join("members-v3").join(codec), digest)
    }

    /// The place of a download under way.
    pub fn download_path(&self, key: &str) -> PathBuf {
        self.root.join("downloads-v1").join(format!("{}.part", Digest::of(key.as_bytes()).hex()))
    }

    /// Reads a note that an earlier run left (`layers-v2`, `trees-v2`). A damaged or unreadable one counts as absent.
    pub fn note<T: DeserializeOwned>(&self, kind: &str, key: &Digest) -> Option<T> {
        let path = self.note_path(kind, key);
        let bytes = fs::read(&path).ok()?;
        Self::mark_used(&path, &fs::metadata(&path).ok()?);
        let (digest, json) = bytes.split_at_checked(DIGITS)?;
        let json = json.strip_prefix(b"\n")?;
        (digest == Digest::of(json).hex().as_bytes()).then(|| serde_json::from_slice(json).ok())?
    }

    /// Leaves a note for later runs: the digest of its JSON in hex digits, a line feed, the JSON.
    pub fn leave_note<T: Serialize>(&self, kind: &str, key: &Digest, note: &T) -> Result<(), CacheError> {
        let path = self.note_path(kind, key);
        let mut file = self.temporary()?;
        let json = serde_json::to_vec(note).expect("notes have string keys only");
        let digest = format!("{}\n", Digest::of(&json).hex());
        let written = file.write_all(digest.as_bytes()).and_then(|()| file.write_all(&json));
        written.map_err(|source| self.fault("write", &path, source))?;
        self.keep(file, &path, true)
    }

    fn note_path(&self, kind: &str, key: &Digest) -> PathBuf {
        self.root.join(kind).join(key.hex())
    }

    /// Best effort: another process may have removed the same files already.
    fn sweep(&self, name: &str, stale: Duration) {
        let Ok(entries) = fs::read_dir(self.root.join(name)) else { return };
        for entry in entries.flatten() {
            let modified = entry.metadata().and_then(|meta| meta.modified());
            let age = modified.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
            if age.is_some_and(|age| age >= stale) {
                // Directories are those of file system trees in which a killed process ran programs.
                let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let remove = if directory { fs::remove_dir_all } else { fs::remove_file };
                let _ = remove(entry.path());
            }
        }
    }

    /// Names the file in an error, and a full disk as such.
    pub fn fault(&self, action: &'static str, path: &Path, source: io::Error) -> CacheError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                CacheError::Full { path: self.root.clone() }
            }
            _ => CacheError::Io { action, path: path.to_owned(), source },
        }
    }
}

/// Content being written; nothing is visible before [`ContentWriter::keep`].
#[derive(Debug)]
pub struct ContentWriter<'a> {
    cache: &'a Cache,
    shelf: Shelf,
    file: NamedTempFile,
    hasher: Hasher,
}

impl ContentWriter<'_> {
    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(|source| self.cache.fault("write", self.file.path(), source))
    }

    /// Bytes that were written so far.
    pub fn length(&self) -> u64 {
        self.hasher.length()
    }

    /// Gives the content its name. Content that is there already is replaced by its equal, which mends a
    /// file that a power cut has damaged.
    pub fn keep(self) -> Result<Content, CacheError> {
        let content = Content { size: self.hasher.length(), digest: self.hasher.finish() };
        let path = self.cache.path(self.shelf, &content.digest);
        self.cache.keep(self.file, &path, self.shelf == Shelf::Blobs)?;
        self.cache.trust(&path);
        Ok(content)
    }
}

/// 256 directories keep each of them small enough for every file system.
fn fan_out(root: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    root.join(&hex[..2]).join(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        (directory, cache)
    }

    #[test]
    fn content_is_found_by_digest_and_length() {
        let (_directory, cache) = cache();
        let content = cache.put(Shelf::Files, &mut &b"spark"[..]).unwrap();
        assert_eq!(content, Content { digest: Digest::of(b"spark"), size: 5 });
        assert!(cache.find(Shelf::Files, &content).is_some());
        assert!(cache.find(Shelf::Blobs, &content).is_none());
        assert_eq!(cache.read_small(&content, 5).unwrap(), b"spark");
        assert!(cache.read_small(&content, 4).is_err());
    }

    #[test]
    fn a_short_file_counts_as_absent_and_is_mended_by_writing_it_again() {
        let (_directory, cache) = cache();
        let content = cache.put(Shelf::Files, &mut &b"spark"[..]).unwrap();
        let path = cache.path(Shelf::Files, &content.digest);
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"spa").unwrap();
        assert!(cache.find(Shelf::Files, &content).is_none());
        assert!(cache.open_content(Shelf::Files, &content).is_err());
        cache.put(Shelf::Files, &mut &b"spark"[..]).unwrap();
        assert!(cache.find(Shelf::Files, &content).is_some());
    }

    #[test]
    fn a_reader_that_fails_leaves_nothing() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("cut"))
            }
        }
        let (directory, cache) = cache();
        assert!(matches!(cache.put(Shelf::Files, &mut Broken), Err(CacheError::Input(_))));
        assert_eq!(fs::read_dir(directory.path().join("tmp-v1")).unwrap().count(), 0);
    }

    #[test]
    fn notes_survive_and_broken_ones_count_as_absent() {
        let (_directory, cache) = cache();
        let key = Digest::of(b"key");
        assert_eq!(cache.note::<Vec<u32>>("trees-v2", &key), None);
        cache.leave_note("trees-v2", &key, &vec![1, 2]).unwrap();
        assert_eq!(cache.note::<Vec<u32>>("trees-v2", &key), Some(vec![1, 2]));
        assert_eq!(cache.note::<String>("trees-v2", &key), None);
        // Still JSON, but another note.
        let path = cache.note_path("trees-v2", &key);
        let changed = fs::read_to_string(&path).unwrap().replace("[1,2]", "[1,3]");
        fs::remove_file(&path).unwrap();
        fs::write(&path, changed).unwrap();
        assert_eq!(cache.note::<Vec<u32>>("trees-v2", &key), None);
    }
}
