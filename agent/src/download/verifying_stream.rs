//! Decides which bytes of a stream may be sent to a client: hashed from the beginning, cut to the requested range,
//! with the end held back until the digest matches. Pure.

use std::{collections::VecDeque, ops::Range};

use bytes::Bytes;

use crate::types::{Digest, Hasher, Mismatch};

#[derive(Debug)]
pub(super) struct VerifyingStream {
    digest: Digest,
    size: u64,
    /// The range to send.
    range: Range<u64>,
    /// Bytes from this offset on wait for the digest.
    held_from: u64,
    /// Set while every byte from the first one on has been seen.
    hasher: Option<Hasher>,
    /// Offset of the next expected byte.
    position: u64,
    held: VecDeque<Bytes>,
    ready: VecDeque<Bytes>,
}

impl VerifyingStream {
    /// A stream for a range of a blob. `before` is the hash of everything before the range, if it is known. The last
    /// `hold` bytes are sent only when the whole blob is verified: a range that includes some of them needs the blob
    /// from its beginning.
    pub(super) fn new(
        digest: Digest,
        size: u64,
        range: Range<u64>,
        hold: u64,
        before: Option<Hasher>,
    ) -> Self {
        let held_from = size.saturating_sub(hold);
        let (hasher, position) = match before {
            _ if range.end <= held_from => (None, range.start),
            Some(hasher) => (Some(hasher), range.start),
            None => (Some(digest.algorithm().hasher()), 0),
        };
        let mut verifying = Self {
            digest,
            size,
            range,
            held_from,
            hasher,
            position,
            held: VecDeque::new(),
            ready: VecDeque::new(),
        };
        if verifying.range.is_empty() {
            verifying.hasher = None;
            verifying.position = verifying.end();
        }
        verifying
    }

    /// The range of the blob that is still to be received.
    pub(super) fn wanted(&self) -> Range<u64> {
        self.position..self.end()
    }

    fn end(&self) -> u64 {
        if self.hasher.is_some() { self.size } else { self.range.end }
    }

    /// The next bytes that may be sent.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        self.ready.pop_front()
    }

    /// Adds the next bytes; bytes past the end of the needed range are ignored.
    pub(super) fn take(&mut self, mut chunk: Bytes) -> Result<(), Box<Mismatch>> {
        let left = self.end() - self.position;
        chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        if chunk.is_empty() {
            return Ok(());
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&chunk);
        }
        let start = self.position;
        self.position += chunk.len() as u64;
        for (part, held) in [(start..self.held_from, false), (self.held_from.max(start)..u64::MAX, true)] {
            let part =
                part.start.max(self.range.start).max(start)..part.end.min(self.range.end).min(self.position);
            if part.is_empty() {
                continue;
            }
            let at =
                |offset: u64| usize::try_from(offset - start).expect("an offset in a chunk fits its length");
            let bytes = chunk.slice(at(part.start)..at(part.end));
            if held { self.held.push_back(bytes) } else { self.ready.push_back(bytes) }
        }
        if self.position == self.size {
            self.verify()?;
        }
        Ok(())
    }

    fn verify(&mut self) -> Result<(), Box<Mismatch>> {
        let Some(hasher) = &self.hasher else { return Ok(()) };
        let found = hasher.clone().finish();
        if found != self.digest {
            self.held.clear();
            return Err(Box::new(Mismatch { expected: self.digest, found }));
        }
        self.ready.append(&mut self.held);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 100;
    const HOLD: u64 = 10;

    fn content() -> Vec<u8> {
        (0..SIZE).map(|at| u8::try_from(at).unwrap()).collect()
    }

    /// Feeds the needed range in pieces; returns what was sent, and how it ended.
    fn run(
        mut verifying: VerifyingStream,
        content: &[u8],
        step: usize,
    ) -> (Vec<u8>, Result<(), Box<Mismatch>>) {
        let mut out = Vec::new();
        while !verifying.wanted().is_empty() {
            let at = usize::try_from(verifying.wanted().start).unwrap();
            let taken = verifying.take(Bytes::copy_from_slice(&content[at..(at + step).min(SIZE)]));
            while let Some(bytes) = verifying.next() {
                out.extend_from_slice(&bytes);
            }
            if taken.is_err() {
                return (out, taken);
            }
        }
        (out, Ok(()))
    }

    proptest! {
        #[test]
        fn the_wanted_part_goes_on_and_the_held_end_only_of_right_bytes(
            start in 0..SIZE, length in 0..SIZE, step in 1..40_usize, wrong: bool, known: bool,
        ) {
            let (right, end) = (content(), (start + length).min(SIZE));
            let digest = Digest::of(&right);
            let mut sent = right.clone();
            if wrong {
                sent[start] ^= 1;
            }
            let range = start as u64..end as u64;
            let before = known.then(|| {
                let mut hasher = digest.algorithm().hasher();
                hasher.update(&right[..start]);
                hasher
            });
            let (out, ended) = run(VerifyingStream::new(digest, SIZE as u64, range, HOLD, before), &sent, step);
            let held_from = SIZE - usize::try_from(HOLD).unwrap();
            if wrong && end > held_from && end > start {
                prop_assert!(ended.is_err());
                prop_assert_eq!(&out, &sent[start..end.min(held_from).max(start)]);
            } else {
                prop_assert!(ended.is_ok());
                prop_assert_eq!(&out, &sent[start..end]);
            }
        }
    }

    #[test]
    fn the_middle_of_a_blob_needs_nothing_else() {
        let digest = Digest::of(&content());
        assert_eq!(VerifyingStream::new(digest, 100, 20..30, HOLD, None).wanted(), 20..30);
        assert_eq!(VerifyingStream::new(digest, 100, 20..91, HOLD, None).wanted(), 0..100);
        assert_eq!(VerifyingStream::new(digest, 100, 20..20, HOLD, None).wanted(), 20..20);
    }

    #[test]
    fn an_empty_blob_is_nothing_to_wait_for() {
        assert!(VerifyingStream::new(Digest::of(b""), 0, 0..0, HOLD, None).wanted().is_empty());
    }
}
