use proptest::prelude::*;

use super::*;

fn request(span: Range<u64>) -> RequestView {
    let (age, rate) = (Duration::ZERO, 0);
    RequestView { position: span.start, end: span.end, silent: Duration::ZERO, age, rate, hedged: false }
}

fn pieces(range: Range<u64>) -> Range<u64> {
    range.start * PIECE..range.end * PIECE
}

struct Case {
    size: Option<u64>,
    have: Vec<Range<u64>>,
    requests: Vec<RequestView>,
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
            requests: vec![],
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
            requests: &self.requests,
            wants: &self.wants,
            whole: self.whole,
            target: self.target,
            most: 8,
            pace: self.pace,
        })
    }
}

fn open(range: Range<u64>, cut: Option<usize>, hedges: Option<(usize, Hedge)>) -> Step {
    Step::Open { start: range.start, end: Some(range.end), cut, hedges }
}

#[test]
fn the_schedule_follows_its_rules() {
    let silent = |span| RequestView { silent: SILENT, ..request(span) };
    let table = [
        (
            "the first request takes everything",
            Case { size: None, ..Case::default() },
            Step::Open { start: 0, end: None, cut: None, hedges: None },
        ),
        (
            "it continues what an earlier process left",
            Case { size: None, have: vec![0..7], ..Case::default() },
            Step::Open { start: 7, end: None, cut: None, hedges: None },
        ),
        (
            "no second one before the size is known",
            Case { size: None, requests: vec![request(0..u64::MAX)], target: 4, ..Case::default() },
            Step::Wait,
        ),
        (
            "a gap is filled up to what is there",
            Case { have: vec![pieces(0..2), pieces(5..100)], ..Case::default() },
            open(pieces(2..5), None, None),
        ),
        (
            "one request is enough at target one",
            Case { requests: vec![request(pieces(0..100))], ..Case::default() },
            Step::Wait,
        ),
        (
            "at target two the next stride goes to another",
            Case { requests: vec![request(pieces(0..100))], target: 2, ..Case::default() },
            open(pieces(16..32), Some(0), None),
        ),
        (
            "the largest rest is split",
            Case {
                requests: vec![request(pieces(90..92)), request(pieces(92..100))],
                have: vec![pieces(0..90)],
                target: 3,
                ..Case::default()
            },
            open(pieces(96..100), Some(1), None),
        ),
        (
            "strides are shorter towards the end",
            Case {
                requests: vec![request(pieces(70..76))],
                have: vec![pieces(0..70)],
                target: 5,
                ..Case::default()
            },
            open(pieces(76..82), None, None),
        ),
        (
            "a small rest is not",
            Case {
                requests: vec![request(pieces(97..100))],
                have: vec![pieces(0..97)],
                target: 2,
                ..Case::default()
            },
            Step::Wait,
        ),
        (
            "a free gap comes before a split",
            Case { requests: vec![request(pieces(12..100))], target: 2, ..Case::default() },
            open(pieces(0..12), None, None),
        ),
        (
            "a silent request is hedged",
            Case { requests: vec![silent(pieces(0..100))], ..Case::default() },
            open(pieces(0..100), None, Some((0, Hedge::Silent))),
        ),
        (
            "a request that is far slower than others is hedged",
            Case {
                requests: vec![RequestView { age: SILENT, rate: 1000, ..request(pieces(0..100)) }],
                pace: Some(75_000_000),
                ..Case::default()
            },
            open(pieces(0..100), None, Some((0, Hedge::Slow))),
        ),
        (
            "a slow request that will finish soon is not hedged",
            Case {
                requests: vec![RequestView { age: SILENT, rate: PIECE, ..request(pieces(98..100)) }],
                have: vec![pieces(0..98)],
                pace: Some(100 * PIECE),
                ..Case::default()
            },
            Step::Wait,
        ),
        (
            "a request is hedged only once",
            Case {
                requests: vec![RequestView { hedged: true, ..silent(pieces(0..100)) }],
                ..Case::default()
            },
            Step::Wait,
        ),
        (
            "a reader far ahead gets a request at once",
            Case { requests: vec![request(pieces(0..100))], wants: vec![pieces(50..51)], ..Case::default() },
            open(pieces(50..100), Some(0), None),
        ),
        (
            "a reader just ahead waits",
            Case { requests: vec![request(pieces(0..100))], wants: vec![pieces(1..2)], ..Case::default() },
            Step::Wait,
        ),
        (
            "a reader just ahead of a hedge waits for the hedge",
            Case {
                requests: vec![
                    RequestView { hedged: true, ..silent(pieces(1..100)) },
                    request(pieces(9..100)),
                ],
                have: vec![pieces(0..9)],
                wants: vec![pieces(9..10)],
                ..Case::default()
            },
            Step::Wait,
        ),
        (
            "a reader of bytes that have arrived needs nothing",
            Case {
                requests: vec![request(pieces(10..100))],
                have: vec![pieces(0..10)],
                wants: vec![pieces(3..4)],
                ..Case::default()
            },
            Step::Wait,
        ),
        (
            "only the requested ranges, in whole pieces",
            Case { whole: false, wants: vec![PIECE + 5..PIECE + 9], ..Case::default() },
            open(pieces(1..2), None, None),
        ),
        (
            "nothing after the requested ranges",
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
            Case { have: vec![pieces(0..100)], requests: vec![silent(pieces(3..4))], ..Case::default() },
            Step::Complete,
        ),
        ("nothing at all", Case { size: Some(0), ..Case::default() }, Step::Complete),
    ];
    for (name, case, expected) in table {
        assert_eq!(case.next(), expected, "{name}");
    }
}

