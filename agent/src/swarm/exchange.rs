//! Fills a blob from peers: requests pieces in random order within a window, each along its own tree, reads this
//! node's segments from the registry, and fetches the pieces that other peers request.
//!
//! [`crate::download`] reads the rest from the registry (there are no peers, none answers, or nothing arrives for
//! `peer.wait`).

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::MissedTickBehavior;

use super::{
    context::Swarm,
    piece::{NoPiece, PieceContext},
};
use crate::{
    download::{CatchUp, Download, FetchError, PieceSource, blocking},
    peers::{plan::Window, rank},
    store::Partial,
    types::chain,
};

use crate::limits::{
    peers::client::SLOW_SILENCE,
    swarm::exchange::{ASKS, LEAF_ASKS, LEAF_PROBE, LEAF_WAIT, LINGER, PAUSE, PROBE, ROUNDS, TICK, URGENT},
};

/// Fetches from peers. After `Ok` the downloader continues; all bytes may have arrived already.
pub(super) async fn fill(
    swarm: Swarm,
    download: &Arc<Download>,
    partial: &Arc<Partial>,
) -> Result<(), FetchError> {
    let outcome = match prepare(swarm, download, partial).await {
        Some(context) => Exchange::new(context).run().await,
        None => Ok(()),
    };
    download.peer_requests.leave();
    download.segments.end();
    // Wakes requests that wait here for a piece.
    download.wrote();
    outcome
}

/// Requests the last missing piece for which this node has a usable parent. Returns whether a parent sent it.
pub(super) async fn bring_one(swarm: Swarm, download: &Arc<Download>, partial: &Arc<Partial>) -> bool {
    let origin_penalties = download.origin_penalties();
    let (Some(source), Some(size)) = (download.source(0), partial.size()) else { return false };
    if !origin_penalties.last.is_empty()
        || !origin_penalties.never.is_empty()
        || swarm.0.evidence.has(download.digest())
    {
        return false;
    }
    let reading = swarm.0.fetcher.reading(download, partial);
    let Some(context) = PieceContext::new(swarm, reading, source, size) else { return false };
    let limit = if context.is_slow() { LEAF_PROBE } else { PROBE };
    let asked = tokio::time::timeout(limit, context.bring_last_from_parent()).await;
    asked.unwrap_or(false)
}

/// The context of the exchange; `None` when this node fetches the blob without peers.
async fn prepare(swarm: Swarm, download: &Arc<Download>, partial: &Arc<Partial>) -> Option<PieceContext> {
    swarm.0.peers.membership()?;
    let source = download.source(0)?;
    let origin_penalties = download.origin_penalties();
    let check = swarm.0.evidence.begin_check(download.digest());
    if !check
        && (!origin_penalties.last.is_empty()
            || !origin_penalties.never.is_empty()
            || swarm.0.evidence.has(download.digest()))
    {
        return None;
    }
    let mut size = download.described_size().or(partial.size()).or(download.hinted_size());
    if size.is_none() {
        size = swarm.0.upstream.blob_head(&source, download.digest()).await.ok().flatten();
    }
    let sized = partial.clone();
    let size = size?;
    blocking(move || sized.set_size(size)).await.ok()?;
    let reading = swarm.0.fetcher.reading(download, partial);
    let context = PieceContext::new(swarm, reading, source, size)?;
    if check && let Err(error) = context.cross_check().await {
        tracing::warn!(digest = %download.digest().short(), error = %chain(&error), "cannot compare a wrong blob with a second read");
    }
    Some(context)
}

/// The state of a download's exchange with peers.
struct Exchange {
    context: Arc<PieceContext>,
    window: Window,
    asks: FuturesUnordered<BoxedAsk>,
    /// The pieces among [`Self::asks`] that the download itself needs.
    own: HashSet<u64>,
    hashing: CatchUp,
    total: u64,
    activity: u64,
    last_news: Instant,
    rounds: u32,
    not_before: Option<Instant>,
    /// This node is slow: it reads nothing for others.
    leaf: bool,
}

type BoxedAsk = std::pin::Pin<Box<dyn Future<Output = (u64, Result<(), NoPiece>)> + Send>>;

