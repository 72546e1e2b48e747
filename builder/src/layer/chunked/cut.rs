//! Where a large file is cut into chunks.
//!
//! Boundaries depend on the bytes around them only, so a change within a file moves none of those after it: a new
//! release reuses every chunk that it did not touch. The rolling sum is that of the ecosystem's own writer
//! (container-libs `storage/pkg/chunked/compressor/rollsum.go`, from Perkeep): a window of 64 bytes, a boundary where the
//! lowest 16 bits of the sum are ones, once in 64 KiB on average. So most chunks are the same as in layers that podman
//! has written. Three bounds are ours: chunks of data have 4 KiB to 1 MiB, and only runs of at least 4 KiB of zeros
//! become chunks of zeros; without them, some files would come to a chunk for every few bytes, or to one for everything.

use std::io::{self, Read};

/// The fewest bytes between a cut and the next that the rolling sum makes, and the shortest run of zeros.
const LEAST: usize = 4 * 1024;

/// The most bytes of a chunk. Files up to this size are one chunk.
pub const MOST: usize = 1024 * 1024;

/// The window of the rolling sum.
const WINDOW: usize = 64;

/// Added to every byte, so that zeros count.
const OFFSET: u32 = 31;

/// Bits of the sum that are ones at a boundary.
const MASK: u32 = 0xffff;

/// The length of the first chunk of `bytes`, and whether it is all zeros. `bytes` begins at a boundary and has at least
/// [`MOST`] bytes, or is all that is left of the file.
pub fn first(bytes: &[u8]) -> (usize, bool) {
    let bytes = &bytes[..bytes.len().min(MOST)];
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    if zeros >= LEAST {
        return (zeros, true);
    }
    // The sum depends on the window only, and no cut comes before `LEAST`.
    let start = LEAST - WINDOW;
    if bytes.len() <= start {
        return (bytes.len(), false);
    }
    let window = u32::try_from(WINDOW).expect("64");
    let (mut sum, mut weighted) = (window * OFFSET, window * (window - 1) * OFFSET);
    let mut run = bytes[..start].iter().rev().take_while(|byte| **byte == 0).count();
    for (at, byte) in bytes.iter().enumerate().skip(start) {
        let dropped = if at >= start + WINDOW { u32::from(bytes[at - WINDOW]) } else { 0 };
        sum = sum.wrapping_add(u32::from(*byte)).wrapping_sub(dropped);
        weighted = weighted.wrapping_add(sum).wrapping_sub(window * (dropped + OFFSET));
        run = if *byte == 0 { run + 1 } else { 0 };
        if run == LEAST {
            return (at + 1 - LEAST, false);
        }
        if weighted & MASK == MASK && at + 1 >= LEAST {
            return (at + 1, false);
        }
    }
    (bytes.len(), false)
}

/// Reads a file chunk by chunk. Memory: two chunks of the largest size.
#[derive(Debug)]
pub struct Chunks<R> {
    reader: R,
    /// Bytes that were read, of which those before `start` are done with.
    buffer: Vec<u8>,
    start: usize,
    ended: bool,
    /// Whether the file is one chunk.
    whole: bool,
}

impl<R: Read> Chunks<R> {
    /// Cuts a file of `size` bytes; `buffer` is any that may be used.
    pub fn new(reader: R, size: u64, mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        Self { reader, buffer, start: 0, ended: false, whole: size <= MOST as u64 }
    }

    /// The next chunk, and whether it is all zeros; `None` at the end.
    pub fn chunk(&mut self) -> io::Result<Option<(&[u8], bool)>> {
        if self.buffer.len() - self.start < MOST && !self.ended {
            self.buffer.drain(..self.start);
            self.start = 0;
            let wanted = 2 * MOST - self.buffer.len();
            let count = self.reader.by_ref().take(wanted as u64).read_to_end(&mut self.buffer)?;
            self.ended = count < wanted;
        }
        let rest = &self.buffer[self.start..];
        if rest.is_empty() {
            return Ok(None);
        }
        let (length, zeros) = if self.whole { (rest.len().min(MOST), false) } else { first(rest) };
        self.start += length;
        Ok(Some((&rest[..length], zeros)))
    }

