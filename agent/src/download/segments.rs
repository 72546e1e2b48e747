//! The segments of a blob that this node reads from the registry for the cluster: each byte is read once, for any
//! number of waiting requests.

use std::{collections::HashMap, ops::Range};

use parking_lot::Mutex;
use tokio::{sync::watch, task::AbortHandle};

use super::error::FetchError;

/// Why a segment could not be read.
#[derive(Clone, Debug)]
pub(crate) enum ReadError {
    /// The registry ignores ranges and always sends everything.
    NoRanges,
    /// The registry cannot send the segment, or the retries are used up.
    Failed,
    /// The disk failed.
    Fatal(FetchError),
}

/// How a read ended, once it has.
pub(super) type Outcome = Option<Result<(), ReadError>>;

/// The segments that are being read for one download. Dropping them aborts the reads.
#[derive(Debug, Default)]
pub(crate) struct Segments(Mutex<HashMap<Range<u64>, Segment>>);

/// A running read, and the handle that aborts it.
type Segment = (watch::Receiver<Outcome>, AbortHandle);

impl Drop for Segments {
    fn drop(&mut self) {
        self.end();
    }
}

impl Segments {
    /// Aborts all reads: the download has ended, or fetches from the registry itself.
    pub(crate) fn end(&self) {
        let mut segments = self.0.lock();
        for (_, (_, task)) in segments.drain() {
            task.abort();
        }
    }

    /// Joins the read that includes `wanted`, or starts a read of `bytes` up to where another one starts. `size` is
    /// the size of the blob; `start` starts the read and sends its outcome.
    pub(super) fn join(
        &self,
        size: Option<u64>,
        bytes: &Range<u64>,
        wanted: &Range<u64>,
        start: impl FnOnce(Range<u64>, watch::Sender<Outcome>) -> AbortHandle,
    ) -> watch::Receiver<Outcome> {
        let mut segments = self.0.lock();
        segments.retain(|_, (outcome, _)| outcome.borrow().is_none());
        // A read of everything is one request without a range: other running reads are about to fail.
        let everything = size.is_some_and(|size| *bytes == (0..size));
        let includes = |other: &Range<u64>| if everything { other == bytes } else { covers(other, wanted) };
        let under_way = segments.iter().find(|(other, _)| includes(other));
        if let Some((_, (outcome, _))) = under_way {
            return outcome.clone();
        }
        let bytes = if everything { bytes.clone() } else { without_overlap(bytes, wanted, segments.keys()) };
        let (sender, outcome) = watch::channel(None);
        let task = start(bytes.clone(), sender);
        segments.insert(bytes, (outcome.clone(), task));
        outcome
    }
}

fn covers(other: &Range<u64>, wanted: &Range<u64>) -> bool {
    other.start <= wanted.start && wanted.end <= other.end
}

/// The part of `bytes` to read so that `wanted` arrives and nothing is read that another read includes. Pure.
fn without_overlap<'a>(
    bytes: &Range<u64>,
    wanted: &Range<u64>,
    others: impl Iterator<Item = &'a Range<u64>>,
) -> Range<u64> {
    let (mut start, mut end) = (bytes.start, bytes.end);
    for other in others {
        if other.end <= wanted.start {
            start = start.max(other.end);
        } else if wanted.end <= other.start {
            end = end.min(other.start);
        }
    }
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Tasks;

    #[tokio::test]
    async fn a_read_of_everything_is_not_joined_to_one_that_is_about_to_fail() {
        let (segments, tasks) = (Segments::default(), Tasks::default());
        let started = Mutex::new(Vec::new());
        let join = |bytes: &Range<u64>| {
            segments.join(Some(64), bytes, &(20..24), |bytes, ended| {
                started.lock().push(bytes);
                tasks.spawn("read", async move { ended.closed().await }).abort_handle()
            })
        };
        let reads = [16..32, 16..32, 0..64, 0..64].map(|bytes| join(&bytes));
        assert_eq!(*started.lock(), [16..32, 0..64]);
        assert!(reads.iter().all(|outcome| outcome.borrow().is_none()));
    }

    #[test]
    fn no_byte_is_read_by_two_readings() {
        let wanted = 4..5;
        for (bytes, others, expected) in [
            (0..16, vec![], 0..16),
            (4..16, vec![8..16], 4..8),
            (0..16, vec![0..2, 8..16], 2..8),
            (0..16, vec![20..24], 0..16),
            (4..5, vec![0..4, 5..16], 4..5),
        ] {
            assert_eq!(
                without_overlap(&bytes, &wanted, others.iter()),
                expected,
                "{wanted:?} beside {others:?}"
            );
        }
    }
}
