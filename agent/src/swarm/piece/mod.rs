//! Fetches one piece: from the peers above this node in the tree of the piece, then from the reader of its segment, then
//! from the registry. [`take`] verifies the bytes that a peer sends; [`earlier`] finds what was read before this node was there.

mod earlier;
mod take;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use tokio::sync::OnceCell;

use super::context::Swarm;
use crate::{
    download::{Download, FetchError, KeyedMutex, ReadError, Reading},
    peers::{
        Membership, Peer, Peers, PieceAnswer,
        layout::Layout,
        plan::{self, Role, Target},
        rank::Subject,
        wire::{PieceAsk, movement},
    },
    store::Partial,
    types::Repository,
};

use crate::limits::swarm::piece::{HOLDERS, LONGEST, PROBED, SEEKING, SOUGHT, SOUGHT_AT_ONCE};

/// Why a piece could not be fetched.
#[derive(Debug)]
pub(super) enum NoPiece {
    /// No source sent it.
    NoSource,
    /// The disk failed, or the agent is stopping.
    Fatal(FetchError),
}

/// Which peers' hashes of a piece are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// Hashes from the reader of the segment, or from two peers that agree.
    Agreed,
    /// Hashes from any peer: there is no other way to get the blob, and its digest still protects it.
    Any,
}

/// The result of requesting one piece from one peer.
enum Attempt {
    Brought,
    Next,
}

/// What is known about nodes that read a blob before this node was there; see [`earlier`].
#[derive(Debug, Default)]
struct Earlier {
    was_read: OnceCell<bool>,
    /// One request at a time for a piece.
    pieces: KeyedMutex<u64>,
}

/// Everything that fetching pieces of one download needs.
pub(super) struct PieceContext {
    pub(super) swarm: Swarm,
    reading: Reading,
    repository: Repository,
    layout: Layout,
    subject: Subject,
    membership: Arc<Membership>,
    fetchers: Vec<Vec<u32>>,
    /// Peers that were found to have the blob when all other sources had failed.
    holders: OnceCell<Vec<Peer>>,
    earlier: Earlier,
}

impl PieceContext {
    /// `None` when there is no other peer.
    pub(super) fn new(swarm: Swarm, reading: Reading, repository: Repository, size: u64) -> Option<Self> {
        let membership = swarm.0.peers.membership()?;
        let subject = Subject::of(&reading.download.digest().to_string());
        let fetchers = membership.fetchers(&subject);
        Some(Self {
            swarm,
            reading,
            repository,
            layout: Layout::new(size),
            subject,
            membership,
            fetchers,
            holders: OnceCell::new(),
            earlier: Earlier::default(),
        })
    }

    /// The same with the current peers, if they have changed.
    pub(super) fn refreshed(&self) -> Option<Self> {
        let now = self.peers().membership()?;
        (!Arc::ptr_eq(&now, &self.membership)).then(|| {
            Self::new(self.swarm.clone(), self.reading.clone(), self.repository.clone(), self.layout.size())
        })?
    }

    pub(super) fn peers(&self) -> &Peers {
        &self.swarm.0.peers
    }

    pub(super) fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Peers that read a piece's segment from the registry, in their order.
    pub(super) fn readers_of(&self, piece: u64) -> Vec<&Peer> {
        self.readers(piece, true).iter().filter_map(|place| self.membership.get(*place)).collect()
    }

    pub(super) fn is_usable(&self, peer: &Peer) -> bool {
        self.peers().is_usable(peer)
    }

    pub(super) fn download(&self) -> &Arc<Download> {
        &self.reading.download
    }

