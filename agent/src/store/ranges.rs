//! A set of byte ranges: the parts of a partial blob that have arrived. Pure.

use std::ops::Range;

/// Disjoint, sorted ranges; touching ones are merged. Real sets hold a handful: one per connection that fills it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet(Vec<Range<u64>>);

impl RangeSet {
    /// Builds a set from ranges in any order.
    pub fn from_ranges(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut set = Self::default();
        for range in ranges {
            set.insert(range);
        }
        set
    }

    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        // First range that touches the new one, and the first after it that does not.
        let from = self.0.partition_point(|have| have.end < range.start);
        let to = self.0.partition_point(|have| have.start <= range.end);
        let start = self.0.get(from).map_or(range.start, |have| have.start.min(range.start));
        let end = self.0[from..to].last().map_or(range.end, |have| have.end.max(range.end));
        let start = if from < to { start } else { range.start };
        self.0.splice(from..to, [start..end]);
    }

    /// Removes a range.
    pub fn remove(&mut self, range: &Range<u64>) {
        let parts = |have: Range<u64>| {
            let before = have.start..have.end.min(range.start);
            let after = have.start.max(range.end)..have.end;
            [before, after].into_iter().filter(|part| part.start < part.end)
        };
        self.0 = std::mem::take(&mut self.0).into_iter().flat_map(parts).collect();
    }

    /// End of the contiguous run that contains `position`; `position` itself when that byte is missing.
    pub fn end_from(&self, position: u64) -> u64 {
        let at = self.0.partition_point(|have| have.end <= position);
        self.0.get(at).filter(|have| have.start <= position).map_or(position, |have| have.end)
    }

    /// The missing parts of `within`, in order.
    pub fn gaps(&self, within: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut position = within.start;
        for have in &self.0 {
            if have.end <= position {
                continue;
            }
            if have.start >= within.end {
                break;
            }
            if have.start > position {
                gaps.push(position..have.start);
            }
            position = have.end;
        }
        if position < within.end {
            gaps.push(position..within.end);
        }
        gaps
    }

    /// Bytes in the set.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_of_ranges_behaves_like_a_set_of_bytes(
            ranges in prop::collection::vec((0u64..60, 0u64..12), 0..20),
            position in 0u64..80, within in (0u64..40, 0u64..40),
        ) {
            let index = |at: u64| usize::try_from(at).unwrap();
            let mut bytes = [false; 80];
            let mut set = RangeSet::default();
            for (start, length) in ranges {
                set.insert(start..start + length);
                bytes[index(start)..index(start + length)].fill(true);
                prop_assert!(set.0.windows(2).all(|pair| pair[0].end < pair[1].start), "{set:?}");
            }
            prop_assert_eq!(set.total(), bytes.iter().filter(|have| **have).count() as u64);
            let end = (position..80).find(|at| !bytes[index(*at)]).unwrap_or(80);
            prop_assert_eq!(set.end_from(position), end);
            let within = within.0..within.0 + within.1;
            let gaps = set.gaps(within.clone());
            for at in within {
                prop_assert_eq!(gaps.iter().any(|gap| gap.contains(&at)), !bytes[index(at)]);
            }
            prop_assert!(gaps.iter().all(|gap| !gap.is_empty()));
        }
    }
}
