//! A piece that is arriving from a peer: written beside the existing bytes, and published only when its hash is
//! right.
//!
//! Invariants: existing bytes are never overwritten; the same bytes have at most one writer at a time; a piece with a
//! wrong hash leaves only bytes in a gap of the sparse file, which the next writer overwrites.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use super::Partial;
use crate::{
    store::StoreError,
    types::{PieceHash, PieceHasher},
};

/// See the module documentation. Dropping it discards its bytes.
#[derive(Debug)]
pub struct Unverified {
    partial: Arc<Partial>,
    epoch: u64,
    range: Range<u64>,
    hasher: PieceHasher,
    position: u64,
    /// No byte so far was there already.
    wrote_all: bool,
}

/// What became of a piece with the right hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Its bytes are in the file.
    Whole,
    /// Some bytes in the file came from elsewhere: the hash says nothing about them.
    InPart,
    /// Everything was discarded since the start.
    No,
}

impl Drop for Unverified {
    fn drop(&mut self) {
        self.partial.unverified.lock().retain(|range| *range != self.range);
    }
}

impl Partial {
    /// Starts to write `range`; `None` while another writer writes a part of it.
    pub fn unverified(self: &Arc<Self>, range: Range<u64>) -> Option<Unverified> {
        let mut writers = self.unverified.lock();
        if writers.iter().any(|other| other.start < range.end && range.start < other.end) {
            return None;
        }
        writers.push(range.clone());
        Some(Unverified {
            partial: self.clone(),
            epoch: self.epoch(),
            position: range.start,
            range,
            hasher: PieceHasher::default(),
            wrote_all: true,
        })
    }
}

impl Unverified {
    /// Writes the next bytes, except those that have arrived from elsewhere meanwhile. Blocking.
    pub fn write(&mut self, chunks: &[Bytes]) -> Result<(), StoreError> {
        let end = self.position + chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        {
            let _writing = self.partial.writing.lock();
            if self.partial.epoch() == self.epoch {
                let gaps = self.partial.gaps(self.position..end);
                for gap in &gaps {
                    self.partial.write_gap(self.position, chunks, gap)?;
                }
                self.wrote_all &= gaps == [self.position..end];
            }
        }
        for chunk in chunks {
            self.hasher.update(chunk);
        }
        self.position = end;
        Ok(())
    }

    /// The hash of the written bytes; `None` before all were written.
    pub fn hash(&self) -> Option<PieceHash> {
        (self.position == self.range.end).then(|| self.hasher.finish())
    }

    /// Publishes the bytes. Blocking.
    pub fn accept(self) -> Accepted {
        let (whole, due) = {
            let _writing = self.partial.writing.lock();
            if self.partial.epoch() != self.epoch || self.position != self.range.end {
                return Accepted::No;
            }
            // Others overwrite what is not published yet.
            let whole = self.wrote_all && self.partial.gaps(self.range.clone()) == [self.range.clone()];
            (whole, self.partial.note(self.range.clone()))
        };
        self.partial.save_if(due);
        if whole { Accepted::Whole } else { Accepted::InPart }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{super::Config, super::Store, Finish},
        *,
    };
    use crate::types::Digest;

    const CONTENT: &[u8] = b"abcdefghij";

    fn partial(directory: &tempfile::TempDir) -> Arc<Partial> {
        let store = Store::open(&Config::of(directory.path())).unwrap();
        let partial = store.partial(&Digest::of(CONTENT)).unwrap();
        partial.set_size(CONTENT.len() as u64).unwrap();
        Arc::new(partial)
    }

    #[test]
    fn bytes_that_are_not_accepted_do_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let partial = partial(&directory);
        let mut wrong = partial.unverified(0..5).unwrap();
        assert!(partial.unverified(4..9).is_none(), "one writer at a time");
        let mut right = partial.unverified(5..10).expect("other bytes are free");
        wrong.write(&[Bytes::from_static(b"-----")]).unwrap();
        right.write(&[Bytes::from_static(b"fg"), Bytes::from_static(b"h")]).unwrap();
        assert_eq!(right.hash(), None);
        right.write(&[Bytes::from_static(b"ij")]).unwrap();
        assert_eq!(right.hash(), Some(PieceHash::of(b"fghij")));
        assert_eq!(right.accept(), Accepted::Whole);
        assert_eq!(partial.gaps(0..10), [0..5]);
        drop(wrong);
        let mut again = partial.unverified(0..5).expect("the writer has gone");
        again.write(&[Bytes::from_static(b"abcde")]).unwrap();
        assert_eq!(again.accept(), Accepted::Whole);
        assert_eq!(partial.finish().unwrap(), Finish::Verified);
    }

    #[test]
    fn bytes_that_arrived_from_elsewhere_meanwhile_stay() {
        let directory = tempfile::tempdir().unwrap();
        let partial = partial(&directory);
        let mut slow = partial.unverified(0..10).unwrap();
        slow.write(&[Bytes::from_static(b"XX")]).unwrap();
        partial.write(0, &[Bytes::from_static(CONTENT)]).unwrap();
        slow.write(&[Bytes::from_static(b"--------")]).unwrap();
        assert_eq!(slow.accept(), Accepted::InPart);
        assert_eq!(partial.finish().unwrap(), Finish::Verified);
    }

    #[test]
    fn bytes_that_others_overwrite_before_they_are_published_are_not_those_that_were_hashed() {
        let directory = tempfile::tempdir().unwrap();
        let partial = partial(&directory);
        let mut writer = partial.unverified(0..10).unwrap();
        writer.write(&[Bytes::from_static(CONTENT)]).unwrap();
        partial.write(2, &[Bytes::from_static(b"--")]).unwrap();
        assert_eq!((writer.hash(), writer.accept()), (Some(PieceHash::of(CONTENT)), Accepted::InPart));
        assert!(matches!(partial.finish().unwrap(), Finish::Mismatch { .. }));
    }

    #[test]
    fn a_write_from_before_everything_was_discarded_never_counts() {
        let directory = tempfile::tempdir().unwrap();
        let partial = partial(&directory);
        let mut old = partial.unverified(0..10).unwrap();
        let epoch = partial.epoch();
        partial.forget().unwrap();
        partial.set_size(10).unwrap();
        old.write(&[Bytes::from_static(b"----------")]).unwrap();
        assert_eq!(old.accept(), Accepted::No);
        partial.write_in(epoch, 0, &[Bytes::from_static(b"X")], |_| panic!("nothing is written")).unwrap();
        assert_eq!(partial.total(), 0);
    }
}
