//! Ownership of the data directory: one agent at a time, by a lock on its file `lock`, which the kernel releases when
//! a process ends for any reason.
//!
//! During a rolling update a new agent starts beside the old one, which is stopped only when the new one is ready. So
//! a store can be attached to a directory that another agent owns: it serves the existing content (every file is
//! complete), writes nothing, and takes the directory over when the other agent has unlocked it.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    Store, StoreError, TroubleKind, facts, index::Index, origins, paths, paths::Paths, refs, verified,
};
use crate::types::Digest;

const FORMAT: &str = "hearth-store-v1";

/// How often a client that waits for a directory looks whether it is free.
const OWN_PAUSE: Duration = Duration::from_millis(20);

/// State of the owner only.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) index: Index,
    /// Released by [`Store::close`], or by the kernel when the process ends.
    lock: fs::File,
}

impl Owned {
    pub(super) fn release(&self) {
        if let Err(error) = rustix::fs::flock(&self.lock, rustix::fs::FlockOperation::Unlock) {
            tracing::warn!(%error, "cannot unlock the data directory: it is unlocked when the process ends");
        }
    }
}

impl Store {
    /// Whether this process may write here.
    pub fn is_owner(&self) -> bool {
        self.0.owned.get().is_some()
    }

    /// Waits a little for an agent that is ending and has a part of this blob: what it has read is not read again. `true` when
    /// the directory is this process's now.
    pub async fn is_handed_over(&self, digest: &Digest, longest: Duration) -> bool {
        let since = Instant::now();
        while !self.is_owner() {
            let partly = tokio::fs::try_exists(self.0.paths.partial_data(digest)).await.unwrap_or(false);
            if !partly || since.elapsed() >= longest {
                return false;
            }
            tokio::time::sleep(OWN_PAUSE).await;
        }
        !self.is_paused()
    }

    /// Fails unless this process may write here.
    pub(super) fn owner(&self) -> Result<(), StoreError> {
        if self.is_owner() { Ok(()) } else { Err(StoreError::Locked(self.0.paths.root().to_owned())) }
    }

    /// Fails unless the directory contains a store of this format.
    pub(super) fn expect_format(&self) -> Result<(), StoreError> {
        check_format(&self.0.paths)
    }

    /// Locks the directory unless another process has; `false` then. Blocking.
    ///
    /// A disk that accepts no writes does not prevent the agent from serving stored content and streaming the rest.
    pub fn take_over(&self) -> Result<bool, StoreError> {
        if self.is_owner() {
            return Ok(true);
        }
        let paths = &self.0.paths;
        let mut trouble = None;
        let mut tolerate = |done: Result<(), StoreError>| match done {
            Err(error) if matches!(error.trouble(), Some(TroubleKind::Full | TroubleKind::ReadOnly)) => {
                trouble.get_or_insert(error);
                Ok(())
            }
            done => done,
        };
        for directory in paths.directories() {
            tolerate(paths::make_directory(&directory))?;
        }
        close_to_others(paths.root());
        let Some(lock) = lock_directory(paths)? else { return Ok(false) };
        tolerate(make_format(paths))?;
        tolerate(empty_directory(&paths.temporary()))?;
        tolerate(remove_lost_maps(&paths.partials()))?;
        tolerate(origins::sweep(paths))?;
        tolerate(verified::sweep(paths))?;
        // Set once: only one process, and one task in it, takes over.
        let _ = self.0.owned.set(Owned { index: Index::open(paths), lock });
        self.0.health.recovered();
        if let Some(error) = trouble {
            self.note_trouble(&error);
        }
        Ok(true)
    }
}

/// Images may be private: only the agent's own user, and root, may look into the store. A directory that was made for the
/// agent may have another owner, who then sets its mode.
fn close_to_others(root: &Path) {
    let closed = fs::metadata(root).and_then(|found| {
        let others = found.permissions().mode() % 0o100;
        if others == 0 { Ok(()) } else { fs::set_permissions(root, fs::Permissions::from_mode(0o700)) }
    });
    if let Err(error) = closed {
        tracing::warn!(%error, path = %root.display(), "data directory may be open to other users: set its mode to 0700");
    }
}

/// `None` when another process has the lock.
fn lock_directory(paths: &Paths) -> Result<Option<fs::File>, StoreError> {
    let path = paths.lock();
    let opened = match fs::File::options().create(true).truncate(false).write(true).open(&path) {
        // The kernel also locks files that are open for reading.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => fs::File::open(&path),
        opened => opened,
    };
    let file = opened.map_err(StoreError::io("open", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(StoreError::io("lock", path)(errno.into())),
    }
}

fn make_format(paths: &Paths) -> Result<(), StoreError> {
    match check_format(paths) {
        Err(StoreError::Io { source, path, .. }) if source.kind() == io::ErrorKind::NotFound => {
            paths::write_atomically(paths, &path, FORMAT.as_bytes(), paths::Mode::Normal)
        }
        checked => checked,
    }
}

fn check_format(paths: &Paths) -> Result<(), StoreError> {
    let path = paths.format();
    let found = fs::read_to_string(&path).map_err(StoreError::io("read", &path))?;
    if found.trim() == FORMAT {
        return Ok(());
    }
    Err(StoreError::Format { path, found: found.trim().chars().take(80).collect(), expected: FORMAT })
}

fn empty_directory(directory: &Path) -> Result<(), StoreError> {
    facts::list(directory)?.iter().try_for_each(|path| refs::remove(path))
}

/// A crash between the last two steps of a download leaves a map without its bytes.
fn remove_lost_maps(directory: &Path) -> Result<(), StoreError> {
    let lost = |path: &&PathBuf| {
        !path.with_extension("data").exists() || path.extension().is_some_and(|ext| ext == "map-new")
    };
    facts::list(directory)?.iter().filter(lost).try_for_each(|path| refs::remove(path))
}
