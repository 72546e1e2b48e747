//! Pieces that peers have requested from a download, and pieces that peers have sent to it. Shared between the peer
//! listener, which adds requests, and the download's own task, which handles them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

/// Where a requested piece is to come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PieceSource {
    /// From this node's own parents.
    Peers,
    /// From the registry, read by this node together with its segment.
    Registry,
    /// From a registry without ranges, read by this node together with the whole blob.
    WholeRegistry,
}

/// The stage of the download's exchange with peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Not started.
    #[default]
    Before,
    /// Running.
    Open,
    /// Over: the rest comes from the registry.
    Left,
}

#[derive(Debug, Default)]
pub(crate) struct PeerRequests {
    state: Mutex<State>,
    /// Rises with every sign of life from a peer or registry that is to send something.
    activity: AtomicU64,
    /// Rises while bytes arrive at the peers that are to send pieces.
    moved: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    stage: Stage,
    asked: BTreeMap<u64, PieceSource>,
    /// How often no source delivered a piece.
    failed: HashMap<u64, u64>,
    /// Which peers sent bytes of which piece.
    origins: BTreeMap<u64, Vec<String>>,
    /// All of them.
    senders: BTreeSet<String>,
    /// The registry endpoints that sent bytes.
    upstream: Vec<String>,
    interest: Option<Instant>,
}

impl PeerRequests {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Adds a request for a piece and returns how often the piece has failed so far; `None` when the request will not
    /// be handled. `otherwise` means that the download fetches the piece even without peers.
    pub(crate) fn ask(&self, piece: u64, source: PieceSource, otherwise: bool) -> Option<u64> {
        let mut state = self.state();
        state.interest = Some(Instant::now());
        if state.stage == Stage::Left {
            return (otherwise && source == PieceSource::Peers).then(|| state.failures(piece));
        }
        let entry = state.asked.entry(piece).or_insert(source);
        *entry = (*entry).max(source);
        Some(state.failures(piece))
    }

    /// How often no source delivered a piece.
    pub(crate) fn failures(&self, piece: u64) -> u64 {
        self.state().failures(piece)
    }

    /// The exchange with peers starts.
    pub(crate) fn open(&self) {
        self.state().stage = Stage::Open;
    }

    /// The exchange with peers ends; requests that wait for this node to read a piece fail.
    pub(crate) fn leave(&self) {
        let mut state = self.state();
        state.stage = Stage::Left;
        for piece in std::mem::take(&mut state.asked).into_keys() {
            *state.failed.entry(piece).or_default() += 1;
        }
    }

    /// Removes and returns all requests since the last call.
    pub(crate) fn take(&self) -> BTreeMap<u64, PieceSource> {
        std::mem::take(&mut self.state().asked)
    }

    /// Whether requests wait to be taken.
    pub(crate) fn has_requests(&self) -> bool {
        !self.state().asked.is_empty()
    }

    /// Whether a peer has requested a piece within the last `span`.
    pub(crate) fn is_of_interest(&self, span: Duration) -> bool {
        self.state().interest.is_some_and(|last| last.elapsed() < span)
    }

    /// No source delivered a piece.
    pub(crate) fn fail(&self, piece: u64) {
        *self.state().failed.entry(piece).or_default() += 1;
    }

    /// A peer has sent bytes of a piece.
    pub(crate) fn note_peer(&self, piece: u64, peer: &str) {
        let mut state = self.state();
        let membership = state.origins.entry(piece).or_default();
        if !membership.iter().any(|known| known == peer) {
            membership.push(peer.to_owned());
        }
        if !state.senders.contains(peer) {
            state.senders.insert(peer.to_owned());
        }
    }

    /// A registry endpoint has sent bytes.
    pub(crate) fn note_upstream(&self, origin: String) {
        let mut state = self.state();
        if !state.upstream.contains(&origin) {
            state.upstream.push(origin);
        }
    }

    /// Whether a peer has sent bytes.
    pub(crate) fn has_peers(&self) -> bool {
        !self.state().origins.is_empty()
    }

    /// The peers that have sent bytes.
    pub(crate) fn senders(&self) -> BTreeSet<String> {
        self.state().senders.clone()
    }

    /// All peers and registry endpoints that sent bytes, for messages.
    pub(crate) fn origins(&self) -> Vec<String> {
        let state = self.state();
        let mut all = state.upstream.clone();
        for peer in state.origins.values().flatten().map(|peer| format!("peer {peer}")) {
            if !all.contains(&peer) {
                all.push(peer);
            }
        }
        all
    }

    /// Notes a sign of life.
    pub(crate) fn stir(&self) {
        self.activity.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes have arrived at a peer that is to send a piece.
    pub(crate) fn note_movement(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// Rises with every [`Self::note_movement`].
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Number of signs of life so far.
    pub(crate) fn activity(&self) -> u64 {
        self.activity.load(Ordering::Relaxed)
    }
}

impl State {
    fn failures(&self, piece: u64) -> u64 {
        self.failed.get(&piece).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_handled_or_fails_and_never_waits_for_ever() {
        let peer_requests = PeerRequests::default();
        assert_eq!(peer_requests.ask(1, PieceSource::Peers, false), Some(0), "before the exchange starts");
        peer_requests.open();
        assert_eq!(peer_requests.ask(1, PieceSource::Registry, false), Some(0));
        assert_eq!(peer_requests.ask(1, PieceSource::Peers, false), Some(0));
        assert_eq!(
            peer_requests.take().into_iter().collect::<Vec<_>>(),
            [(1, PieceSource::Registry)],
            "the registry has priority over peers"
        );
        peer_requests.ask(2, PieceSource::Registry, true);
        peer_requests.leave();
        assert_eq!(peer_requests.failures(2), 1, "a waiting request fails");
        assert_eq!(peer_requests.ask(3, PieceSource::Registry, true), None);
        assert_eq!(peer_requests.ask(3, PieceSource::Peers, false), None);
        assert_eq!(peer_requests.ask(3, PieceSource::Peers, true), Some(0), "the download fetches it anyway");
    }

    #[test]
    fn every_origin_is_named_once() {
        let peer_requests = PeerRequests::default();
        peer_requests.note_upstream("u".into());
        for piece in [1, 1, 2] {
            peer_requests.note_peer(piece, "a");
        }
        peer_requests.note_peer(2, "b");
        assert_eq!(peer_requests.origins(), ["u", "peer a", "peer b"]);
        assert!(peer_requests.has_peers());
        assert_eq!(peer_requests.senders().into_iter().collect::<Vec<_>>(), ["a", "b"]);
    }
}
