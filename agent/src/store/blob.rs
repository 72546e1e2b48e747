//! Reads stored blobs: one `open`, one `fstat`, then reads that stay on the runtime's thread while the page cache has
//! the bytes.
//!
//! `preadv2(RWF_NOWAIT)` reads from the page cache or fails with `EAGAIN`; only then the read moves to the blocking
//! pool. The buffers are those of `buffers`.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::{Errno, ReadWriteFlags},
};

use super::{
    StoreError,
    buffers::{Buffer, ChunkSize},
    paths::Paths,
    usage::Hold,
};
use crate::types::Digest;

/// An open, verified blob.
#[derive(Clone, Debug)]
pub struct Blob {
    file: Arc<File>,
    size: u64,
    /// Protects the blob from eviction while it is open.
    _hold: Option<Arc<Hold>>,
}

impl Blob {
    /// Wraps a file of the store; callers must have verified it.
    pub(super) fn of(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), size, _hold: None })
    }

    pub(super) fn held(self, hold: Hold) -> Self {
        Self { _hold: Some(Arc::new(hold)), ..self }
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The open file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The whole content; for manifests and configurations, whose size is limited.
    pub async fn read_all(&self) -> Result<Bytes, io::Error> {
        let mut all = Vec::with_capacity(usize::try_from(self.size).map_err(io::Error::other)?);
        let mut position = 0;
        while position < self.size {
            let chunk = read_chunk(&self.file, position, self.size, ChunkSize::Large).await?;
            position += chunk.len() as u64;
            all.extend_from_slice(&chunk);
        }
        Ok(all.into())
    }
}

/// Opens a blob if it exists.
pub(super) async fn open(paths: &Paths, digest: &Digest) -> Result<Option<Blob>, StoreError> {
    let path = paths.blob(digest);
    let opened = match open_cached(&path) {
        Err(Errno::AGAIN | Errno::NOSYS | Errno::INVAL | Errno::PERM) => {
            let path = path.clone();
            tokio::task::spawn_blocking(move || File::open(&path)).await?
        }
        other => other.map_err(io::Error::from),
    };
    match opened.and_then(Blob::of) {
        Ok(blob) => Ok(Some(blob)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("open", path)(error)),
    }
}

/// Opens without touching the disk: `EAGAIN` when the path is not in the kernel's cache (Linux 5.12).
fn open_cached(path: &Path) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).map(File::from)
}

/// Reads the next bytes at `position`, at most one chunk and not past `end`. A file that is shorter than `end` is an
/// error, never a short success.
pub async fn read_chunk(file: &Arc<File>, position: u64, end: u64, size: ChunkSize) -> io::Result<Bytes> {
    let wanted = usize::try_from(end.saturating_sub(position)).unwrap_or(usize::MAX);
    if wanted == 0 {
        return Ok(Bytes::new());
    }
    let mut buffer = Buffer::take(size, wanted);
    let flags = ReadWriteFlags::NOWAIT;
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer.space())], position, flags) {
        Err(Errno::OPNOTSUPP) if is_in_memory(file) => read_now(file, position, buffer),
        Ok(0) | Err(_) => read_blocking(file.clone(), position, buffer).await,
        Ok(read) => Ok(buffer.filled(read)),
    }
}

/// The same read where it may wait for the disk; it also distinguishes an error from "not cached".
async fn read_blocking(file: Arc<File>, position: u64, buffer: Buffer) -> io::Result<Bytes> {
    let read = tokio::task::spawn_blocking(move || read_now(&file, position, buffer));
    read.await.map_err(io::Error::other)?
}

fn read_now(file: &File, position: u64, mut buffer: Buffer) -> io::Result<Bytes> {
    let read = file.read_at(buffer.space(), position)?;
    if read == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "blob file is shorter than its size"));
    }
    Ok(buffer.filled(read))
}

/// Whether a file is in memory: `tmpfs` does not support `RWF_NOWAIT`, because its reads never wait.
fn is_in_memory(file: &File) -> bool {
    const TMPFS: u64 = 0x0102_1994;
    rustix::fs::fstatfs(file).is_ok_and(|found| u64::try_from(found.f_type) == Ok(TMPFS))
}
