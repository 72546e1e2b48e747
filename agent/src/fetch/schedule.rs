//! Which bytes the next connection should bring. Pure: values in, a decision out.
//!
//! A flight has lanes, each one connection that fills a span from its start. The first lane takes everything. As soon
//! as several make the whole faster, the blob is handed out in strides from its beginning: the lanes stay close
//! together, so that hashing and streaming to a client go on beside the transfer instead of after it. Strides get
//! shorter towards the end, where all lanes should finish at once. What a waiting reader needs comes before everything
//! else; a lane that has gone silent or fell far behind gets a rival for the rest of its span, and the first to bring
//! a byte wins.

use std::{ops::Range, time::Duration};

use crate::store::RangeSet;

/// Spans start and end on multiples of this, so that peers and resumed transfers meet on the same lines.
pub(super) use crate::peers::layout::PIECE;

/// A reader whose next byte is within this distance ahead of a lane waits for that lane.
const NEAR: u64 = 2 * PIECE;

/// A lane with less than this left is not worth splitting.
const SPLIT_FROM: u64 = 4 * PIECE;

/// Least and most that a lane is given at once when there are several. Each costs a request, of which registries
/// count some; each is read back and hashed when those before it are there.
const STRIDE: (u64, u64) = (4 * PIECE, 16 * PIECE);

/// A lane without a byte for this long gets a rival.
pub(super) const SILENT: Duration = Duration::from_secs(2);

/// A lane that is slower than the one that ended last by this factor, and has more than [`SILENT`] to go, gets one too.
const FAR_BEHIND: u64 = 4;

/// One lane as the schedule sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LaneView {
    /// Its next byte.
    pub(super) position: u64,
    /// One past its last byte; `u64::MAX` while the size is not known.
    pub(super) end: u64,
    /// Since when it has brought nothing.
    pub(super) silent: Duration,
    /// For how long it has been at work.
    pub(super) age: Duration,
    /// What it brought on average, in bytes per second.
    pub(super) rate: u64,
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
    /// What the lane that filled its span last brought on average, in bytes per second.
    pub(super) pace: Option<u64>,
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
    if view.lanes.len() < view.most
        && let Some(step) = rival(view)
    {
        return step;
    }
    if view.lanes.len() >= view.target.max(1) {
        return Step::Wait;
    }
    let stride = stride(missing.iter().map(|gap| gap.end - gap.start).sum(), view.target);
    match free.into_iter().next() {
        Some(gap) => Step::open(gap.start..stride_end(&gap, stride)),
        None => split(view, stride).unwrap_or(Step::Wait),
    }
}

/// How much a lane is given at once: a fair share of what is missing, within limits.
fn stride(missing: u64, target: usize) -> u64 {
    if target <= 1 {
        return u64::MAX;
    }
    let share = missing / target as u64;
    share.next_multiple_of(PIECE).clamp(STRIDE.0, STRIDE.1)
}

/// Where the first stride of a gap ends; a small remainder goes with it.
fn stride_end(gap: &Range<u64>, stride: u64) -> u64 {
    let end = gap.start.saturating_add(stride);
    let end = end - end % PIECE;
    if gap.end.saturating_sub(end) < stride / 2 { gap.end } else { end }
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

/// A second try for the rest of a lane that brings nothing, or next to nothing.
fn rival(view: &View<'_>) -> Option<Step> {
    let stuck = |lane: &LaneView| lane.silent >= SILENT || is_far_behind(lane, view.pace);
    let at = view.lanes.iter().position(|lane| !lane.rivalled && lane.end != u64::MAX && stuck(lane))?;
    let lane = &view.lanes[at];
    Some(Step::Open { start: lane.position, end: Some(lane.end), cut: None, rivals: Some(at) })
}

fn is_far_behind(lane: &LaneView, pace: Option<u64>) -> bool {
    let slow = pace.is_some_and(|pace| lane.rate < pace / FAR_BEHIND);
    let left = lane.end.saturating_sub(lane.position);
    slow && lane.age >= SILENT && left / lane.rate.max(1) > SILENT.as_secs()
}

/// The next stride of the lane that has most left, or its later half.
fn split(view: &View<'_>, stride: u64) -> Option<Step> {
    let (at, lane) =
        view.lanes.iter().enumerate().max_by_key(|(_, lane)| lane.end.saturating_sub(lane.position))?;
    let left = lane.end - lane.position;
    if left < SPLIT_FROM {
        return None;
    }
    let start = (lane.position + stride.min(left / 2)).div_ceil(PIECE) * PIECE;
    Some(Step::Open { start, end: Some(stride_end(&(start..lane.end), stride)), cut: Some(at), rivals: None })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lane(span: Range<u64>) -> LaneView {
        let (age, rate) = (Duration::ZERO, 0);
        LaneView { position: span.start, end: span.end, silent: Duration::ZERO, age, rate, rivalled: false }
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
        pace: Option<u64>,
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
                pace: None,
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
                pace: self.pace,
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
                "at target two the next stride goes to another",
                Case { lanes: vec![lane(pieces(0..100))], target: 2, ..Case::default() },
                open(pieces(16..32), Some(0), None),
            ),
            (
                "the largest rest is split",
                Case {
                    lanes: vec![lane(pieces(90..92)), lane(pieces(92..100))],
                    have: vec![pieces(0..90)],
                    target: 3,
                    ..Case::default()
                },
                open(pieces(96..100), Some(1), None),
            ),
            (
                "strides are shorter towards the end",
                Case {
                    lanes: vec![lane(pieces(70..76))],
                    have: vec![pieces(0..70)],
                    target: 5,
                    ..Case::default()
                },
                open(pieces(76..82), None, None),
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
                Case { lanes: vec![lane(pieces(12..100))], target: 2, ..Case::default() },
                open(pieces(0..12), None, None),
            ),
            (
                "a silent lane gets a rival",
                Case { lanes: vec![silent(pieces(0..100))], ..Case::default() },
                open(pieces(0..100), None, Some(0)),
            ),
            (
                "so does one that crawls while others run",
                Case {
                    lanes: vec![LaneView { age: SILENT, rate: 1000, ..lane(pieces(0..100)) }],
                    pace: Some(75_000_000),
                    ..Case::default()
                },
                open(pieces(0..100), None, Some(0)),
            ),
            (
                "but not one that will be there soon",
                Case {
                    lanes: vec![LaneView { age: SILENT, rate: PIECE, ..lane(pieces(98..100)) }],
                    have: vec![pieces(0..98)],
                    pace: Some(100 * PIECE),
                    ..Case::default()
                },
                Step::Wait,
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
                    match next(&View { size: Some(size), have: &have, lanes: &lanes, wants: &wants, whole: true, target, most: 8, pace: None }) {
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
