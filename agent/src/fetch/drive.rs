//! Flying: opens lanes as the schedule says, takes their news, and lands the blob. One task per flight owns all of
//! its state; nothing here is shared but the flight itself.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, time::MissedTickBehavior};

use super::{
    FetchError, Fetcher,
    error::chain,
    flight::{Flight, Phase, blocking},
    forest,
    growth::Growth,
    hashing::CatchUp,
    lane::{self, Event, Lane, News, Order, Setback},
    room::Claim,
    runtime,
    schedule::{self, Hedge, LaneView, Step, View},
};
use crate::{
    store::{Finish, Partial},
    types::{Mismatch, RegistryHost, Repository},
    upstream::{Span, backoff},
};

/// How often lanes are looked at when they tell nothing.
const TICK: Duration = Duration::from_millis(50);

/// How long throughput is measured before another number of lanes is tried.
const WINDOW: Duration = Duration::from_millis(250);

/// Attempts in a row that bring next to nothing before a source is given up.
const MAX_BARREN: u32 = 4;

/// What an attempt must bring to count as progress, in bytes: a source that sends two bytes and hangs up is not to be
/// asked a hundred thousand times.
const PROGRESS: u64 = 64 * 1024;

/// Pause after a lane failed while others go on.
const OTHERS_PAUSE: Duration = Duration::from_secs(1);

/// Starts the flight's task.
pub(super) fn start(fetcher: Fetcher, flight: Arc<Flight>) {
    let tasks = fetcher.0.tasks.clone();
    tasks.spawn("flight", async move {
        fetcher.0.metrics.flights.inc();
        let outcome = fly(&fetcher, &flight).await;
        flight.close();
        flight.desk.leave();
        flight.stripes.end();
        if let Err(error) = outcome {
            fail(&fetcher, &flight, error).await;
        }
        fetcher.leave(&flight);
        fetcher.0.metrics.flights.dec();
    });
}

/// Keeps what has arrived for the next flight and tells everyone why this one ended.
async fn fail(fetcher: &Fetcher, flight: &Arc<Flight>, error: FetchError) {
    let digest = flight.digest();
    match &error {
        FetchError::NotFound(_) | FetchError::Stopping | FetchError::Parked => {
            tracing::debug!(digest = %digest.short(), %error, "blob not fetched");
        }
        _ => tracing::warn!(digest = %digest.short(), error = %chain(&error), "blob not fetched"),
    }
    fetcher.note_trouble(&error);
    // On a full disk what has arrived only takes the room of others.
    let full = matches!(&error, FetchError::Store(error) if error.is_full());
    if let FetchError::Corrupt { origins, .. } = &error {
        fetcher.0.liars.note(digest, origins);
        if flight.was_streamed() {
            fetcher.0.spoiled.note(digest);
        }
    } else if let Some(partial) = flight.partial().cloned()
        && let Err(error) = blocking(move || if full { partial.discard() } else { partial.park() }).await
    {
        tracing::warn!(digest = %digest.short(), error = %chain(&error), "partial blob not kept");
    }
    flight.enter(Phase::Failed(error));
}

async fn fly(fetcher: &Fetcher, flight: &Arc<Flight>) -> Result<(), FetchError> {
    // The flight before this one may have ended between the look into the store and this flight's start.
    if let Some(blob) = fetcher.0.store.blob(flight.digest()).await? {
        flight.set_found(blob);
        flight.enter(Phase::Done);
        return Ok(());
    }
    let stop = fetcher.0.stop.clone();
    // What began for peers does not stand in the way of this node's own clients.
    let (registry, for_peer) =
        (flight.source(0).ok_or(FetchError::Stopping)?.registry, flight.hinted_size().is_some());
    let queued = flight.enter_queue(&registry);
    let permit = stop.run_until_cancelled(fetcher.0.upstream.download_permit(&registry, for_peer)).await;
    let _permit = permit.ok_or(FetchError::Stopping)?;
    drop(queued);
    let found = runtime::find(fetcher, flight).await?;
    if let Some(runtime::Found::Linked(blob)) = found {
        flight.set_found(blob);
        flight.enter(Phase::Done);
        return Ok(());
    }
    let mut partial = open_partial(fetcher, flight).await?;
    if let Some(runtime::Found::File(file)) = found {
        if runtime::copy(fetcher, partial.clone(), file).await? {
            flight.set_partial(partial.clone());
            let source = flight.source(0).ok_or(FetchError::Stopping)?;
            return land(fetcher, flight, partial, source.registry, vec![runtime::ORIGIN.to_owned()]).await;
        }
        drop(partial);
        partial = open_partial(fetcher, flight).await?;
    }
    flight.set_partial(partial.clone());
    let filled = stop.run_until_cancelled(forest::fill(fetcher, flight, &partial)).await;
    filled.unwrap_or(Err(FetchError::Stopping))?;
    let mut driver = Driver::new(fetcher.clone(), flight.clone(), partial.clone());
    // What has arrived whole is landed even while the agent stops.
    stop.run_until_cancelled(driver.fill()).await.unwrap_or(Err(FetchError::Stopping))?;
    let (source, origins) = driver.finish().await?;
    land(fetcher, flight, partial, source, origins).await
}

