//! Which bytes the next connection should bring. Pure: values in, a decision out.
//!
//! A flight has lanes, each one connection that fills a span from its start. The first lane takes everything. More
//! are opened while they make the whole faster, by splitting what the slowest end has left; what a waiting reader
//! needs comes before everything else; a lane that has gone silent gets a rival for the rest of its span, and the
//! first to bring a byte wins.

use std::{ops::Range, time::Duration};

use crate::store::RangeSet;

/// Spans start and end on multiples of this, so that peers and resumed transfers meet on the same lines.
pub(super) use crate::peers::layout::PIECE;

/// A reader whose next byte is within this distance ahead of a lane waits for that lane.
const NEAR: u64 = 2 * PIECE;

/// A lane with less than this left is not worth splitting.
const SPLIT_FROM: u64 = 4 * PIECE;

/// A lane without a byte for this long gets a rival.
pub(super) const SILENT: Duration = Duration::from_secs(2);

/// One lane as the schedule sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LaneView {
    /// Its next byte.
    pub(super) position: u64,
    /// One past its last byte; `u64::MAX` while the size is not known.
    pub(super) end: u64,
    /// Since when it has brought nothing.
    pub(super) silent: Duration,
    /// Another lane is already after the same bytes.
    pub(super) rivalled: bool,
}

/// Everything a decision needs.
#[derive(Debug)]
pub(super) struct View<'a> {
    /// The blob's size, once known.
    pub(super) size: Option<u64>,
    /// What is there.
    pub(super) have: &'a RangeSet,
    /// What is on its way.
    pub(super) lanes: &'a [LaneView],
    /// What readers wait for, the longest waiting first.
    pub(super) wants: &'a [Range<u64>],
    /// Everything is to be fetched, not only what readers wait for.
    pub(super) whole: bool,
    /// Lanes that make the transfer fastest, as far as known.
    pub(super) target: usize,
    /// Most lanes allowed.
    pub(super) most: usize,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Open a lane; `cut` names the lane that now ends where the new one begins.
    Open {
        /// First byte.
        start: u64,
        /// One past the last byte; `None` means to the end.
        end: Option<u64>,
        /// Index of the lane to shorten to `start`.
        cut: Option<usize>,
        /// Index of the silent lane that this one rivals.
        rivals: Option<usize>,
    },
    /// Wait for news.
    Wait,
    /// All bytes are there.
    Complete,
    /// What was wanted is there; nobody wants the rest.
    Satisfied,
}

impl Step {
    fn open(span: Range<u64>) -> Self {
        Self::Open { start: span.start, end: Some(span.end), cut: None, rivals: None }
    }
}

/// Decides; called again until it says something other than `Open`.
pub(super) fn next(view: &View<'_>) -> Step {
    let Some(size) = view.size else {
        let start = view.have.end_from(0);
        return if view.lanes.is_empty() {
            Step::Open { start, end: None, cut: None, rivals: None }
        } else {
            Step::Wait
        };
    };
    let missing = view.have.gaps(0..size);
    if missing.is_empty() {
        return Step::Complete;
    }
    let free = free(&missing, view.lanes);
    if let Some(step) = for_reader(view, size) {
        return step;
    }
    if !view.whole {
        let waiting = view.wants.iter().any(|want| !view.have.gaps(within(want, size)).is_empty());
        return if waiting || !view.lanes.is_empty() { Step::Wait } else { Step::Satisfied };
    }
    if view.lanes.len() < view.target.max(1)
        && let Some(span) = free.into_iter().next()
    {
        return Step::open(span);
    }
    if view.lanes.len() >= view.most {
        return Step::Wait;
    }
    rival(view.lanes).or_else(|| split(view)).unwrap_or(Step::Wait)
}

fn within(want: &Range<u64>, size: u64) -> Range<u64> {
    want.start.min(size)..want.end.min(size)
}

/// Missing bytes that no lane is after.
fn free(missing: &[Range<u64>], lanes: &[LaneView]) -> Vec<Range<u64>> {
    let claimed = RangeSet::from_ranges(lanes.iter().map(|lane| lane.position..lane.end));
    missing.iter().flat_map(|gap| claimed.gaps(gap.clone())).collect()
}

