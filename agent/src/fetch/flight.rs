//! One transfer of one digest, shared by everyone who wants it.
//!
//! ```text
//! Connecting --first answer--> Streaming --all bytes hash right--> Verified --on disk under its name--> Done
//!      |                           |                                   |
//!      +---------------------------+-----------------------------------+--> Failed
//! ```
//!
//! The flight owns the partial blob and fills it; readers look at what is there and wait for news on a watch
//! channel. It ends on its own: every wait upstream has a limit, and so has the number of attempts without progress.
//! Readers may finish at `Verified`; the sync to disk that follows is not theirs to wait for.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::sync::watch;

use super::{
    FetchError, Fetcher,
    error::chain,
    reader::{Content, Growing, HELD_BACK},
};
use crate::{
    store::{Blob, Finish, Partial, StoreError},
    types::{Descriptor, Digest, Mismatch, Repository, Role},
    upstream::{BlobBody, Span, UpstreamError},
};

/// Bytes gathered before a write when they are there without waiting.
const BATCH: usize = 256 * 1024;

/// Attempts in a row that bring no new byte before the flight fails.
const MAX_BARREN: u32 = 3;

/// Pause before the second attempt; doubles for each further one.
const PAUSE: Duration = Duration::from_millis(200);

/// Blobs up to this size are sent only when they are verified, as configurations are.
const SMALL: u64 = HELD_BACK;

/// Where a flight stands; see the module's diagram.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    Connecting,
    Streaming,
    Verified,
    Done,
    Failed(FetchError),
}

/// News for readers. The count only makes every change a change.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub(super) phase: Phase,
    writes: u64,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Flight {
    digest: Digest,
    /// What a manifest said about the digest.
    described: Option<Descriptor>,
    /// Where it may be asked for; `None` once the flight takes no more.
    sources: Mutex<Option<Vec<Repository>>>,
    partial: OnceLock<Arc<Partial>>,
    /// Set instead when the blob turned out to be in the store.
    found: OnceLock<Blob>,
    progress: watch::Sender<Progress>,
}

impl Flight {
    pub(super) fn new(digest: Digest, source: &Repository, described: Option<Descriptor>) -> Self {
        Self {
            digest,
            described,
            sources: Mutex::new(Some(vec![source.clone()])),
            partial: OnceLock::new(),
            found: OnceLock::new(),
            progress: watch::Sender::new(Progress { phase: Phase::Connecting, writes: 0 }),
        }
    }

    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The blob's size, once upstream has confirmed it in this flight.
    pub(super) fn size(&self) -> Option<u64> {
        match self.progress.borrow().phase {
            Phase::Streaming | Phase::Verified | Phase::Done => {
                self.partial.get().and_then(|partial| partial.size())
            }
            Phase::Connecting | Phase::Failed(_) => None,
        }
    }

    /// Offers another place to ask; refused when the flight has ended.
    pub(super) fn add_source(&self, source: &Repository) -> bool {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sources) = sources.as_mut() else { return false };
        if !sources.contains(source) {
            sources.push(source.clone());
        }
        true
    }

    /// The source at `at`; past the last one the flight is closed to new ones, so that none is missed.
    fn source(&self, at: usize) -> Option<Repository> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let found = sources.as_ref().and_then(|sources| sources.get(at).cloned());
        if found.is_none() {
            *sources = None;
        }
        found
    }

    fn close(&self) {
        *self.sources.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Waits until bytes can be sent and the flight is known to be able to deliver; for a small blob or a
    /// configuration until it is verified.
    pub(super) async fn ready(&self) -> Result<Content, FetchError> {
        let mut progress = self.progress.subscribe();
        loop {
            let phase = progress.borrow_and_update().phase.clone();
            if let Phase::Failed(error) = phase {
                return Err(error);
            }
            if let Some(blob) = self.found.get() {
                return Ok(Content::Whole(blob.clone()));
            }
            if let Some((partial, size)) =
                self.partial.get().and_then(|partial| Some((partial, partial.size()?)))
                && self.may_start(&phase, partial, size)
            {
                return Ok(Content::Growing(Growing::new(partial.clone(), progress, size)));
            }
            if progress.changed().await.is_err() {
                return Err(FetchError::Stopping);
            }
        }
    }

    fn may_start(&self, phase: &Phase, partial: &Partial, size: u64) -> bool {
        match phase {
            Phase::Verified | Phase::Done => true,
            Phase::Streaming => {
                let whole_first =
                    size <= SMALL || self.described.is_some_and(|known| known.role != Role::Layer);
                !whole_first && partial.total() > 0
            }
            Phase::Connecting | Phase::Failed(_) => false,
        }
    }

    fn enter(&self, phase: Phase) {
        self.progress.send_modify(|progress| progress.phase = phase);
    }

    fn wrote(&self) {
        self.progress.send_modify(|progress| progress.writes += 1);
    }
}

