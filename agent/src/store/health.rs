//! Whether the disk works: for decisions about whether to write, and for people.
//!
//! An error is noted when content could not be stored, and cleared by the next successful write, of a download or, in
//! quiet times, of a probe.

use std::{
    fs, io,
    io::Write as _,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use super::{Store, StoreError};

/// Pause after a failed write: a failing disk may take seconds for each attempt.
const PAUSE: Duration = Duration::from_secs(10);

/// Bytes that a probe writes: more than a file system stores in an inode.
const PROBE: [u8; 16 * 1024] = [0; 16 * 1024];

/// Kinds of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TroubleKind {
    /// No space, or no space that the store may use.
    Full,
    /// The file system is mounted read-only.
    ReadOnly,
    /// Another agent has locked the directory.
    Taken,
    /// Any other error of the operating system.
    Failing,
}

impl TroubleKind {
    /// The name in metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ReadOnly => "read-only",
            Self::Taken => "held by another agent",
            Self::Failing => "failing",
        }
    }
}

/// Bytes by which images that cannot be evicted exceed what the store may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excess {
    /// How many.
    pub bytes: u64,
    /// Since when the store has been too small.
    pub since: jiff::Timestamp,
}

/// Why content is streamed without caching.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// The kind of the error.
    pub kind: TroubleKind,
    /// The error and its cause.
    pub what: String,
    /// Bytes for which there was no space, when the store's own limits were the reason.
    wanted: Option<u64>,
    at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Option<Trouble>>, Mutex<Option<Excess>>);

impl Health {
    fn state(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.0.lock()
    }

    /// A write has succeeded.
    pub(super) fn recovered(&self) {
        if let Some(trouble) = self.state().take() {
            tracing::info!(was = %trouble.what, "the store accepts content again");
        }
    }
}

impl StoreError {
    /// The kind of error of the disk, if it is one.
    pub fn trouble(&self) -> Option<TroubleKind> {
        match self {
            Self::NoRoom { .. } => Some(TroubleKind::Full),
            Self::Io { source, .. } => Some(match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => TroubleKind::Full,
                io::ErrorKind::ReadOnlyFilesystem => TroubleKind::ReadOnly,
                _ => TroubleKind::Failing,
            }),
            Self::Locked(_) => Some(TroubleKind::Taken),
            Self::Format { .. } | Self::Mismatch(_) | Self::Task(_) => None,
        }
    }
}

impl Store {
    /// Notes that content could not be stored.
    pub fn note_trouble(&self, error: &StoreError) {
        let Some(kind) = error.trouble() else { return };
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let what = format!("{error}{cause}");
        let wanted = if let StoreError::NoRoom { wanted, .. } = error { Some(*wanted) } else { None };
        let mut state = self.0.health.state();
        if state.as_ref().is_none_or(|known| known.kind != kind) {
            tracing::warn!(kind = kind.as_str(), error = %what, "the store accepts no content: streaming without caching");
        }
        *state = Some(Trouble { kind, what, wanted, at: Instant::now() });
    }

    /// Notes by how many bytes the store is above its limit after an eviction; whether that began or ended.
    pub fn note_excess(&self, bytes: u64) -> bool {
        let mut known = self.0.health.1.lock();
        let (before, since) = (known.is_some(), known.map(|known| known.since));
        *known = (bytes > 0).then(|| Excess { bytes, since: since.unwrap_or_else(jiff::Timestamp::now) });
        before != known.is_some()
    }

    /// By how much the store is too small for the images that it must keep.
    pub fn excess(&self) -> Option<Excess> {
        *self.0.health.1.lock()
    }

    /// Why content is not stored now.
    pub fn trouble(&self) -> Option<Trouble> {
        self.0.health.state().clone()
    }

    /// Whether a write failed recently, or is not allowed, so that an attempt would only delay a client.
    pub fn is_paused(&self) -> bool {
        if !self.is_owner() {
            return true;
        }
        let state = self.0.health.state();
        state.as_ref().is_some_and(|trouble| trouble.wanted.is_none() && trouble.at.elapsed() < PAUSE)
    }

    /// After an error, checks whether writes work again. Blocking.
    pub fn probe(&self) {
        let Some(trouble) = self.trouble() else { return };
        let over = match trouble.wanted {
            Some(wanted) => self
                .partials()
                .and_then(|partials| self.space(&partials))
                .is_ok_and(|(space, _)| space.allowed.saturating_sub(space.used) >= wanted),
            None => self.try_write().is_ok(),
        };
        if over {
            self.0.health.recovered();
        }
    }

    fn try_write(&self) -> Result<(), StoreError> {
        self.owner()?;
        // A start on a full disk may have skipped creating them.
        for directory in self.0.paths.directories() {
            super::paths::make_directory(&directory)?;
        }
        let path = self.0.paths.aside();
        let written = fs::File::create_new(&path)
            .and_then(|mut file| file.write_all(&PROBE).and_then(|()| file.sync_all()))
            .map_err(StoreError::io("write", &path));
        let removed = super::refs::remove(&path);
        written.and(removed)
    }
}
