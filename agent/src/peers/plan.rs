//! What a node asks for next, whom, and what it answers when it is asked. Pure: shared by the agent and the simulation.
//!
//! ```text
//! node --Parent--> parent --Parent--> ... --Root--> root --Source--> fetcher --> upstream
//! ```
//!
//! A request climbs ([`super::rank`]) until someone has the piece or the root is reached. The root turns to the fetcher
//! of the piece's segment, and a fetcher requests it from the registry alone. A peer that does not answer usefully is skipped.

use super::{
    layout::{Layout, WINDOW},
    rank::{Part, Ranking, Subject},
};

pub use crate::limits::peers::plan::QUEUE;

/// As what a peer is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It gives the piece when it has it or is fetching the blob itself.
    Parent,
    /// It stands highest for the piece, in its zone at least: it sees to it in any case.
    Root,
    /// It reads the piece upstream.
    Source,
}

/// Where a piece may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A peer, by its place in the ranking.
    Peer(u32, Role),
    /// This node's own way upstream.
    Upstream,
}

/// Where `me` looks for a piece, in this order: up its tree, then whoever reads the segment, then upstream itself, and
/// when it cannot, those who might read the segment after it. `fetchers` are the peers of the piece's slot in their
/// order ([`Ranking::fetchers`]).
pub fn targets(ranking: &Ranking, subject: &Subject, part: Part, me: u32, fetchers: &[u32]) -> Vec<Target> {
    let source = |peer: &u32| Target::Peer(*peer, Role::Source);
    let later = fetchers.iter().skip_while(|peer| **peer != me).skip(1).map(source);
    if fetchers.first() == Some(&me) {
        return std::iter::once(Target::Upstream).chain(later).collect();
    }
    let ancestors = ranking.ancestors(subject, part, me);
    let climb = ancestors.iter().enumerate().map(|(at, peer)| {
        // Whoever is asked beyond the first of a zone brings the piece into that zone once more.
        let inner = ancestors.get(at + 1).is_some_and(|above| ranking.are_neighbours(*peer, *above));
        Target::Peer(*peer, if inner { Role::Parent } else { Role::Root })
    });
    let sources = fetchers.iter().take_while(|peer| **peer != me).map(source);
    climb.chain(sources).chain([Target::Upstream]).chain(later).collect()
}

/// The same for a leaf: it reads no segment, not even those that are its own, and goes upstream last.
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

/// What a peer knows of itself when it is asked for a piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The piece is here.
    pub has: bool,
    /// This node is fetching the piece for itself or for others already.
    pub fetching: bool,
    /// It stands higher than who asks.
    pub higher: bool,
    /// It gives disk and bandwidth to blobs that nobody on this node wants.
    pub relays: bool,
    /// As many requests wait here as may.
    pub full: bool,
    /// [`QUEUE`] pieces or more wait for their turn to be sent.
    pub loaded: bool,
    /// It is much slower than most others ([`super::speed`]), and the blob is still on its way: a leaf, for which none is to
    /// wait. The next reader reads what it has read more quickly than it sends it.
    pub slow: bool,
}

/// What it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The bytes.
    Send,
    /// The bytes when they have come.
    Wait,
    /// It begins to fetch the piece for others, along its own way up.
    Relay,
    /// It begins to read the segment upstream.
    Read,
    /// Ask the next one.
    NoPart,
    /// Ask again a little later, or the next one.
    Busy,
}

/// Decides an answer.
pub fn answer(role: Role, standing: &Standing) -> Answer {
    if standing.slow {
        return Answer::NoPart;
    }
    if standing.has {
        // The root and whoever reads it are the last to have it for certain.
        return if standing.loaded && role == Role::Parent { Answer::NoPart } else { Answer::Send };
    }
    // A request that does not climb could go round in a circle; a source asks nobody.
    if role != Role::Source && !standing.higher {
        return Answer::NoPart;
    }
    match role {
        _ if standing.full => Answer::Busy,
        // What it waits for itself may be waiting for this very request: a source goes upstream.
        Role::Source if standing.fetching || standing.relays => Answer::Read,
        Role::Parent | Role::Root if standing.fetching => Answer::Wait,
        Role::Root if standing.relays => Answer::Relay,
        Role::Parent | Role::Root | Role::Source => Answer::NoPart,
    }
}

