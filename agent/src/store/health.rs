//! Whether the disk does what the store asks of it: for those who decide whether to try, and for people.
//!
//! Trouble is noted by whoever had to do without the store, and is over with the next write that works: a transfer's
//! or, in a quiet time, a probe's.

use std::{
    fs, io,
    io::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Store, StoreError};

/// After a write failed, nothing is tried for this long: a dying disk answers each try after seconds.
const PAUSE: Duration = Duration::from_secs(10);

/// What a probe writes, in bytes: more than a file system keeps within its inode.
const PROBE: [u8; 16 * 1024] = [0; 16 * 1024];

/// Kinds of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TroubleKind {
    /// No space, or none that the store may take.
    Full,
    /// The file system is mounted read-only.
    ReadOnly,
    /// Another agent owns the directory.
    Taken,
    /// Anything else that the system reports.
    Failing,
}

impl TroubleKind {
    /// As metrics and messages have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ReadOnly => "read-only",
            Self::Taken => "held by another agent",
            Self::Failing => "failing",
        }
    }
}

/// Why content is streamed through without being stored.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// Of what kind.
    pub kind: TroubleKind,
    /// The error and its cause.
    pub what: String,
    /// Bytes for which there was no room, when that was the store's own decision.
    wanted: Option<u64>,
    at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Option<Trouble>>);

impl Health {
    fn state(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write has worked.
    pub(super) fn recovered(&self) {
        if let Some(trouble) = self.state().take() {
            tracing::info!(was = %trouble.what, "the store takes content again");
        }
    }
}

impl StoreError {
    /// What kind of trouble with the disk this is, if it is any.
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
    /// Remembers that content could not be stored.
    pub fn note_trouble(&self, error: &StoreError) {
        let Some(kind) = error.trouble() else { return };
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let what = format!("{error}{cause}");
        let wanted = if let StoreError::NoRoom { wanted, .. } = error { Some(*wanted) } else { None };
        let mut state = self.0.health.state();
        if state.as_ref().is_none_or(|known| known.kind != kind) {
            tracing::warn!(kind = kind.as_str(), error = %what, "the store takes nothing: content is streamed through");
        }
        *state = Some(Trouble { kind, what, wanted, at: Instant::now() });
    }

    /// Why content is not stored at the moment.
    pub fn trouble(&self) -> Option<Trouble> {
        self.0.health.state().clone()
    }

    /// Whether a write failed a moment ago, or is not allowed, so that trying is not worth a client's time.
    pub fn is_paused(&self) -> bool {
        if !self.is_owner() {
            return true;
        }
        let state = self.0.health.state();
        state.as_ref().is_some_and(|trouble| trouble.wanted.is_none() && trouble.at.elapsed() < PAUSE)
    }

    /// When there is trouble, finds out whether it is over. Blocking.
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
        // A start on a full disk may have had to do without them.
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
