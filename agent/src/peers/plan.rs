//! Decides which piece a node requests next, from which peer, and how it answers requests. Pure: shared by the agent
//! and the simulation.
//!
//! ```text
//! node --Parent--> parent --Parent--> ... --Root--> root --Source--> reader --> registry
//! ```
//!
//! A request climbs ([`super::rank`]) until a peer has the piece or the root is reached. The root requests it from
//! the reader of the piece's segment, and a reader from the registry only. A peer without a usable answer is skipped.

use super::{
    layout::{Layout, WINDOW},
    rank::{Part, Ranking, Subject},
};

pub use crate::limits::peers::plan::QUEUE;

/// The role of the peer that receives a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The peer sends the piece when it has it or is fetching the blob itself.
    Parent,
    /// The peer ranks highest for the piece, in its zone at least: it fetches the piece in any case.
    Root,
    /// The peer reads the piece from the registry.
    Source,
}

/// Where a piece may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A peer, by its index in the ranking.
    Peer(u32, Role),
    /// This node's own request to the registry.
    Upstream,
}

/// Where `me` requests a piece, in this order: the peers above it in the tree, the reader of the segment, the
/// registry, and, if that fails, the next readers of the segment. `fetchers` are the peers of the piece's slot in
/// their order ([`Ranking::fetchers`]).
pub fn targets(ranking: &Ranking, subject: &Subject, part: Part, me: u32, fetchers: &[u32]) -> Vec<Target> {
    let source = |peer: &u32| Target::Peer(*peer, Role::Source);
    let later = fetchers.iter().skip_while(|peer| **peer != me).skip(1).map(source);
    if fetchers.first() == Some(&me) {
        return std::iter::once(Target::Upstream).chain(later).collect();
    }
    let ancestors = ranking.ancestors(subject, part, me);
    let climb = ancestors.iter().enumerate().map(|(at, peer)| {
        // A request beyond the first peer of a zone brings the piece into that zone a second time.
        let inner = ancestors.get(at + 1).is_some_and(|above| ranking.are_neighbours(*peer, *above));
        Target::Peer(*peer, if inner { Role::Parent } else { Role::Root })
    });
    let sources = fetchers.iter().take_while(|peer| **peer != me).map(source);
    climb.chain(sources).chain([Target::Upstream]).chain(later).collect()
}

/// The same for a leaf: it reads no segments, not even its own, and uses the registry last.
pub fn targets_of_leaf(
    ranking: &Ranking,
    subject: &Subject,
    part: Part,
    me: u32,
    fetchers: &[u32],
) -> Vec<Target> {
    let others: Vec<_> = fetchers.iter().copied().filter(|peer| *peer != me).collect();
    targets(ranking, subject, part, me, &others)
}

/// The state of a peer that receives a request for a piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponderState {
    /// The piece has arrived.
    pub has: bool,
    /// This node is fetching the piece for itself or for others already.
    pub fetching: bool,
    /// The peer ranks higher than the requester.
    pub higher: bool,
    /// The peer uses disk and bandwidth for blobs that no client of its node needs.
    pub relays: bool,
    /// The maximum number of requests is waiting.
    pub full: bool,
    /// [`QUEUE`] pieces or more wait to be sent.
    pub loaded: bool,
    /// The peer is much slower than most others ([`super::speed`]), and the blob is still arriving: it is a leaf,
    /// which sends nothing. The next reader can read a segment faster than a leaf sends it.
    pub slow: bool,
}

/// The answer to a request for a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Sends the bytes.
    Send,
    /// Sends the bytes when they have arrived.
    Wait,
    /// Starts to fetch the piece for others, from its own parents.
    Relay,
    /// Starts to read the segment from the registry.
    Read,
    /// Takes no part: use the next peer.
    NoPart,
    /// Busy: retry a little later, or use the next peer.
    Busy,
}

/// Decides the answer.
pub fn answer(role: Role, state: &ResponderState) -> Answer {
    if state.slow {
        return Answer::NoPart;
    }
    if state.has {
        // The root and the reader of the segment are the last peers that certainly have the piece.
        return if state.loaded && role == Role::Parent { Answer::NoPart } else { Answer::Send };
    }
    // A request that does not climb could circle; a source sends no requests to peers.
    if role != Role::Source && !state.higher {
        return Answer::NoPart;
    }
    match role {
        _ if state.full => Answer::Busy,
        // A source reads from the registry: the piece that it waits for may be waiting for this very request.
        Role::Source if state.fetching || state.relays => Answer::Read,
        Role::Parent | Role::Root if state.fetching => Answer::Wait,
        Role::Root if state.relays => Answer::Relay,
        Role::Parent | Role::Root | Role::Source => Answer::NoPart,
    }
}

