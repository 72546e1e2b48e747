//! Reads segments from the registry for the cluster: one range request each, resumed when interrupted.

use std::{ops::Range, sync::Arc};

use tokio::sync::{mpsc, watch};

use super::{
    context::Context,
    error::FetchError,
    phase::Phase,
    range_request::{self, Event, RangeError, RangeSpec, RequestEvent},
    segments::{Outcome, ReadError},
    state::Download,
};
use crate::{
    limits::download::{schedule::SILENT, segments::TICK},
    store::Partial,
    upstream::{Retries, RetryPolicy, Span, UpstreamError},
};

/// What a read of a segment needs.
#[derive(Clone)]
pub(crate) struct Reading {
    context: Arc<Context>,
    pub(crate) download: Arc<Download>,
    pub(crate) partial: Arc<Partial>,
}

impl Reading {
    pub(super) fn new(context: Arc<Context>, download: Arc<Download>, partial: Arc<Partial>) -> Self {
        Self { context, download, partial }
    }

    /// Makes sure that `wanted` is read as a part of `bytes`; returns when it has arrived.
    pub(crate) async fn bring(&self, bytes: Range<u64>, wanted: Range<u64>) -> Result<(), ReadError> {
        let is_there = || self.partial.gaps(wanted.clone()).is_empty();
        let mut progress = self.download.progress();
        let mut outcome = self.join(&bytes, &wanted);
        let mut ticks = tokio::time::interval(TICK);
        loop {
            progress.borrow_and_update();
            if is_there() {
                return Ok(());
            }
            let ended = outcome.borrow_and_update().clone();
            if let Some(ended) = ended {
                return ended.and_then(|()| if is_there() { Ok(()) } else { Err(ReadError::Failed) });
            }
            tokio::select! {
                changed = progress.changed() => changed.map_err(|_| ReadError::Failed)?,
                changed = outcome.changed() => changed.map_err(|_| ReadError::Failed)?,
                // Peers that wait for this node see a sign of life: every wait for the registry has its own limit.
                _ = ticks.tick() => self.download.peer_requests.stir(),
            }
        }
    }

    fn join(&self, bytes: &Range<u64>, wanted: &Range<u64>) -> watch::Receiver<Outcome> {
        let reading = self.clone();
        self.download.segments.join(self.partial.size(), bytes, wanted, |bytes, ended| {
            let tasks = reading.context.tasks.clone();
            let task = async move {
                let outcome = reading.read(bytes).await;
                ended.send_replace(Some(outcome));
            };
            tasks.spawn("segment", task).abort_handle()
        })
    }

    /// Reads `bytes`, resuming after interruptions.
    async fn read(&self, bytes: Range<u64>) -> Result<(), ReadError> {
        let missing = |gaps: &[Range<u64>]| gaps.iter().map(|gap| gap.end - gap.start).sum::<u64>();
        let mut retries = Retries::new(RetryPolicy::FOR_PEERS, 0);
        // Then a response from the beginning is useful too, also when a read is resumed.
        let alone = bytes.start == 0 && self.partial.size() == Some(bytes.end);
        loop {
            let Some(gap) = self.partial.gaps(bytes.clone()).into_iter().next() else { return Ok(()) };
            let before = self.partial.gaps(bytes.clone());
            let end = if alone { bytes.end } else { gap.end };
            let error = match self.attempt(gap.start..end, alone).await {
                Ok(()) if self.partial.gaps(bytes.clone()) != before => continue,
                Err(RangeError::NoRanges) => return Err(ReadError::NoRanges),
                Err(RangeError::Fatal(error)) => return Err(ReadError::Fatal(error)),
                Ok(()) | Err(RangeError::Refused(_) | RangeError::Changed(_)) => {
                    return Err(ReadError::Failed);
                }
                Err(RangeError::Broken(error)) => error,
            };
            let brought =
                (bytes.end - bytes.start).saturating_sub(missing(&self.partial.gaps(bytes.clone())));
            let pause = retries.pause(brought, &error).ok_or(ReadError::Failed)?;
            tokio::time::sleep(pause).await;
        }
    }

    /// One request.
    async fn attempt(&self, bytes: Range<u64>, alone: bool) -> Result<(), RangeError> {
        let stopping = || RangeError::Fatal(FetchError::Stopping);
        let source = self.download.source(0).ok_or_else(stopping)?;
        let (sender, mut events) = mpsc::channel(4);
        let to_end = self.partial.size() == Some(bytes.end);
        let span = Span { start: bytes.start, end: (!to_end).then_some(bytes.end) };
        let order = RangeSpec { id: 0, source: source.clone(), span, alone, hedges: None };
        let mut request = range_request::start(&self.context, &self.download, &self.partial, order, sender);
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(RequestEvent { event: Event::Streaming(origin), .. }) => {
                        request.streaming = true;
                        self.download.peer_requests.note_upstream(origin);
                        self.download.enter(Phase::Streaming);
                    }
                    Some(RequestEvent { event: Event::Bytes, .. }) => {}
                    Some(RequestEvent { event: Event::Ended(outcome), .. }) => return outcome,
                    None => return Err(stopping()),
                },
                _ = ticks.tick() => if request.view().silent >= SILENT {
                    let reason = format!("sent nothing for {SILENT:?}; retrying");
                    return Err(RangeError::Broken(UpstreamError::Unavailable { registry: source.registry, reason }));
                },
            }
        }
    }
}
