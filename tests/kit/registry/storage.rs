//! What the registry holds. Blobs are files named by digest and never in memory; manifests are small and are.
//!
//! ```text
//! <dir>/blobs/<hex>      whole blobs
//! <dir>/uploads/<n>      upload sessions; gone after the final PUT
//! ```
//!
//! Names (repositories, tags, who has which blob) live in memory for the life of the server.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// A stored manifest.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The type it was pushed with.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Bytes,
}

#[derive(Debug, Default)]
struct Repository {
    manifests: BTreeMap<String, Manifest>,
    tags: BTreeMap<String, String>,
    blobs: HashSet<String>,
}

/// An upload session: bytes so far and their running hash.
#[derive(Debug)]
pub(super) struct Upload {
    path: PathBuf,
    hash: Sha256,
    /// Bytes received.
    pub(super) length: u64,
}

impl Upload {
    /// Adds bytes; blocking, called with pieces as they arrive.
    pub(super) fn append(&mut self, piece: &[u8]) -> io::Result<()> {
        fs::OpenOptions::new().append(true).open(&self.path)?.write_all(piece)?;
        self.hash.update(piece);
        self.length += piece.len() as u64;
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Names {
    repositories: HashMap<String, Repository>,
    uploads: HashMap<String, Upload>,
    next_upload: u64,
}

#[derive(Debug)]
pub(super) struct Storage {
    dir: PathBuf,
    names: Mutex<Names>,
    _temporary: Option<tempfile::TempDir>,
}

impl Storage {
    /// Storage in `dir`, or in a temporary folder that goes with it.
    pub(super) fn open(dir: Option<&Path>) -> io::Result<Self> {
        let temporary = if dir.is_none() {
            Some(tempfile::Builder::new().prefix("kit-registry-").tempdir()?)
        } else {
            None
        };
        let dir = dir
            .or(temporary.as_ref().map(tempfile::TempDir::path))
            .map(Path::to_path_buf)
            .unwrap_or_default();
        fs::create_dir_all(dir.join("blobs"))?;
        fs::create_dir_all(dir.join("uploads"))?;
        Ok(Self { dir, names: Mutex::default(), _temporary: temporary })
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a blob with this digest lies or would lie.
    pub(super) fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(digest.replace(':', "-"))
    }

    /// A blob's file and size, if this repository has it. The name `""` stands for any repository.
    pub(super) fn blob(&self, repository: &str, digest: &str) -> Option<(PathBuf, u64)> {
        let names = self.names();
        let known = if repository.is_empty() {
            names.repositories.values().any(|one| one.blobs.contains(digest))
        } else {
            names.repositories.get(repository).is_some_and(|one| one.blobs.contains(digest))
        };
        let path = known.then(|| self.blob_path(digest))?;
        let size = fs::metadata(&path).ok()?.len();
        Some((path, size))
    }

    /// Stores bytes made by a writer, hashing as they pass.
    pub(super) fn write_blob(
        &self,
        repository: &str,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<(String, u64)> {
        let id = self.begin_upload();
        let mut upload =
            self.take_upload(&id).ok_or_else(|| io::Error::other("a fresh upload session is known"))?;
        let mut writer = Hashing {
            file: io::BufWriter::with_capacity(1 << 20, fs::File::create(&upload.path)?),
            upload: &mut upload,
        };
        fill(&mut writer)?;
        writer.flush()?;
        let digest = format!("sha256:{}", hex::encode(upload.hash.clone().finalize()));
        let length = upload.length;
        self.finish_upload(repository, upload, &digest)?;
        Ok((digest, length))
    }

    /// Opens an upload session.
    pub(super) fn begin_upload(&self) -> String {
        let mut names = self.names();
        names.next_upload += 1;
        let id = names.next_upload.to_string();
        let path = self.dir.join("uploads").join(&id);
        // A failure to create shows at the first append, which reports it to the client.
        let _ = fs::File::create(&path);
        names.uploads.insert(id.clone(), Upload { path, hash: Sha256::new(), length: 0 });
        id
    }

    /// Takes a session out while one request works on it.
    pub(super) fn take_upload(&self, id: &str) -> Option<Upload> {
        self.names().uploads.remove(id)
    }

    /// Bytes that a session has so far.
    pub(super) fn upload_length(&self, id: &str) -> Option<u64> {
        self.names().uploads.get(id).map(|upload| upload.length)
    }

    /// Puts a session back for the next request.
    pub(super) fn keep_upload(&self, id: &str, upload: Upload) {
        self.names().uploads.insert(id.to_owned(), upload);
    }

    /// Ends a session: `Ok(false)` when the bytes are not what `digest` says.
    pub(super) fn finish_upload(&self, repository: &str, upload: Upload, digest: &str) -> io::Result<bool> {
        let actual = format!("sha256:{}", hex::encode(upload.hash.finalize()));
        if actual != digest {
            fs::remove_file(&upload.path)?;
            return Ok(false);
        }
        fs::rename(&upload.path, self.blob_path(digest))?;
        self.link_blob(repository, digest);
        Ok(true)
    }

    /// Makes a blob that is here part of a repository.
    pub(super) fn link_blob(&self, repository: &str, digest: &str) {
        self.names().repositories.entry(repository.to_owned()).or_default().blobs.insert(digest.to_owned());
    }

    /// Takes a blob out of a repository.
    pub(super) fn unlink_blob(&self, repository: &str, digest: &str) -> bool {
        self.names().repositories.get_mut(repository).is_some_and(|one| one.blobs.remove(digest))
    }

    /// Stores a manifest and, when `reference` is a tag, points the tag at it.
    pub(super) fn put_manifest(&self, repository: &str, reference: &str, manifest: Manifest) -> String {
        let digest = sha256(&manifest.bytes);
        let mut names = self.names();
        let entry = names.repositories.entry(repository.to_owned()).or_default();
        entry.manifests.insert(digest.clone(), manifest);
        if !reference.contains(':') {
            entry.tags.insert(reference.to_owned(), digest.clone());
        }
        digest
    }

    /// A manifest by tag or digest, with its digest.
    pub(super) fn manifest(&self, repository: &str, reference: &str) -> Option<(String, Manifest)> {
        let names = self.names();
        let entry = names.repositories.get(repository)?;
        let digest = if reference.contains(':') { reference } else { entry.tags.get(reference)?.as_str() };
        entry.manifests.get(digest).map(|manifest| (digest.to_owned(), manifest.clone()))
    }

    /// A manifest by digest, in whatever repository it lies.
    pub(super) fn any_manifest(&self, digest: &str) -> Option<Manifest> {
        self.names().repositories.values().find_map(|entry| entry.manifests.get(digest).cloned())
    }

    /// Deletes a tag, or a manifest with every tag that points at it.
    pub(super) fn remove_manifest(&self, repository: &str, reference: &str) -> bool {
        let mut names = self.names();
        let Some(entry) = names.repositories.get_mut(repository) else { return false };
        if reference.contains(':') {
            entry.tags.retain(|_, digest| digest != reference);
            entry.manifests.remove(reference).is_some()
        } else {
            entry.tags.remove(reference).is_some()
        }
    }

    /// The tags of a repository in lexical order; `None` if there is no such repository.
    pub(super) fn tags(&self, repository: &str) -> Option<Vec<String>> {
        self.names().repositories.get(repository).map(|entry| entry.tags.keys().cloned().collect())
    }

    /// All manifests of a repository.
    pub(super) fn manifests(&self, repository: &str) -> Vec<(String, Manifest)> {
        let names = self.names();
        let entry = names.repositories.get(repository);
        entry
            .into_iter()
            .flat_map(|entry| entry.manifests.iter().map(|(d, m)| (d.clone(), m.clone())))
            .collect()
    }
}

/// Writes and hashes in one pass, for blobs that the kit makes itself.
struct Hashing<'a> {
    file: io::BufWriter<fs::File>,
    upload: &'a mut Upload,
}

impl Write for Hashing<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.file.write_all(piece)?;
        self.upload.hash.update(piece);
        self.upload.length += piece.len() as u64;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// `sha256:<hex>` of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
