//! Finds peers that sent wrong hashes of pieces: when a blob has the wrong digest although its pieces had the hashes
//! from the readers of its segments, these hashes are kept and compared with the right bytes as soon as those have
//! arrived.
//!
//! The next download compares them with a second read ([`super::cross_check`]); when that does not help, the blob is
//! fetched from the registry only. If most readers sent wrong hashes, the registry sent them wrong bytes, and no peer
//! is blamed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io,
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard};

use super::piece_hashes::hash_piece;
use crate::{
    download::Claim,
    peers::layout::Layout,
    types::{Digest, PieceHash},
};

use crate::limits::swarm::evidence::{MEMORY, MOST};

#[derive(Debug, Default)]
pub(super) struct Evidence(Mutex<HashMap<Digest, WrongBlob>>);

/// The hashes that peers sent for one wrong blob.
#[derive(Debug)]
pub(super) struct WrongBlob {
    since: Instant,
    layout: Layout,
    pieces: Vec<NamedHash>,
    /// A second read was compared with the bytes on this node.
    checked: bool,
}

#[derive(Debug)]
struct NamedHash {
    piece: u64,
    hash: PieceHash,
    /// The peer that sent the hash.
    peer: String,
}

impl WrongBlob {
    pub(super) fn new(size: u64, claims: Vec<(u64, Claim)>) -> Self {
        let pieces = claims.into_iter().map(|(piece, Claim { hash, peer })| NamedHash { piece, hash, peer });
        Self { since: Instant::now(), layout: Layout::new(size), pieces: pieces.collect(), checked: false }
    }

    /// The first wrong hash of each peer that sent one. Blocking.
    pub(super) fn close(&self, right: &File) -> io::Result<BTreeMap<&str, u64>> {
        let mut wrong = BTreeMap::new();
        for NamedHash { piece, hash, peer } in &self.pieces {
            if !wrong.contains_key(peer.as_str()) && hash_piece(right, &self.layout, *piece)? != *hash {
                wrong.insert(peer.as_str(), *piece);
            }
        }
        let peers: BTreeSet<&str> = self.pieces.iter().map(|named| named.peer.as_str()).collect();
        Ok(if 2 * wrong.len() > peers.len() { BTreeMap::new() } else { wrong })
    }
}

impl Evidence {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, WrongBlob>> {
        self.0.lock()
    }

    /// Notes a wrong blob. Returns whether it is the digest's first, and was noted.
    pub(super) fn note(&self, digest: &Digest, case: WrongBlob) -> bool {
        let mut cases = self.lock();
        cases.retain(|_, case| case.since.elapsed() < MEMORY);
        if cases.contains_key(digest) || cases.len() >= MOST {
            return false;
        }
        cases.insert(*digest, case);
        true
    }

    /// Whether a second read is still to be compared with the bytes on this node; marks it as started.
    pub(super) fn begin_check(&self, digest: &Digest) -> bool {
        let mut cases = self.lock();
        let case = cases.get_mut(digest).filter(|case| case.since.elapsed() < MEMORY && !case.checked);
        case.map(|case| case.checked = true).is_some()
    }

    /// The peer whose hash was used for a piece.
    pub(super) fn named(&self, digest: &Digest, piece: u64) -> Option<String> {
        let cases = self.lock();
        cases.get(digest)?.pieces.iter().find(|named| named.piece == piece).map(|named| named.peer.clone())
    }

    /// Whether a blob that came in part from peers was wrong recently.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.lock().get(digest).is_some_and(|case| case.since.elapsed() < MEMORY)
    }

    /// Removes and returns the evidence: the right bytes have arrived.
    pub(super) fn take(&self, digest: &Digest) -> Option<WrongBlob> {
        self.lock().remove(digest)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn only_the_peer_that_sent_a_wrong_hash_is_found() {
        let piece = Layout::new(0).piece();
        let right = vec![7; usize::try_from(2 * piece + 10).unwrap()];
        let hash = |length: u64| PieceHash::of(&right[..usize::try_from(length).unwrap()]);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&right).unwrap();
        let claim = |hash, peer: &str| Claim { hash, peer: peer.to_owned() };
        let wrong = PieceHash::of(b"wrong");
        let claims = vec![(0, claim(hash(piece), "a")), (1, claim(wrong, "b")), (2, claim(hash(10), "c"))];
        let case = WrongBlob::new(2 * piece + 10, claims);
        assert_eq!(case.close(&file).unwrap(), BTreeMap::from([("b", 1)]));
        let (evidence, digest) = (Evidence::default(), Digest::of(b"x"));
        assert!(evidence.note(&digest, case));
        assert_eq!(evidence.named(&digest, 1).as_deref(), Some("b"));
        assert!(evidence.begin_check(&digest) && !evidence.begin_check(&digest), "once");
        assert!(
            !evidence.note(&digest, WrongBlob::new(1, Vec::new())),
            "a second time there is nothing to compare"
        );
        assert!(evidence.has(&digest) && evidence.take(&digest).is_some() && !evidence.has(&digest));
        let claims = vec![(0, claim(wrong, "a")), (1, claim(wrong, "b")), (2, claim(hash(10), "c"))];
        let case = WrongBlob::new(2 * piece + 10, claims);
        assert!(case.close(&file).unwrap().is_empty(), "the registry sent wrong bytes to most of them");
    }
}
