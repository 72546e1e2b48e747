//! What the pieces of one blob must hash to, as the peers say that read them from the registry.
//!
//! Bytes travel along trees, through peers that may alter them; hashes come straight from the peer that reads a piece's
//! segment. A piece is used and passed on only when both agree, so that a peer that alters bytes is found out by the
//! first peer it sends them to, and nobody else is blamed. Where no hash can be had (a peer restarted, an agent before
//! 0.2) the blob's digest alone protects, as it always does.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

use super::keyed_mutex::KeyedMutex;
use crate::types::Digest;

use crate::limits::download::expected_hashes::USELESS;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    state: Mutex<State>,
    /// One request at a time for the segments of a slot: those who wait find its answer.
    requests: KeyedMutex<u64>,
}

#[derive(Debug, Default)]
struct State {
    claims: HashMap<u64, Claim>,
    /// Pieces whose bytes were found to have the hash that was claimed.
    verified: HashMap<u64, Digest>,
    /// What a sender announced for a piece where the claim is another.
    conflicts: HashMap<u64, Claim>,
    useless: HashMap<String, u32>,
    /// Pieces whose claim was found out to be right: conflicts do not change it.
    firm: HashSet<u64>,
}

/// A hash, and who named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// SHA-256 of the piece.
    pub(crate) hash: Digest,
    /// The peer's name.
    pub(crate) peer: String,
}

/// What is to become of the bytes of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// They are what the reader of the segment has.
    Verified,
    /// Nobody could say what they must hash to.
    Unverified,
    /// The sender altered them: it announced another hash, or announced none and sent what the reader does not have.
    Altered,
}

/// Whether to read the bytes at all. A sender that announces another hash than expected may have been deceived by the
/// reader of the segment, or deceive itself: nobody can tell yet, so nobody is blamed.
pub(crate) fn is_worth_reading(expected: Option<&Digest>, announced: Option<&Digest>) -> bool {
    !matches!((expected, announced), (Some(expected), Some(announced)) if expected != announced)
}

/// Decides, for bytes that were worth reading and hash to `found`.
pub(crate) fn judge(expected: Option<&Digest>, announced: Option<&Digest>, found: &Digest) -> Verdict {
    match (expected, announced) {
        (Some(expected), _) if expected == found => Verdict::Verified,
        (Some(_), _) => Verdict::Altered,
        (None, Some(announced)) if announced != found => Verdict::Altered,
        (None, _) => Verdict::Unverified,
    }
}

impl Expected {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to request hashes of a slot's segments.
    pub(crate) async fn turn(&self, slot: u64) -> OwnedMutexGuard<()> {
        self.requests.lock(&slot).await
    }

    /// What a piece must hash to.
    pub(crate) fn claim(&self, piece: u64) -> Option<Claim> {
        self.state().claims.get(&piece).cloned()
    }

    /// Notes what a reader says; what is known already stays.
    pub(crate) fn add(&self, peer: &str, hashes: impl IntoIterator<Item = (u64, Digest)>) {
        let mut state = self.state();
        for (piece, hash) in hashes {
            state.claims.entry(piece).or_insert_with(|| Claim { hash, peer: peer.to_owned() });
        }
    }

    /// Notes what was found out to be right, whatever was claimed before.
    pub(crate) fn add_firm(&self, peer: &str, hashes: impl IntoIterator<Item = (u64, Digest)>) {
        let mut state = self.state();
        for (piece, hash) in hashes {
            state.claims.insert(piece, Claim { hash, peer: peer.to_owned() });
            state.firm.insert(piece);
        }
    }

    /// A peer did not name the hash that was asked for.
    pub(crate) fn note_useless(&self, peer: &str) {
        *self.state().useless.entry(peer.to_owned()).or_default() += 1;
    }

    /// Whether a peer has not named what was asked for too often.
    pub(crate) fn is_useless(&self, peer: &str) -> bool {
        self.state().useless.get(peer).is_some_and(|times| *times >= USELESS)
    }

    /// A sender announces another hash than is expected. The claim goes when it was the sender's own, or when a second
    /// sender announces the same: then that is expected.
    pub(crate) fn note_conflict(&self, piece: u64, sender: &str, announced: Digest) {
        let mut state = self.state();
        if state.firm.contains(&piece) {
            return;
        }
        let announced = Claim { hash: announced, peer: sender.to_owned() };
        if state.claims.get(&piece).is_some_and(|claim| claim.peer == sender) {
            state.claims.remove(&piece);
            return;
        }
        match state.conflicts.get(&piece) {
            Some(other) if other.hash == announced.hash && other.peer != announced.peer => {
                state.claims.insert(piece, announced);
            }
            _ => {
                state.conflicts.insert(piece, announced);
            }
        }
    }

    /// A piece was found to have the expected hash.
    pub(crate) fn note_verified(&self, piece: u64, hash: Digest) {
        self.state().verified.insert(piece, hash);
    }

    /// The hash of a piece that was verified.
    pub(crate) fn verified(&self, piece: u64) -> Option<Digest> {
        self.state().verified.get(&piece).copied()
    }

    /// Of each verified piece its hash, and the peer that named it.
    pub(crate) fn claims(&self) -> Vec<(u64, Claim)> {
        let state = self.state();
        let claims =
            state.verified.keys().filter_map(|piece| Some((*piece, state.claims.get(piece)?.clone())));
        claims.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_blamed_only_for_what_it_altered_itself() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|bytes| Digest::of(bytes));
        for (expected, announced, found, worth, verdict) in [
            (Some(a), Some(a), a, true, Verdict::Verified),
            (Some(a), None, a, true, Verdict::Verified),
            (Some(a), Some(a), b, true, Verdict::Altered),
            (Some(a), None, b, true, Verdict::Altered),
            (None, None, b, true, Verdict::Unverified),
            (None, Some(b), b, true, Verdict::Unverified),
            (None, Some(a), b, true, Verdict::Altered),
            (Some(a), Some(c), a, false, Verdict::Verified),
        ] {
            let (expected, announced) = (expected.as_ref(), announced.as_ref());
            assert_eq!(is_worth_reading(expected, announced), worth, "{expected:?} {announced:?}");
            assert_eq!(judge(expected, announced, &found), verdict, "{expected:?} {announced:?} {found}");
        }
    }

    #[test]
    fn one_sender_alone_does_not_change_what_is_expected() {
        let (right, wrong) = (Digest::of(b"right"), Digest::of(b"wrong"));
        let expected = Expected::default();
        expected.add("reader", [(1, wrong), (2, wrong)]);
        expected.add("other", [(1, right)]);
        expected.note_conflict(1, "a", right);
        expected.note_conflict(1, "a", right);
        assert_eq!(expected.claim(1).unwrap().hash, wrong);
        expected.note_conflict(1, "b", right);
        assert_eq!(expected.claim(1).unwrap().hash, right);
        expected.note_conflict(2, "reader", right);
        assert_eq!(expected.claim(2), None, "it contradicts itself");
        expected.add_firm("second", [(3, right)]);
        for sender in ["a", "b", "second"] {
            expected.note_conflict(3, sender, wrong);
        }
        assert_eq!(expected.claim(3).unwrap().hash, right);
    }

    #[test]
    fn a_peer_without_hashes_is_asked_a_few_times_only() {
        let expected = Expected::default();
        (1..USELESS).for_each(|_| expected.note_useless("a"));
        assert!(!expected.is_useless("a"));
        expected.note_useless("a");
        assert!(expected.is_useless("a") && !expected.is_useless("b"));
    }
}
