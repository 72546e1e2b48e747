use http::{HeaderName, HeaderValue};

use super::*;

fn headers(limit: &str, remaining: &str) -> HeaderMap {
    let header = |name: &'static str, value: &str| {
        (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
    };
    HeaderMap::from_iter([header("ratelimit-limit", limit), header("ratelimit-remaining", remaining)])
}

#[test]
fn background_stops_at_the_reserve_and_demand_continues() {
    let (mut budget, now) = (Budget::default(), Instant::now());
    assert!(budget.admit(Class::Background, now).is_ok(), "no limit is known");
    budget.answered(&headers("100;w=21600", "31;w=21600"), now);
    assert!(budget.admit(Class::Background, now).is_ok());
    // One more would take of the reserve.
    budget.answered(&headers("100;w=21600", "30;w=21600"), now);
    assert_eq!(budget.admit(Class::Background, now), Err(Duration::from_hours(6)));
    assert!(budget.admit(Class::Uncounted, now).is_ok(), "blobs of a manifest that is here");
    assert!(budget.admit(Class::Demand, now).is_ok());
    assert!(budget.admit(Class::Background, now + Duration::from_hours(6)).is_ok(), "refilled");
    budget.answered(&headers("100;w=21600", "nonsense"), now);
    assert_eq!(budget.status(now).remaining, Some(30));
    budget.answered(&headers("0;w=21600", "0;w=21600"), now);
    assert!(budget.admit(Class::Background, now).is_ok(), "no registry allows nothing: it has no limit");
}