/// Starts the flight's task.
pub(super) fn start(fetcher: Fetcher, flight: Arc<Flight>) {
    let tasks = fetcher.0.tasks.clone();
    tasks.spawn("flight", async move {
        fetcher.0.metrics.flights.inc();
        let stop = fetcher.0.stop.clone();
        let outcome = tokio::select! {
            outcome = fly(&fetcher, &flight) => outcome,
            () = stop.cancelled() => Err(FetchError::Stopping),
        };
        flight.close();
        if let Err(error) = outcome {
            fail(&flight, error).await;
        }
        fetcher.leave(&flight);
        fetcher.0.metrics.flights.dec();
    });
}

/// Keeps what has arrived for the next flight and tells everyone why this one ended.
async fn fail(flight: &Arc<Flight>, error: FetchError) {
    match &error {
        FetchError::NotFound(_) | FetchError::Stopping => {
            tracing::debug!(digest = %flight.digest.short(), %error, "blob not fetched");
        }
        _ => tracing::warn!(digest = %flight.digest.short(), error = %chain(&error), "blob not fetched"),
    }
    flight.enter(Phase::Failed(error.clone()));
    if let Some(partial) = flight.partial.get().cloned()
        && !matches!(error, FetchError::Corrupt { .. })
        && let Err(error) = blocking(move || partial.park()).await
    {
        tracing::warn!(digest = %flight.digest.short(), error = %chain(&error), "partial blob not kept");
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, FetchError> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(StoreError::from)??)
}

async fn fly(fetcher: &Fetcher, flight: &Arc<Flight>) -> Result<(), FetchError> {
    // The flight before this one may have ended between the look into the store and this flight's start.
    if let Some(blob) = fetcher.0.store.blob(&flight.digest).await? {
        let _ = flight.found.set(blob);
        flight.enter(Phase::Done);
        return Ok(());
    }
    let _slot = fetcher.0.slots.acquire().await.map_err(|_| FetchError::Stopping)?;
    let (store, digest) = (fetcher.0.store.clone(), flight.digest);
    let partial = blocking(move || {
        let partial = store.partial(&digest)?;
        partial.hash_forward()?;
        Ok(Arc::new(partial))
    })
    .await?;
    let partial = flight.partial.get_or_init(|| partial).clone();
    let (source, origin) = fill(fetcher, flight, &partial).await?;
    land(fetcher, flight, partial, &source, origin).await
}

/// Checks, publishes, tells.
async fn land(
    fetcher: &Fetcher,
    flight: &Arc<Flight>,
    partial: Arc<Partial>,
    source: &Repository,
    origin: String,
) -> Result<(), FetchError> {
    let checked = partial.clone();
    match blocking(move || checked.finish()).await? {
        Finish::Verified => flight.enter(Phase::Verified),
        Finish::Mismatch { found } => {
            fetcher.0.upstream.count_mismatch(&source.registry);
            return Err(FetchError::Corrupt {
                registry: source.registry.clone(),
                origin,
                mismatch: Arc::new(Mismatch { expected: flight.digest, found }),
            });
        }
    }
    match blocking(move || partial.commit()).await {
        Ok(_) => flight.enter(Phase::Done),
        // Readers have verified bytes in an open file; only the store is poorer.
        Err(error) => {
            tracing::error!(digest = %flight.digest.short(), error = %chain(&error), "verified blob not stored");
        }
    }
    Ok(())
}

/// Fills the partial blob from the flight's sources. Returns the last source and who sent its bytes.
async fn fill(
    fetcher: &Fetcher,
    flight: &Arc<Flight>,
    partial: &Arc<Partial>,
) -> Result<(Repository, String), FetchError> {
    let (mut at, mut barren) = (0, 0);
    let mut refused: Option<FetchError> = None;
    let mut origin = String::from("an earlier transfer");
    while let Some(source) = flight.source(at) {
        if missing(partial).is_none() {
            return Ok((source, origin));
        }
        let before = partial.total();
        match fill_gap(fetcher, flight, partial, &source, &mut origin).await {
            Ok(()) => barren = 0,
            Err(Setback::Refused(error)) => {
                refused = Some(worse(refused, error));
                at += 1;
            }
            Err(Setback::Broken(error)) => {
                barren = if partial.total() > before { 0 } else { barren + 1 };
                if barren >= MAX_BARREN || matches!(error, UpstreamError::Throttled { .. }) {
                    refused = Some(worse(refused, error.into()));
                    (at, barren) = (at + 1, 0);
                    continue;
                }
                tracing::info!(digest = %flight.digest.short(), have = partial.total(), error = %error, "transfer broke off: resumed");
                tokio::time::sleep(PAUSE * 2_u32.pow(barren)).await;
            }
            Err(Setback::Fatal(error)) => return Err(error),
        }
    }
    Err(refused.unwrap_or(FetchError::Stopping))
}

