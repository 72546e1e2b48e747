//! Who sent wrong pieces: what arrived is remembered by its hash when a blob turned out wrong, and held against the
//! right bytes as soon as they are there.
//!
//! Until then the digest is fetched from upstream alone. The bytes are hashed only when a blob is wrong: a right one
//! costs nothing.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Fetcher, error::chain, flight::Flight};
use crate::{metrics::MemberLabels, peers::layout::Layout, store::Partial, types::Digest};

/// Wrong blobs remembered at once.
const MOST: usize = 64;

/// For how long.
const MEMORY: Duration = Duration::from_mins(10);

#[derive(Debug, Default)]
pub(super) struct Suspects(Mutex<HashMap<Digest, Case>>);

/// What members sent of one wrong blob.
#[derive(Debug)]
pub(super) struct Case {
    since: Instant,
    layout: Layout,
    pieces: Vec<Exhibit>,
}

#[derive(Debug)]
struct Exhibit {
    piece: u64,
    hash: Digest,
    members: Vec<String>,
}

impl Case {
    /// Hashes what members sent. Blocking.
    pub(super) fn open(file: &File, size: u64, sent: BTreeMap<u64, Vec<String>>) -> io::Result<Self> {
        let layout = Layout::new(size);
        let pieces = sent
            .into_iter()
            .map(|(piece, members)| Ok(Exhibit { piece, hash: hash(file, &layout, piece)?, members }));
        Ok(Self { since: Instant::now(), layout, pieces: pieces.collect::<io::Result<_>>()? })
    }

    /// Pieces that differ from the right bytes, and who sent them. Blocking.
    pub(super) fn close(&self, right: &File) -> io::Result<Vec<(u64, &[String])>> {
        let mut wrong = Vec::new();
        for exhibit in &self.pieces {
            if hash(right, &self.layout, exhibit.piece)? != exhibit.hash {
                wrong.push((exhibit.piece, exhibit.members.as_slice()));
            }
        }
        Ok(wrong)
    }
}

fn hash(file: &File, layout: &Layout, piece: u64) -> io::Result<Digest> {
    let bytes = layout.bytes(piece);
    let mut buffer = vec![0; usize::try_from(bytes.end - bytes.start).map_err(io::Error::other)?];
    file.read_exact_at(&mut buffer, bytes.start)?;
    Ok(Digest::of(&buffer))
}

impl Suspects {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Case>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a case, unless no member had a part in it.
    pub(super) fn note(&self, digest: &Digest, case: Case) {
        let mut cases = self.lock();
        cases.retain(|_, case| case.since.elapsed() < MEMORY);
        if !case.pieces.is_empty() && cases.len() < MOST {
            cases.insert(*digest, case);
        }
    }

    /// Whether members sent wrong bytes of it lately.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.lock().get(digest).is_some_and(|case| case.since.elapsed() < MEMORY)
    }

    /// Takes the case: the right bytes are there.
    pub(super) fn take(&self, digest: &Digest) -> Option<Case> {
        self.lock().remove(digest)
    }
}

impl Fetcher {
    /// A blob turned out wrong: what members sent of it is kept in mind.
    pub(super) async fn open_case(&self, flight: &Flight, partial: &Arc<Partial>) {
        let (sent, partial) = (flight.desk.members(), partial.clone());
        let Some(size) = partial.size().filter(|_| !sent.is_empty()) else { return };
        let opened = tokio::task::spawn_blocking(move || Case::open(partial.file(), size, sent)).await;
        match opened.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(case) => self.0.suspects.note(flight.digest(), case),
            Err(error) => tracing::warn!(error = %chain(&error), "cannot tell who sent wrong bytes"),
        }
    }

    /// The right bytes are there: whoever sent others is named and left out.
    pub(super) async fn close_case(&self, digest: &Digest, partial: &Arc<Partial>) {
        let Some(case) = self.0.suspects.take(digest) else { return };
        let partial = partial.clone();
        let closed = tokio::task::spawn_blocking(move || {
            let wrong = case.close(partial.file())?;
            Ok(wrong.into_iter().map(|(piece, members)| (piece, members.to_vec())).collect::<Vec<_>>())
        });
        let wrong = closed.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let wrong = wrong
            .inspect_err(|error| tracing::warn!(error = %chain(error), "cannot tell who sent wrong bytes"));
        for (piece, members) in wrong.unwrap_or_default() {
            for member in members {
                tracing::warn!(digest = %digest.short(), piece, peer = member, "peer sent wrong bytes: left out for a while");
                self.0
                    .metrics
                    .peer_wrong_pieces
                    .get_or_create(&MemberLabels { member: member.clone() })
                    .inc();
                self.0.peers.blame(&member);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn who_sent_a_wrong_piece_is_found_and_nobody_else() {
        let piece = Layout::new(0).piece();
        let size = 2 * piece + 10;
        let right = vec![7; usize::try_from(size).unwrap()];
        let mut wrong = right.clone();
        wrong[usize::try_from(piece).unwrap() + 5] = 8;
        let file = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            file
        };
        let sent = (0..3).map(|piece| (piece, vec![format!("node-{piece}")])).collect();
        let case = Case::open(&file(&wrong), size, sent).unwrap();
        let right = file(&right);
        assert_eq!(case.close(&right).unwrap(), [(1, ["node-1".to_owned()].as_slice())]);
        let (suspects, digest) = (Suspects::default(), Digest::of(b"x"));
        suspects.note(&digest, Case::open(&right, size, BTreeMap::new()).unwrap());
        assert!(!suspects.has(&digest), "no member had a part in it");
        suspects.note(&digest, case);
        assert!(suspects.has(&digest) && suspects.take(&digest).is_some() && !suspects.has(&digest));
    }
}
