//! Several ranges in one answer: `multipart/byteranges` (RFC 9110, 14.6 and 15.3.7.2). podman and CRI-O request the
//! chunks of a zstd:chunked layer so.

use std::{
    hash::{BuildHasher as _, RandomState},
    io,
    ops::Range,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyDataStream, BodyExt as _, StreamBody};
use hyper::body::Frame;
use prometheus_client::metrics::counter::Counter;

use super::body::{self, Body, Subject};
use crate::{
    download::{FetchError, Fetcher},
    types::{ByteRange, Digest, RangeHeader, Repository},
};

/// Parts whose bytes are requested before those before them are sent.
const AHEAD: usize = 8;

/// The parts of an answer.
#[derive(Debug)]
pub(super) struct Parts {
    ranges: Vec<Range<u64>>,
    size: u64,
    boundary: String,
}

impl Parts {
    /// `None` when the ranges are to be answered otherwise: none or one of them exists, or they are more than the whole
    /// (RFC 9110, 14.2 lets a server ignore those).
    pub(super) fn new(asked: &[ByteRange], size: u64) -> Option<Self> {
        let ranges: Vec<_> = asked.iter().filter_map(|range| range.within(size)).collect();
        let total = ranges.iter().fold(0_u64, |sum, range| sum.saturating_add(range.end - range.start));
        // Clients look for the boundary in the content: the author of the content must not know it.
        let random = || RandomState::new().hash_one(size);
        let boundary = format!("{:016x}{:016x}", random(), random());
        (ranges.len() > 1 && total <= size).then_some(Self { ranges, size, boundary })
    }

    fn head(&self, range: &Range<u64>) -> String {
        let (boundary, first, last, size) = (&self.boundary, range.start, range.end - 1, self.size);
        format!(
            "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {first}-{last}/{size}\r\n\r\n"
        )
    }

    fn end(&self) -> String {
        format!("\r\n--{}--\r\n", self.boundary)
    }

    /// The answer's media type.
    pub(super) fn media_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// The answer's length in bytes.
    pub(super) fn length(&self) -> u64 {
        let part = |range: &Range<u64>| self.head(range).len() as u64 + range.end - range.start;
        self.ranges.iter().map(part).sum::<u64>() + self.end().len() as u64
    }

    /// Sends the parts in order.
    pub(super) fn body(
        self,
        fetcher: Fetcher,
        repository: Repository,
        digest: Digest,
        patience: Duration,
        sent: Counter,
        subject: Subject,
    ) -> Body {
        let end = self.end();
        let parts: Vec<_> = self.ranges.iter().map(|range| (self.head(range), range.clone())).collect();
        let open = move |(head, range): (String, Range<u64>)| {
            let (fetcher, repository, sent) = (fetcher.clone(), repository.clone(), sent.clone());
            let subject = subject.clone();
            async move {
                let content = fetcher.blob(&repository, &digest, part(&range)).await?;
                Ok::<_, FetchError>((
                    head,
                    body::content(content.read(range).with_patience(patience), sent, None, subject),
                ))
            }
        };
        let frames = stream::iter(parts).map(open).buffered(AHEAD).flat_map(|opened| match opened {
            Ok((head, body)) => {
                stream::once(async { Ok(Bytes::from(head)) }).chain(BodyDataStream::new(body)).boxed()
            }
            Err(error) => {
                tracing::warn!(%error, "answer with several ranges ended early");
                stream::once(async { Err(io::Error::other(error)) }).boxed()
            }
        });
        let frames = frames.chain(stream::once(async { Ok(Bytes::from(end)) }));
        StreamBody::new(frames.map(|bytes| bytes.map(Frame::data))).boxed_unsync()
    }
}

/// A range of known bytes as a request has it.
fn part(range: &Range<u64>) -> RangeHeader {
    RangeHeader::One(ByteRange::From { first: range.start, last: Some(range.end.saturating_sub(1)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_several_ranges_that_exist_and_are_less_than_the_whole_are_parts() {
        for (header, expected) in [
            ("bytes=0-1,4-5", Some(vec![0..2, 4..6])),
            ("bytes=4-5,0-1,-2", Some(vec![4..6, 0..2, 8..10])),
            ("bytes=0-1,40-50", None),
            ("bytes=40-50,60-70", None),
            ("bytes=0-9,0-9", None),
            ("bytes=0-", None),
            ("bytes=0-1,x", None),
        ] {
            let parts = RangeHeader::parse_several(Some(header)).and_then(|asked| Parts::new(&asked, 10));
            assert_eq!(parts.map(|parts| parts.ranges), expected, "{header}");
        }
    }

    #[test]
    fn the_length_is_that_of_all_that_is_sent() {
        let parts = Parts { ranges: vec![0..2, 8..10], size: 10, boundary: "b".into() };
        let text = "\r\n--b\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes 0-1/10\r\n\r\nxx\
                    \r\n--b\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes 8-9/10\r\n\r\nxx\
                    \r\n--b--\r\n";
        assert_eq!(parts.length(), text.len() as u64);
    }
}
