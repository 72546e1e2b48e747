//! Finds the reader of a segment that was wrong, when a blob has the wrong digest although each piece had the hash
//! that its reader sent.
//!
//! The wrong bytes are kept. For each segment the next peer in the order of its readers reads it from the registry
//! again, for all requesters (`again=segment`), and its hashes are compared with the bytes on this node. Where they
//! differ, a third peer reads a single piece (`again=piece`): the reader that it agrees with is right. Only wrong
//! pieces are discarded and fetched again. The check costs one more read of the blob for the whole cluster, and is
//! tried once.
//!
//! A peer that reads a segment again also replaces its own bytes. It does so only if it is among the readers of the
//! segment, so that a request costs at most one read per segment.

use std::{io, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};

use super::{context::Swarm, piece::PieceContext, piece_hashes::hash_piece};
use crate::{
    download::{Download, FetchError, blocking},
    peers::{
        Peer, Settled,
        layout::Layout,
        rank::Subject,
        wire::{Again, HashesAsk},
    },
    store::{Partial, StoreError},
    types::{PieceHash, Repository, chain},
    upstream::Span,
};

use crate::limits::swarm::cross_check::{AT_ONCE, LONGEST, PAUSE, PIECE_READERS, SEGMENT_READERS};

/// Which of two differing readers is right. Pure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    /// The bytes on this node, and so the first reader.
    Here,
    /// The second reader.
    Second,
    /// Not known: neither is used.
    Neither,
}

fn right(here: &PieceHash, second: &PieceHash, third: Option<&PieceHash>) -> Right {
    match third {
        Some(third) if third == here => Right::Here,
        Some(third) if third == second => Right::Second,
        _ => Right::Neither,
    }
}

impl PieceContext {
    /// Compares all bytes that came from peers with a second read, and discards the wrong pieces.
    pub(super) async fn cross_check(&self) -> Result<(), FetchError> {
        let digest = self.download().digest().short();
        tracing::warn!(%digest, "blob from peers has a wrong digest: comparing its segments with a second read by other peers");
        let pieces = self.layout().pieces();
        let segments = (0..pieces).filter(|piece| self.layout().segment(*piece).start == *piece);
        let checks = stream::iter(segments).map(|segment| self.check_segment(segment));
        let mut checks = std::pin::pin!(checks.buffer_unordered(AT_ONCE));
        while let Some(checked) = checks.next().await {
            for piece in checked? {
                let (partial, bytes) = (self.partial().clone(), self.layout().bytes(piece));
                blocking(move || partial.give_up(bytes)).await?;
            }
        }
        Ok(())
    }

    /// The wrong pieces of a segment on this node. Their expected hashes are noted.
    async fn check_segment(&self, segment: u64) -> Result<Vec<u64>, FetchError> {
        let here = self.hashes_here(segment).await?;
        let Some((second, hashes)) = self.second_read(segment).await else { return Ok(Vec::new()) };
        let differing = |(piece, hash): &(u64, PieceHash)| {
            let other = hashes.iter().find(|(named, _)| named == piece).map(|(_, other)| *other)?;
            (other != *hash).then_some((*piece, *hash, other))
        };
        let wrong: Vec<_> = here.iter().filter_map(differing).collect();
        if let Some((piece, here, other)) = wrong.first() {
            let third = self.third_read(*piece, &second).await;
            match right(here, other, third.as_ref()) {
                Right::Here => return Ok(Vec::new()),
                Right::Second => self.download().expected.add_firm(&second, hashes),
                Right::Neither => {}
            }
        }
        Ok(wrong.into_iter().map(|(piece, ..)| piece).collect())
    }

    async fn hashes_here(&self, segment: u64) -> Result<Vec<(u64, PieceHash)>, FetchError> {
        let (layout, partial) = (*self.layout(), self.partial().clone());
        let here: Vec<_> = layout.segment(segment).filter(|piece| self.has(*piece)).collect();
        let hashed = tokio::task::spawn_blocking(move || {
            let hash = |piece| Ok((piece, hash_piece(partial.file(), &layout, piece)?));
            here.into_iter().map(hash).collect::<io::Result<_>>()
        });
        hashed.await.map_err(StoreError::from)?.map_err(|error| FetchError::Disk(Arc::new(error)))
    }

    /// The hashes of a segment from the next of its readers that reads it again.
    async fn second_read(&self, segment: u64) -> Option<(String, Vec<(u64, PieceHash)>)> {
        let first = self.first_reader(segment);
        for (at, peer) in self.readers_of(segment).into_iter().enumerate().take(SEGMENT_READERS) {
            if first.as_ref() == Some(&peer.name) || (first.is_none() && at == 0) {
                continue;
            }
            let hashes = self.read_again(peer, segment, Again::Segment).await;
            if hashes.iter().any(|(piece, _)| *piece == segment) {
                return Some((peer.name.clone(), hashes));
            }
        }
        None
    }

    async fn third_read(&self, piece: u64, second: &str) -> Option<PieceHash> {
        let first = self.first_reader(piece);
        for peer in self.readers_of(piece).into_iter().take(PIECE_READERS) {
            if first.as_ref() == Some(&peer.name) || peer.name == second {
                continue;
            }
            let hashes = self.read_again(peer, piece, Again::Piece).await;
            if let Some((_, hash)) = hashes.into_iter().find(|(named, _)| *named == piece) {
                return Some(hash);
            }
        }
        None
    }

    fn first_reader(&self, piece: u64) -> Option<String> {
        self.swarm.0.evidence.named(self.download().digest(), piece)
    }

