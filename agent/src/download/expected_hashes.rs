//! The expected hashes of a blob's pieces, according to the peers that read them from the registry.
//!
//! Bytes travel along trees, through peers that may alter them; hashes come directly from the peer that reads a
//! piece's segment. A piece is used and forwarded only when both agree, so that the first receiver of altered bytes
//! detects it and blames the sender, and no other peer is blamed. Without a hash (a peer restarted, or runs an agent
//! before 0.2), only the blob's digest protects the content.

use std::collections::{HashMap, HashSet};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::OwnedMutexGuard;

use super::keyed_mutex::KeyedMutex;
use crate::types::PieceHash;

use crate::limits::download::expected_hashes::USELESS;

/// The expected hashes of one blob; see the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    state: Mutex<State>,
    /// One request at a time for the segments of a slot; waiting callers use its result.
    requests: KeyedMutex<u64>,
}

#[derive(Debug, Default)]
struct State {
    claims: HashMap<u64, Claim>,
    /// Pieces whose bytes on this node have the claimed hash.
    verified: HashMap<u64, PieceHash>,
    /// Announced hashes that differ from the claim, by piece.
    conflicts: HashMap<u64, Claim>,
    useless: HashMap<String, u32>,
    /// Pieces whose claim was proved right: conflicts do not change it.
    firm: HashSet<u64>,
    /// Pieces whose claim is what two senders announced alike. They pass on what they got, so none of them is its author.
    agreed: HashSet<u64>,
}

/// A hash, and the peer that sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Of the piece.
    pub(crate) hash: PieceHash,
    /// The peer's name.
    pub(crate) peer: String,
}

/// What to do with the bytes of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The bytes match the hash of the segment's reader.
    Verified,
    /// No hash was available.
    Unverified,
    /// The sender altered the bytes: they do not match the hash that it announced, or, without one, the reader's
    /// hash.
    Altered,
}

/// Whether to read the bytes at all. When a sender announces an unexpected hash, either the reader of the segment or
/// the sender is wrong. It is not known yet which, so neither is blamed.
pub(crate) fn is_worth_reading(expected: Option<&PieceHash>, announced: Option<&PieceHash>) -> bool {
    !matches!((expected, announced), (Some(expected), Some(announced)) if expected != announced)
}

/// Decides about bytes that were worth reading and hash to `found`.
pub(crate) fn judge(
    expected: Option<&PieceHash>,
    announced: Option<&PieceHash>,
    found: &PieceHash,
) -> Verdict {
    match (expected, announced) {
        (Some(expected), _) if expected == found => Verdict::Verified,
        (Some(_), _) => Verdict::Altered,
        (None, Some(announced)) if announced != found => Verdict::Altered,
        (None, _) => Verdict::Unverified,
    }
}

impl Expected {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits for the lock under which hashes of a slot's segments are requested.
    pub(crate) async fn turn(&self, slot: u64) -> OwnedMutexGuard<()> {
        self.requests.lock(&slot).await
    }

    /// The expected hash of a piece.
    pub(crate) fn claim(&self, piece: u64) -> Option<Claim> {
        self.state().claims.get(&piece).cloned()
    }

    /// Adds hashes from a reader; existing claims stay.
    pub(crate) fn add(&self, peer: &str, hashes: impl IntoIterator<Item = (u64, PieceHash)>) {
        let mut state = self.state();
        for (piece, hash) in hashes {
            state.claims.entry(piece).or_insert_with(|| Claim { hash, peer: peer.to_owned() });
        }
    }

    /// Adds hashes that were proved right, and replaces existing claims.
    pub(crate) fn add_firm(&self, peer: &str, hashes: impl IntoIterator<Item = (u64, PieceHash)>) {
        let mut state = self.state();
        for (piece, hash) in hashes {
            state.claims.insert(piece, Claim { hash, peer: peer.to_owned() });
            state.firm.insert(piece);
            state.agreed.remove(&piece);
        }
    }

    /// A peer's answer lacked the requested hash.
    pub(crate) fn note_useless(&self, peer: &str) {
        *self.state().useless.entry(peer.to_owned()).or_default() += 1;
    }