/// Sends a request in a table: at a millisecond, with an end at another.
struct Sent(u64, u64, &'static str, End);

#[derive(Clone, Copy)]
enum End {
    Ok,
    Too,
    TooFor(u64),
    Down,
    Bad,
    Local,
}

/// Plays requests in the order of their ends; all are admitted before, like requests that run at the same time.
fn play(sent: &[Sent]) -> (Limits, Instant) {
    let (mut limits, start) = (Limits::default(), Instant::now());
    let at = |millis| start + Duration::from_millis(millis);
    for Sent(began, ended, subject, end) in sent {
        let outcome = match end {
            End::Ok => Outcome::Settled(None),
            End::Too => Outcome::Throttled(None),
            End::TooFor(seconds) => Outcome::Throttled(Some(Duration::from_secs(*seconds))),
            End::Down => Outcome::Unreachable,
            End::Bad => Outcome::Broken,
            End::Local => Outcome::NotSent,
        };
        limits.settle(subject, at(*began), outcome, at(*ended));
    }
    (limits, start)
}

/// Name, requests, a time in milliseconds, a subject, and the decision about a request for it at that time.
type Row = (&'static str, Vec<Sent>, u64, &'static str, Result<(), Refusal>);

#[test]
fn failures_are_counted_by_their_kind() {
    use End::{Bad, Down, Local, Ok, Too, TooFor};
    let open = |millis| Err(Refusal::CircuitOpen(Duration::from_millis(millis)));
    let penalty = |millis| Err(Refusal::Penalty(Duration::from_millis(millis)));
    let throttled = |millis| Err(Refusal::Throttled(Duration::from_millis(millis)));
    let together = |end: fn() -> End| (0..24).map(|_| Sent(0, 10, "a", end())).collect::<Vec<_>>();
    let loops = |times: u64| (0..times).map(|n| Sent(n * 10, n * 10 + 5, "a", Bad)).collect::<Vec<_>>();
    let table: Vec<Row> = vec![
        ("24 at once without a connection", together(|| Down), 20, "b", Result::Ok(())),
        ("24 at once that fail", together(|| Bad), 20, "a", Result::Ok(())),
        ("24 at once with 429", together(|| Too), 510, "b", throttled(500)),
        ("the same a second later", together(|| Too), 1_010, "b", Result::Ok(())),
        (
            "two 429 in a row",
            vec![Sent(0, 10, "a", Too), Sent(1_010, 1_020, "a", Too)],
            2_020,
            "b",
            throttled(1_000),
        ),
        (
            "429 between successes",
            vec![Sent(0, 10, "a", Too), Sent(20, 30, "a", Ok), Sent(40, 50, "a", Too)],
            50,
            "b",
            throttled(1_000),
        ),
        ("429 with a time", together(|| TooFor(7)), 10, "b", throttled(7_000)),
        (
            "of several the longest",
            vec![Sent(0, 10, "a", TooFor(9)), Sent(0, 20, "a", TooFor(1)), Sent(0, 30, "a", Too)],
            1_010,
            "b",
            throttled(8_000),
        ),
        (
            "no connection three times in a row",
            vec![Sent(0, 1, "a", Down), Sent(2, 3, "a", Down), Sent(4, 5, "a", Down)],
            505,
            "b",
            open(500),
        ),
        (
            "not in a row",
            vec![Sent(0, 1, "a", Down), Sent(2, 3, "a", Down), Sent(3, 4, "a", Ok), Sent(4, 5, "a", Down)],
            6,
            "b",
            Result::Ok(()),
        ),
        (
            "three different things",
            vec![Sent(0, 1, "a", Bad), Sent(2, 3, "b", Bad), Sent(4, 5, "c", Bad)],
            5,
            "d",
            open(1_000),
        ),
        (
            "three different things at once",
            vec![Sent(0, 1, "a", Bad), Sent(0, 3, "b", Bad), Sent(0, 5, "c", Bad)],
            5,
            "d",
            Result::Ok(()),
        ),
        ("one thing, often: others", loops(40), 500, "b", Result::Ok(())),
        ("one thing, three times: itself", loops(3), 525, "a", penalty(500)),
        ("one thing, often: itself", loops(40), 395, "a", penalty(30_000)),
        (
            "one thing, often, and another",
            chain(loops(40), Sent(500, 505, "b", Bad)),
            505,
            "c",
            Result::Ok(()),
        ),
        ("a success ends a penalty", chain(loops(3), Sent(50, 60, "a", Ok)), 60, "a", Result::Ok(())),
        (
            "requests that were not sent do not count",
            (0..9).map(|n| Sent(n, n, "a", Local)).collect(),
            10,
            "a",
            Result::Ok(()),
        ),
    ];
    for (what, sent, at, subject, expected) in table {
        let (mut limits, start) = play(&sent);
        assert_eq!(limits.admit(subject, start + Duration::from_millis(at)), expected, "{what}");
    }
}

fn chain(mut sent: Vec<Sent>, last: Sent) -> Vec<Sent> {
    sent.push(last);
    sent
}

#[test]
fn pauses_grow_up_to_a_limit() {
    let seconds = |doublings| growing(FIRST, doublings, LONGEST).as_secs();
    assert_eq!([0, 1, 2, 3, 4, 5, 99].map(seconds), [1, 2, 4, 8, 16, 30, 30]);
    let seconds = |doublings| growing(FIRST_GATE, doublings, LONGEST_GATE).as_secs();
    assert_eq!([0, 1, 5, 6, 99].map(seconds), [1, 2, 32, 60, 60]);
}

#[test]
fn an_open_circuit_is_probed_one_request_at_a_time_and_closes_on_success() {
    let (mut limits, start) =
        play(&[Sent(0, 0, "a", End::Down), Sent(1, 1, "a", End::Down), Sent(2, 2, "a", End::Down)]);
    let at = |millis| start + Duration::from_millis(millis);
    assert_eq!(limits.open_for(at(2)), Some(Duration::from_secs(1)));
    assert!(limits.admit("b", at(1_002)).is_ok(), "the probe");
    assert!(limits.admit("b", at(1_003)).is_err(), "one at a time");
    // A late failure of an earlier request does not count.
    limits.settle("c", at(0), Outcome::Unreachable, at(1_005));
    limits.settle("b", at(1_002), Outcome::Unreachable, at(1_010));
    assert_eq!(limits.open_for(at(1_010)), Some(Duration::from_secs(2)));
    assert!(limits.admit("b", at(3_010)).is_ok(), "the second probe");
    limits.settle("b", at(3_010), Outcome::Settled(None), at(3_020));
    assert!(limits.admit("b", at(3_021)).is_ok());
    assert_eq!(limits.open_for(at(3_021)), None);
}

#[test]
fn a_broken_blob_does_not_use_up_the_probes() {
    let (mut limits, start) = play(&[
        Sent(0, 0, "bad", End::Bad),
        Sent(1, 1, "a", End::Ok),
        Sent(2, 2, "a", End::Down),
        Sent(3, 3, "a", End::Down),
        Sent(4, 4, "a", End::Down),
    ]);
    let at = |millis| start + Duration::from_millis(millis);
    assert_eq!(limits.open_for(at(4)), Some(Duration::from_secs(1)));
    // It is requested first, and fails as before: the next request is the probe, at once.
    assert!(limits.admit("bad", at(1_005)).is_ok());
    limits.settle("bad", at(1_005), Outcome::Broken, at(1_010));
    assert!(limits.admit("good", at(1_011)).is_ok());
    limits.settle("good", at(1_011), Outcome::Settled(None), at(1_020));
    assert_eq!(limits.open_for(at(1_020)), None);
}

#[test]
fn the_number_of_failed_subjects_is_bounded() {
    let (mut limits, start) = (Limits::default(), Instant::now());
    for n in 0..3 * MOST {
        limits.settle(&n.to_string(), start, Outcome::Broken, start);
    }
    assert!(limits.penalties.len() <= MOST && limits.circuit.broken.len() <= MOST);
    let later = start + LONGEST;
    limits.settle("new", later, Outcome::Broken, later);
    assert_eq!(limits.penalties.len(), 1, "old entries are dropped");
}

#[test]
fn requests_are_listed_by_repository_up_to_a_limit() {
    let mut budget = Budget::default();
    for n in 0..NAMED + 10 {
        budget.spent(&format!("r{n}").parse().unwrap());
    }
    budget.spent(&"r5".parse().unwrap());
    let used = budget.status(Instant::now()).used_by;
    assert_eq!(used[0], ("r5".to_owned(), 2));
    assert_eq!(used.last(), Some(&("(others)".to_owned(), 10)));
}