/// The pieces of one blob that one node still has to ask for: in random order inside a window that slides with the first
/// missing piece. In order enough to stream and to hash, random enough that nodes have different pieces to give.
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

    /// A piece to ask for, if one is left in the window; it counts as asked from now on.
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

    /// A particular piece is asked for now, because someone waits for it. Says whether it was missing.
    pub fn ask(&mut self, piece: u64) -> bool {
        let missing = self.state_of(piece) == Some(State::Missing);
        if missing {
            self.set(piece, State::Asked);
        }
        missing
    }

    /// Nobody brought it: it is to be asked for again.
    pub fn give_back(&mut self, piece: u64) {
        if self.state_of(piece) == Some(State::Asked) {
            self.set(piece, State::Missing);
        }
    }

    /// It has arrived. Says whether it is new.
    pub fn arrived(&mut self, piece: u64) -> bool {
        let new = !self.has(piece);
        self.set(piece, State::Here);
        while self.state_of(self.first) == Some(State::Here) {
            self.first += 1;
        }
        new
    }

    /// Pieces that are not here: those of the window, and those asked for beyond it.
    pub fn open(&self) -> Vec<u64> {
        let end = self.first + WINDOW;
        let open = |piece: &u64| match self.state_of(*piece) {
            Some(State::Missing) => *piece < end,
            Some(State::Asked) => true,
            Some(State::Here) | None => false,
        };
        (self.first..self.state.len() as u64).filter(open).collect()
    }

    /// Whether a piece is here.
    pub fn has(&self, piece: u64) -> bool {
        self.state_of(piece) == Some(State::Here)
    }

    /// Whether all are.
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

    /// One with so many pieces.
    fn layout(pieces: u64) -> Layout {
        Layout::new(pieces * Layout::new(0).piece())
    }

    #[test]
    fn answers_follow_the_rules() {
        let none = Standing { higher: true, relays: true, ..Standing::default() };
        let table = [
            (
                "what is here is sent",
                Role::Parent,
                Standing { has: true, ..Standing::default() },
                Answer::Send,
            ),
            ("even when full", Role::Source, Standing { has: true, full: true, ..none }, Answer::Send),
            ("a bystander takes no part", Role::Parent, none, Answer::NoPart),
            ("but as the root it does", Role::Root, none, Answer::Relay),
            ("unless it does not relay", Role::Root, Standing { relays: false, ..none }, Answer::NoPart),
            (
                "what is on its way is waited for",
                Role::Parent,
                Standing { fetching: true, ..none },
                Answer::Wait,
            ),
            (
                "not by whom it may itself wait for",
                Role::Parent,
                Standing { fetching: true, higher: false, ..none },
                Answer::NoPart,
            ),
            ("a source reads upstream", Role::Source, Standing { higher: false, ..none }, Answer::Read),
            ("whatever else it waits for", Role::Source, Standing { fetching: true, ..none }, Answer::Read),
            (
                "a loaded one sends the asker on",
                Role::Parent,
                Standing { has: true, loaded: true, ..none },
                Answer::NoPart,
            ),
            ("but not as the root", Role::Root, Standing { has: true, loaded: true, ..none }, Answer::Send),
            ("nor as the source", Role::Source, Standing { has: true, loaded: true, ..none }, Answer::Send),
            (
                "what is yet to come is waited for",
                Role::Parent,
                Standing { fetching: true, loaded: true, ..none },
                Answer::Wait,
            ),
            (
                "a slow one keeps nobody waiting",
                Role::Source,
                Standing { fetching: true, slow: true, ..none },
                Answer::NoPart,
            ),
            ("nor sends anything", Role::Root, Standing { has: true, slow: true, ..none }, Answer::NoPart),
            ("a full one says so", Role::Root, Standing { full: true, ..none }, Answer::Busy),
        ];
        for (name, role, standing, expected) in table {
            assert_eq!(answer(role, &standing), expected, "{name}");
        }
    }

    proptest! {
        /// Requests of every node are followed through clusters in which peers are gone, take no part or do not
        /// relay: each chain of waiting ends at an own way upstream, and never comes back to a node.
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
                        // 0: gone. 1: a bystander. 2: does not relay. 3: fetches the blob.
                        let kind = mask[peer as usize];
                        let standing = Standing {
                            fetching: kind == 3, relays: kind != 2, higher: height(peer) > height(me), ..Standing::default()
                        };
                        match answer(role, &standing) {
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
        fn every_piece_is_asked_for_once_and_never_past_the_window(pieces in 0_u64..200, seed in 0_u64..u64::MAX, lost in 0_u64..200) {
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