async fn open_partial(fetcher: &Fetcher, flight: &Flight) -> Result<Arc<Partial>, FetchError> {
    let (store, digest) = (fetcher.0.store.clone(), *flight.digest());
    blocking(move || {
        let partial = store.partial(&digest)?;
        partial.hash_forward()?;
        Ok(Arc::new(partial))
    })
    .await
}

/// Checks, publishes, tells.
async fn land(
    fetcher: &Fetcher,
    flight: &Arc<Flight>,
    partial: Arc<Partial>,
    source: RegistryHost,
    origins: Vec<String>,
) -> Result<(), FetchError> {
    let checked = partial.clone();
    if let Finish::Mismatch { found } = blocking(move || checked.finish()).await? {
        fetcher.0.upstream.count_mismatch(&source);
        let kept = fetcher.open_case(flight, partial.size());
        if !kept {
            fetcher.0.vouched.forget(flight.digest());
        }
        blocking(move || if kept { partial.park() } else { partial.discard() }).await?;
        let mismatch = Arc::new(Mismatch { expected: *flight.digest(), found });
        return Err(FetchError::Corrupt { registry: source, origins, mismatch });
    }
    if flight.sent_wrong_bytes() {
        // What is here is right, and what clients have been sent may not be.
        blocking(move || partial.park()).await?;
        return Err(FetchError::Changed("wrong bytes from a peer were replaced".to_owned()));
    }
    flight.enter(Phase::Verified);
    fetcher.close_case(flight.digest(), &partial).await;
    let room = fetcher.clone();
    let committed = blocking(move || match partial.commit() {
        Err(error) if error.is_full() && room.0.room.free(partial.total()).unwrap_or(false) => {
            partial.commit()
        }
        outcome => outcome,
    });
    // After a failed sync the kernel may have dropped what readers are yet to read: they go on past the store.
    committed.await.map(|_| flight.enter(Phase::Done))
}

/// All state of a flight under way.
struct Driver {
    fetcher: Fetcher,
    flight: Arc<Flight>,
    partial: Arc<Partial>,
    lanes: Vec<Lane>,
    next_lane: u64,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    /// Index of the source in use.
    source: usize,
    refused: Option<FetchError>,
    barren: u32,
    total_at_setback: u64,
    not_before: Option<Instant>,
    growth: Growth,
    window: Option<(Instant, u64)>,
    /// What the lane that filled its span last brought, in bytes per second.
    pace: Option<u64>,
    origins: Vec<String>,
    hashing: CatchUp,
    claim: Claim,
}

impl Driver {
    fn new(fetcher: Fetcher, flight: Arc<Flight>, partial: Arc<Partial>) -> Self {
        // A lane sends two events in its life; nobody waits long.
        let (sender, events) = mpsc::channel(16);
        let most = fetcher.0.config.blob_connections;
        let total_at_setback = partial.total();
        Self {
            fetcher,
            flight,
            partial,
            lanes: Vec::new(),
            next_lane: 0,
            sender,
            events,
            source: 0,
            refused: None,
            barren: 0,
            total_at_setback,
            not_before: None,
            growth: Growth::new(most),
            window: None,
            pace: None,
            origins: Vec::new(),
            hashing: CatchUp::default(),
            claim: Claim::default(),
        }
    }

