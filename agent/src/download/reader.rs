//! Reads content, whole or arriving, with one interface for the HTTP side.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    error::FetchError,
    growing::{Growing, Ready},
    passthrough::{BlobRef, Passthrough},
    recheck,
    stillness::{CHECK, Stillness},
};
use crate::{
    store::{Blob, ChunkSize, Partial, read_chunk},
    types::chain,
};
use bytes::Bytes;

use crate::limits::download::reader::{PACE_BYTES, PACE_TIME};

/// Content that can be read. When the store fails, reading continues with a stream that is not cached.
#[derive(Debug)]
pub struct Content {
    source: Source,
    way: BlobRef,
}

/// Where content comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// Complete, verified, on disk.
    Whole(Blob),
    /// Arriving.
    Growing(Growing),
    /// Streamed without caching.
    Passthrough(Box<Passthrough>),
    /// A part that has arrived, of a blob that is arriving: for peers, which verify it.
    Landed(Landed),
}

/// A part of a partial blob that has arrived. Reading fails when the part is replaced meanwhile, so that no peer is
/// sent a mixture of two versions.
#[derive(Debug)]
pub(crate) struct Landed {
    partial: Arc<Partial>,
    size: u64,
    changes: u64,
}

impl Landed {
    /// `changes` is the value of [`Partial::changes`] from before the part was looked up.
    pub(crate) fn new(partial: Arc<Partial>, size: u64, changes: u64) -> Self {
        Self { partial, size, changes }
    }

    async fn read(&self, position: u64, until: u64, size: ChunkSize) -> std::io::Result<Bytes> {
        let bytes = read_chunk(self.partial.file(), position, until, size).await?;
        if self.partial.changes() != self.changes {
            return Err(std::io::Error::other("the bytes were wrong and are being replaced"));
        }
        Ok(bytes)
    }
}

impl Content {
    pub(super) fn new(source: Source, way: BlobRef) -> Self {
        Self { source, way }
    }

    /// Size of the whole content in bytes.
    pub fn size(&self) -> u64 {
        self.source.size()
    }

    /// Whether it is complete on this node's disk.
    pub fn is_stored(&self) -> bool {
        matches!(self.source, Source::Whole(_))
    }

    /// Reads the range of the content for which it was opened.
    pub fn read(self, range: Range<u64>) -> ContentReader {
        ContentReader { way: Some(self.way), ..ContentReader::of_store(self.source, range) }
    }
}

impl From<Ready> for Source {
    fn from(ready: Ready) -> Self {
        match ready {
            Ready::Whole(blob) => Self::Whole(blob),
            Ready::Growing(growing) => Self::Growing(growing),
        }
    }
}

impl Source {
    fn size(&self) -> u64 {
        match self {
            Self::Whole(blob) => blob.size(),
            Self::Growing(growing) => growing.size,
            Self::Passthrough(passing) => passing.size(),
            Self::Landed(landed) => landed.size,
        }
    }
}

/// Reads one range of content in order.
#[derive(Debug)]
pub struct ContentReader {
    source: Source,
    /// Where to continue when the store fails; `None` for peers, which use another peer then.
    way: Option<BlobRef>,
    position: u64,
    end: u64,
    /// How long nothing may arrive before the read fails; `None` means without limit.
    patience: Option<Duration>,
    pace: Pace,
}

/// How fast a reader consumes its chunks, which decides how large they are.
#[derive(Debug)]
struct Pace {
    since: Instant,
    bytes: usize,
    size: ChunkSize,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0, size: ChunkSize::Small }
    }

    /// The size of the next chunk. A reader that requests it has consumed most of the earlier ones.
    fn next(&mut self, now: Instant) -> ChunkSize {
        if self.bytes >= PACE_BYTES {
            let keeps_up = now.saturating_duration_since(self.since) <= PACE_TIME;
            let size = if keeps_up { ChunkSize::Large } else { ChunkSize::Small };
            *self = Self { since: now, bytes: 0, size };
        }
        self.size
    }
}

