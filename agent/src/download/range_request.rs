//! One connection of a download: requests a span from the registry and writes the bytes into the partial blob.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::AbortHandle,
};

use super::{
    blocking::blocking,
    context::Context,
    error::FetchError,
    schedule::{Hedge, RequestView},
    state::Download,
};
use crate::{
    store::{Partial, StoreError},
    types::Repository,
    upstream::{BlobBody, Span, UpstreamError},
};

use crate::limits::download::{
    range_request::{BATCH, SLOW_HEADER},
    schedule::SILENT,
};

/// An event of a request, for its download.
#[derive(Debug)]
pub(super) struct RequestEvent {
    /// The request's number.
    pub(super) request: u64,
    /// The event.
    pub(super) event: Event,
}

#[derive(Debug)]
pub(super) enum Event {
    /// The registry has answered; bytes follow. Names the endpoint that sends them.
    Streaming(String),
    /// Bytes have arrived: the first ones, or the first after a silence.
    Bytes,
    /// The span is complete, or the reason why not.
    Ended(Result<(), RangeError>),
}

/// Why a request ended early.
#[derive(Debug)]
pub(super) enum RangeError {
    /// This source cannot send the span; the next source is tried.
    Refused(FetchError),
    /// The attempt failed; a retry may succeed.
    Broken(UpstreamError),
    /// The registry's size or version of the content differs from an earlier answer.
    Changed(UpstreamError),
    /// The registry ignores the range and sends everything, and another request reads everything already.
    NoRanges,
    /// No source can help.
    Fatal(FetchError),
}

impl From<UpstreamError> for RangeError {
    fn from(error: UpstreamError) -> Self {
        match error {
            UpstreamError::NotFound { .. }
            | UpstreamError::Denied { .. }
            | UpstreamError::TooLarge { .. }
            | UpstreamError::AllPenalized { .. } => Self::Refused(error.into()),
            UpstreamError::Throttled { .. } | UpstreamError::Unavailable { .. } => Self::Broken(error),
            UpstreamError::Changed { .. } => Self::Changed(error),
        }
    }
}

impl From<FetchError> for RangeError {
    fn from(error: FetchError) -> Self {
        Self::Fatal(error)
    }
}

/// How far a request has come, shared between its task and the download.
#[derive(Debug)]
struct Place {
    /// Offset at which the request started.
    start: AtomicU64,
    position: AtomicU64,
    end: AtomicU64,
    started: Instant,
    /// When the response header arrived, in milliseconds after `started`.
    answered: AtomicU64,
    /// Since when the request has waited for the network, in milliseconds after `started`. [`BUSY`] while it does
    /// not: time that the disk or a limit of this node takes is not the registry's silence.
    waiting: AtomicU64,
}

/// See [`Place::waiting`].
const BUSY: u64 = u64::MAX;

impl Place {
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(BUSY - 1)
    }

    fn wait_begins(&self) {
        self.waiting.store(self.now(), Ordering::Relaxed);
    }

    /// For how long the request has waited.
    fn wait_ends(&self) -> Duration {
        let since = self.waiting.swap(BUSY, Ordering::Relaxed);
        Duration::from_millis(self.now().saturating_sub(since))
    }

    fn silent(&self) -> Duration {
        match self.waiting.load(Ordering::Relaxed) {
            BUSY => Duration::ZERO,
            since => Duration::from_millis(self.now().saturating_sub(since)),
        }
    }
}

/// The download's handle on a request. Dropping it aborts the request.
#[derive(Debug)]
pub(super) struct RangeRequest {
    pub(super) id: u64,
    pub(super) streaming: bool,
    pub(super) hedged: bool,
    /// The request that this one hedges, and why.
    pub(super) hedges: Option<(u64, Hedge)>,
    place: Arc<Place>,
    task: AbortHandle,
}

impl Drop for RangeRequest {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RangeRequest {
    pub(super) fn view(&self) -> RequestView {
        let position = self.place.position.load(Ordering::Acquire);
        let since_answer = self.place.now().saturating_sub(self.place.answered.load(Ordering::Relaxed));
        let age = if self.streaming { Duration::from_millis(since_answer) } else { Duration::ZERO };
        let brought = position.saturating_sub(self.place.start.load(Ordering::Acquire));
        RequestView {
            position,
            end: self.place.end.load(Ordering::Acquire),
            silent: if self.streaming { self.place.silent() } else { Duration::ZERO },
            age,
            rate: u64::try_from(u128::from(brought) * 1000 / age.as_millis().max(1)).unwrap_or(u64::MAX),
            hedged: self.hedged,
        }
    }

