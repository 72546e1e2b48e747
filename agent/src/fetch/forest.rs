//! Filling a blob from the cluster: pieces in random order within a window, each along its own tree, the stripes that
//! are this node's to read from upstream; and the same for what other members ask of it.
//!
//! Whatever it leaves (no peers, nobody answers, no news for `peer.wait`), [`super::drive`] fetches from upstream as if
//! there were no cluster.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::MissedTickBehavior;

use super::{
    FetchError, Fetcher,
    desk::Errand,
    error::chain,
    flight::{Flight, blocking},
    hashing::CatchUp,
    piece::{Ground, NoPiece},
    stripes::Reading,
};
use crate::{
    peers::{plan::Window, rank},
    store::Partial,
};

/// Requests that a flight has under way for its own sake.
const ASKS: usize = 16;

/// So many when this node is slow: it keeps fewer places at others, and its link is full all the same.
const LEAF_ASKS: usize = 4;

/// So many more for pieces that a reader is about to need.
const URGENT: usize = 4;

/// How often the flight is looked at when nothing happens.
const TICK: Duration = Duration::from_millis(100);

/// For how long a flight that only serves others stays after the last request.
const LINGER: Duration = Duration::from_secs(20);

/// Rounds in which a piece was brought by nobody, without a new byte, before the rest is left to upstream.
const ROUNDS: u32 = 3;

/// Pause after such a round.
const PAUSE: Duration = Duration::from_millis(200);

/// Brings what members can bring. `Ok` says that the driver goes on; all may be there already.
pub(super) async fn fill(
    fetcher: &Fetcher,
    flight: &Arc<Flight>,
    partial: &Arc<Partial>,
) -> Result<(), FetchError> {
    let outcome = match prepare(fetcher, flight, partial).await {
        Some(ground) => Forest::new(ground).run().await,
        None => Ok(()),
    };
    flight.desk.leave();
    flight.stripes.end();
    // Whoever waits here for a piece looks again.
    flight.wrote();
    outcome
}

/// What there is to go by; `None` when this blob is this node's own business.
async fn prepare(fetcher: &Fetcher, flight: &Arc<Flight>, partial: &Arc<Partial>) -> Option<Ground> {
    fetcher.0.peers.members()?;
    let source = flight.source(0)?;
    let distrust = flight.distrust();
    let check = fetcher.0.suspects.begin_check(flight.digest());
    if !check
        && (!distrust.last.is_empty()
            || !distrust.never.is_empty()
            || fetcher.0.suspects.has(flight.digest()))
    {
        return None;
    }
    let mut size = flight.described_size().or(partial.size()).or(flight.hinted_size());
    if size.is_none() {
        size = fetcher.0.upstream.blob_head(&source, flight.digest()).await.ok().flatten();
    }
    let sized = partial.clone();
    let size = size?;
    blocking(move || sized.set_size(size)).await.ok()?;
    let reading = Reading { fetcher: fetcher.clone(), flight: flight.clone(), partial: partial.clone() };
    let ground = Ground::new(reading, source, size)?;
    if check && let Err(error) = ground.cross_check().await {
        tracing::warn!(digest = %flight.digest().short(), error = %chain(&error), "cannot compare a blob with a second read");
    }
    Some(ground)
}

/// All state of the work with peers.
struct Forest {
    ground: Arc<Ground>,
    window: Window,
    asks: FuturesUnordered<BoxedAsk>,
    /// Of [`Self::asks`], those for the flight's own sake.
    own: HashSet<u64>,
    hashing: CatchUp,
    total: u64,
    activity: u64,
    last_news: Instant,
    rounds: u32,
    not_before: Option<Instant>,
    /// This node turned out to be slow: it reads nothing for others.
    leaf: bool,
}

type BoxedAsk = std::pin::Pin<Box<dyn Future<Output = (u64, Result<(), NoPiece>)> + Send>>;

impl Forest {
    fn new(ground: Ground) -> Self {
        let seed = rank::key("order", &format!("{} {}", ground.me().name, ground.flight().digest()));
        Self {
            window: Window::new(ground.layout(), seed),
            ground: Arc::new(ground),
            asks: FuturesUnordered::new(),
            own: HashSet::new(),
            hashing: CatchUp::default(),
            total: 0,
            activity: 0,
            last_news: Instant::now(),
            rounds: 0,
            not_before: None,
            leaf: false,
        }
    }

    fn flight(&self) -> Arc<Flight> {
        self.ground.flight().clone()
    }

