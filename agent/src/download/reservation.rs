//! Disk space for downloads: reserved before a download starts, so that a full store fails no client.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

use super::{blocking::blocking, error::FetchError};
use crate::store::{Need, Partial, StoreError};

use crate::limits::download::reservation::{MAX_MADE, UNKNOWN_SIZE};

/// Makes room by evicting; returns the bytes freed. Blocking.
#[derive(Clone)]
pub struct MakeRoom(Arc<dyn Fn(Need) -> Result<u64, StoreError> + Send + Sync>);

impl MakeRoom {
    /// `make` is called on the blocking pool.
    pub fn new(make: impl Fn(Need) -> Result<u64, StoreError> + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }
}

impl fmt::Debug for MakeRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MakeRoom")
    }
}

/// Which downloads have reserved disk space, so that no two get the same.
#[derive(Debug)]
pub(super) struct Reservations {
    make: MakeRoom,
    admitted: Mutex<Vec<Weak<Partial>>>,
}

impl Reservations {
    pub(super) fn new(make: MakeRoom) -> Self {
        Self { make, admitted: Mutex::default() }
    }

    /// Makes sure that there is space for the missing bytes of a blob, and of all other running downloads.
    /// `described` is the size according to the manifest. Blocking.
    pub(super) fn admit(&self, partial: &Arc<Partial>, described: Option<u64>) -> Result<(), StoreError> {
        let mut admitted = self.admitted.lock();
        admitted.retain(|one| one.strong_count() > 0);
        let others = admitted.iter().filter_map(Weak::upgrade).map(|one| missing(&one, None)).sum::<u64>();
        (self.make.0)(Need::Room(others.saturating_add(missing(partial, described))))?;
        admitted.push(Arc::downgrade(partial));
        Ok(())
    }

    /// Evicts after the disk was full; returns whether space was freed. Blocking.
    pub(super) fn free(&self, bytes: u64) -> Result<bool, StoreError> {
        Ok((self.make.0)(Need::Freed(bytes))? > 0)
    }
}

/// The reservation of one download.
#[derive(Debug, Default)]
pub(super) struct Reservation {
    admitted: bool,
    /// How often the disk was full despite the reservation.
    made: u32,
}

impl Reservation {
    /// Reserves disk space, once the size is known.
    pub(super) async fn admit(
        &mut self,
        room: &Arc<Reservations>,
        partial: &Arc<Partial>,
        described: Option<u64>,
    ) -> Result<(), FetchError> {
        if self.admitted || (partial.size().is_none() && described.is_none()) {
            return Ok(());
        }
        self.admitted = true;
        let (room, partial) = (room.clone(), partial.clone());
        blocking(move || room.admit(&partial, described)).await
    }

    /// Makes room after the disk was full despite the reservation; fails when nothing can be evicted.
    pub(super) async fn free(
        &mut self,
        room: &Arc<Reservations>,
        partial: &Partial,
        error: Arc<StoreError>,
    ) -> Result<(), FetchError> {
        self.made += 1;
        let left = partial.size().unwrap_or(UNKNOWN_SIZE).saturating_sub(partial.total());
        let room = room.clone();
        let tried = self.made <= MAX_MADE;
        if tried && blocking(move || room.free(left)).await? {
            return Ok(());
        }
        Err(FetchError::Store(error))
    }
}

fn missing(partial: &Partial, described: Option<u64>) -> u64 {
    partial.size().or(described).unwrap_or(0).saturating_sub(partial.total())
}