/// A lane for the first reader whose next byte no lane will bring soon.
fn for_reader(view: &View<'_>, size: u64) -> Option<Step> {
    for want in view.wants {
        let Some(gap) = view.have.gaps(within(want, size)).into_iter().next() else { continue };
        let at = gap.start;
        // The closest one: a silent lane and its rival are after the same bytes.
        let lanes = view.lanes.iter().enumerate();
        let covering = lanes
            .filter(|(_, lane)| lane.position <= at && at < lane.end)
            .max_by_key(|(_, lane)| lane.position);
        let covering = covering.map(|(index, _)| index);
        let cut = match covering {
            Some(lane) if at - view.lanes[lane].position <= NEAR => continue,
            covering => covering,
        };
        // One lane beyond the target: a waiting client comes before the best number of connections.
        if view.lanes.len() >= view.most.max(view.target + 1) {
            return None;
        }
        let start = (at - at % PIECE).max(cut.map_or(0, |lane| view.lanes[lane].position));
        let start = view.have.end_from(start).min(at);
        let next_lane = view.lanes.iter().map(|lane| lane.position).filter(|position| *position > at).min();
        let wanted_end = gap.end.div_ceil(PIECE).saturating_mul(PIECE).min(size);
        let end = match cut {
            Some(lane) => view.lanes[lane].end.min(size),
            None => wanted_end.min(next_lane.unwrap_or(size)),
        };
        return Some(Step::Open { start, end: Some(end), cut, rivals: None });
    }
    None
}

/// A second try for the rest of a silent lane.
fn rival(lanes: &[LaneView]) -> Option<Step> {
    let at = lanes.iter().position(|lane| lane.silent >= SILENT && !lane.rivalled && lane.end != u64::MAX)?;
    let lane = &lanes[at];
    Some(Step::Open { start: lane.position, end: Some(lane.end), cut: None, rivals: Some(at) })
}

/// The later half of the lane that has most left.
fn split(view: &View<'_>) -> Option<Step> {
    if view.lanes.len() >= view.target {
        return None;
    }
    let (at, lane) =
        view.lanes.iter().enumerate().max_by_key(|(_, lane)| lane.end.saturating_sub(lane.position))?;
    let left = lane.end - lane.position;
    if left < SPLIT_FROM {
        return None;
    }
    let middle = (lane.position + left / 2).div_ceil(PIECE) * PIECE;
    Some(Step::Open { start: middle, end: Some(lane.end), cut: Some(at), rivals: None })
}

/// Finds the number of lanes at which more of them bring nothing: doubles while the throughput grows.
#[derive(Clone, Debug)]
pub(super) struct Growth {
    target: usize,
    most: usize,
    rate_before: f64,
    /// Measurements in a row that showed no gain.
    disappointments: u32,
    settled: bool,
}

/// A doubling must bring at least this factor to be followed by another.
const WORTH_IT: f64 = 1.3;

/// So many measurements in a row must show no gain before more connections are given up: a single one may have met a
/// pause of the disk or of another process.
const CONVINCED: u32 = 3;

/// One connection that brings this many bytes a second is not what holds the transfer up.
const FAST_LANE: f64 = 150e6;

/// With less than this left to wait, another connection would come too late.
const TOO_LATE: Duration = Duration::from_millis(600);

impl Growth {
    pub(super) fn new(most: usize) -> Self {
        Self { target: 1, most: most.max(1), rate_before: 0.0, disappointments: 0, settled: most <= 1 }
    }

    pub(super) fn target(&self) -> usize {
        self.target
    }

    /// Upstream bears no more than this: stop growing.
    pub(super) fn settle_at(&mut self, lanes: usize) {
        self.target = lanes.clamp(1, self.most);
        self.settled = true;
    }

