//! Reading content, whole or growing, with one interface for the HTTP side.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    FetchError,
    flight::{Passenger, Phase, Progress},
};
use crate::store::{Blob, Partial, read_chunk};

/// Bytes at the end of a growing blob that are held back until its digest matched, so that no client ever completes
/// a wrong blob.
pub(super) const HELD_BACK: u64 = 64 * 1024;

/// Content that can be read.
#[derive(Debug)]
pub enum Content {
    /// Whole, verified, on disk.
    Whole(Blob),
    /// On its way.
    Growing(Growing),
    /// A part that is there, of a blob of so many bytes that is on its way. Not verified: for members, who verify.
    Landed(Arc<Partial>, u64),
}

/// A blob on its way: its partial file and the news about it.
#[derive(Debug)]
pub struct Growing {
    partial: Arc<Partial>,
    progress: watch::Receiver<Progress>,
    size: u64,
    passenger: Passenger,
}

impl Growing {
    pub(super) fn new(
        partial: Arc<Partial>,
        progress: watch::Receiver<Progress>,
        size: u64,
        passenger: Passenger,
    ) -> Self {
        Self { partial, progress, size, passenger }
    }
}

impl Content {
    /// The whole content's size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Whole(blob) => blob.size(),
            Self::Growing(growing) => growing.size,
            Self::Landed(_, size) => *size,
        }
    }

    /// Reads a part of it.
    pub fn read(self, range: Range<u64>) -> ContentReader {
        ContentReader { content: self, position: range.start, end: range.end }
    }
}

/// Reads one range of content in order.
#[derive(Debug)]
pub struct ContentReader {
    content: Content,
    position: u64,
    end: u64,
}

impl ContentReader {
    /// The next bytes; `None` at the end of the range. After an error the range cannot be completed.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        if self.position >= self.end {
            return Ok(None);
        }
        let (file, until) = match &mut self.content {
            Content::Whole(blob) => (blob.file(), self.end),
            Content::Growing(growing) => {
                let until = growing.wait_past(self.position).await?.min(self.end);
                (growing.partial.file(), until)
            }
            Content::Landed(partial, _) => (partial.file(), self.end),
        };
        let chunk = read_chunk(file, self.position, until)
            .await
            .map_err(|error| FetchError::Disk(Arc::new(error)))?;
        self.position += chunk.len() as u64;
        Ok(Some(chunk))
    }
}

impl Growing {
    /// Waits until bytes after `position` may be sent, and says up to where. Ends because a flight always ends.
    async fn wait_past(&mut self, position: u64) -> Result<u64, FetchError> {
        loop {
            let phase = self.progress.borrow_and_update().phase.clone();
            let until = sendable(&phase, self.partial.end_from(position), self.size);
            if until > position {
                return Ok(until);
            }
            if let Phase::Failed(error) = phase {
                return Err(error);
            }
            self.passenger.reached(position);
            if self.progress.changed().await.is_err() {
                return Err(FetchError::Stopping);
            }
        }
    }
}

/// Up to where bytes may be sent, when they are there up to `end`. Pure.
fn sendable(phase: &Phase, end: u64, size: u64) -> u64 {
    match phase {
        Phase::Verified | Phase::Done => size,
        // Known to be wrong, or of unknown worth: nothing more leaves.
        Phase::Failed(FetchError::Corrupt { .. }) => 0,
        Phase::Connecting | Phase::Streaming | Phase::Failed(_) => end.min(size.saturating_sub(HELD_BACK)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Digest, Mismatch};

    #[test]
    fn the_end_is_held_back_until_the_digest_matched() {
        let size = 10 * HELD_BACK;
        assert_eq!(sendable(&Phase::Streaming, 100, size), 100);
        assert_eq!(sendable(&Phase::Streaming, size, size), size - HELD_BACK);
        assert_eq!(sendable(&Phase::Verified, size, size), size);
        assert_eq!(sendable(&Phase::Streaming, 50, 50), 0);
        assert_eq!(sendable(&Phase::Failed(FetchError::Stopping), size, size), size - HELD_BACK);
        let mismatch = Arc::new(Mismatch { expected: Digest::of(b"a"), found: Digest::of(b"b") });
        let corrupt = FetchError::Corrupt { registry: "r".parse().unwrap(), origins: Vec::new(), mismatch };
        assert_eq!(sendable(&Phase::Failed(corrupt), size, size), 0);
    }
}