    async fn read_again(&self, peer: &Peer, piece: u64, again: Again) -> Vec<(u64, PieceHash)> {
        let (repository, digest) = (self.repository().clone(), *self.download().digest());
        let ask = HashesAsk { repository, digest, size: self.layout().size(), piece, again };
        if peer.name == self.me().name {
            // This node is in the order of readers itself.
            return self.swarm.read_again(&ask).await;
        }
        if !self.is_usable(peer) {
            return Vec::new();
        }
        let asking = async {
            loop {
                match self.peers().hashes(peer, &ask).await {
                    Some(Settled::Found(hashes)) => return hashes.into_iter().collect(),
                    // A peer that rejects requests at once must not get them in a tight loop.
                    Some(Settled::NotNow) => tokio::time::sleep(PAUSE).await,
                    Some(Settled::Absent) | None => return Vec::new(),
                }
            }
        };
        tokio::time::timeout(LONGEST, asking).await.unwrap_or_default()
    }
}

impl Swarm {
    /// Whether this node is among the readers that read a piece again for others.
    pub(super) fn reads_again(&self, ask: &HashesAsk, layout: &Layout) -> bool {
        let Some(membership) = self.0.peers.membership() else { return false };
        let most = match ask.again {
            Again::No => return false,
            Again::Segment => SEGMENT_READERS,
            Again::Piece => PIECE_READERS,
        };
        let fetchers = membership.fetchers(&Subject::of(&ask.digest.to_string()));
        let slot = usize::try_from(layout.slot(ask.piece)).ok();
        let readers = slot.and_then(|slot| fetchers.get(slot));
        readers.is_some_and(|readers| readers.iter().take(most).any(|reader| *reader == membership.me()))
    }

    /// Reads pieces from the registry again, replaces the bytes on this node, and returns their hashes. Ends when the
    /// caller is dropped; bytes that were read stay.
    pub(super) async fn read_again(&self, ask: &HashesAsk) -> Vec<(u64, PieceHash)> {
        let layout = Layout::new(ask.size);
        let pieces =
            if ask.again == Again::Piece { ask.piece..ask.piece + 1 } else { layout.segment(ask.piece) };
        let Some(download) = self.0.fetcher.carry(&ask.digest, &ask.repository, ask.size) else {
            return Vec::new();
        };
        let Some(partial) = download.opened().await else { return Vec::new() };
        // Concurrent requests for a segment share one read of it.
        let _turn = download.rereads.lock(&layout.segment(ask.piece).start).await;
        let mut hashes = Vec::new();
        let reread = Reread { swarm: self, download: &download, partial: &partial, layout };
        for piece in pieces {
            match reread.piece(&ask.repository, piece).await {
                Ok(hash) => hashes.push((piece, hash)),
                Err(error) => {
                    tracing::info!(digest = %ask.digest.short(), piece, error = %chain(&error), "cannot read a piece again");
                    break;
                }
            }
        }
        hashes
    }
}

struct Reread<'a> {
    swarm: &'a Swarm,
    download: &'a Arc<Download>,
    partial: &'a Arc<Partial>,
    layout: Layout,
}

impl Reread<'_> {
    /// The registry's hash of a piece, whose bytes are then on this node as well.
    async fn piece(&self, repository: &Repository, piece: u64) -> Result<PieceHash, FetchError> {
        let (digest, vouched) = (self.download.digest(), &self.swarm.0.hashes);
        let bytes = self.layout.bytes(piece);
        if let Some(hash) = vouched.get(digest, piece).filter(|_| self.download.has_read(bytes.clone())) {
            return Ok(hash);
        }
        let content = self.read(repository, bytes.clone()).await?;
        let partial = self.partial.clone();
        let (hash, replaced) = blocking(move || {
            let hash = PieceHash::of(&content);
            Ok((hash, partial.replace(bytes.start, &content)?))
        })
        .await?;
        self.download.note_read(&[self.layout.bytes(piece)]);
        self.download.expected.note_verified(piece, hash);
        vouched.put(digest, piece, hash);
        if replaced {
            self.download.note_replaced();
        }
        self.download.wrote();
        Ok(hash)
    }

    async fn read(&self, repository: &Repository, bytes: Range<u64>) -> Result<Bytes, FetchError> {
        let upstream = &self.swarm.0.upstream;
        let _permit = upstream.transfer_permit(&repository.registry).await;
        let end = (bytes.end < self.layout.size()).then_some(bytes.end);
        let span = Span { start: bytes.start, end };
        let (digest, origin_penalties) = (self.download.digest(), self.download.origin_penalties());
        let mut body =
            upstream.blob(repository, digest, span, &self.partial.validators(), origin_penalties).await?;
        let length = usize::try_from(bytes.end - bytes.start).unwrap_or(usize::MAX);
        let short = |reason: &str| FetchError::NotNow { reason: reason.to_owned(), retry_after: None };
        if body.offset != bytes.start {
            upstream.note_no_ranges(&repository.registry);
            return Err(short("the registry ignores ranges"));
        }
        let mut content = BytesMut::with_capacity(length);
        while content.len() < length {
            let Some(chunk) = body.chunk().await? else {
                return Err(short("the registry ended the body early"));
            };
            content.extend_from_slice(&chunk);
        }
        content.truncate(length);
        Ok(content.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_readers_that_differ_a_third_decides() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|bytes| PieceHash::of(bytes));
        for (third, expected) in [
            (Some(a), Right::Here),
            (Some(b), Right::Second),
            (Some(c), Right::Neither),
            (None, Right::Neither),
        ] {
            assert_eq!(right(&a, &b, third.as_ref()), expected, "{third:?}");
        }
    }
}