    /// Makes the request stop earlier; another request fetches the rest.
    pub(super) fn shorten(&self, end: u64) {
        self.place.end.fetch_min(end, Ordering::AcqRel);
    }

    /// Sets the end of a request that was opened before the size was known.
    pub(super) fn set_size(&self, size: u64) {
        self.place.end.fetch_min(size, Ordering::AcqRel);
    }
}

/// What a request is to do.
#[derive(Debug)]
pub(super) struct RangeSpec {
    pub(super) id: u64,
    pub(super) source: Repository,
    pub(super) span: Span,
    /// No other request is running: a response from the beginning is useful too.
    pub(super) alone: bool,
    /// See [`RangeRequest::hedges`].
    pub(super) hedges: Option<(u64, Hedge)>,
}

/// Starts a request.
pub(super) fn start(
    context: &Arc<Context>,
    download: &Arc<Download>,
    partial: &Arc<Partial>,
    spec: RangeSpec,
    events: mpsc::Sender<RequestEvent>,
) -> RangeRequest {
    let place = Arc::new(Place {
        start: AtomicU64::new(spec.span.start),
        position: AtomicU64::new(spec.span.start),
        end: AtomicU64::new(spec.span.end.or(partial.size()).unwrap_or(u64::MAX)),
        started: Instant::now(),
        answered: AtomicU64::new(0),
        waiting: AtomicU64::new(BUSY),
    });
    let (id, hedges) = (spec.id, spec.hedges);
    let run = Run {
        context: context.clone(),
        download: download.clone(),
        partial: partial.clone(),
        place: place.clone(),
        spec,
        events,
    };
    let task = context.tasks.spawn("request", run.run()).abort_handle();
    RangeRequest { id, streaming: false, hedged: false, hedges, place, task }
}

struct Run {
    context: Arc<Context>,
    download: Arc<Download>,
    partial: Arc<Partial>,
    place: Arc<Place>,
    spec: RangeSpec,
    events: mpsc::Sender<RequestEvent>,
}

impl Run {
    async fn run(self) {
        let outcome = self.fill().await;
        self.tell(Event::Ended(outcome)).await;
    }

    /// Sends an event. If the download has ended, it is dropped.
    async fn tell(&self, event: Event) {
        let _ = self.events.send(RequestEvent { request: self.spec.id, event }).await;
    }

    async fn fill(&self) -> Result<(), RangeError> {
        let upstream = &self.context.upstream;
        let source = &self.spec.source;
        let known = self.partial.validators();
        let (digest, origin_penalties) = (self.download.digest(), self.download.origin_penalties());
        let mut permit = self.permit().await;
        let mut asking =
            std::pin::pin!(upstream.blob(source, digest, self.spec.span, &known, origin_penalties));
        let body = if let Ok(answer) = tokio::time::timeout(SLOW_HEADER, &mut asking).await {
            answer?
        } else {
            // A request that makes no progress gives its place to others until the response arrives.
            drop(permit.take());
            let answer = asking.await?;
            permit = self.permit().await;
            answer
        };
        let _permit = permit;
        self.place.answered.store(self.place.now(), Ordering::Relaxed);
        if let Some(validator) = &body.validator {
            self.partial.note_validator(validator);
        }
        if body.offset != self.spec.span.start {
            upstream.note_no_ranges(&source.registry);
            if !self.spec.alone {
                return Err(RangeError::NoRanges);
            }
            self.place.start.store(body.offset, Ordering::Release);
            self.place.position.store(body.offset, Ordering::Release);
        }
        self.learn_size(&body).await?;
        self.tell(Event::Streaming(body.origin.clone())).await;
        self.pump(body).await
    }

    /// Waits for a place among the registry's transfers.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        let registry = &self.spec.source.registry;
        let _queued = self.download.enter_queue(registry);
        self.context.upstream.transfer_permit(registry).await
    }

