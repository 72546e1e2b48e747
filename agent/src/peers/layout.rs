//! How a blob is cut: pieces, which travel between peers, and stripes of pieces, which are read upstream.
//!
//! Pieces have 4 MiB. [`SLOTS`] stripes of equal length cover [`WINDOW`] pieces (or the whole blob when it is
//! smaller), the next stripes the next window, and so on: what nodes ask for in their windows is what all fetchers
//! are reading, however slow upstream is. Stripe `s` belongs to slot `s mod SLOTS`, and a slot to a fetcher.

use std::ops::Range;

/// Bytes of a piece; the last one may be shorter.
pub const PIECE: u64 = 4 * 1024 * 1024;

/// Pieces that a node may ask ahead of the first one it misses.
pub const WINDOW: u64 = 64;

/// Fetchers of a blob.
pub const SLOTS: u64 = 8;

/// The cut of one blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    size: u64,
    stripe: u64,
}

impl Layout {
    /// Of a blob of `size` bytes.
    pub fn new(size: u64) -> Self {
        let stripe = size.div_ceil(PIECE).div_ceil(SLOTS).clamp(1, WINDOW / SLOTS);
        Self { size, stripe }
    }

    /// The blob's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many pieces there are.
    pub fn pieces(&self) -> u64 {
        self.size.div_ceil(PIECE)
    }

    /// The bytes of a piece; empty past the end.
    pub fn bytes(&self, piece: u64) -> Range<u64> {
        self.bytes_of(&(piece..piece.saturating_add(1)))
    }

    /// The bytes of a run of pieces.
    pub fn bytes_of(&self, pieces: &Range<u64>) -> Range<u64> {
        let at = |piece: u64| piece.saturating_mul(PIECE).min(self.size);
        at(pieces.start)..at(pieces.end)
    }

    /// The pieces that a run of bytes touches.
    pub fn touched(&self, bytes: &Range<u64>) -> Range<u64> {
        if bytes.is_empty() {
            return 0..0;
        }
        bytes.start / PIECE..bytes.end.min(self.size).div_ceil(PIECE)
    }

    /// The slot whose fetcher reads a piece upstream.
    pub fn slot(&self, piece: u64) -> u64 {
        piece / self.stripe % SLOTS
    }

    /// The pieces that are read upstream together with this one.
    pub fn stripe(&self, piece: u64) -> Range<u64> {
        let start = piece - piece % self.stripe;
        start..(start + self.stripe).min(self.pieces())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_blob_and_stripes_cover_the_pieces() {
        // Sizes at the boundaries of a piece, of a stripe and of a window.
        for size in [
            0,
            1,
            PIECE - 1,
            PIECE,
            PIECE + 1,
            8 * PIECE,
            9 * PIECE + 5,
            64 * PIECE,
            65 * PIECE,
            300 * PIECE + 1,
        ] {
            let layout = Layout::new(size);
            let mut position = 0;
            for piece in 0..layout.pieces() {
                let bytes = layout.bytes(piece);
                assert_eq!(bytes.start, position);
                assert!(bytes.end - bytes.start <= PIECE && !bytes.is_empty());
                position = bytes.end;
                let stripe = layout.stripe(piece);
                assert!(
                    stripe.contains(&piece)
                        && stripe.clone().all(|other| layout.slot(other) == layout.slot(piece))
                );
                assert_eq!(layout.touched(&bytes), piece..piece + 1);
            }
            assert_eq!(position, size);
        }
        let slots: std::collections::BTreeSet<_> =
            (0..WINDOW).map(|piece| Layout::new(300 * PIECE).slot(piece)).collect();
        assert_eq!(slots.len(), 8, "every window is read by all fetchers");
        assert_eq!(Layout::new(1).bytes(7), 1..1);
    }
}
