//! Answers peers' requests for hashes of pieces, if this node can guarantee them ([`super::piece_hashes`]).

use std::{fs::File, io, sync::Arc};

use tokio::time::timeout;

use super::{context::Swarm, piece_hashes::hash_piece};
use crate::{
    peers::{
        HOLD,
        layout::Layout,
        wire::{AnnouncedHash, HashesAsk},
    },
    types::{Digest, PieceHash, chain},
};

impl Swarm {
    /// The hashes of a segment's pieces that this node can guarantee; `None` while it reads the segment again.
    pub async fn piece_hashes(&self, ask: &HashesAsk) -> Option<Vec<(u64, PieceHash)>> {
        let layout = Layout::new(ask.size);
        let mut hashes = Vec::new();
        if layout.is_too_large() || ask.piece >= layout.pieces() {
            return Some(hashes);
        }
        let has = matches!(self.0.store.blob(&ask.digest).await, Ok(Some(_)));
        if !has && self.reads_again(ask, &layout) {
            let (swarm, ask) = (self.clone(), ask.clone());
            // The read continues when this request times out: other peers request the same segment.
            let reading = self.0.tasks.spawn("read again", async move { swarm.read_again(&ask).await });
            return timeout(HOLD, reading).await.ok().map(Result::unwrap_or_default);
        }
        for piece in layout.segment(ask.piece) {
            let hash = self.vouch(&ask.digest, &layout, piece).await;
            hashes.extend(hash.map(|hash| (piece, hash)));
        }
        Some(hashes)
    }

    /// The hash of a piece that this node has verified or can guarantee; `None` otherwise.
    pub(super) async fn hash_of(
        &self,
        digest: &Digest,
        layout: &Layout,
        piece: u64,
    ) -> Option<AnnouncedHash> {
        match self.vouch(digest, layout, piece).await {
            Some(hash) => Some(AnnouncedHash { hash, own: true }),
            None => self
                .0
                .fetcher
                .download(digest)?
                .expected
                .verified(piece)
                .map(|hash| AnnouncedHash { hash, own: false }),
        }
    }

    async fn vouch(&self, digest: &Digest, layout: &Layout, piece: u64) -> Option<PieceHash> {
        let hashes = &self.0.hashes;
        if let Some(hash) = hashes.get(digest, piece) {
            return Some(hash);
        }
        let file = self.file_of_own(digest, layout, piece).await?;
        let _turn = timeout(HOLD, hashes.turns.acquire()).await.ok()?.ok()?;
        if let Some(hash) = hashes.get(digest, piece) {
            return Some(hash);
        }
        let layout = *layout;
        let computed = tokio::task::spawn_blocking(move || hash_piece(&file, &layout, piece)).await;
        let computed = computed.unwrap_or_else(|error| Err(io::Error::other(error)));
        let hash = computed
            .inspect_err(|error| tracing::warn!(digest = %digest.short(), piece, error = %chain(error), "cannot hash a piece"))
            .ok()?;
        hashes.put(digest, piece, hash);
        Some(hash)
    }

    /// A file with bytes of the piece that this node read from the registry itself, or that are verified.
    async fn file_of_own(&self, digest: &Digest, layout: &Layout, piece: u64) -> Option<Arc<File>> {
        if let Ok(Some(blob)) = self.0.store.blob(digest).await {
            return (blob.size() == layout.size()).then(|| blob.file().clone());
        }
        let download = self.0.fetcher.download(digest)?;
        let partial = download.partial().filter(|partial| partial.size() == Some(layout.size()))?;
        let bytes = layout.bytes(piece);
        let own = download.has_read(bytes.clone()) && partial.gaps(bytes).is_empty();
        own.then(|| partial.file().clone())
    }
}
