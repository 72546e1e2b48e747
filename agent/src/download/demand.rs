//! Which parts of a blob a download has to fetch. [`super::subscribers`] changes it, under one lock.

use std::ops::Range;

use crate::{
    limits::download::reader::HELD_BACK,
    types::{ByteRange, RangeHeader, Repository},
};

/// Which parts of a blob a download has to fetch, and from which repositories.
#[derive(Debug, Default)]
pub(super) struct Demand {
    pub(super) sources: Vec<Repository>,
    /// The whole blob is to be fetched.
    pub(super) whole: bool,
    pub(super) wants: Vec<Want>,
    next: u64,
    /// The download accepts no more subscribers.
    pub(super) closed: bool,
}

#[derive(Debug)]
pub(super) struct Want {
    pub(super) id: u64,
    pub(super) range: RangeHeader,
    /// Byte offset up to which the subscriber has read.
    pub(super) position: u64,
}

impl Demand {
    /// Adds a repository that has the blob.
    pub(super) fn offer(&mut self, source: &Repository) {
        if !self.sources.contains(source) {
            self.sources.push(source.clone());
        }
    }

    /// Number of clients that read from the download.
    pub(super) fn subscribers(&self) -> usize {
        self.wants.len()
    }

    pub(super) fn add(&mut self, range: RangeHeader, rest: bool) -> u64 {
        let bounded = matches!(range, RangeHeader::One(ByteRange::From { last: Some(_), .. }));
        self.whole |= rest || !bounded;
        let id = self.next;
        self.next += 1;
        self.wants.push(Want { id, range, position: 0 });
        id
    }

    /// The ranges that subscribers still have to read of a blob of `size` bytes. A subscriber that reads the end, which is
    /// held back until the digest matches, needs the whole blob from now on.
    pub(super) fn of_size(&mut self, size: u64) -> Vec<Range<u64>> {
        let mut wants = Vec::with_capacity(self.wants.len());
        for want in &self.wants {
            let range = match want.range {
                RangeHeader::Whole => 0..size,
                RangeHeader::One(range) => range.within(size).unwrap_or(0..0),
            };
            self.whole |= range.end > size.saturating_sub(HELD_BACK);
            wants.push(range.start.max(want.position)..range.end);
        }
        wants
    }
}
