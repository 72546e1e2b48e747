//! The `Range` header (RFC 9110, section 14).

use std::ops::Range;

/// A `Range` header, reduced to what the agent supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeHeader {
    /// None, another unit, malformed, or several ranges ([`RangeHeader::parse_several`]): all of these may be answered
    /// with the whole content (RFC 9110, 14.2), and several ranges must not be answered with one of them.
    Whole,
    /// Exactly one range.
    One(ByteRange),
}

/// One range, not yet compared with a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `first-` and `first-last` (inclusive).
    From {
        /// First requested byte.
        first: u64,
        /// Last requested byte, inclusive.
        last: Option<u64>,
    },
    /// `-length`: the end of the content.
    Suffix {
        /// Number of requested bytes at the end.
        length: u64,
    },
}

impl RangeHeader {
    /// Reads the header's value.
    pub fn parse(value: Option<&str>) -> Self {
        let mut ranges = value.and_then(parse_set).unwrap_or_default();
        match (ranges.pop(), ranges.is_empty()) {
            (Some(only), true) => Self::One(only),
            _ => Self::Whole,
        }
    }

    /// The ranges, when there are several of them, and not more than 1,024.
    pub fn parse_several(value: Option<&str>) -> Option<Vec<ByteRange>> {
        value.and_then(parse_set).filter(|ranges| ranges.len() > 1)
    }
}

/// Most ranges in one request that are answered separately.
pub const MOST_RANGES: usize = 1_024;

fn parse_set(value: &str) -> Option<Vec<ByteRange>> {
    let (unit, set) = value.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.matches(',').count() >= MOST_RANGES {
        return None;
    }
    set.split(',').map(parse_one).collect()
}

fn parse_one(text: &str) -> Option<ByteRange> {
    let (first, last) = text.trim().split_once('-')?;
    match (first.trim(), last.trim()) {
        ("", length) => Some(ByteRange::Suffix { length: number(length)? }),
        (first, "") => Some(ByteRange::From { first: number(first)?, last: None }),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(ByteRange::From { first, last: Some(last) })
        }
    }
}

/// Digits only: `parse` alone would take `+1`. Numbers past 64 bits mean "to the end".
fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().unwrap_or(u64::MAX))
}

impl ByteRange {
    /// The requested bytes of content of `size` bytes, or `None` when none of them exists (416).
    pub fn within(self, size: u64) -> Option<Range<u64>> {
        match self {
            Self::From { first, last } => {
                let end = last.map_or(size, |last| last.saturating_add(1).min(size));
                (first < size).then_some(first..end)
            }
            Self::Suffix { length } => (length > 0 && size > 0).then(|| size.saturating_sub(length)..size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_content() {
        let table: &[(&str, u64, Option<Range<u64>>)] = &[
            ("bytes=0-", 10, Some(0..10)),
            ("bytes=3-", 10, Some(3..10)),
            ("bytes=3-5", 10, Some(3..6)),
            ("bytes=3-99", 10, Some(3..10)),
            ("bytes=9-9", 10, Some(9..10)),
            ("bytes=10-", 10, None),
            ("bytes=500-600", 10, None),
            ("bytes=-4", 10, Some(6..10)),
            ("bytes=-40", 10, Some(0..10)),
            ("bytes=-0", 10, None),
            ("bytes=0-", 0, None),
            ("bytes=0-99999999999999999999", 10, Some(0..10)),
            ("BYTES = 1-2", 10, Some(1..3)),
        ];
        for (header, size, expected) in table {
            let RangeHeader::One(range) = RangeHeader::parse(Some(header)) else {
                panic!("{header} is one range")
            };
            assert_eq!(range.within(*size), *expected, "{header} of {size}");
        }
    }

    #[test]
    fn anything_but_exactly_one_range_means_the_whole() {
        for header in [
            "bytes=0-1,3-4",
            "bytes=5-3",
            "500-0",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "lines=0-1",
            "bytes=+1-2",
            "bytes 0-1",
        ] {
            assert_eq!(RangeHeader::parse(Some(header)), RangeHeader::Whole, "{header}");
        }
        assert_eq!(RangeHeader::parse(None), RangeHeader::Whole);
    }
}
