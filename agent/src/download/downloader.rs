//! Reads the missing bytes of a blob from the registry: opens range requests as the schedule says, and handles their
//! events. One task per download owns all of this state; it shares only the download itself.

use std::{sync::Arc, time::Instant};

use tokio::{sync::mpsc, time::MissedTickBehavior};

use super::{
    blocking::blocking,
    context::Context,
    error::FetchError,
    growth::Growth,
    hashing::CatchUp,
    phase::Phase,
    range_request::{self, Event, RangeError, RangeRequest, RangeSpec, RequestEvent},
    reservation::Reservation,
    schedule::{self, Hedge, RequestView, Step, View},
    state::Download,
};
use crate::{
    store::Partial,
    types::{RegistryHost, Repository},
    upstream::{Retries, RetryPolicy, Span},
};

use crate::limits::download::downloader::{OTHERS_PAUSE, TICK, WINDOW};

/// The state of a download that is running.
pub(super) struct Downloader {
    context: Arc<Context>,
    download: Arc<Download>,
    partial: Arc<Partial>,
    requests: Vec<RangeRequest>,
    next_request: u64,
    sender: mpsc::Sender<RequestEvent>,
    events: mpsc::Receiver<RequestEvent>,
    /// Index of the source in use.
    source: usize,
    refused: Option<FetchError>,
    retries: Retries,
    not_before: Option<Instant>,
    growth: Growth,
    window: Option<(Instant, u64)>,
    /// Average rate of the request that finished last, in bytes per second.
    pace: Option<u64>,
    hashing: CatchUp,
    reservation: Reservation,
}

impl Downloader {
    pub(super) fn new(context: Arc<Context>, download: Arc<Download>, partial: Arc<Partial>) -> Self {
        // Range requests send few events, so that this bound rarely makes one wait.
        let (sender, events) = mpsc::channel(16);
        let most = context.config.blob_connections;
        let retries = Retries::new(RetryPolicy::TRANSFER, partial.total());
        Self {
            context,
            download,
            partial,
            requests: Vec::new(),
            next_request: 0,
            sender,
            events,
            source: 0,
            refused: None,
            retries,
            not_before: None,
            growth: Growth::new(most),
            window: None,
            pace: None,
            hashing: CatchUp::default(),
            reservation: Reservation::default(),
        }
    }