    /// The buffer, for the next file.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Incompressible, the same on every machine, without zero bytes.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        let next = |state: &mut u64| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (*state >> 33).to_le_bytes()[0].max(1)
        };
        (0..length).map(|_| next(&mut state)).collect()
    }

    fn chunks(bytes: &[u8]) -> Vec<(Vec<u8>, bool)> {
        let mut chunks = Chunks::new(bytes, bytes.len() as u64, Vec::new());
        let mut found = Vec::new();
        while let Some((chunk, zeros)) = chunks.chunk().unwrap() {
            found.push((chunk.to_vec(), zeros));
        }
        assert_eq!(found.iter().flat_map(|(chunk, _)| chunk.clone()).collect::<Vec<u8>>(), bytes);
        found
    }

    /// The ecosystem's writer, byte by byte as it is written there, without its search for zeros.
    fn reference(bytes: &[u8]) -> Vec<usize> {
        let (mut s1, mut s2) = (64 * 31u32, 64 * 63 * 31u32);
        let (mut window, mut at) = ([0u8; 64], 0);
        let mut cuts = Vec::new();
        for (position, byte) in bytes.iter().enumerate() {
            s1 = s1.wrapping_add(u32::from(*byte)).wrapping_sub(u32::from(window[at]));
            s2 = s2.wrapping_add(s1).wrapping_sub(64 * (u32::from(window[at]) + 31));
            window[at] = *byte;
            at = (at + 1) & 63;
            if s2 & 0xffff == 0xffff {
                cuts.push(position + 1);
            }
        }
        cuts
    }

    #[test]
    fn boundaries_are_those_of_the_ecosystems_writer_unless_they_are_near_each_other() {
        let bytes = noise(1, 8 << 20);
        let expected: Vec<usize> = reference(&bytes);
        let mut at = 0;
        let lengths: Vec<usize> = chunks(&bytes).iter().map(|(chunk, _)| chunk.len()).collect();
        for length in &lengths[..lengths.len() - 1] {
            at += length;
            assert!(expected.contains(&at), "{at}");
            assert!((LEAST..=MOST).contains(length));
        }
        assert!(lengths.len() * 10 > expected.len() * 8, "{} of {}", lengths.len(), expected.len());
    }

    #[test]
    fn a_change_costs_the_chunks_around_it() {
        let before = noise(2, 6 << 20);
        let mut after = before.clone();
        after.splice(1_000_000..1_000_010, noise(3, 5_000));
        let known = chunks(&before);
        let new: usize =
            chunks(&after).iter().filter(|chunk| !known.contains(chunk)).map(|(chunk, _)| chunk.len()).sum();
        assert!((5_000..800_000).contains(&new), "{new} new bytes");
    }

    #[test]
    fn zeros_and_files_without_boundaries_are_cut_within_the_bounds() {
        let data = |length| (length, false);
        let noise = noise(4, 100_000);
        let with_zeros = |zeros: usize| [&noise[..9_000], &vec![0; zeros], &noise[9_000..9_100]].concat();
        let large = |tail: Vec<u8>| [tail, vec![1; 2 * MOST]].concat();
        let cases = [
            ("nothing", vec![], vec![]),
            ("one chunk", with_zeros(LEAST), vec![data(9_100 + LEAST)]),
            ("as large as a chunk", vec![0; MOST], vec![data(MOST)]),
            ("zeros only", vec![0; 2 * MOST + 5], vec![(MOST, true), (MOST, true), data(5)]),
            ("no boundary", vec![1; 2 * MOST + 5], vec![data(MOST), data(MOST), data(5)]),
            ("a run of zeros", large(with_zeros(LEAST)), vec![data(9_000), (LEAST, true)]),
            ("a short run", large(with_zeros(LEAST - 1)), vec![data(MOST)]),
            ("zeros at the start", large(vec![0; 10_000]), vec![(10_000, true), data(MOST)]),
        ];
        for (what, bytes, expected) in cases {
            let found: Vec<(usize, bool)> =
                chunks(&bytes).iter().map(|(chunk, zeros)| (chunk.len(), *zeros)).collect();
            assert_eq!(found[..expected.len().min(found.len())], expected, "{what}");
        }
    }
}
