//! The hashes of pieces that this node vouches for: of what it read from the registry itself, and of verified blobs.
//!
//! Computed when a peer first asks, one segment at a time, and remembered within [`MOST`].

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::Semaphore, time::timeout};

use super::Swarm;
use crate::{
    peers::{
        HOLD,
        layout::Layout,
        wire::{HashesAsk, PieceHash},
    },
    types::{Digest, chain},
};

use crate::limits::swarm::piece_hashes::MOST;

/// See the module's text.
#[derive(Debug)]
pub(super) struct PieceHashes {
    known: Mutex<Known>,
    /// One computes at a time: requests for hashes are small, and what they cost is not.
    turns: Semaphore,
}

#[derive(Debug, Default)]
struct Known {
    blobs: HashMap<Digest, HashMap<u64, Digest>>,
    /// Of `blobs`, the oldest first.
    order: VecDeque<Digest>,
    count: usize,
}

impl Default for PieceHashes {
    fn default() -> Self {
        Self { known: Mutex::default(), turns: Semaphore::new(1) }
    }
}

impl PieceHashes {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, digest: &Digest, piece: u64) -> Option<Digest> {
        self.known().blobs.get(digest)?.get(&piece).copied()
    }

    pub(super) fn put(&self, digest: &Digest, piece: u64, hash: Digest) {
        let mut known = self.known();
        if !known.blobs.contains_key(digest) {
            known.order.push_back(*digest);
        }
        if known.blobs.entry(*digest).or_default().insert(piece, hash).is_none() {
            known.count += 1;
        }
        while known.count > MOST {
            let Some(oldest) = known.order.pop_front() else { return };
            known.count -= known.blobs.remove(&oldest).map_or(0, |pieces| pieces.len());
        }
    }

    /// What was read of a blob turned out to be wrong.
    pub(super) fn forget(&self, digest: &Digest) {
        let mut known = self.known();
        known.order.retain(|other| other != digest);
        known.count -= known.blobs.remove(digest).map_or(0, |pieces| pieces.len());
    }
}

/// The SHA-256 of a piece in a file. Blocking.
pub(super) fn hash_piece(file: &File, layout: &Layout, piece: u64) -> io::Result<Digest> {
    let bytes = layout.bytes(piece);
    let mut buffer = vec![0; usize::try_from(bytes.end - bytes.start).map_err(io::Error::other)?];
    file.read_exact_at(&mut buffer, bytes.start)?;
    Ok(Digest::of(&buffer))
}

impl Swarm {
    /// The hashes of a segment's pieces, as far as this node can vouch for them; `None` while it reads once more.
    pub async fn piece_hashes(&self, ask: &HashesAsk) -> Option<Vec<(u64, Digest)>> {
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

    /// The hash of a piece that this node has verified or vouches for; `None` when it has no way to know.
    pub(super) async fn hash_of(&self, digest: &Digest, layout: &Layout, piece: u64) -> Option<PieceHash> {
        match self.vouch(digest, layout, piece).await {
            Some(hash) => Some(PieceHash { hash, own: true }),
            None => self
                .0
                .fetcher
                .download(digest)?
                .expected
                .verified(piece)
                .map(|hash| PieceHash { hash, own: false }),
        }
    }

    async fn vouch(&self, digest: &Digest, layout: &Layout, piece: u64) -> Option<Digest> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_blob_goes_first() {
        let hashes = PieceHashes::default();
        let digests: Vec<_> = (0..3_u8).map(|n| Digest::of(&[n])).collect();
        for piece in 0..MOST as u64 / 2 {
            digests[..2].iter().for_each(|digest| hashes.put(digest, piece, *digest));
        }
        assert_eq!(hashes.get(&digests[0], 5), Some(digests[0]));
        hashes.put(&digests[2], 0, digests[2]);
        assert_eq!(hashes.get(&digests[0], 5), None);
        assert_eq!(hashes.get(&digests[1], 5), Some(digests[1]));
        hashes.forget(&digests[1]);
        assert_eq!((hashes.get(&digests[1], 5), hashes.known().count), (None, 1));
    }
}
