//! Reading upstream for the cluster: one ranged request per segment, however many wait for pieces of it.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};

use super::{
    FetchError, Fetcher,
    range_request::{self, Event, RangeError, RangeSpec, RequestEvent},
    schedule::SILENT,
    state::{Download, Phase},
};
use crate::{
    store::Partial,
    upstream::{Retries, RetryPolicy, Span, UpstreamError},
};

use crate::limits::download::segments::TICK;

/// Why a segment could not be read.
#[derive(Clone, Debug)]
pub(crate) enum ReadError {
    /// Upstream answers every request with everything.
    NoRanges,
    /// Upstream cannot, or the attempts are used up.
    Failed,
    /// The disk cannot.
    Fatal(FetchError),
}

type Outcome = Option<Result<(), ReadError>>;

/// The segments that are being read for one download. Dropping them ends them.
#[derive(Debug, Default)]
pub(crate) struct Segments(Mutex<HashMap<Range<u64>, Segment>>);

/// One that is being read, and what ends it.
type Segment = (watch::Receiver<Outcome>, AbortHandle);

impl Drop for Segments {
    fn drop(&mut self) {
        self.end();
    }
}

impl Segments {
    /// Ends all of them: the download has ended, or goes on by itself.
    pub(crate) fn end(&self) {
        let mut segments = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, (_, task)) in segments.drain() {
            task.abort();
        }
    }

    /// Joins the reading that brings `wanted`, or starts one of `bytes` up to where another has begun.
    fn join(&self, reading: &Reading, bytes: &Range<u64>, wanted: &Range<u64>) -> watch::Receiver<Outcome> {
        let mut segments = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        segments.retain(|_, (outcome, _)| outcome.borrow().is_none());
        let under_way = segments.iter().find(|(other, _)| covers(other, wanted));
        if let Some((_, (outcome, _))) = under_way {
            return outcome.clone();
        }
        // A read of everything is one request without a range: others that are under way are about to fail.
        let everything = reading.partial.size().is_some_and(|size| *bytes == (0..size));
        let bytes = if everything { bytes.clone() } else { without_overlap(bytes, wanted, segments.keys()) };
        let (sender, outcome) = watch::channel(None);
        let (task, read) = (reading.clone(), bytes.clone());
        let task = reading.fetcher.0.tasks.spawn("segment", async move {
            let outcome = task.read(read).await;
            sender.send_replace(Some(outcome));
        });
        segments.insert(bytes, (outcome.clone(), task.abort_handle()));
        outcome
    }
}

fn covers(other: &Range<u64>, wanted: &Range<u64>) -> bool {
    other.start <= wanted.start && wanted.end <= other.end
}

/// What is to be read so that `wanted` comes and nothing that another reading brings already. Pure.
fn without_overlap<'a>(
    bytes: &Range<u64>,
    wanted: &Range<u64>,
    others: impl Iterator<Item = &'a Range<u64>>,
) -> Range<u64> {
    let (mut start, mut end) = (bytes.start, bytes.end);
    for other in others {
        if other.end <= wanted.start {
            start = start.max(other.end);
        } else if wanted.end <= other.start {
            end = end.min(other.start);
        }
    }
    start..end
}

/// What a reading needs.
#[derive(Clone)]
pub(crate) struct Reading {
    pub(crate) fetcher: Fetcher,
    pub(crate) download: Arc<Download>,
    pub(crate) partial: Arc<Partial>,
}

impl Reading {
    /// Sees to it that `wanted` is read as a part of `bytes`; returns as soon as it is there.
    pub(crate) async fn bring(&self, bytes: Range<u64>, wanted: Range<u64>) -> Result<(), ReadError> {
        let is_there = || self.partial.gaps(wanted.clone()).is_empty();
        let mut progress = self.download.progress();
        let mut outcome = self.download.segments.join(self, &bytes, &wanted);
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
                // Whoever waits for this node is to know that it lives: every wait upstream has a limit of its own.
                _ = ticks.tick() => self.download.peer_requests.stir(),
            }
        }
    }

    /// Reads `bytes`, resuming what breaks off.
    async fn read(&self, bytes: Range<u64>) -> Result<(), ReadError> {
        let missing = |gaps: &[Range<u64>]| gaps.iter().map(|gap| gap.end - gap.start).sum::<u64>();
        let mut retries = Retries::new(RetryPolicy::FOR_PEERS, 0);
        // Then an answer from the beginning is as good as any, also where it is to go on after a break.
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
        let mut request = range_request::start(&self.fetcher, &self.download, &self.partial, order, sender);
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
                    let reason = format!("sent nothing for {SILENT:?}: asked again");
                    return Err(RangeError::Broken(UpstreamError::Unavailable { registry: source.registry, reason }));
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_is_read_by_two_readings() {
        let wanted = 4..5;
        for (bytes, others, expected) in [
            (0..16, vec![], 0..16),
            (4..16, vec![8..16], 4..8),
            (0..16, vec![0..2, 8..16], 2..8),
            (0..16, vec![20..24], 0..16),
            (4..5, vec![0..4, 5..16], 4..5),
        ] {
            assert_eq!(
                without_overlap(&bytes, &wanted, others.iter()),
                expected,
                "{wanted:?} beside {others:?}"
            );
        }
    }
}