    pub(super) fn partial(&self) -> &Arc<Partial> {
        &self.reading.partial
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn me(&self) -> &Peer {
        self.membership.get(self.membership.me()).expect("this node is a peer")
    }

    /// Whether this node is much slower than its peers.
    pub(super) fn is_slow(&self) -> bool {
        self.peers().is_slow()
    }

    /// How long nothing may arrive from peers.
    pub(super) fn wait(&self) -> Duration {
        self.peers().config().wait
    }

    /// Whether a piece has arrived.
    pub(super) fn has(&self, piece: u64) -> bool {
        self.partial().gaps(self.layout.bytes(piece)).is_empty()
    }

    fn has_ranges(&self) -> bool {
        self.swarm.0.upstream.has_ranges(&self.repository.registry)
    }

    /// Which peers read a piece from the registry: without ranges one peer reads everything.
    fn readers(&self, piece: u64, ranges: bool) -> &[u32] {
        let slot = if ranges { self.layout.slot(piece) } else { 0 };
        usize::try_from(slot).ok().and_then(|slot| self.fetchers.get(slot)).map_or(&[], Vec::as_slice)
    }

    /// Fetches a piece from the first source that sends it.
    pub(super) async fn bring(&self, piece: u64) -> Result<(), NoPiece> {
        if self.is_slow() {
            // Bytes that wait for their hash would use the link in vain.
            self.expected(piece).await;
        }
        let ranges = self.has_ranges();
        match self.try_all(piece, ranges).await {
            // The registry turned out to have no ranges: another peer reads everything then.
            Err(NoPiece::NoSource) if ranges && !self.has_ranges() => self.try_all(piece, false).await,
            outcome => outcome,
        }
    }

    /// `ranges` decides which peer reads a piece. If it turns out to be wrong, no more readers are requested: each of
    /// them would read the whole blob.
    async fn try_all(&self, piece: u64, ranges: bool) -> Result<(), NoPiece> {
        let (me, readers) = (self.membership.me(), self.readers(piece, ranges));
        let (ranking, part) = (self.membership.ranking(), self.layout.part(piece));
        let leaf = self.is_slow();
        // A node that reaches its own place among the readers reads the segment, for the requests that reach it next;
        // but not the whole blob because of a short failure of the reader before it.
        let segment = !leaf && if ranges { readers.contains(&me) } else { readers.first() == Some(&me) };
        let targets = if leaf { plan::targets_of_leaf } else { plan::targets };
        for target in targets(ranking, &self.subject, part, me, readers) {
            if self.has(piece) {
                return Ok(());
            }
            if ranges && !self.has_ranges() {
                return Err(NoPiece::NoSource);
            }
            match target {
                Target::Peer(place, role) => {
                    let Some(peer) = self.membership.get(place) else { continue };
                    if !self.is_to_be_asked(peer, role) {
                        continue;
                    }
                    if let Attempt::Brought = self.ask(peer, (role, Trust::Agreed), piece, ranges).await? {
                        return Ok(());
                    }
                }
                // A slow link that is full loses answers of healthy peers. A slow node reads from the registry only
                // after several rounds without a byte from peers.
                Target::Upstream if self.is_slow() => {}
                Target::Upstream => match self.read(piece, segment, ranges).await {
                    Err(ReadError::Fatal(error)) => return Err(NoPiece::Fatal(error)),
                    Err(ReadError::NoRanges | ReadError::Failed) => {}
                    Ok(()) => return Ok(()),
                },
            }
        }
        self.ask_holders(piece).await
    }

    /// Fetches one of the missing pieces from a peer above this node in its tree. Starts at the end, because the
    /// registry sends the pieces from the beginning meanwhile.
    pub(super) async fn bring_last_from_parent(&self) -> bool {
        let ranges = self.has_ranges();
        let missing = (0..self.layout.pieces()).rev().filter(|piece| !self.has(*piece));
        let parent_of = |piece| {
            let (me, readers) = (self.membership.me(), self.readers(piece, ranges));
            let targets =
                plan::targets(self.membership.ranking(), &self.subject, self.layout.part(piece), me, readers);
            targets.into_iter().find_map(|target| match target {
                Target::Peer(place, role @ Role::Parent) => {
                    self.membership.get(place).filter(|peer| self.is_to_be_asked(peer, role))
                }
                _ => None,
            })
        };
        let Some((piece, peer)) = missing.take(PROBED).find_map(|piece| Some((piece, parent_of(piece)?)))
        else {
            return false;
        };
        let asked = self.ask(peer, (Role::Parent, Trust::Agreed), piece, ranges).await;
        matches!(asked, Ok(Attempt::Brought))
    }

    fn is_to_be_asked(&self, peer: &Peer, role: Role) -> bool {
        let peers = self.peers();
        match role {
            Role::Parent => peers.is_usable(peer) && !peers.skips(peer),
            Role::Root => peers.is_usable(peer),
            Role::Source => peers.is_trusted(peer),
        }
    }

    /// The last resort after the registry: any peer that has the blob, whatever its rank.
    async fn ask_holders(&self, piece: u64) -> Result<(), NoPiece> {
        // A slow link cannot carry many answers at once.
        if self.is_slow() {
            return Err(NoPiece::NoSource);
        }
        for peer in self.holders.get_or_init(|| self.seek(piece)).await {
            if self.peers().is_usable(peer)
                && let Attempt::Brought =
                    self.ask(peer, (Role::Parent, Trust::Any), piece, self.has_ranges()).await?
            {
                return Ok(());
            }
        }
        Err(NoPiece::NoSource)
    }

    /// The peers that have a piece. Searched once per download: later, other peers have it only if they are fetching
    /// it now.
    async fn seek(&self, piece: u64) -> Vec<Peer> {
        let bytes = self.layout.bytes(piece);
        let ask = self.request(Role::Parent, piece, self.has_ranges());
        let (ask, length) = (&ask, bytes.end - bytes.start);
        let others =
            self.membership.others().filter(|peer| self.peers().is_usable(peer)).take(SOUGHT).cloned();
        let found = stream::iter(others.collect::<Vec<_>>())
            .map(|peer| async move {
                let answer = self.peers().piece(&peer, ask, length).await;
                let answer = answer.inspect_err(|error| self.peers().note_failure(error));
                matches!(answer, Ok(PieceAnswer::Body(_))).then_some(peer)
            })
            .buffer_unordered(SOUGHT_AT_ONCE)
            .filter_map(std::future::ready);
        let (mut holders, mut found) = (Vec::new(), std::pin::pin!(found.take(HOLDERS)));
        let _ = tokio::time::timeout(SEEKING, async {
            while let Some(peer) = found.next().await {
                holders.push(peer);
            }
        })
        .await;
        holders
    }

    /// Reads a piece from the registry because a peer requested it. Without ranges, a request for a segment fails,
    /// and the peer then uses the node that reads everything.
    pub(super) async fn read_for_peers(&self, piece: u64, all: bool) -> Result<(), NoPiece> {
        let mut outcome = Err(ReadError::NoRanges);
        if self.is_slow() {
            return Err(NoPiece::NoSource);
        }
        if self.has_ranges() {
            outcome = self.read(piece, true, true).await;
        }
        let all = all || self.readers(piece, false).first() == Some(&self.membership.me());
        if all && matches!(outcome, Err(ReadError::NoRanges)) && !self.has_ranges() {
            outcome = self.read(piece, true, false).await;
        }
        match outcome {
            Ok(()) => Ok(()),
            Err(ReadError::Fatal(error)) => Err(NoPiece::Fatal(error)),
            Err(ReadError::NoRanges | ReadError::Failed) => Err(NoPiece::NoSource),
        }
    }

    /// `segment`: the rest of the segment is read with the piece. Otherwise this is a last resort, for the piece
    /// only.
    async fn read(&self, piece: u64, segment: bool, ranges: bool) -> Result<(), ReadError> {
        if segment && ranges {
            if self.take_from_earlier_reader(piece).await? {
                return Ok(());
            }
            // Another request may have found it out meanwhile.
            if !self.has_ranges() {
                return Err(ReadError::NoRanges);
            }
        }
        let wanted = self.layout.bytes(piece);
        let bytes = match (ranges, segment) {
            (true, true) if self.readers(piece, true).first() == Some(&self.membership.me()) => {
                self.layout.bytes_of(&self.layout.segment(piece))
            }
            // The segment's reader may have read the bytes before the piece already.
            (true, true) => wanted.start..self.layout.bytes_of(&self.layout.segment(piece)).end,
            (true, false) => wanted.clone(),
            (false, true) => 0..self.layout.size(),
            // Does not read everything again for one piece: the downloader does that when nothing else helps.
            (false, false) => return Err(ReadError::Failed),
        };
        self.reading.bring(bytes, wanted).await
    }

    /// Requests a piece from one peer until the peer sends it, declines, or shows no sign of life.
    async fn ask(
        &self,
        peer: &Peer,
        (role, trust): (Role, Trust),
        piece: u64,
        ranges: bool,
    ) -> Result<Attempt, NoPiece> {
        let bytes = self.layout.bytes(piece);
        let ask = self.request(role, piece, ranges);
        let began = Instant::now();
        let (mut activity, mut last_sign, mut silent) = (None, began, false);
        loop {
            // Not while a peer waits for the piece itself: other peers may have other pieces.
            let turn = if self.is_slow() { self.swarm.0.slow_turns.acquire().await.ok() } else { None };
            match self.peers().piece(peer, &ask, bytes.end - bytes.start).await {
                Ok(PieceAnswer::Body(body)) => return self.take(peer, (role, trust), *body, piece).await,
                Ok(PieceAnswer::Held(now)) => {
                    drop(turn);
                    if activity.as_ref() != Some(&now) {
                        let before = activity.as_deref().and_then(movement);
                        if before.is_some() && before != movement(&now) {
                            self.download().peer_requests.note_movement();
                        }
                        (activity, last_sign) = (Some(now), Instant::now());
                        self.download().peer_requests.stir();
                    }
                    if last_sign.elapsed() >= self.wait() || began.elapsed() >= LONGEST || self.has(piece) {
                        return Ok(Attempt::Next);
                    }
                }
                Ok(PieceAnswer::NoRanges) => {
                    self.swarm.0.upstream.note_no_ranges(&self.repository.registry);
                    return Ok(Attempt::Next);
                }
                // A packet was lost on a full link. Another reader would read the whole segment from the registry
                // again.
                Err(error) if error.silent && role == Role::Source && !silent => silent = true,
                // This node's own link is full.
                Err(error) if error.silent && self.is_slow() => return Ok(Attempt::Next),
                Err(error) => {
                    self.peers().note_failure(&error);
                    return Ok(Attempt::Next);
                }
                Ok(PieceAnswer::NoPart | PieceAnswer::Unable) => return Ok(Attempt::Next),
            }
        }
    }

    fn request(&self, role: Role, piece: u64, ranges: bool) -> PieceAsk {
        let me = self.me();
        PieceAsk {
            repository: self.repository.clone(),
            digest: *self.download().digest(),
            size: self.layout.size(),
            piece,
            role,
            peer: me.name.clone(),
            zone: me.zone.clone(),
            whole: !ranges,
            speed: self.peers().own_speed(),
        }
    }
}