impl Exchange {
    fn new(context: PieceContext) -> Self {
        let seed = rank::key("order", &format!("{} {}", context.me().name, context.download().digest()));
        Self {
            window: Window::new(context.layout(), seed),
            context: Arc::new(context),
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

    fn download(&self) -> Arc<Download> {
        self.context.download().clone()
    }

    /// Runs until all bytes, or all requested bytes, have arrived, or peers cannot send more.
    async fn run(mut self) -> Result<(), FetchError> {
        let download = self.download();
        download.peer_requests.open();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.note_arrivals();
            if self.window.is_complete() {
                return self.hashing.finish().await;
            }
            self.refresh_membership();
            self.become_leaf_if_slow();
            self.ask_for_peers();
            let wanted = self.ask_for_readers();
            if !wanted {
                // No client waits here: a download for other peers only may be silent for long.
                self.last_news = Instant::now();
            }
            if self.is_over(wanted) {
                return Err(FetchError::Parked);
            }
            // On a slow link many requests fail although peers send: only silence counts there.
            let given_up = self.rounds >= ROUNDS && !self.leaf;
            if wanted && (given_up || self.is_stuck()) {
                tracing::info!(digest = %download.digest().short(), have = self.total, "peers do not send the rest: fetching it from the registry");
                return self.hashing.finish().await;
            }
            tokio::select! {
                Some((piece, outcome)) = self.asks.next() => self.apply(piece, outcome)?,
                () = download.wanted.notified() => {}
                _ = ticks.tick() => self.hashing.tick(self.context.partial()),
            }
        }
    }

    /// Notes pieces that have arrived, from any source.
    fn note_arrivals(&mut self) {
        let total = self.context.partial().total();
        let activity = self.download().peer_requests.activity();
        if (total, activity) != (self.total, self.activity) {
            self.last_news = Instant::now();
        }
        if total != self.total || self.total == 0 {
            self.rounds = if total > self.total { 0 } else { self.rounds };
            for piece in self.window.open() {
                if self.context.has(piece) {
                    self.window.arrived(piece);
                }
            }
        }
        (self.total, self.activity) = (total, activity);
    }

    /// Updates the peers: they change while a large blob is fetched.
    fn refresh_membership(&mut self) {
        if let Some(context) = self.context.refreshed() {
            self.context = Arc::new(context);
        }
    }

    /// Redirects peers that wait for a segment of this node to the next reader. Running requests are aborted: more
    /// than a few fill a slow link so that none ends, and new connections fail.
    fn become_leaf_if_slow(&mut self) {
        let slow = self.context.is_slow();
        if slow && !self.leaf {
            self.asks.clear();
            self.own.clear();
            for piece in self.window.open() {
                self.window.give_back(piece);
                self.download().peer_requests.fail(piece);
            }
            self.download().wrote();
            tracing::info!(digest = %self.download().digest().short(), "this node is much slower than its peers: it stops reading from the registry for them");
            self.download().segments.end();
        }
        self.leaf = slow;
    }

    fn ask(&mut self, piece: u64, source: PieceSource) {
        let context = self.context.clone();
        self.asks.push(Box::pin(async move {
            let outcome = match source {
                PieceSource::Peers => context.bring(piece).await,
                PieceSource::Registry => context.read_for_peers(piece, false).await,
                PieceSource::WholeRegistry => context.read_for_peers(piece, true).await,
            };
            (piece, outcome)
        }));
    }

    /// Pieces that peers request are fetched at once, in addition to this node's own: their order differs from this
    /// node's.
    fn ask_for_peers(&mut self) {
        for (piece, source) in self.download().peer_requests.take() {
            if self.window.has(piece) {
                continue;
            }
            let missing = self.window.ask(piece);
            if missing || source != PieceSource::Peers {
                self.ask(piece, source);
            }
        }
    }

    /// Requests pieces that clients of this node need, the next bytes of each first. Returns whether any are needed.
    fn ask_for_readers(&mut self) -> bool {
        let layout = *self.context.layout();
        let (wants, whole) = self.download().wants(layout.size());
        let paused = self.is_paused();
        let asks = if self.leaf { LEAF_ASKS } else { ASKS };
        let mut wanted = whole;
        for want in &wants {
            let pieces = layout.touched(want);
            let mut missing = pieces.filter(|piece| !self.window.has(*piece)).peekable();
            wanted |= missing.peek().is_some();
            // Another order does not help where little arrives at a time.
            let most = if whole && !self.leaf { 2 } else { asks };
            let next: Vec<_> = missing.take(most).collect();
            for piece in next {
                if !paused && self.own.len() < asks + URGENT && self.window.ask(piece) {
                    self.own.insert(piece);
                    self.ask(piece, PieceSource::Peers);
                }
            }
        }
        while whole && !paused && self.own.len() < asks {
            let Some(piece) = self.window.take() else { break };
            self.own.insert(piece);
            self.ask(piece, PieceSource::Peers);
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
            Err(NoPiece::NoSource) => {
                self.window.give_back(piece);
                let download = self.download();
                download.peer_requests.fail(piece);
                download.wrote();
                // Requests that ran at the same time are one round.
                if own && !self.is_paused() {
                    self.rounds = (self.rounds + 1).min(ROUNDS);
                    self.not_before = Some(Instant::now() + PAUSE * self.rounds);
                }
            }
        }
        Ok(())
    }

    /// Whether clients of this node need nothing more, peers have requested nothing for a while, and the download can
    /// be closed.
    fn is_over(&self, wanted: bool) -> bool {
        let download = self.download();
        if wanted || !self.asks.is_empty() || download.peer_requests.is_of_interest(LINGER) {
            return false;
        }
        let partial = self.context.partial();
        let size = self.context.layout().size();
        download.close_if_satisfied(
            |want| partial.gaps(want.start.min(size)..want.end.min(size)).is_empty(),
            size,
        )
    }

    fn is_paused(&self) -> bool {
        self.not_before.is_some_and(|until| Instant::now() < until)
    }

    fn is_stuck(&self) -> bool {
        let (quiet, of_node) = (self.last_news.elapsed(), self.context.peers().quiet_for());
        quiet >= patience(self.leaf, of_node, self.context.wait())
    }
}

/// For how long nothing may arrive of a blob before it is read from the registry. `quiet` is for how long nothing has
/// arrived at this node. Pure.
fn patience(leaf: bool, quiet: Duration, wait: Duration) -> Duration {
    if !leaf {
        return wait;
    }
    // On a slow link that is full, other blobs come first, and the registry is behind the same link.
    let silence = wait + SLOW_SILENCE;
    if quiet < silence { LEAF_WAIT } else { silence }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_node_waits_for_as_long_as_its_requests_may_take() {
        let (second, wait) = (Duration::from_secs(1), 3 * Duration::from_secs(1));
        for (leaf, quiet, expected) in [
            (false, 0, wait),
            (false, 60, wait),
            (true, 0, LEAF_WAIT),
            (true, 4, LEAF_WAIT),
            (true, 12, LEAF_WAIT),
            (true, 13, 13 * second),
        ] {
            assert_eq!(patience(leaf, quiet * second, wait), expected, "{leaf} {quiet}");
        }
    }
}