impl ContentReader {
    /// Reads a part of a stored blob, and fails when the store fails.
    pub(crate) fn of_store(source: Source, range: Range<u64>) -> Self {
        Self {
            source,
            way: None,
            position: range.start,
            end: range.end,
            patience: None,
            pace: Pace::new(Instant::now()),
        }
    }

    /// Fails a read when nothing of a download has arrived for this long. The download continues.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self }
    }

    /// The next bytes; `None` at the end of the range. After an error the range cannot be completed.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        if self.position >= self.end {
            return Ok(None);
        }
        let size = self.pace.next(Instant::now());
        let chunk = match self.read_in_time(size).await {
            Err(error @ (FetchError::Store(_) | FetchError::Disk(_))) => {
                let Some(way) = self.way.clone() else { return Err(error) };
                self.leave_the_store(way, &error).await;
                self.read(size).await?
            }
            read => read?,
        };
        let length = chunk.as_ref().map_or(0, Bytes::len);
        self.pace.bytes += length;
        self.position += length as u64;
        Ok(chunk)
    }

    async fn read_in_time(&mut self, size: ChunkSize) -> Result<Option<Bytes>, FetchError> {
        let (Some(patience), Some(way), Source::Growing(_)) = (self.patience, self.way.clone(), &self.source)
        else {
            return self.read(size).await;
        };
        let mut still = Stillness::new(Instant::now());
        loop {
            // The read restarts after each check: dropping it loses nothing.
            if let Ok(read) = tokio::time::timeout(CHECK.min(patience), self.read(size)).await {
                return read;
            }
            let patience = way.context.patience(patience);
            if still.is_over(way.context.movement(&way.digest), Instant::now(), patience) {
                let reason = format!("nothing arrived from the registry or a peer for {patience:?}");
                return Err(FetchError::NotNow { reason, retry_after: None });
            }
        }
    }

    async fn read(&mut self, size: ChunkSize) -> Result<Option<Bytes>, FetchError> {
        let (file, until) = match &mut self.source {
            Source::Whole(blob) => (blob.file(), self.end),
            Source::Growing(growing) => {
                let until = growing.wait_past(self.position).await?.min(self.end);
                (growing.partial.file(), until)
            }
            Source::Passthrough(passing) => return passing.next().await,
            Source::Landed(landed) => {
                let chunk = landed.read(self.position, self.end, size).await;
                return chunk.map(Some).map_err(|error| FetchError::Disk(Arc::new(error)));
            }
        };
        let chunk = read_chunk(file, self.position, until, size).await;
        chunk.map(Some).map_err(|error| FetchError::Disk(Arc::new(error)))
    }

    /// Switches to a stream from the registry that is not cached, without an interruption for the client.
    async fn leave_the_store(&mut self, way: BlobRef, error: &FetchError) {
        let (position, size) = (self.position, self.source.size());
        tracing::info!(digest = %way.digest.short(), position, error = %chain(error), "the store failed: streaming the rest without caching");
        let partial = match &self.source {
            Source::Growing(growing) => Some(growing.partial.clone()),
            Source::Whole(_) => {
                recheck::start(&way.context, way.digest, error);
                None
            }
            Source::Passthrough(_) | Source::Landed(_) => None,
        };
        let passing = way.go_on(size, position..self.end, partial).await;
        self.source = Source::Passthrough(Box::new(passing));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gets_large_chunks_while_it_keeps_up() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut after = |bytes, took| {
            pace.bytes += bytes;
            now += took;
            pace.next(now)
        };
        for (bytes, took, expected) in [
            (0, Duration::ZERO, ChunkSize::Small),
            (PACE_BYTES / 2, Duration::ZERO, ChunkSize::Small),
            (PACE_BYTES / 2, PACE_TIME, ChunkSize::Large),
            // Too few bytes to judge by.
            (PACE_BYTES / 2, 10 * PACE_TIME, ChunkSize::Large),
            (PACE_BYTES / 2, Duration::ZERO, ChunkSize::Small),
            (PACE_BYTES, PACE_TIME / 2, ChunkSize::Large),
        ] {
            assert_eq!(after(bytes, took), expected, "{bytes} in {took:?}");
        }
    }
}