    /// Fetches until all bytes, or all bytes that subscribers need, have arrived, or no source can send more.
    pub(super) async fn fill(&mut self) -> Result<(), FetchError> {
        let download = self.download.clone();
        self.learn_size_for_range().await?;
        self.admit().await?;
        // Created once, outside of the loop: readers wake the loop far more often than it ticks.
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            match self.step() {
                Step::Complete => return Ok(()),
                Step::Satisfied if self.close_if_satisfied() => return Err(FetchError::Parked),
                Step::Open { start, end, cut, hedges } if self.may_open() => {
                    self.open(start, end, cut, hedges)?;
                    continue;
                }
                Step::Open { .. } | Step::Wait | Step::Satisfied => {}
            }
            tokio::select! {
                event = self.events.recv() => {
                    if let Some(event) = event {
                        self.apply(event).await?;
                    }
                }
                () = download.wanted.notified() => {}
                _ = ticks.tick() => self.tick(),
            }
        }
    }

    /// Aborts the running requests, because peers send the rest. [`Self::fill`] can be called again.
    pub(super) fn pause(&mut self) {
        self.requests.clear();
        (self.source, self.refused, self.not_before, self.window) = (0, None, None, None);
        self.retries = Retries::new(RetryPolicy::TRANSFER, self.partial.total());
    }

    /// Finds the size before a subscriber's partial range is fetched, so that the request does not fetch the whole
    /// blob.
    async fn learn_size_for_range(&mut self) -> Result<(), FetchError> {
        if self.download.wants_whole() || self.partial.size().is_some() {
            return Ok(());
        }
        let mut size = self.download.described_size();
        if size.is_none()
            && let Some(source) = self.download.source(0)
        {
            size = self.context.upstream.blob_head(&source, self.download.digest()).await?;
        }
        if let Some(size) = size {
            let partial = self.partial.clone();
            blocking(move || partial.set_size(size)).await?;
            self.download.wrote();
        }
        Ok(())
    }

    /// Reserves disk space, once the size is known.
    async fn admit(&mut self) -> Result<(), FetchError> {
        self.reservation.admit(&self.context.room, &self.partial, self.download.described_size()).await
    }

    fn step(&self) -> Step {
        let size = self.partial.size();
        let (wants, whole) = size.map_or((Vec::new(), true), |size| self.download.wants(size));
        let requests: Vec<RequestView> = self.requests.iter().map(RangeRequest::view).collect();
        let large = size.is_some_and(|size| size >= self.context.config.parallel_from);
        let ranges = self.registry().is_none_or(|registry| self.context.upstream.has_ranges(&registry));
        let target = if large && ranges { self.growth.target() } else { 1 };
        let most = if ranges { self.context.config.blob_connections } else { 1 };
        let have = self.partial.have();
        let wants = if ranges { wants } else { Vec::new() };
        schedule::next(&View {
            size,
            have: &have,
            requests: &requests,
            wants: &wants,
            whole: whole || !ranges,
            target,
            most,
            pace: self.pace,
        })
    }

    fn registry(&self) -> Option<RegistryHost> {
        self.download.source(self.source).map(|source| source.registry)
    }

    fn close_if_satisfied(&self) -> bool {
        let Some(size) = self.partial.size() else { return false };
        self.download.close_if_satisfied(
            |want| self.partial.gaps(want.start.min(size)..want.end.min(size)).is_empty(),
            size,
        )
    }

    fn may_open(&self) -> bool {
        self.not_before.is_none_or(|until| Instant::now() >= until)
    }

    fn open(
        &mut self,
        start: u64,
        end: Option<u64>,
        cut: Option<usize>,
        hedges: Option<(usize, Hedge)>,
    ) -> Result<(), FetchError> {
        let Some(source) = self.download.source_or_close(self.source) else { return Err(self.give_up()) };
        if let Some(cut) = cut {
            let (id, hedges) = (self.requests[cut].id, self.requests[cut].hedges.map(|(id, _)| id));
            let same = |request: &&RangeRequest| {
                request.id == id
                    || Some(request.id) == hedges
                    || request.hedges.is_some_and(|(of, _)| of == id)
            };
            self.requests.iter().filter(same).for_each(|request| request.shorten(start));
        }
        if let Some((hedged, why)) = hedges {
            self.requests[hedged].hedged = true;
            tracing::debug!(digest = %self.download.digest().short(), ?why, from = start, "second request for the rest of a range");
        }
        // A plain GET without a range for a whole blob, and no end for a range up to the blob's end: registries and
        // caches handle these best.
        let end = end.filter(|end| self.partial.size() != Some(*end));
        let hedges = hedges.map(|(at, why)| (self.requests[at].id, why));
        let (id, alone) = (self.next_request, self.requests.is_empty());
        let order = RangeSpec { id, source, span: Span { start, end }, alone, hedges };
        self.next_request += 1;
        self.requests.push(range_request::start(
            &self.context,
            &self.download,
            &self.partial,
            order,
            self.sender.clone(),
        ));
        Ok(())
    }

    fn give_up(&mut self) -> FetchError {
        self.refused.take().unwrap_or(FetchError::Stopping)
    }

    async fn apply(&mut self, event: RequestEvent) -> Result<(), FetchError> {
        let Some(at) = self.requests.iter().position(|request| request.id == event.request) else {
            return Ok(());
        };
        match event.event {
            Event::Streaming(origin) => {
                self.requests[at].streaming = true;
                if let Some(size) = self.partial.size() {
                    self.requests[at].set_size(size);
                }
                self.download.peer_requests.note_upstream(origin);
                self.admit().await?;
                self.download.enter(Phase::Streaming);
            }
            Event::Bytes => self.settle_hedge(at),
            Event::Ended(outcome) => {
                let request = self.requests.remove(at);
                if let Some(hedged) = request.hedges.and_then(|(id, _)| self.request_mut(id)) {
                    hedged.hedged = false;
                }
                match outcome {
                    Ok(()) => self.pace = Some(request.view().rate),
                    Err(error) => {
                        self.window = None;
                        self.handle_error(error).await?;
                    }
                }
            }
        }
        Ok(())
    }

    fn request_mut(&mut self, id: u64) -> Option<&mut RangeRequest> {
        self.requests.iter_mut().find(|request| request.id == id)
    }

    /// Of two requests for the same bytes, keeps the one at `at`, which received bytes first, and aborts the other.
    fn settle_hedge(&mut self, at: usize) {
        let place = |id: u64| self.requests.iter().position(|request| request.id == id);
        let pairs: Vec<_> = self
            .requests
            .iter()
            .map(|request| request.hedges.and_then(|(id, why)| Some((place(id)?, why))))
            .collect();
        let Some(aborted) = schedule::superseded(&pairs, at) else { return };
        let winner = &mut self.requests[at];
        // A hedge of a slow request is not hedged again: the registry itself may be slow.
        winner.hedged = matches!(winner.hedges, Some((_, Hedge::Slow)));
        winner.hedges = None;
        self.requests.remove(aborted);
    }

    /// A request failed: retries after a pause, changes to the next source, or fails the download.
    async fn handle_error(&mut self, error: RangeError) -> Result<(), FetchError> {
        let error = match error {
            RangeError::Fatal(FetchError::Store(error)) if error.is_full() => {
                return self.reservation.free(&self.context.room, &self.partial, error).await;
            }
            RangeError::Fatal(error) => return Err(error),
            RangeError::NoRanges => return Ok(()),
            RangeError::Refused(_) | RangeError::Broken(_) | RangeError::Changed(_)
                if !self.requests.is_empty() =>
            {
                // The other requests continue. The registry does not accept more than these.
                self.growth.settle_at(self.requests.len());
                self.not_before = Some(Instant::now() + OTHERS_PAUSE);
                return Ok(());
            }
            RangeError::Refused(error) => {
                self.next_source(error);
                return Ok(());
            }
            RangeError::Changed(error) => {
                let partial = self.partial.clone();
                blocking(move || partial.forget()).await?;
                return Err(FetchError::Changed(error.to_string()));
            }
            RangeError::Broken(error) => error,
        };
        let total = self.partial.total();
        if let Some(pause) = self.retries.pause(total, &error) {
            tracing::info!(digest = %self.download.digest().short(), have = total, error = %error, "transfer interrupted: resuming");
            self.not_before = Some(Instant::now() + pause);
        } else {
            self.next_source(error.into());
        }
        Ok(())
    }

    fn next_source(&mut self, error: FetchError) {
        self.refused = Some(worse(self.refused.take(), error));
        self.source += 1;
        self.retries = Retries::new(RetryPolicy::TRANSFER, self.partial.total());
        self.not_before = None;
    }

    /// Between events: measures the throughput, and updates the hash.
    fn tick(&mut self) {
        self.measure();
        self.hashing.tick(&self.partial);
    }

    /// One measurement at a time, from the moment at which all requests of the target receive bytes. Requests that
    /// are replaced by their successors meanwhile count.
    fn measure(&mut self) {
        let total = self.partial.total();
        let Some((since, before)) = self.window else {
            let steady = self.requests.len() >= self.growth.target()
                && self.requests.iter().all(|request| request.streaming);
            self.window = steady.then(|| (Instant::now(), total));
            return;
        };
        if since.elapsed() < WINDOW {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let rate = (total - before.min(total)) as f64 / since.elapsed().as_secs_f64();
        let left = self.partial.size().unwrap_or(total).saturating_sub(total);
        let target = self.growth.target();
        self.growth.measured(rate, left);
        tracing::trace!(digest = %self.download.digest().short(), requests = target, bytes_per_second = rate, left, next = self.growth.target(), "throughput measured");
        self.window = (self.growth.target() == target).then(|| (Instant::now(), total));
    }

    /// Aborts the remaining requests and returns the origins of the bytes.
    pub(super) async fn finish(mut self) -> Result<(RegistryHost, Vec<String>), FetchError> {
        self.requests.clear();
        self.hashing.finish().await?;
        let last: Option<Repository> = self.download.source(self.source).or_else(|| self.download.source(0));
        let registry = last.map(|source| source.registry).ok_or(FetchError::Stopping)?;
        let mut origins = self.download.peer_requests.origins();
        if origins.is_empty() {
            origins.push("an earlier download".into());
        }
        Ok((registry, origins))
    }
}

/// Which of two sources' errors to report: "not available now" tells the client more than "not found".
fn worse(known: Option<FetchError>, new: FetchError) -> FetchError {
    match (known, new) {
        (Some(known @ FetchError::NotNow { .. }), FetchError::NotFound(_) | FetchError::Denied(_)) => known,
        (_, new) => new,
    }
}