#[test]
fn of_two_requests_for_the_same_bytes_the_first_to_receive_some_continues() {
    let (silent, slow) = (Some((1, Hedge::Silent)), Some((1, Hedge::Slow)));
    // Which request each request hedges; which request received bytes; which request is aborted.
    for (pairs, at, expected) in [
        (vec![None, None, silent], 2, Some(1)),
        (vec![None, None, silent], 1, Some(2)),
        (vec![None, None, silent], 0, None),
        (vec![None, None, slow], 2, Some(1)),
        // A slow request receives bytes all the time: that decides nothing.
        (vec![None, None, slow], 1, None),
    ] {
        assert_eq!(superseded(&pairs, at), expected, "{pairs:?} {at}");
    }
}

proptest! {
    /// Simulated requests that receive random amounts, stall or fail: every byte arrives, and the number of requests
    /// stays in proportion.
    #[test]
    fn any_order_of_arrivals_ends_complete(
        size in 0u64..64 * PIECE, seed in prop::collection::vec((0usize..8, 0u64..3 * PIECE, 0u8..10), 400..401),
        target in 1usize..8, wants in prop::collection::vec(0u64..64 * PIECE, 0..3),
    ) {
        let mut have = RangeSet::default();
        let mut requests: Vec<RequestView> = Vec::new();
        let wants: Vec<_> = wants.into_iter().map(|at| at..at + PIECE).collect();
        let mut opened = 0;
        for (pick, bytes, fate) in seed.into_iter().cycle().take(40_000) {
            loop {
                match next(&View { size: Some(size), have: &have, requests: &requests, wants: &wants, whole: true, target, most: 8, pace: None }) {
                    Step::Complete => {
                        prop_assert_eq!(have.total(), size);
                        return Ok(());
                    }
                    Step::Open { start, end, cut, hedges } => {
                        let end = end.unwrap();
                        prop_assert!(start < end && end <= size, "{start}..{end} of {size}");
                        opened += 1;
                        prop_assert!(opened < 20_000);
                        if let Some(cut) = cut { requests[cut].end = start; }
                        if let Some((hedged, _)) = hedges { requests[hedged].hedged = true; }
                        requests.push(request(start..end));
                        requests.retain(|request| request.position < request.end);
                        prop_assert!(requests.len() <= 9);
                    }
                    Step::Wait => break,
                    Step::Satisfied => prop_assert!(false, "everything is wanted"),
                }
            }
            prop_assert!(!requests.is_empty(), "waiting without a request");
            let pick = pick % requests.len();
            match fate {
                0 => { requests.remove(pick); }
                1 => requests[pick].silent = SILENT,
                _ => {
                    let request = &mut requests[pick];
                    let to = (request.position + bytes).min(request.end);
                    have.insert(request.position..to);
                    request.position = to;
                    request.silent = Duration::ZERO;
                    if request.position == request.end { requests.remove(pick); }
                }
            }
        }
        prop_assert!(false, "never complete");
    }
}
