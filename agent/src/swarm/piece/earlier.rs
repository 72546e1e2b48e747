//! Segments that another node has read before this node was there.
//!
//! A node that joins a cluster becomes the reader of its share of every blob's segments, and the nodes that were there have
//! all blobs of the cluster: the next readers of a segment have read it. So a node asks them for the hashes of its first
//! segment of a blob before it reads it from the registry. They answer at once. When none of them has the segment, the
//! cluster reads the blob for the first time, and no other segment of it is asked for.

use futures_util::{StreamExt as _, stream};

use super::{Attempt, NoPiece, PieceContext, Trust};
use crate::{
    download::ReadError,
    limits::swarm::{earlier::ANSWER, take::VOUCHING},
    peers::{Peer, PieceAnswer, plan::Role},
};

impl PieceContext {
    /// Takes a piece of one of this node's segments from a peer that guarantees its hash. Returns whether the peer sent it.
    pub(super) async fn take_from_earlier_reader(&self, piece: u64) -> Result<bool, ReadError> {
        let Some(peer) = self.earlier_reader(piece).await else { return Ok(false) };
        // A client of this node and a peer may need the piece at the same time. The second request must not read the segment
        // from the registry because the first one is still receiving the piece.
        let _turn = self.earlier.pieces.lock(&piece).await;
        if self.has(piece) {
            return Ok(true);
        }
        match self.take_what_it_has(&peer, piece).await {
            Ok(Attempt::Brought) => Ok(true),
            Ok(Attempt::Next) | Err(NoPiece::NoSource) => Ok(self.has(piece)),
            Err(NoPiece::Fatal(error)) => Err(ReadError::Fatal(error)),
        }
    }

    async fn earlier_reader(&self, piece: u64) -> Option<Peer> {
        if !*self.earlier.was_read.get_or_init(|| self.ask_next_readers(piece)).await {
            return None;
        }
        let claim = self.expected(piece).await?;
        let readers = self.readers_of(piece).into_iter();
        readers.filter(|peer| peer.name == claim.peer).find(|peer| self.is_usable(peer)).cloned()
    }

    /// Whether one of the next readers of a piece's segment guarantees its hash.
    async fn ask_next_readers(&self, piece: u64) -> bool {
        let me = self.me().name.as_str();
        let readers =
            self.readers_of(piece).into_iter().filter(|peer| peer.name != me && self.is_usable(peer));
        let asked = stream::iter(readers.take(VOUCHING).cloned().collect::<Vec<_>>())
            .map(|peer| async move { (self.hashes(&peer, piece).await.unwrap_or_default(), peer.name) })
            .buffer_unordered(VOUCHING);
        let found = asked.filter_map(|(hashes, peer)| async move {
            let found = hashes.iter().any(|(named, _)| *named == piece);
            self.download().expected.add(&peer, hashes);
            found.then_some(())
        });
        let found = async { std::pin::pin!(found).next().await };
        tokio::time::timeout(ANSWER, found).await.is_ok_and(|found| found.is_some())
    }

    /// Does not wait for a piece that the peer does not have: it may wait for this node's. As a root it sends the piece even
    /// when it has much to send: the registry would send it otherwise.
    async fn take_what_it_has(&self, peer: &Peer, piece: u64) -> Result<Attempt, NoPiece> {
        let (ask, bytes) = (self.request(Role::Root, piece, true), self.layout.bytes(piece));
        match self.peers().piece(peer, &ask, bytes.end - bytes.start).await {
            // A peer that sends it slowly is left, as a parent is: other requests wait for this one.
            Ok(PieceAnswer::Body(body)) => self.take(peer, (Role::Parent, Trust::Agreed), *body, piece).await,
            Ok(_) => Ok(Attempt::Next),
            Err(error) => {
                self.peers().note_failure(&error);
                Ok(Attempt::Next)
            }
        }
    }
}
