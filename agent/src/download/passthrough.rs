//! Passthrough: a blob streamed from upstream to one client without being stored, when the store cannot take it.
//!
//! It keeps the promises of a download: bytes are sent as they arrive, the end only when the whole blob matches its
//! digest, and an interrupted stream is resumed. Each reader has a stream of its own; the agent holds only the
//! held-back end in memory. Configurations and small blobs are verified before anything is sent.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::{context::Context, error::FetchError, verifying_stream::VerifyingStream};
use crate::{
    limits::download::{passthrough::MAX_IN_MEMORY, reader::HELD_BACK},
    store::Partial,
    types::{Digest, Hasher, RangeHeader, Repository, Role, Validator},
    upstream::{BlobBody, OriginPenalties, Retries, RetryPolicy, Span, UpstreamError},
};

/// A blob that is streamed without caching.
#[derive(Debug)]
pub struct Passthrough {
    way: BlobRef,
    size: u64,
    verifying: VerifyingStream,
    origin_penalties: OriginPenalties,
    known: Vec<Validator>,
    origins: Vec<String>,
    stream: Option<Stream>,
    retries: Retries,
    /// Bytes were sent to the client.
    streamed: bool,
}

/// What is needed to request a blob from the registry.
#[derive(Clone, Debug)]
pub(super) struct BlobRef {
    pub(super) context: Arc<Context>,
    pub(super) repository: Repository,
    pub(super) digest: Digest,
}

#[derive(Debug)]
struct Stream {
    body: BlobBody,
    /// Bytes to drop before the requested range, from a registry that ignores ranges.
    skip: u64,
    _permit: Option<OwnedSemaphorePermit>,
}

impl BlobRef {
    /// Opens a blob for streaming without caching: bytes can be sent when this returns.
    pub(super) async fn open(self, asked: RangeHeader) -> Result<Passthrough, FetchError> {
        let again = self.clone();
        match self.open_once(asked).await {
            // Another endpoint may send the right bytes.
            Err(FetchError::Corrupt { .. }) => again.open_once(asked).await,
            other => other,
        }
    }

    async fn open_once(self, asked: RangeHeader) -> Result<Passthrough, FetchError> {
        let inner = self.context.clone();
        let described = inner.descriptors.get(&self.repository, &self.digest);
        let size = match described {
            Some(described) => described.size,
            None => self.context.upstream_size(&self.repository, &self.digest).await?,
        };
        if size == 0
            && let Err(mismatch) = self.digest.verify(b"")
        {
            let registry = self.repository.registry.clone();
            return Err(FetchError::Corrupt { registry, origins: Vec::new(), mismatch: Arc::new(*mismatch) });
        }
        let range = match asked {
            RangeHeader::Whole => 0..size,
            RangeHeader::One(range) => range.within(size).unwrap_or(0..0),
        };
        let layer = described.is_none_or(|described| described.role == Role::Layer);
        let whole = size <= HELD_BACK || (!layer && size <= MAX_IN_MEMORY);
        let hold = if whole { size } else { HELD_BACK };
        let mut passing = self.pass(size, range, hold, None);
        passing.open_stream().await?;
        if whole {
            while !passing.verifying.wanted().is_empty() {
                passing.advance().await?;
            }
        }
        Ok(passing)
    }

    /// Continues where a reader of the store was, with the hash of its partial blob if that is known.
    pub(super) async fn go_on(
        self,
        size: u64,
        range: Range<u64>,
        partial: Option<Arc<Partial>>,
    ) -> Passthrough {
        let start = range.start;
        let before = match partial {
            Some(partial) => tokio::task::spawn_blocking(move || partial.hash_up_to(start)).await.ok(),
            None => None,
        };
        // If the file cannot be read back either, the beginning is fetched again, for the hash.
        let before = before.and_then(Result::ok).flatten();
        self.pass(size, range, HELD_BACK.min(size), before)
    }

    fn pass(self, size: u64, range: Range<u64>, hold: u64, before: Option<Hasher>) -> Passthrough {
        let inner = &self.context;
        inner.metrics.passed_through.inc();
        let verifying = VerifyingStream::new(self.digest, size, range, hold, before);
        Passthrough {
            origin_penalties: inner.penalties.of(&self.digest),
            retries: Retries::new(RetryPolicy::TRANSFER, verifying.wanted().start),
            way: self,
            size,
            verifying,
            known: Vec::new(),
            origins: Vec::new(),
            stream: None,
            streamed: false,
        }
    }
}