    /// Until every byte is there, or what was wanted, or nothing comes of it any more.
    async fn run(mut self) -> Result<(), FetchError> {
        let flight = self.flight();
        flight.desk.open();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.note_arrivals();
            if self.window.is_complete() {
                return self.hashing.finish().await;
            }
            self.refresh_members();
            self.become_leaf_if_slow();
            self.ask_for_members();
            let wanted = self.ask_for_readers();
            if !wanted {
                // Nobody here waits: for other members' sake alone a flight may well be silent for long.
                self.last_news = Instant::now();
            }
            if self.is_over(wanted) {
                return Err(FetchError::Parked);
            }
            // On a slow link many requests fail although peers send: there only silence counts.
            let given_up = self.rounds >= ROUNDS && !self.leaf;
            if wanted && (given_up || self.is_stuck()) {
                tracing::info!(digest = %flight.digest().short(), have = self.total, "members do not bring the rest: upstream is asked");
                return self.hashing.finish().await;
            }
            tokio::select! {
                Some((piece, outcome)) = self.asks.next() => self.apply(piece, outcome)?,
                () = flight.wanted.notified() => {}
                _ = ticks.tick() => self.hashing.tick(self.ground.partial()),
            }
        }
    }

    /// Pieces that are there now, whoever brought them.
    fn note_arrivals(&mut self) {
        let total = self.ground.partial().total();
        let activity = self.flight().desk.activity();
        if (total, activity) != (self.total, self.activity) {
            self.last_news = Instant::now();
        }
        if total != self.total || self.total == 0 {
            self.rounds = if total > self.total { 0 } else { self.rounds };
            for piece in self.window.open() {
                if self.ground.has(piece) {
                    self.window.arrived(piece);
                }
            }
        }
        (self.total, self.activity) = (total, activity);
    }

    /// Members come and go while a large blob travels.
    fn refresh_members(&mut self) {
        if let Some(ground) = self.ground.refreshed() {
            self.ground = Arc::new(ground);
        }
    }

    /// Peers that wait for what this node reads are sent to the next reader at once.
    fn become_leaf_if_slow(&mut self) {
        let slow = self.ground.is_slow();
        if slow && !self.leaf {
            tracing::info!(digest = %self.flight().digest().short(), "this node is much slower than its peers: it reads nothing from the registry for them");
            self.flight().stripes.end();
        }
        self.leaf = slow;
    }

    fn ask(&mut self, piece: u64, errand: Errand) {
        let ground = self.ground.clone();
        self.asks.push(Box::pin(async move {
            let outcome = match errand {
                Errand::Climb => ground.bring(piece).await,
                Errand::Read => ground.read_for_members(piece, false).await,
                Errand::ReadAll => ground.read_for_members(piece, true).await,
            };
            (piece, outcome)
        }));
    }

    /// What members ask for comes at once and beside this node's own: their order is not this node's.
    fn ask_for_members(&mut self) {
        for (piece, errand) in self.flight().desk.take() {
            if self.window.has(piece) {
                continue;
            }
            let missing = self.window.ask(piece);
            if missing || errand != Errand::Climb {
                self.ask(piece, errand);
            }
        }
    }

    /// Asks for what clients of this node need, the next bytes of each first. Says whether anything is wanted.
    fn ask_for_readers(&mut self) -> bool {
        let layout = *self.ground.layout();
        let (wants, whole) = self.flight().wants(layout.size());
        let paused = self.is_paused();
        let asks = if self.leaf { LEAF_ASKS } else { ASKS };
        let mut wanted = whole;
        for want in &wants {
            let pieces = layout.touched(want);
            let mut missing = pieces.filter(|piece| !self.window.has(*piece)).peekable();
            wanted |= missing.peek().is_some();
            let most = if whole { 2 } else { asks };
            let next: Vec<_> = missing.take(most).collect();
            for piece in next {
                if !paused && self.own.len() < asks + URGENT && self.window.ask(piece) {
                    self.own.insert(piece);
                    self.ask(piece, Errand::Climb);
                }
            }
        }
        while whole && !paused && self.own.len() < asks {
            let Some(piece) = self.window.take() else { break };
            self.own.insert(piece);
            self.ask(piece, Errand::Climb);
        }
        wanted
    }

    fn apply(&mut self, piece: u64, outcome: Result<(), NoPiece>) -> Result<(), FetchError> {
        let own = self.own.remove(&piece);
        match outcome {
            Ok(()) => {
                self.window.arrived(piece);
            }
            Err(NoPiece::Fatal(error)) => return Err(error),
            Err(NoPiece::Nobody) => {
                self.window.give_back(piece);
                let flight = self.flight();
                flight.desk.fail(piece);
                flight.wrote();
                // Those that were under way together are one round.
                if own && !self.is_paused() {
                    self.rounds = (self.rounds + 1).min(ROUNDS);
                    self.not_before = Some(Instant::now() + PAUSE * self.rounds);
                }
            }
        }
        Ok(())
    }

    /// Nobody on this node wants more, nobody else has asked for a while, and nobody who comes now is missed.
    fn is_over(&self, wanted: bool) -> bool {
        let flight = self.flight();
        if wanted || !self.asks.is_empty() || flight.desk.is_of_interest(LINGER) {
            return false;
        }
        let partial = self.ground.partial();
        let size = self.ground.layout().size();
        flight.close_if_satisfied(
            |want| partial.gaps(want.start.min(size)..want.end.min(size)).is_empty(),
            size,
        )
    }

    fn is_paused(&self) -> bool {
        self.not_before.is_some_and(|until| Instant::now() < until)
    }

    fn is_stuck(&self) -> bool {
        self.last_news.elapsed() >= self.ground.wait()
    }
}
