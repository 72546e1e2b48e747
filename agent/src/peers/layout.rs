//! How a blob is divided: pieces, which travel between peers, and segments of pieces, which are read from the
//! registry.
//!
//! A blob has about 256 pieces within the limits of a piece's size: with few, a node waits long before it can forward
//! the first one, and the work is uneven; many small ones cost requests. [`SLOTS`] segments of equal length cover
//! [`WINDOW`] pieces (or the whole blob when it is smaller), the next segments the next window, and so on: the pieces
//! that nodes request in their windows are the ones that all readers are reading, however slow the registry is. Segment
//! `s` belongs to slot `s mod SLOTS`, and a slot to a reader.

use std::ops::Range;

use super::rank::Part;

use crate::limits::peers::layout::{LARGEST, PIECE, PIECES};
pub use crate::limits::peers::layout::{SLOTS, WINDOW};

/// The division of one blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    size: u64,
    piece: u64,
    segment: u64,
}

impl Layout {
    /// The layout of a blob of `size` bytes.
    pub fn new(size: u64) -> Self {
        let piece = size.div_ceil(PIECES).clamp(PIECE.0, PIECE.1).next_power_of_two();
        let segment = size.div_ceil(piece).div_ceil(SLOTS).clamp(1, WINDOW / SLOTS);
        Self { size, piece, segment }
    }

    /// Whether the blob is too large for peers to share: the list of a blob's pieces takes memory.
    pub fn is_too_large(&self) -> bool {
        self.size > LARGEST
    }

    /// Bytes of every piece but the last.
    pub fn piece(&self) -> u64 {
        self.piece
    }

    /// The blob's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many pieces there are.
    pub fn pieces(&self) -> u64 {
        self.size.div_ceil(self.piece)
    }

    /// The bytes of a piece; empty past the end.
    pub fn bytes(&self, piece: u64) -> Range<u64> {
        self.bytes_of(&(piece..piece.saturating_add(1)))
    }

    /// The bytes of a run of pieces.
    pub fn bytes_of(&self, pieces: &Range<u64>) -> Range<u64> {
        let at = |piece: u64| piece.saturating_mul(self.piece).min(self.size);
        at(pieces.start)..at(pieces.end)
    }

    /// The pieces that overlap a range of bytes.
    pub fn touched(&self, bytes: &Range<u64>) -> Range<u64> {
        if bytes.is_empty() {
            return 0..0;
        }
        bytes.start / self.piece..bytes.end.min(self.size).div_ceil(self.piece)
    }

    /// The slot whose reader reads a piece from the registry.
    pub fn slot(&self, piece: u64) -> u64 {
        piece / self.segment % SLOTS
    }

    /// A piece in the form that the ranking uses.
    pub fn part(&self, piece: u64) -> Part {
        Part { piece, slot: self.slot(piece) }
    }

    /// The pieces that are read from the registry together with this one.
    pub fn segment(&self, piece: u64) -> Range<u64> {
        let start = piece - piece % self.segment;
        start..(start + self.segment).min(self.pieces())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_size_of_a_piece_follows_from_the_size_of_the_blob() {
        for (size, expected) in [
            (0, MIB),
            (1, MIB),
            (256 * MIB, MIB),
            (256 * MIB + 1, 2 * MIB),
            (700 * MIB, 4 * MIB),
            (1 << 40, 4 * MIB),
        ] {
            assert_eq!(Layout::new(size).piece(), expected, "{size}");
        }
    }

    #[test]
    fn pieces_cover_the_blob_and_segments_cover_the_pieces() {
        // Sizes at the boundaries of a piece, of a segment and of a window.
        for size in [
            0,
            1,
            MIB - 1,
            MIB,
            MIB + 1,
            8 * MIB,
            9 * MIB + 5,
            64 * MIB,
            64 * MIB + 1,
            300 * MIB + 1,
            3000 * MIB,
        ] {
            let layout = Layout::new(size);
            let mut position = 0;
            for piece in 0..layout.pieces() {
                let bytes = layout.bytes(piece);
                assert_eq!(bytes.start, position);
                assert!(bytes.end - bytes.start <= layout.piece() && !bytes.is_empty());
                position = bytes.end;
                let segment = layout.segment(piece);
                assert!(
                    segment.contains(&piece)
                        && segment.clone().all(|other| layout.slot(other) == layout.slot(piece))
                );
                assert_eq!(layout.touched(&bytes), piece..piece + 1);
            }
            assert_eq!(position, size);
        }
        let slots: std::collections::BTreeSet<_> =
            (0..WINDOW).map(|piece| Layout::new(1200 * MIB).slot(piece)).collect();
        assert_eq!(slots.len(), 8, "every window is read by all fetchers");
        assert_eq!(Layout::new(1).bytes(7), 1..1);
    }
}