    /// Compares the blob's size in the response with the manifest's.
    async fn learn_size(&self, body: &BlobBody) -> Result<(), RangeError> {
        let described = self.download.described_size();
        let Some(size) = body.size.or(described) else { return Ok(()) };
        if let Some(described) = described.filter(|described| *described != size) {
            return Err(self.broken(format!(
                "`{}` says the blob has {size} bytes, its manifest says {described}",
                body.origin
            )));
        }
        if !self.spec.alone && self.partial.size().is_some_and(|known| known != size) {
            return Err(self.broken(format!(
                "`{}` says the blob has {size} bytes, another response had a different size",
                body.origin
            )));
        }
        let sized = self.partial.clone();
        blocking(move || sized.set_size(size)).await?;
        self.place.end.fetch_min(size, Ordering::AcqRel);
        Ok(())
    }

    fn broken(&self, reason: String) -> RangeError {
        RangeError::Broken(UpstreamError::Unavailable { registry: self.spec.source.registry.clone(), reason })
    }

    /// Moves the body into the partial blob until the request's end. Network and disk overlap: the next bytes are
    /// gathered while the last batch is written.
    async fn pump(&self, mut body: BlobBody) -> Result<(), RangeError> {
        let mut position = body.offset;
        let epoch = self.partial.epoch();
        let mut writing: Option<tokio::task::JoinHandle<Result<(), StoreError>>> = None;
        let mut first = true;
        let ended = loop {
            self.place.wait_begins();
            let (batch, ended) = gather(&mut body).await;
            let waited = self.place.wait_ends();
            if !batch.is_empty() && (std::mem::take(&mut first) || waited >= SILENT / 2) {
                self.tell(Event::Bytes).await;
            }
            finish_write(writing.take()).await?;
            let length: u64 = batch.iter().map(|chunk| chunk.len() as u64).sum();
            self.context.peers.note_arrival(length);
            let limit = self.partial.size().unwrap_or(u64::MAX);
            if length > limit.saturating_sub(position) {
                break Err(
                    self.broken(format!("`{}` sent more than the {limit} bytes it announced", body.origin))
                );
            }
            if length > 0 {
                writing = Some(self.write(epoch, position, batch));
                position += length;
            }
            if let Some(ended) = ended {
                break ended.map_err(RangeError::from);
            }
            if position >= self.place.end.load(Ordering::Acquire) {
                break Ok(());
            }
        };
        finish_write(writing).await?;
        ended?;
        let end = self.place.end.load(Ordering::Acquire);
        if end == u64::MAX {
            let sized = self.partial.clone();
            return Ok(blocking(move || sized.set_size(position)).await?);
        }
        if position < end {
            return Err(
                self.broken(format!("`{}` ended the body after byte {position} of {end}", body.origin))
            );
        }
        Ok(())
    }

    fn write(
        &self,
        epoch: u64,
        offset: u64,
        batch: Vec<Bytes>,
    ) -> tokio::task::JoinHandle<Result<(), StoreError>> {
        let (download, partial, place) = (self.download.clone(), self.partial.clone(), self.place.clone());
        tokio::task::spawn_blocking(move || {
            let length: u64 = batch.iter().map(|chunk| chunk.len() as u64).sum();
            partial.write_in(epoch, offset, &batch, |written| download.note_read(written))?;
            // Only now: bytes before the position must be written, and bytes after it belong to this request.
            place.position.store(offset + length, Ordering::Release);
            download.wrote();
            Ok(())
        })
    }
}

async fn finish_write(
    writing: Option<tokio::task::JoinHandle<Result<(), StoreError>>>,
) -> Result<(), FetchError> {
    match writing {
        Some(task) => Ok(task.await.map_err(StoreError::from)??),
        None => Ok(()),
    }
}

/// Waits for the next bytes, adds what else has arrived up to [`BATCH`], and reports how the body ended if it did.
async fn gather(body: &mut BlobBody) -> (Vec<Bytes>, Option<Result<(), UpstreamError>>) {
    let (mut batch, mut length) = (Vec::new(), 0);
    let mut next = body.chunk().await;
    loop {
        match next {
            Ok(Some(chunk)) => {
                length += chunk.len();
                batch.push(chunk);
            }
            Ok(None) => return (batch, Some(Ok(()))),
            Err(error) => return (batch, Some(Err(error))),
        }
        if length >= BATCH {
            return (batch, None);
        }
        match body.chunk().now_or_never() {
            Some(more) => next = more,
            None => return (batch, None),
        }
    }
}
