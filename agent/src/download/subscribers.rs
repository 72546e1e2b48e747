//! The subscribers of a download: clients of this node, with the range that each reads, and the repositories that
//! have the blob.
//!
//! Invariant: every change is made under one lock ([`Download::demand`]), so that no client joins a download that is
//! ending.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use super::{peer_requests::PieceSource, state::Download};
use crate::{
    limits::download::reader::HELD_BACK,
    store::Partial,
    types::{RangeHeader, Repository},
};

/// What happens to a peer's request for a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The download has ended.
    Ended,
    /// The request is not handled.
    Unhandled,
    /// The request is handled, after this many failures.
    After(u64),
}

/// A reader's place in a download; dropping it leaves the download, which continues.
#[derive(Debug)]
pub(crate) struct Subscriber {
    download: Arc<Download>,
    id: u64,
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.download.demand().wants.retain(|want| want.id != self.id);
        self.download.wanted.notify_one();
    }
}

impl Subscriber {
    fn range(&self) -> Option<RangeHeader> {
        self.download.demand().wants.iter().find(|want| want.id == self.id).map(|want| want.range)
    }

    /// Whether the subscriber's whole range of a blob of `size` bytes can be sent now: the bytes have arrived and are
    /// not in the held-back end, or the range lies outside of the blob.
    pub(super) fn is_served_by(&self, partial: &Partial, size: u64) -> bool {
        let Some(RangeHeader::One(range)) = self.range() else { return false };
        range
            .within(size)
            .is_none_or(|range| range.end <= size.saturating_sub(HELD_BACK) && partial.gaps(range).is_empty())
    }

    /// The first byte that the subscriber reads of a blob of `size` bytes.
    pub(super) fn first(&self, size: u64) -> u64 {
        match self.range() {
            Some(RangeHeader::One(range)) => range.within(size).map_or(size, |range| range.start),
            Some(RangeHeader::Whole) | None => 0,
        }
    }

    /// Notes that bytes are sent to the reader.
    pub(super) fn streams(&self) {
        self.download.streamed.store(true, Ordering::Relaxed);
    }

    /// Notes the reader's position, so that the next bytes are fetched for it.
    pub(super) fn reached(&self, position: u64) {
        let mut demand = self.download.demand();
        if let Some(want) = demand.wants.iter_mut().find(|want| want.id == self.id) {
            want.position = position;
        }
        drop(demand);
        self.download.wanted.notify_one();
    }
}

impl Download {
    /// Adds a repository that has the blob and the requested range. Returns `None` when the download has ended.
    ///
    /// `rest` means that a request for a range fetches the whole blob.
    pub(super) fn subscribe(
        self: &Arc<Self>,
        source: &Repository,
        range: RangeHeader,
        rest: bool,
    ) -> Option<Subscriber> {
        let mut demand = self.demand();
        if demand.closed {
            return None;
        }
        demand.offer(source);
        let id = demand.add(range, rest);
        drop(demand);
        self.wanted.notify_one();
        Some(Subscriber { download: self.clone(), id })
    }

    /// Whether the download accepts no more subscribers.
    pub(super) fn is_closed(&self) -> bool {
        self.demand().closed
    }

    pub(super) fn close(&self) {
        self.demand().closed = true;
    }

    /// A peer requests a piece.
    pub(crate) fn ask_piece(&self, piece: u64, source: PieceSource) -> Asked {
        let demand = self.demand();
        if demand.closed {
            return Asked::Ended;
        }
        let failures = self.peer_requests.ask(piece, source, demand.whole);
        drop(demand);
        self.wanted.notify_one();
        failures.map_or(Asked::Unhandled, Asked::After)
    }

    /// The repository at `at`, in the order in which they were offered.
    pub(crate) fn source(&self, at: usize) -> Option<Repository> {
        self.demand().sources.get(at).cloned()
    }

    /// The repository at `at`; past the last one the download accepts no more subscribers, so that no repository is
    /// missed.
    pub(super) fn source_or_close(&self, at: usize) -> Option<Repository> {
        let mut demand = self.demand();
        let found = demand.sources.get(at).cloned();
        demand.closed |= found.is_none();
        found
    }

    /// The ranges that clients still have to read of a blob of `size` bytes, and whether everything is to be fetched.
    pub(crate) fn wants(&self, size: u64) -> (Vec<Range<u64>>, bool) {
        let mut demand = self.demand();
        let wants = demand.of_size(size);
        (wants, demand.whole)
    }

    /// Whether the whole blob is requested: then one request without a range is best.
    pub(crate) fn wants_whole(&self) -> bool {
        self.demand().whole
    }

    /// Closes the download unless a subscriber still needs bytes.
    pub(crate) fn close_if_satisfied(&self, served: impl Fn(&Range<u64>) -> bool, size: u64) -> bool {
        let mut demand = self.demand();
        let wants = demand.of_size(size);
        // Peers request pieces under the same lock.
        let open = demand.whole || !wants.iter().all(served) || self.peer_requests.has_requests();
        demand.closed |= !open;
        !open
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        types::{ByteRange, Digest},
        upstream::OriginPenalties,
    };

    fn download() -> Arc<Download> {
        Arc::new(Download::new(Digest::of(b"x"), None, OriginPenalties::default()))
    }

    fn repository() -> Repository {
        Repository { registry: "r.test".parse().unwrap(), name: "a/b".parse().unwrap() }
    }

    fn bytes(first: u64, last: u64) -> RangeHeader {
        RangeHeader::One(ByteRange::From { first, last: Some(last) })
    }

    #[test]
    fn a_download_ends_when_all_subscribers_are_served_and_accepts_none_after_that() {
        let (download, size) = (download(), 10 * HELD_BACK);
        let first = download.subscribe(&repository(), bytes(0, 9), false).unwrap();
        let _second = download.subscribe(&repository(), bytes(100, 199), false).unwrap();
        assert!(!download.close_if_satisfied(|want| want.end <= 10, size), "the second waits");
        drop(first);
        download.ask_piece(1, PieceSource::Peers);
        assert!(!download.close_if_satisfied(|_| true, size), "a peer waits");
        download.peer_requests.open();
        download.peer_requests.take();
        assert!(download.close_if_satisfied(|_| true, size));
        assert!(download.subscribe(&repository(), bytes(0, 9), false).is_none());
        assert_eq!(download.ask_piece(1, PieceSource::Peers), Asked::Ended);
    }

    #[test]
    fn a_reader_of_the_end_or_an_open_range_needs_the_whole_blob() {
        let size = 10 * HELD_BACK;
        let open = RangeHeader::One(ByteRange::From { first: 5, last: None });
        for (range, whole) in [
            (bytes(0, 9), false),
            (bytes(size - 1, size - 1), true),
            (open, true),
            (RangeHeader::Whole, true),
        ] {
            let download = download();
            let _subscriber = download.subscribe(&repository(), range, false).unwrap();
            assert_eq!(download.wants(size).1, whole, "{range:?}");
            assert_eq!(download.close_if_satisfied(|_| true, size), !whole, "{range:?}");
        }
    }

    #[test]
    fn no_repository_is_missed() {
        let download = download();
        let _subscriber = download.subscribe(&repository(), RangeHeader::Whole, false).unwrap();
        assert_eq!((download.source(0), download.source(1)), (Some(repository()), None));
        assert!(!download.is_closed(), "looking changes nothing");
        assert_eq!(download.source_or_close(1), None);
        assert!(download.is_closed());
    }
}