    /// Takes one measurement, made while `target` lanes were all bringing bytes: bytes a second, and bytes left.
    pub(super) fn measured(&mut self, rate: f64, left: u64) {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let (lanes, left) = (self.target as f64, left as f64);
        if self.settled || left < rate * TOO_LATE.as_secs_f64() || rate > lanes * FAST_LANE {
            return;
        }
        if rate < self.rate_before * WORTH_IT {
            self.disappointments += 1;
            self.settled = self.disappointments >= CONVINCED;
            return;
        }
        self.disappointments = 0;
        self.rate_before = rate;
        self.target = (self.target * 2).min(self.most);
        self.settled = self.target == self.most;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lane(span: Range<u64>) -> LaneView {
        LaneView { position: span.start, end: span.end, silent: Duration::ZERO, rivalled: false }
    }

    fn pieces(range: Range<u64>) -> Range<u64> {
        range.start * PIECE..range.end * PIECE
    }

    struct Case {
        size: Option<u64>,
        have: Vec<Range<u64>>,
        lanes: Vec<LaneView>,
        wants: Vec<Range<u64>>,
        whole: bool,
        target: usize,
    }

    impl Default for Case {
        fn default() -> Self {
            Self {
                size: Some(100 * PIECE),
                have: vec![],
                lanes: vec![],
                wants: vec![],
                whole: true,
                target: 1,
            }
        }
    }

    impl Case {
        fn next(&self) -> Step {
            let have = RangeSet::from_ranges(self.have.iter().cloned());
            next(&View {
                size: self.size,
                have: &have,
                lanes: &self.lanes,
                wants: &self.wants,
                whole: self.whole,
                target: self.target,
                most: 8,
            })
        }
    }

    fn open(range: Range<u64>, cut: Option<usize>, rivals: Option<usize>) -> Step {
        Step::Open { start: range.start, end: Some(range.end), cut, rivals }
    }

    #[test]
    fn the_schedule_follows_its_rules() {
        let silent = |span| LaneView { silent: SILENT, ..lane(span) };
        let table = [
            (
                "the first lane takes everything",
                Case { size: None, ..Case::default() },
                Step::Open { start: 0, end: None, cut: None, rivals: None },
            ),
            (
                "it continues what an earlier process left",
                Case { size: None, have: vec![0..7], ..Case::default() },
                Step::Open { start: 7, end: None, cut: None, rivals: None },
            ),
            (
                "no second one before the size is known",
                Case { size: None, lanes: vec![lane(0..u64::MAX)], target: 4, ..Case::default() },
                Step::Wait,
            ),
            (
                "a gap is filled up to what is there",
                Case { have: vec![pieces(0..2), pieces(5..100)], ..Case::default() },
                open(pieces(2..5), None, None),
            ),
            (
                "one lane is enough at target one",
                Case { lanes: vec![lane(pieces(0..100))], ..Case::default() },
                Step::Wait,
            ),
            (
                "at target two the rest is split",
                Case { lanes: vec![lane(pieces(0..100))], target: 2, ..Case::default() },
                open(pieces(50..100), Some(0), None),
            ),
            (
                "the largest rest is split",
                Case {
                    lanes: vec![lane(pieces(40..50)), lane(pieces(60..100))],
                    have: vec![pieces(0..40), pieces(50..60)],
                    target: 3,
                    ..Case::default()
                },
                open(pieces(80..100), Some(1), None),
            ),
            (
                "a small rest is not",
                Case {
                    lanes: vec![lane(pieces(97..100))],
                    have: vec![pieces(0..97)],
                    target: 2,
                    ..Case::default()
                },
                Step::Wait,
            ),
            (
                "a free gap comes before a split",
                Case { lanes: vec![lane(pieces(50..100))], target: 2, ..Case::default() },
                open(pieces(0..50), None, None),
            ),
            (
                "a silent lane gets a rival",
                Case { lanes: vec![silent(pieces(0..100))], ..Case::default() },
                open(pieces(0..100), None, Some(0)),
            ),
            (
                "but only one",
                Case {
                    lanes: vec![LaneView { rivalled: true, ..silent(pieces(0..100)) }],
                    ..Case::default()
                },
                Step::Wait,
            ),
            (
                "a reader far ahead gets a lane at once",
                Case { lanes: vec![lane(pieces(0..100))], wants: vec![pieces(50..51)], ..Case::default() },
                open(pieces(50..100), Some(0), None),
            ),
            (
                "a reader just ahead waits",
                Case { lanes: vec![lane(pieces(0..100))], wants: vec![pieces(1..2)], ..Case::default() },
                Step::Wait,
            ),
            (
                "a reader just ahead of a rival waits for the rival",
                Case {
                    lanes: vec![LaneView { rivalled: true, ..silent(pieces(1..100)) }, lane(pieces(9..100))],
                    have: vec![pieces(0..9)],
                    wants: vec![pieces(9..10)],
                    ..Case::default()
                },
                Step::Wait,
            ),
            (
                "a reader of what is there needs nothing",
                Case {
                    lanes: vec![lane(pieces(10..100))],
                    have: vec![pieces(0..10)],
                    wants: vec![pieces(3..4)],
                    ..Case::default()
                },
                Step::Wait,
            ),
            (
                "only what is wanted, in whole pieces",
                Case { whole: false, wants: vec![PIECE + 5..PIECE + 9], ..Case::default() },
                open(pieces(1..2), None, None),
            ),
            (
                "and then no more",
                Case {
                    whole: false,
                    wants: vec![PIECE + 5..PIECE + 9],
                    have: vec![pieces(1..2)],
                    ..Case::default()
                },
                Step::Satisfied,
            ),
            (
                "all there",
                Case { have: vec![pieces(0..100)], lanes: vec![silent(pieces(3..4))], ..Case::default() },
                Step::Complete,
            ),
            ("nothing at all", Case { size: Some(0), ..Case::default() }, Step::Complete),
        ];
        for (name, case, expected) in table {
            assert_eq!(case.next(), expected, "{name}");
        }
    }

    #[test]
    fn lanes_double_while_the_throughput_grows() {
        let mut growth = Growth::new(8);
        growth.measured(75e6, u64::MAX);
        growth.measured(150e6, u64::MAX);
        growth.measured(300e6, u64::MAX);
        assert_eq!(growth.target(), 8);
        let mut growth = Growth::new(8);
        growth.measured(75e6, u64::MAX);
        for _ in 0..3 {
            growth.measured(80e6, u64::MAX);
        }
        growth.measured(200e6, u64::MAX);
        assert_eq!(growth.target(), 2, "the second connection brought nothing");
        let mut growth = Growth::new(8);
        growth.measured(75e6, u64::MAX);
        growth.measured(80e6, u64::MAX);
        growth.measured(150e6, u64::MAX);
        assert_eq!(growth.target(), 4, "one measurement may be noise");
        let mut growth = Growth::new(8);
        growth.measured(75e6, 10_000_000);
        growth.measured(400e6, u64::MAX);
        assert_eq!(growth.target(), 1, "too late, or fast enough");
    }

    proptest! {
        /// Simulated lanes that bring random amounts, stall or die: every byte arrives, and the number of requests
        /// stays in proportion.
        #[test]
        fn any_order_of_arrivals_ends_complete(
            size in 0u64..64 * PIECE, seed in prop::collection::vec((0usize..8, 0u64..3 * PIECE, 0u8..10), 400..401),
            target in 1usize..8, wants in prop::collection::vec(0u64..64 * PIECE, 0..3),
        ) {
            let mut have = RangeSet::default();
            let mut lanes: Vec<LaneView> = Vec::new();
            let wants: Vec<_> = wants.into_iter().map(|at| at..at + PIECE).collect();
            let mut opened = 0;
            for (pick, bytes, fate) in seed.into_iter().cycle().take(40_000) {
                loop {
                    match next(&View { size: Some(size), have: &have, lanes: &lanes, wants: &wants, whole: true, target, most: 8 }) {
                        Step::Complete => {
                            prop_assert_eq!(have.total(), size);
                            return Ok(());
                        }
                        Step::Open { start, end, cut, rivals } => {
                            let end = end.unwrap();
                            prop_assert!(start < end && end <= size, "{start}..{end} of {size}");
                            opened += 1;
                            prop_assert!(opened < 20_000);
                            if let Some(cut) = cut { lanes[cut].end = start; }
                            if let Some(rivalled) = rivals { lanes[rivalled].rivalled = true; }
                            lanes.push(lane(start..end));
                            lanes.retain(|lane| lane.position < lane.end);
                            prop_assert!(lanes.len() <= 9);
                        }
                        Step::Wait => break,
                        Step::Satisfied => prop_assert!(false, "everything is wanted"),
                    }
                }
                prop_assert!(!lanes.is_empty(), "waiting for nobody");
                let pick = pick % lanes.len();
                match fate {
                    0 => { lanes.remove(pick); }
                    1 => lanes[pick].silent = SILENT,
                    _ => {
                        let lane = &mut lanes[pick];
                        let to = (lane.position + bytes).min(lane.end);
                        have.insert(lane.position..to);
                        lane.position = to;
                        lane.silent = Duration::ZERO;
                        if lane.position == lane.end { lanes.remove(pick); }
                    }
                }
            }
            prop_assert!(false, "never complete");
        }
    }
}