    /// Whether a peer's answers lacked requested hashes too often.
    pub(crate) fn is_useless(&self, peer: &str) -> bool {
        self.state().useless.get(peer).is_some_and(|times| *times >= USELESS)
    }

    /// A sender announces a hash that differs from the claim. The claim is removed when the sender made it, and
    /// replaced when a second sender announces the same hash.
    pub(crate) fn note_conflict(&self, piece: u64, sender: &str, announced: PieceHash) {
        let mut state = self.state();
        if state.firm.contains(&piece) {
            return;
        }
        let announced = Claim { hash: announced, peer: sender.to_owned() };
        if state.claims.get(&piece).is_some_and(|claim| claim.peer == sender) {
            state.claims.remove(&piece);
            state.agreed.remove(&piece);
            return;
        }
        match state.conflicts.get(&piece) {
            Some(other) if other.hash == announced.hash && other.peer != announced.peer => {
                state.claims.insert(piece, announced);
                state.agreed.insert(piece);
            }
            _ => {
                state.conflicts.insert(piece, announced);
            }
        }
    }

    /// Notes that the bytes of a piece on this node have the expected hash.
    pub(crate) fn note_verified(&self, piece: u64, hash: PieceHash) {
        self.state().verified.insert(piece, hash);
    }

    /// The hash of a piece that was verified.
    pub(crate) fn verified(&self, piece: u64) -> Option<PieceHash> {
        self.state().verified.get(&piece).copied()
    }

    /// The hashes of all verified pieces.
    pub(crate) fn all_verified(&self) -> Vec<(u64, PieceHash)> {
        self.state().verified.iter().map(|(piece, hash)| (*piece, *hash)).collect()
    }

    /// The verified pieces whose hash has an author: the hash of each, and that peer.
    pub(crate) fn claims(&self) -> Vec<(u64, Claim)> {
        let state = self.state();
        let authored = state.verified.keys().filter(|piece| !state.agreed.contains(*piece));
        authored.filter_map(|piece| Some((*piece, state.claims.get(piece)?.clone()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_blamed_only_for_what_it_altered_itself() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|bytes| PieceHash::of(bytes));
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
        let (right, wrong) = (PieceHash::of(b"right"), PieceHash::of(b"wrong"));
        let expected = Expected::default();
        expected.add("reader", [(1, wrong), (2, wrong)]);
        expected.add("other", [(1, right)]);
        expected.note_conflict(1, "a", right);
        expected.note_conflict(1, "a", right);
        assert_eq!(expected.claim(1).unwrap().hash, wrong);
        expected.note_conflict(1, "b", right);
        assert_eq!(expected.claim(1).unwrap().hash, right);
        expected.note_conflict(2, "reader", right);
        assert_eq!(expected.claim(2), None, "the reader contradicts its own claim");
        expected.add_firm("second", [(3, right)]);
        for sender in ["a", "b", "second"] {
            expected.note_conflict(3, sender, wrong);
        }
        assert_eq!(expected.claim(3).unwrap().hash, right);
    }

    #[test]
    fn peers_that_pass_on_a_wrong_hash_are_not_taken_for_its_authors() {
        let (right, wrong) = (PieceHash::of(b"right"), PieceHash::of(b"wrong"));
        let expected = Expected::default();
        expected.add("reader", [(1, right), (2, wrong)]);
        // Both have got the wrong bytes, with the hash to match, from a peer that reads wrong bytes.
        expected.note_conflict(1, "a", wrong);
        expected.note_conflict(1, "b", wrong);
        expected.note_verified(1, wrong);
        expected.note_verified(2, wrong);
        let authors: Vec<_> =
            expected.claims().into_iter().map(|(piece, claim)| (piece, claim.peer)).collect();
        assert_eq!(authors, [(2, "reader".to_owned())]);
        expected.add_firm("second", [(1, right)]);
        expected.note_verified(1, right);
        assert_eq!(expected.claims().len(), 2, "a second read has an author again");
    }

    #[test]
    fn a_peer_that_sends_no_hashes_gets_a_few_requests_only() {
        let expected = Expected::default();
        (1..USELESS).for_each(|_| expected.note_useless("a"));
        assert!(!expected.is_useless("a"));
        expected.note_useless("a");
        assert!(expected.is_useless("a") && !expected.is_useless("b"));
    }
}
