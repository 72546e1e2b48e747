//! Receives the bytes of a piece from a peer: they are written where no reader sees them yet, compared with the hash
//! from the reader of the piece's segment, and then either published or discarded, and the peer blamed.

use std::time::Instant;

use bytes::Bytes;

use super::{Attempt, NoPiece, PieceContext, Trust};
use crate::{
    download::{Claim, FetchError, Phase, Verdict, blocking, is_worth_reading, judge},
    metrics::BlameLabels,
    peers::{
        Peer, PeerError, PieceBody, Settled,
        plan::Role,
        wire::{Again, AnnouncedHash, HashesAsk},
    },
    store::{Accepted, Unverified},
    types::PieceHash,
};

use crate::limits::swarm::take::{BATCH, CONFIRMING, GATHER, VOUCHING};

impl PieceContext {
    /// The expected hash of a piece, from the peer that reads its segment.
    pub(super) async fn expected(&self, piece: u64) -> Option<Claim> {
        let expected = &self.download().expected;
        if let Some(claim) = expected.claim(piece) {
            return Some(claim);
        }
        let _turn = expected.turn(self.layout.slot(piece)).await;
        let me = self.membership.me();
        for place in
            self.readers(piece, self.has_ranges()).iter().filter(|place| **place != me).take(VOUCHING)
        {
            if let Some(claim) = expected.claim(piece) {
                return Some(claim);
            }
            let Some(peer) = self.membership.get(*place) else { continue };
            if !self.peers().is_usable(peer) || expected.is_useless(&peer.name) {
                continue;
            }
            // A peer that cannot be reached now may have the hash nevertheless.
            let Some(hashes) = self.hashes(peer, piece).await else { continue };
            expected.add(&peer.name, hashes);
            if expected.claim(piece).is_none() {
                expected.note_useless(&peer.name);
            }
        }
        expected.claim(piece)
    }

    /// Whether another peer that may have the piece announces the same hash as `sender`.
    async fn is_confirmed(&self, sender: &Peer, piece: u64, announced: Option<&PieceHash>) -> bool {
        let Some(announced) = announced else { return false };
        let (ranking, part) = (self.membership.ranking(), self.layout.part(piece));
        let above = ranking.ancestors(&self.subject, part, self.membership.me());
        let others = above.iter().filter_map(|place| self.membership.get(*place));
        let others = others.filter(|other| other.name != sender.name && self.is_usable(other));
        for other in others.take(CONFIRMING) {
            let hashes = self.hashes(other, piece).await.unwrap_or_default();
            if hashes.iter().any(|(named, hash)| (named, hash) == (&piece, announced)) {
                return true;
            }
        }
        false
    }

    /// `None` without a response.
    pub(super) async fn hashes(&self, peer: &Peer, piece: u64) -> Option<Vec<(u64, PieceHash)>> {
        let (repository, digest) = (self.repository.clone(), *self.download().digest());
        let ask = HashesAsk { repository, digest, size: self.layout.size(), piece, again: Again::No };
        match self.peers().hashes(peer, &ask).await {
            Some(Settled::Found(hashes)) => Some(hashes.into_iter().collect()),
            Some(Settled::Absent | Settled::NotNow) => Some(Vec::new()),
            None => None,
        }
    }