/// The pieces of one blob that a node still has to request: in random order inside a window that starts at the first
/// missing piece. In order enough to stream and to hash, random enough that nodes have different pieces to share.
#[derive(Clone, Debug)]
pub struct Window {
    state: Vec<State>,
    first: u64,
    random: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Missing,
    Asked,
    Here,
}

impl Window {
    /// All pieces missing. Nodes need different seeds.
    pub fn new(layout: &Layout, seed: u64) -> Self {
        let pieces = usize::try_from(layout.pieces()).expect("a blob's pieces fit the address space");
        Self { state: vec![State::Missing; pieces], first: 0, random: seed | 1 }
    }

    /// A piece to request, if one is left in the window; it counts as requested from now on.
    pub fn take(&mut self) -> Option<u64> {
        let end = (self.first + WINDOW).min(self.state.len() as u64);
        let missing = |piece: &u64| self.state_of(*piece) == Some(State::Missing);
        let count = (self.first..end).filter(missing).count() as u64;
        if count == 0 {
            return None;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let skip = usize::try_from(self.random % count).unwrap_or(0);
        let piece =
            (self.first..end).filter(|piece| self.state_of(*piece) == Some(State::Missing)).nth(skip)?;
        self.set(piece, State::Asked);
        Some(piece)
    }

    /// Marks a particular piece as requested now, because a reader waits for it. Returns whether it was missing.
    pub fn ask(&mut self, piece: u64) -> bool {
        let missing = self.state_of(piece) == Some(State::Missing);
        if missing {
            self.set(piece, State::Asked);
        }
        missing
    }

    /// The request failed: the piece is to be requested again.
    pub fn give_back(&mut self, piece: u64) {
        if self.state_of(piece) == Some(State::Asked) {
            self.set(piece, State::Missing);
        }
    }

    /// The piece has arrived. Returns whether it is new.
    pub fn arrived(&mut self, piece: u64) -> bool {
        let new = !self.has(piece);
        self.set(piece, State::Here);
        while self.state_of(self.first) == Some(State::Here) {
            self.first += 1;
        }
        new
    }

    /// Pieces that have not arrived: those of the window, and those requested beyond it.
    pub fn open(&self) -> Vec<u64> {
        let end = self.first + WINDOW;
        let open = |piece: &u64| match self.state_of(*piece) {
            Some(State::Missing) => *piece < end,
            Some(State::Asked) => true,
            Some(State::Here) | None => false,
        };
        (self.first..self.state.len() as u64).filter(open).collect()
    }

    /// Whether a piece has arrived.
    pub fn has(&self, piece: u64) -> bool {
        self.state_of(piece) == Some(State::Here)
    }

    /// Whether all pieces have arrived.
    pub fn is_complete(&self) -> bool {
        self.first == self.state.len() as u64
    }

    fn state_of(&self, piece: u64) -> Option<State> {
        self.state.get(usize::try_from(piece).ok()?).copied()
    }

    fn set(&mut self, piece: u64, state: State) {
        let place = usize::try_from(piece).ok().and_then(|at| self.state.get_mut(at));
        if let Some(place) = place {
            *place = state;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A blob with this many pieces.
    fn layout(pieces: u64) -> Layout {
        Layout::new(pieces * Layout::new(0).piece())
    }

    #[test]
    fn answers_follow_the_rules() {
        let none = ResponderState { higher: true, relays: true, ..ResponderState::default() };
        let table = [
            (
                "a piece that has arrived is sent",
                Role::Parent,
                ResponderState { has: true, ..ResponderState::default() },
                Answer::Send,
            ),
            ("even when full", Role::Source, ResponderState { has: true, full: true, ..none }, Answer::Send),
            ("a peer that does not fetch the blob takes no part", Role::Parent, none, Answer::NoPart),
            ("but it does as the root", Role::Root, none, Answer::Relay),
            (
                "unless it does not relay",
                Role::Root,
                ResponderState { relays: false, ..none },
                Answer::NoPart,
            ),
            (
                "a piece that is arriving is waited for",
                Role::Parent,
                ResponderState { fetching: true, ..none },
                Answer::Wait,
            ),
            (
                "not by a peer that it may itself wait for",
                Role::Parent,
                ResponderState { fetching: true, higher: false, ..none },
                Answer::NoPart,
            ),
            (
                "a source reads from the registry",
                Role::Source,
                ResponderState { higher: false, ..none },
                Answer::Read,
            ),
            (
                "whatever else it waits for",
                Role::Source,
                ResponderState { fetching: true, ..none },
                Answer::Read,
            ),
            (
                "a loaded peer redirects requests",
                Role::Parent,
                ResponderState { has: true, loaded: true, ..none },
                Answer::NoPart,
            ),
            (
                "but not as the root",
                Role::Root,
                ResponderState { has: true, loaded: true, ..none },
                Answer::Send,
            ),
            (
                "nor as the source",
                Role::Source,
                ResponderState { has: true, loaded: true, ..none },
                Answer::Send,
            ),
            (
                "a piece that has not arrived is waited for",
                Role::Parent,
                ResponderState { fetching: true, loaded: true, ..none },
                Answer::Wait,
            ),
            (
                "no peer waits for a slow one",
                Role::Source,
                ResponderState { fetching: true, slow: true, ..none },
                Answer::NoPart,
            ),
            (
                "nor sends anything",
                Role::Root,
                ResponderState { has: true, slow: true, ..none },
                Answer::NoPart,
            ),
            (
                "a peer with too many requests is busy",
                Role::Root,
                ResponderState { full: true, ..none },
                Answer::Busy,
            ),
        ];
        for (name, role, state, expected) in table {
            assert_eq!(answer(role, &state), expected, "{name}");
        }
    }

    proptest! {
        /// Follows the requests of every node through clusters in which peers are gone, take no part or do not relay:
        /// each chain of waiting ends at a node that reads from the registry, and never returns to a node.
        #[test]
        fn every_chain_of_waiting_ends_and_none_is_a_circle(
            count in 1_u32..40, zones in 1_usize..4, piece in 0_u64..64, mask in proptest::collection::vec(0_u8..4, 40),
        ) {
            let layout = Layout::new(64 << 20);
            let names: Vec<_> = (0..count).map(|at| format!("node-{at:03}")).collect();
            let zone = |at: u32| ["", "a", "b"][at as usize % zones];
            let ranking = Ranking::new((0..).zip(&names).map(|(at, name)| (name.as_str(), zone(at))));
            let subject = Subject::of("sha256:33");
            let fetchers = ranking.fetchers(&subject, layout.slot(piece), 8);
            let part = layout.part(piece);
            let height = |at: u32| subject.height(part, &names[at as usize], zone(at));
            for start in 0..count {
                let (mut me, mut steps) = (start, 0);
                'climb: loop {
                    steps += 1;
                    prop_assert!(steps <= count + 1, "it comes to an end");
                    for target in targets(&ranking, &subject, part, me, &fetchers) {
                        let Target::Peer(peer, role) = target else { break 'climb };
                        // 0: gone. 1: takes no part. 2: does not relay. 3: fetches the blob.
                        let kind = mask[peer as usize];
                        let state = ResponderState {
                            fetching: kind == 3, relays: kind != 2, higher: height(peer) > height(me), ..ResponderState::default()
                        };
                        match answer(role, &state) {
                            _ if kind == 0 => {}
                            Answer::Wait | Answer::Relay => {
                                me = peer;
                                continue 'climb;
                            }
                            Answer::Read => break 'climb,
                            Answer::NoPart => {}
                            other => prop_assert!(false, "{other:?}"),
                        }
                    }
                }
            }
        }

        #[test]
        fn every_piece_is_requested_once_and_never_past_the_window(pieces in 0_u64..200, seed in 0_u64..u64::MAX, lost in 0_u64..200) {
            let mut window = Window::new(&layout(pieces), seed);
            let mut asked = Vec::new();
            let mut given_back = false;
            while !window.is_complete() {
                let first = (0..pieces).find(|piece| !window.has(*piece)).unwrap();
                let piece = window.take().unwrap();
                prop_assert!(piece < first + WINDOW && !window.has(piece));
                if piece == lost && !given_back {
                    given_back = true;
                    window.give_back(piece);
                    continue;
                }
                asked.push(piece);
                prop_assert!(window.arrived(piece) && !window.arrived(piece));
            }
            asked.sort_unstable();
            prop_assert_eq!(asked, (0..pieces).collect::<Vec<_>>());
            prop_assert_eq!(window.take(), None);
        }
    }
}
