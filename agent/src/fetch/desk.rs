//! What other members want of a flight, and what they have brought to it. Shared between the peer listener, which
//! asks, and the flight's own task, which sees to it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How a piece is to be had for whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Errand {
    /// Along this node's own way up.
    Climb,
    /// From upstream, by this node itself, with its stripe.
    Read,
    /// The same where upstream has no ranges: with everything.
    ReadAll,
}

/// Where the flight's work with peers stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Not begun.
    #[default]
    Before,
    /// Under way.
    Open,
    /// Over: what is left comes from upstream.
    Left,
}

#[derive(Debug, Default)]
pub(super) struct Desk {
    state: Mutex<State>,
    /// Rises with every sign of life of whoever brings something.
    activity: AtomicU64,
    /// Rises while bytes arrive at the peers that are to send pieces.
    moved: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    stage: Stage,
    asked: BTreeMap<u64, Errand>,
    /// How often nobody brought a piece.
    failed: HashMap<u64, u64>,
    /// Which members sent bytes of which piece.
    origins: BTreeMap<u64, Vec<String>>,
    /// Who else sent bytes.
    upstream: Vec<String>,
    interest: Option<Instant>,
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a request for a piece and says how often it failed so far; `None` when nobody will see to it.
    /// `otherwise` says that the flight brings the piece even without peers.
    pub(super) fn ask(&self, piece: u64, errand: Errand, otherwise: bool) -> Option<u64> {
        let mut state = self.state();
        state.interest = Some(Instant::now());
        if state.stage == Stage::Left {
            return (otherwise && errand == Errand::Climb).then(|| state.failures(piece));
        }
        let entry = state.asked.entry(piece).or_insert(errand);
        *entry = (*entry).max(errand);
        Some(state.failures(piece))
    }

    /// How often nobody brought a piece.
    pub(super) fn failures(&self, piece: u64) -> u64 {
        self.state().failures(piece)
    }

    /// The work with peers begins.
    pub(super) fn open(&self) {
        self.state().stage = Stage::Open;
    }

    /// It ends; those who wait for what this node was to read are told.
    pub(super) fn leave(&self) {
        let mut state = self.state();
        state.stage = Stage::Left;
        for piece in std::mem::take(&mut state.asked).into_keys() {
            *state.failed.entry(piece).or_default() += 1;
        }
    }

    /// Everything asked since the last call.
    pub(super) fn take(&self) -> BTreeMap<u64, Errand> {
        std::mem::take(&mut self.state().asked)
    }

    /// Whether requests wait to be taken.
    pub(super) fn has_requests(&self) -> bool {
        !self.state().asked.is_empty()
    }

    /// Whether anyone asked within the last `span`.
    pub(super) fn is_of_interest(&self, span: Duration) -> bool {
        self.state().interest.is_some_and(|last| last.elapsed() < span)
    }

    /// Nobody brought a piece.
    pub(super) fn fail(&self, piece: u64) {
        *self.state().failed.entry(piece).or_default() += 1;
    }

    /// A member sends bytes of a piece.
    pub(super) fn note_member(&self, piece: u64, member: &str) {
        let mut state = self.state();
        let members = state.origins.entry(piece).or_default();
        if !members.iter().any(|known| known == member) {
            members.push(member.to_owned());
        }
    }

    /// Upstream sends bytes.
    pub(super) fn note_upstream(&self, origin: String) {
        let mut state = self.state();
        if !state.upstream.contains(&origin) {
            state.upstream.push(origin);
        }
    }

    /// Whether a peer sent bytes.
    pub(super) fn has_members(&self) -> bool {
        !self.state().origins.is_empty()
    }

    /// Everyone who sent bytes, for messages.
    pub(super) fn origins(&self) -> Vec<String> {
        let state = self.state();
        let mut all = state.upstream.clone();
        for member in state.origins.values().flatten().map(|member| format!("peer {member}")) {
            if !all.contains(&member) {
                all.push(member);
            }
        }
        all
    }

    /// A sign of life.
    pub(super) fn stir(&self) {
        self.activity.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes have arrived at a peer that is to send a piece.
    pub(super) fn note_movement(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// Rises with every [`Self::note_movement`].
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Signs of life so far.
    pub(super) fn activity(&self) -> u64 {
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
    fn a_request_is_seen_to_or_fails_and_never_just_waits() {
        let desk = Desk::default();
        assert_eq!(desk.ask(1, Errand::Climb, false), Some(0), "before the work begins");
        desk.open();
        assert_eq!(desk.ask(1, Errand::Read, false), Some(0));
        assert_eq!(desk.ask(1, Errand::Climb, false), Some(0));
        assert_eq!(
            desk.take().into_iter().collect::<Vec<_>>(),
            [(1, Errand::Read)],
            "reading is the stronger wish"
        );
        desk.ask(2, Errand::Read, true);
        desk.leave();
        assert_eq!(desk.failures(2), 1, "who waits is told");
        assert_eq!(desk.ask(3, Errand::Read, true), None);
        assert_eq!(desk.ask(3, Errand::Climb, false), None);
        assert_eq!(desk.ask(3, Errand::Climb, true), Some(0), "the flight brings it anyway");
    }

    #[test]
    fn everyone_who_sent_bytes_is_named_once() {
        let desk = Desk::default();
        desk.note_upstream("u".into());
        for piece in [1, 1, 2] {
            desk.note_member(piece, "a");
        }
        desk.note_member(2, "b");
        assert_eq!(desk.origins(), ["u", "peer a", "peer b"]);
        assert!(desk.has_members());
    }
}