/// Of two sources' refusals, the one to report: "not now" tells the client more than "not here".
fn worse(known: Option<FetchError>, new: FetchError) -> FetchError {
    match (known, new) {
        (Some(known @ FetchError::NotNow { .. }), FetchError::NotFound(_) | FetchError::Denied(_)) => known,
        (_, new) => new,
    }
}

/// The first missing range; everything after what is there when the size is not known yet.
fn missing(partial: &Partial) -> Option<Span> {
    match partial.size() {
        None => Some(Span { start: partial.end_from(0), end: None }),
        Some(size) => {
            let gap = partial.gaps(0..size).into_iter().next()?;
            Some(Span { start: gap.start, end: (gap.end < size).then_some(gap.end) })
        }
    }
}

/// Why a gap was not filled.
enum Setback {
    /// This source will not do.
    Refused(FetchError),
    /// It may do at another attempt.
    Broken(UpstreamError),
    /// No source will do.
    Fatal(FetchError),
}

impl From<UpstreamError> for Setback {
    fn from(error: UpstreamError) -> Self {
        match error {
            UpstreamError::NotFound { .. } | UpstreamError::Denied { .. } => Self::Refused(error.into()),
            UpstreamError::Throttled { .. } | UpstreamError::Unavailable { .. } => Self::Broken(error),
        }
    }
}

impl From<FetchError> for Setback {
    fn from(error: FetchError) -> Self {
        Self::Fatal(error)
    }
}

async fn fill_gap(
    fetcher: &Fetcher,
    flight: &Arc<Flight>,
    partial: &Arc<Partial>,
    source: &Repository,
    origin: &mut String,
) -> Result<(), Setback> {
    let Some(span) = missing(partial) else { return Ok(()) };
    let body = fetcher.0.upstream.blob(source, &flight.digest, span).await?;
    origin.clone_from(&body.origin);
    let stated = body.size.or(flight.described.map(|known| known.size));
    if let Some(size) = stated {
        if let Some(known) = flight.described.filter(|known| known.size != size) {
            let reason =
                format!("`{origin}` says the blob has {size} bytes, its manifest says {}", known.size);
            return Err(Setback::Broken(UpstreamError::Unavailable {
                registry: source.registry.clone(),
                reason,
            }));
        }
        let sized = partial.clone();
        blocking(move || sized.set_size(size)).await?;
    }
    flight.enter(Phase::Streaming);
    pump(flight, partial, source, body, span.end).await
}

/// Moves a body into the partial blob. Network and disk overlap: the next bytes are gathered while the last batch is
/// written.
async fn pump(
    flight: &Arc<Flight>,
    partial: &Arc<Partial>,
    source: &Repository,
    mut body: BlobBody,
    end: Option<u64>,
) -> Result<(), Setback> {
    let broken = |reason: String| {
        Setback::Broken(UpstreamError::Unavailable { registry: source.registry.clone(), reason })
    };
    let mut position = body.offset;
    let mut writing: Option<tokio::task::JoinHandle<Result<(), StoreError>>> = None;
    let ended = loop {
        let (batch, ended) = gather(&mut body).await;
        finish_write(writing.take()).await?;
        let length: u64 = batch.iter().map(|chunk| chunk.len() as u64).sum();
        let limit = partial.size().unwrap_or(u64::MAX);
        if length > limit.saturating_sub(position) {
            break Err(broken(format!("`{}` sent more than the {limit} bytes it announced", body.origin)));
        }
        if length > 0 {
            let (flight, partial, offset) = (flight.clone(), partial.clone(), position);
            writing = Some(tokio::task::spawn_blocking(move || {
                partial.write(offset, &batch)?;
                flight.wrote();
                Ok(())
            }));
            position += length;
        }
        if let Some(ended) = ended {
            break ended.map_err(Setback::from);
        }
    };
    finish_write(writing).await?;
    ended?;
    match end.or(partial.size()) {
        Some(end) if position < end => {
            Err(broken(format!("`{}` ended the body after byte {position} of {end}", body.origin)))
        }
        Some(_) => Ok(()),
        None => {
            let sized = partial.clone();
            Ok(blocking(move || sized.set_size(position)).await?)
        }
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

/// The next bytes, and whatever else is there already, up to [`BATCH`]; with it, how the body ended if it did.
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