impl Passthrough {
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The next bytes of the range; `None` at its end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            if let Some(bytes) = self.verifying.next() {
                self.streamed = true;
                return Ok(Some(bytes));
            }
            if self.verifying.wanted().is_empty() {
                return Ok(None);
            }
            self.advance().await?;
        }
    }

    /// Reads and verifies the next bytes of the stream.
    async fn advance(&mut self) -> Result<(), FetchError> {
        let stop = self.way.context.stop.clone();
        let read = stop.run_until_cancelled(self.read()).await;
        let Some(chunk) = read.unwrap_or(Err(FetchError::Stopping))? else { return Ok(()) };
        self.verifying.take(chunk).map_err(|mismatch| {
            let inner = &self.way.context;
            let registry = self.way.repository.registry.clone();
            inner.upstream.count_mismatch(&registry);
            inner.penalties.note(&self.way.digest, &self.origins);
            if self.streamed {
                inner.spoiled.note(&self.way.digest);
            }
            FetchError::Corrupt { registry, origins: self.origins.clone(), mismatch: Arc::new(*mismatch) }
        })
    }

    /// One chunk, or `None` after an error that is worth a retry.
    async fn read(&mut self) -> Result<Option<Bytes>, FetchError> {
        self.open_stream().await?;
        let Some(stream) = &mut self.stream else { return Ok(None) };
        let broken = match stream.body.chunk().await {
            Ok(Some(mut chunk)) => {
                let skipped = usize::try_from(stream.skip).unwrap_or(usize::MAX).min(chunk.len());
                stream.skip -= skipped as u64;
                return Ok(Some(chunk.split_off(skipped)));
            }
            Ok(None) => {
                self.unavailable(format!("ended the body before byte {}", self.verifying.wanted().end))
            }
            Err(error) => error,
        };
        self.stream = None;
        self.handle_error(broken).await?;
        Ok(None)
    }

    /// Requests the missing bytes from the registry, unless a stream is open.
    async fn open_stream(&mut self) -> Result<(), FetchError> {
        while self.stream.is_none() && !self.verifying.wanted().is_empty() {
            match self.ask().await {
                Ok(stream) => self.stream = Some(stream),
                Err(error) => self.handle_error(error).await?,
            }
        }
        Ok(())
    }

    async fn ask(&mut self) -> Result<Stream, UpstreamError> {
        let BlobRef { context, repository, digest } = &self.way;
        let upstream = &context.upstream;
        let permit = upstream.transfer_permit(&repository.registry).await;
        let wanted = self.verifying.wanted();
        let end = (wanted.end < self.size).then_some(wanted.end);
        let span = Span { start: wanted.start, end };
        let body = upstream.blob(repository, digest, span, &self.known, &self.origin_penalties).await?;
        if let Some(size) = body.size.filter(|size| *size != self.size) {
            return Err(self.unavailable(format!("says the blob has {size} bytes, not {}", self.size)));
        }
        self.known.extend(body.validator.clone().filter(|new| !self.known.contains(new)));
        if !self.origins.contains(&body.origin) {
            self.origins.push(body.origin.clone());
        }
        Ok(Stream { skip: wanted.start - body.offset, body, _permit: permit })
    }

    /// Waits before a retry, or returns the error.
    async fn handle_error(&mut self, error: UpstreamError) -> Result<(), FetchError> {
        let position = self.verifying.wanted().start;
        let Some(pause) = self.retries.pause(position, &error) else { return Err(error.into()) };
        tracing::info!(digest = %self.way.digest.short(), position, %error, "stream interrupted: resuming");
        let stop = &self.way.context.stop;
        stop.run_until_cancelled(tokio::time::sleep(pause)).await.ok_or(FetchError::Stopping)
    }

    fn unavailable(&self, reason: String) -> UpstreamError {
        UpstreamError::Unavailable { registry: self.way.repository.registry.clone(), reason }
    }
}