    /// Until every byte is there, or what was wanted, or nobody can bring more.
    async fn fill(&mut self) -> Result<(), FetchError> {
        let flight = self.flight.clone();
        self.learn_size_for_range().await?;
        self.admit().await?;
        // Kept over the turns of the loop: readers wake it far more often than it ticks.
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
                () = flight.wanted.notified() => {}
                _ = ticks.tick() => self.tick(),
            }
        }
    }

    /// Someone who wants a part only does not get the whole begun for it: the size has to be known first.
    async fn learn_size_for_range(&mut self) -> Result<(), FetchError> {
        if self.flight.wants_whole() || self.partial.size().is_some() {
            return Ok(());
        }
        let mut size = self.flight.described_size();
        if size.is_none()
            && let Some(source) = self.flight.source(0)
        {
            size = self.fetcher.0.upstream.blob_head(&source, self.flight.digest()).await?;
        }
        if let Some(size) = size {
            let partial = self.partial.clone();
            blocking(move || partial.set_size(size)).await?;
            self.flight.wrote();
        }
        Ok(())
    }

    /// Asks for room on the disk, once the size is known.
    async fn admit(&mut self) -> Result<(), FetchError> {
        self.claim.admit(&self.fetcher, &self.partial, self.flight.described_size()).await
    }

    fn step(&self) -> Step {
        let size = self.partial.size();
        let (wants, whole) = size.map_or((Vec::new(), true), |size| self.flight.wants(size));
        let lanes: Vec<LaneView> = self.lanes.iter().map(Lane::view).collect();
        let large = size.is_some_and(|size| size >= self.fetcher.0.config.parallel_from);
        let ranges = self.registry().is_none_or(|registry| self.fetcher.0.upstream.has_ranges(&registry));
        let target = if large && ranges { self.growth.target() } else { 1 };
        let most = if ranges { self.fetcher.0.config.blob_connections } else { 1 };
        let have = self.partial.have();
        let wants = if ranges { wants } else { Vec::new() };
        schedule::next(&View {
            size,
            have: &have,
            lanes: &lanes,
            wants: &wants,
            whole: whole || !ranges,
            target,
            most,
            pace: self.pace,
        })
    }

    fn registry(&self) -> Option<RegistryHost> {
        self.flight.source(self.source).map(|source| source.registry)
    }

    fn close_if_satisfied(&self) -> bool {
        let Some(size) = self.partial.size() else { return false };
        self.flight.close_if_satisfied(
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
        let Some(source) = self.flight.source(self.source) else { return Err(self.give_up()) };
        if let Some(cut) = cut {
            let (id, hedges) = (self.lanes[cut].id, self.lanes[cut].hedges.map(|(id, _)| id));
            let same = |lane: &&Lane| {
                lane.id == id || Some(lane.id) == hedges || lane.hedges.is_some_and(|(of, _)| of == id)
            };
            self.lanes.iter().filter(same).for_each(|lane| lane.shorten(start));
        }
        if let Some((hedged, why)) = hedges {
            self.lanes[hedged].hedged = true;
            tracing::debug!(digest = %self.flight.digest().short(), ?why, from = start, "second request for the rest of a range");
        }
        // To the very end nothing needs to be said; from the very start neither: one plain GET is what every
        // registry and every cache in front of it understands best.
        let end = end.filter(|end| self.partial.size() != Some(*end));
        let hedges = hedges.map(|(at, why)| (self.lanes[at].id, why));
        let (id, alone) = (self.next_lane, self.lanes.is_empty());
        let order = Order { id, source, span: Span { start, end }, alone, hedges };
        self.next_lane += 1;
        self.lanes.push(lane::start(&self.fetcher, &self.flight, &self.partial, order, self.sender.clone()));
        Ok(())
    }

    fn give_up(&mut self) -> FetchError {
        self.refused.take().unwrap_or(FetchError::Stopping)
    }

    async fn apply(&mut self, event: Event) -> Result<(), FetchError> {
        let Some(at) = self.lanes.iter().position(|lane| lane.id == event.lane) else { return Ok(()) };
        match event.news {
            News::Streaming(origin) => {
                self.lanes[at].streaming = true;
                if let Some(size) = self.partial.size() {
                    self.lanes[at].set_size(size);
                }
                if !self.origins.contains(&origin) {
                    self.origins.push(origin);
                }
                self.admit().await?;
                self.flight.enter(Phase::Streaming);
            }
            News::Bytes => self.settle_hedge(at),
            News::Ended(outcome) => {
                let lane = self.lanes.remove(at);
                if let Some(hedged) = lane.hedges.and_then(|(id, _)| self.lane_mut(id)) {
                    hedged.hedged = false;
                }
                match outcome {
                    Ok(()) => self.pace = Some(lane.view().rate),
                    Err(setback) => {
                        self.window = None;
                        self.set_back(setback).await?;
                    }
                }
            }
        }
        Ok(())
    }

    fn lane_mut(&mut self, id: u64) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.id == id)
    }

    /// The lane at `at` has brought bytes: of two that are after the same ones it goes on alone.
    fn settle_hedge(&mut self, at: usize) {
        let place = |id: u64| self.lanes.iter().position(|lane| lane.id == id);
        let pairs: Vec<_> =
            self.lanes.iter().map(|lane| lane.hedges.and_then(|(id, why)| Some((place(id)?, why)))).collect();
        let Some(aborted) = schedule::superseded(&pairs, at) else { return };
        let winner = &mut self.lanes[at];
        // What replaces a slow lane is not replaced again: the registry may be as slow as that now.
        winner.hedged = matches!(winner.hedges, Some((_, Hedge::Slow)));
        winner.hedges = None;
        self.lanes.remove(aborted);
    }

    /// A lane failed: wait and try again, or try the next source, or give up.
    async fn set_back(&mut self, setback: Setback) -> Result<(), FetchError> {
        let error = match setback {
            Setback::Fatal(FetchError::Store(error)) if error.is_full() => {
                return self.claim.free(&self.fetcher, &self.partial, error).await;
            }
            Setback::Fatal(error) => return Err(error),
            Setback::NoRanges => return Ok(()),
            Setback::Refused(_) | Setback::Broken(_) | Setback::Changed(_) if !self.lanes.is_empty() => {
                // The others go on; upstream bears no more of them.
                self.growth.settle_at(self.lanes.len());
                self.not_before = Some(Instant::now() + OTHERS_PAUSE);
                return Ok(());
            }
            Setback::Refused(error) => {
                self.next_source(error);
                return Ok(());
            }
            Setback::Changed(error) => {
                let partial = self.partial.clone();
                blocking(move || partial.forget()).await?;
                return Err(FetchError::Changed(error.to_string()));
            }
            Setback::Broken(error) => error,
        };
        let total = self.partial.total();
        if total >= self.total_at_setback.saturating_add(PROGRESS) {
            (self.barren, self.total_at_setback) = (0, total);
        } else {
            self.barren += 1;
        }
        let pause = backoff(self.barren, &error);
        match pause {
            Some(pause) if self.barren < MAX_BARREN => {
                tracing::info!(digest = %self.flight.digest().short(), have = total, error = %error, "transfer broke off: resumed");
                self.not_before = Some(Instant::now() + pause);
            }
            _ => self.next_source(error.into()),
        }
        Ok(())
    }

    fn next_source(&mut self, error: FetchError) {
        self.refused = Some(worse(self.refused.take(), error));
        self.source += 1;
        self.barren = 0;
        self.not_before = None;
    }

    /// Between events: measure, and let the hash catch up.
    fn tick(&mut self) {
        self.measure();
        self.hashing.tick(&self.partial);
    }

    /// One measurement at a time, from the moment all lanes of the target bring bytes. Lanes that hand over to their
    /// successors meanwhile are part of what is measured.
    fn measure(&mut self) {
        let total = self.partial.total();
        let Some((since, before)) = self.window else {
            let steady =
                self.lanes.len() >= self.growth.target() && self.lanes.iter().all(|lane| lane.streaming);
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
        tracing::trace!(digest = %self.flight.digest().short(), lanes = target, bytes_per_second = rate, left, next = self.growth.target(), "throughput measured");
        self.window = (self.growth.target() == target).then(|| (Instant::now(), total));
    }

    /// Ends the lanes that are left and says who brought the bytes.
    async fn finish(mut self) -> Result<(RegistryHost, Vec<String>), FetchError> {
        self.lanes.clear();
        self.hashing.finish().await?;
        let last: Option<Repository> = self.flight.source(self.source).or_else(|| self.flight.source(0));
        let registry = last.map(|source| source.registry).ok_or(FetchError::Stopping)?;
        self.origins.extend(self.flight.desk.origins());
        if self.origins.is_empty() {
            self.origins.push("an earlier transfer".into());
        }
        Ok((registry, self.origins))
    }
}

/// Of two sources' refusals, the one to report: "not now" tells the client more than "not here".
fn worse(known: Option<FetchError>, new: FetchError) -> FetchError {
    match (known, new) {
        (Some(known @ FetchError::NotNow { .. }), FetchError::NotFound(_) | FetchError::Denied(_)) => known,
        (_, new) => new,
    }
}
