//! The hashes of pieces that this node guarantees: of bytes that it read from the registry itself, and of verified
//! blobs.
//!
//! Kept from the download, or computed when a peer first requests them, one segment at a time; within [`MOST`].

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;

use crate::{
    download::Download,
    peers::layout::Layout,
    store::Partial,
    types::{Digest, PieceHash},
};

use crate::limits::swarm::piece_hashes::MOST;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct PieceHashes {
    known: Mutex<Known>,
    /// One computation at a time: requests for hashes are small, but cost much.
    pub(super) turns: Semaphore,
}

#[derive(Debug, Default)]
struct Known {
    blobs: HashMap<Digest, HashMap<u64, PieceHash>>,
    /// The keys of `blobs`, the oldest first.
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
        self.known.lock()
    }

    pub(super) fn get(&self, digest: &Digest, piece: u64) -> Option<PieceHash> {
        self.known().blobs.get(digest)?.get(&piece).copied()
    }

    pub(super) fn put(&self, digest: &Digest, piece: u64, hash: PieceHash) {
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

    /// A download has the right digest: the hashes that its pieces were checked by are guaranteed from now on, and need
    /// not be computed again. Not when bytes were discarded or replaced meanwhile: a piece may have others now than those
    /// that were hashed.
    pub(super) fn keep(&self, download: &Download, partial: &Partial) {
        if partial.epoch() != 0 || partial.changes() != 0 {
            return;
        }
        for (piece, hash) in download.expected.all_verified() {
            self.put(download.digest(), piece, hash);
        }
    }

    /// The bytes that were read of a blob were wrong.
    pub(super) fn forget(&self, digest: &Digest) {
        let mut known = self.known();
        known.order.retain(|other| other != digest);
        known.count -= known.blobs.remove(digest).map_or(0, |pieces| pieces.len());
    }
}

/// The hash of a piece in a file. Blocking.
pub(super) fn hash_piece(file: &File, layout: &Layout, piece: u64) -> io::Result<PieceHash> {
    let bytes = layout.bytes(piece);
    let mut buffer = vec![0; usize::try_from(bytes.end - bytes.start).map_err(io::Error::other)?];
    file.read_exact_at(&mut buffer, bytes.start)?;
    Ok(PieceHash::of(&buffer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        store::{Config, Store},
        upstream::OriginPenalties,
    };

    type Change = fn(&Partial);

    #[test]
    fn hashes_of_a_download_are_kept_unless_its_bytes_changed() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&Config::of(directory.path())).unwrap();
        let digest = Digest::of(b"content");
        let download = Download::new(digest, None, OriginPenalties::default());
        let hash = PieceHash::of(b"content");
        download.expected.note_verified(0, hash);
        let changes: [(Change, Option<PieceHash>); 3] = [
            (|_| (), Some(hash)),
            (|partial| partial.give_up(0..7).unwrap(), None),
            (|partial| partial.forget().unwrap(), None),
        ];
        for (change, expected) in changes {
            let (hashes, partial) = (PieceHashes::default(), store.partial(&digest).unwrap());
            partial.write(0, &[b"content".as_slice().into()]).unwrap();
            change(&partial);
            hashes.keep(&download, &partial);
            assert_eq!(hashes.get(&digest, 0), expected);
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_blob_goes_first() {
        let hashes = PieceHashes::default();
        let digests: Vec<_> = (0..3_u8).map(|n| Digest::of(&[n])).collect();
        let hash = |digest: &Digest| PieceHash::of(digest.as_bytes());
        for piece in 0..MOST as u64 / 2 {
            digests[..2].iter().for_each(|digest| hashes.put(digest, piece, hash(digest)));
        }
        assert_eq!(hashes.get(&digests[0], 5), Some(hash(&digests[0])));
        hashes.put(&digests[2], 0, hash(&digests[2]));
        assert_eq!(hashes.get(&digests[0], 5), None);
        assert_eq!(hashes.get(&digests[1], 5), Some(hash(&digests[1])));
        hashes.forget(&digests[1]);
        assert_eq!((hashes.get(&digests[1], 5), hashes.known().count), (None, 1));
    }
}