    /// Receives a piece from a peer, unless its bytes have the wrong hash.
    pub(super) async fn take(
        &self,
        peer: &Peer,
        (role, trust): (Role, Trust),
        body: PieceBody,
        piece: u64,
    ) -> Result<Attempt, NoPiece> {
        let (download, announced) = (self.download(), body.hash());
        if let Some(AnnouncedHash { hash, own: true }) = announced.filter(|_| role == Role::Source) {
            // The sender is the reader of the segment, so that no other request for its hash is needed.
            download.expected.add(&peer.name, [(piece, hash)]);
        }
        let announced = announced.map(|announced| announced.hash);
        let claim = self.expected(piece).await;
        let mut expected = claim.as_ref().map(|claim| &claim.hash);
        if expected.is_none() && trust == Trust::Agreed {
            // One peer's hash alone is not enough: a piece that the reader does not have yet may be made up.
            expected = announced.as_ref();
            if !self.is_confirmed(peer, piece, expected).await {
                return Ok(Attempt::Next);
            }
        }
        if !is_worth_reading(expected, announced.as_ref()) {
            tracing::debug!(digest = %download.digest().short(), piece, peer = peer.name, "peer and reader of the segment announce different hashes of a piece: skipping the peer");
            if let Some(hash) = announced {
                download.expected.note_conflict(piece, &peer.name, hash);
            }
            return Ok(Attempt::Next);
        }
        let Some(unverified) = self.partial().unverified(self.layout.bytes(piece)) else {
            return Ok(Attempt::Next);
        };
        download.peer_requests.note_peer(piece, &peer.name);
        let (began, length) = (Instant::now(), self.layout.bytes(piece));
        let receiving = self.peers().receiving(peer);
        let received = self.receive(unverified, body, role).await?;
        drop(receiving);
        let received = match received {
            Ok(Some(received)) => received,
            Ok(None) => {
                self.peers().note_pace(peer, length.end - length.start, 2 * began.elapsed());
                return Ok(Attempt::Next);
            }
            Err(error) => {
                self.peers().note_failure(&error);
                return Ok(if self.has(piece) { Attempt::Brought } else { Attempt::Next });
            }
        };
        self.peers().note_pace(peer, length.end - length.start, began.elapsed());
        let Some(found) = received.hash() else { return Ok(Attempt::Next) };
        let verdict = judge(expected, announced.as_ref(), &found);
        if verdict == Verdict::Altered {
            self.blame(peer, piece);
            return Ok(Attempt::Next);
        }
        let accepted = blocking(move || Ok(received.accept())).await.map_err(NoPiece::Fatal)?;
        if (verdict, accepted) == (Verdict::Verified, Accepted::Whole) {
            download.expected.note_verified(piece, found);
        }
        download.enter(Phase::Streaming);
        download.wrote();
        Ok(if accepted == Accepted::No { Attempt::Next } else { Attempt::Brought })
    }

    fn blame(&self, peer: &Peer, piece: u64) {
        let digest = self.download().digest().short();
        tracing::warn!(%digest, piece, peer = peer.name, "peer sent bytes that do not match the hash of the piece: quarantined");
        let wrong = &self.swarm.0.metrics.peer_wrong_pieces;
        wrong.get_or_create(&BlameLabels { peer: peer.name.clone() }).inc();
        self.peers().blame(&peer.name);
    }

    /// Moves a piece's bytes into the partial blob, where no reader sees them yet. `None` when others are much faster
    /// and most of the piece is missing: other peers have it too.
    async fn receive(
        &self,
        mut unverified: Unverified,
        mut body: PieceBody,
        role: Role,
    ) -> Result<Result<Option<Unverified>, PeerError>, NoPiece> {
        let (mut batch, mut length, mut since) = (Vec::new(), 0, Instant::now());
        let (began, mut come) = (Instant::now(), 0);
        loop {
            let next = tokio::select! {
                biased;
                next = body.chunk() => Some(next),
                () = tokio::time::sleep_until((since + GATHER).into()) => None,
            };
            let more = matches!(next, Some(Ok(Some(_))));
            if next.is_none() {
                since = Instant::now();
            }
            if let Some(Ok(Some(bytes))) = &next {
                since = if length == 0 { Instant::now() } else { since };
                length += bytes.len();
                batch.push(bytes.clone());
            }
            if length >= BATCH || (!more && length > 0) {
                let written = self.write(unverified, std::mem::take(&mut batch)).await;
                unverified = written.map_err(NoPiece::Fatal)?;
                come += length as u64;
                length = 0;
            }
            if role == Role::Parent
                && come < body.left()
                && self.peers().is_slow_transfer(come, began.elapsed())
            {
                return Ok(Ok(None));
            }
            match next {
                None | Some(Ok(Some(_))) => {}
                Some(Ok(None)) => return Ok(Ok(Some(unverified))),
                Some(Err(error)) => return Ok(Err(error)),
            }
        }
    }

    async fn write(&self, mut to: Unverified, batch: Vec<Bytes>) -> Result<Unverified, FetchError> {
        let length: usize = batch.iter().map(Bytes::len).sum();
        self.swarm.0.metrics.peer_received_bytes.inc_by(length as u64);
        self.peers().note_arrival(length as u64);
        let written = blocking(move || to.write(&batch).map(|()| to)).await?;
        self.download().peer_requests.stir();
        self.download().peer_requests.note_movement();
        Ok(written)
    }
}
