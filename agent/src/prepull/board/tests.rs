use super::*;
use crate::prepull::{schedule::Schedule, set::Origin};

const TAGGED: &str = "r.test/spark:3.5";

fn at(minute: i64) -> Timestamp {
    Timestamp::new(1_800_000_000 + minute * 60, 0).unwrap()
}

fn set(images: &[&str]) -> Set {
    let name = SetName { origin: Origin::File, name: "s".into() };
    Set::of(name, images.iter().map(|image| image.parse().unwrap()).collect())
}

fn board(set: Set) -> Board {
    let mut board = Board::new(Duration::from_mins(5), "n", Remembered::default());
    board.accept(vec![set], at(0));
    board
}

fn pulled(n: u8) -> Pulled {
    Pulled { digest: Digest::of(&[n]), bytes: 10 }
}

fn problem(reason: &'static str, retry_after: Option<Duration>) -> Problem {
    Problem { reason, message: "m".into(), retry_after }
}

/// Starts everything that is due and ends it with this outcome.
fn run(board: &mut Board, minute: i64, outcome: Result<Pulled, Problem>) -> Option<(Reference, News)> {
    let (jobs, _) = board.begin(at(minute), 9);
    let job = jobs.first()?;
    Some((job.reference.clone(), board.finished(&job.key, outcome, at(minute))))
}

fn tag() -> Reference {
    Reference::Tag("3.5".parse().unwrap())
}

#[test]
fn what_is_missing_is_pulled_at_once_and_a_tag_asked_for_again_by_the_policy() {
    let name = |n: u8| Digest::of(&[n]);
    let scheduled = Set { schedule: Some(Schedule::new("@yearly", None).unwrap()), ..set(&[TAGGED]) };
    let fixed = format!("r.test/spark@{}", name(1));
    for (set, first, later) in [
        (set(&[TAGGED]), tag(), Some((tag(), News::Changed { from: name(1), to: name(2) }))),
        (Set { policy: PullPolicy::Once, ..set(&[TAGGED]) }, tag(), None),
        (scheduled, tag(), None),
        (set(&[&fixed]), Reference::Digest(name(1)), None),
    ] {
        let mut board = board(set.clone());
        assert_eq!(run(&mut board, 0, Ok(pulled(1))), Some((first, News::Here(name(1)))), "{set:?}");
        assert_eq!(run(&mut board, 1, Ok(pulled(1))), None, "nothing is due: {set:?}");
        assert_eq!(run(&mut board, 6, Ok(pulled(2))), later, "{set:?}");
    }
}

#[test]
fn after_a_restart_the_first_meaning_stays_where_it_is_to_stay() {
    for (policy, expected) in
        [(PullPolicy::Once, Reference::Digest(Digest::of(&[1]))), (PullPolicy::IfChanged, tag())]
    {
        let set = Set { policy, ..set(&[TAGGED]) };
        let mut first = board(set.clone());
        run(&mut first, 0, Ok(pulled(1)));
        let mut second = Board::new(Duration::from_mins(5), "n", first.remember(true));
        second.accept(vec![set], at(1));
        let (reference, news) = run(&mut second, 1, Ok(pulled(1))).unwrap();
        assert_eq!((reference, news), (expected, News::Here(Digest::of(&[1]))));
    }
}

#[test]
fn a_failure_is_tried_again_after_a_growing_pause_and_what_was_whole_is_kept() {
    let mut board = board(set(&[TAGGED]));
    run(&mut board, 0, Ok(pulled(1)));
    run(&mut board, 6, Err(problem("NotFound", None)));
    let held = board.holds();
    let repository = "r.test/spark".parse::<ImageName>().unwrap().repository;
    let fact =
        |name, digest| RefFact { repository: repository.clone(), name, digest, pinned: false, held: false };
    assert!(held(&fact(RefName::Digest, Digest::of(&[1]))));
    assert!(held(&fact(RefName::Tag("3.5".parse().unwrap()), Digest::of(&[7]))));
    assert!(!held(&fact(RefName::Digest, Digest::of(&[2]))));
    let report = &board.report(&|_| 0)[0].images[0];
    assert_eq!((report.state, report.reason, report.here), (State::Failed, Some("NotFound"), true));
    assert!(run(&mut board, 6, Ok(pulled(1))).is_none(), "not at once");
    assert_eq!(run(&mut board, 7, Ok(pulled(1))).unwrap().1, News::Here(Digest::of(&[1])));
    for (failures, named, least, most) in
        [(1, None, 8, 12), (2, None, 16, 24), (20, None, 480, 720), (1, Some(100), 100, 110)]
    {
        for part in [0.0, 1.0] {
            let pause = pause(failures, named.map(Duration::from_secs), part).as_secs();
            assert!((least..=most).contains(&pause), "{failures} {named:?}: {pause}");
        }
    }
}

#[test]
fn no_more_than_there_is_room_for_is_begun_and_missing_images_go_first() {
    let mut board = board(set(&["r.test/a:1"]));
    run(&mut board, 0, Ok(pulled(1)));
    board.accept(vec![set(&["r.test/a:1", "r.test/b:1", "r.test/c:1"])], at(10));
    let (jobs, next) = board.begin(at(10), 1);
    assert_eq!((jobs[0].key.image.as_str(), next), ("r.test/b:1", None));
    let images = |jobs: &[Job]| jobs.iter().map(|job| job.key.image.clone()).collect::<Vec<_>>();
    assert_eq!(images(&board.begin(at(10), 9).0), ["r.test/c:1", "r.test/a:1"]);
}

#[test]
fn a_node_whose_turn_it_is_not_waits_and_says_so() {
    let mut board = board(Set { admitted: false, ..set(&[TAGGED]) });
    assert!(board.begin(at(0), 9).0.is_empty());
    let report = &board.report(&|_| 0)[0].images[0];
    assert_eq!((report.state, report.reason), (State::Waiting, Some("OtherNodesFirst")));
    board.accept(vec![Set { retries: false, ..set(&[TAGGED]) }], at(1));
    assert_eq!(run(&mut board, 1, Err(problem("NotFound", None))).unwrap().0, tag());
    assert!(board.begin(at(60), 9).0.is_empty(), "what failed has no turn");
    board.accept(vec![Set { admitted: false, ..set(&[TAGGED]) }], at(60));
    assert_eq!(board.begin(at(60), 9).0.len(), 1, "it takes the place that others leave");
}

#[test]
fn a_set_that_is_gone_holds_nothing_and_its_job_ends_in_silence() {
    let mut board = board(set(&[TAGGED]));
    let (jobs, _) = board.begin(at(0), 9);
    board.accept(Vec::new(), at(0));
    assert_eq!(board.finished(&jobs[0].key, Ok(pulled(1)), at(0)), News::Gone);
    assert_eq!(board.remember(true), Remembered::default());
}

#[test]
fn other_platforms_are_looked_for_at_once() {
    let mut board = board(set(&[TAGGED]));
    run(&mut board, 0, Ok(pulled(1)));
    let platforms = vec!["linux/arm64".parse().unwrap()];
    board.accept(vec![Set { platforms, ..set(&[TAGGED]) }], at(1));
    assert_eq!(board.begin(at(1), 9).0.len(), 1);
}

#[test]
fn a_look_for_something_new_takes_nothing_from_an_image_that_is_here() {
    let mut board = board(set(&[TAGGED]));
    let shown = |board: &Board| {
        let report = &board.report(&|_| 0)[0].images[0];
        (report.state, report.progress, report.reason)
    };
    board.begin(at(0), 9);
    assert_eq!(shown(&board), (State::Pulling, 0, None), "what is not here is on its way from the beginning");
    let key = Key { set: board.report(&|_| 0)[0].name.clone(), image: TAGGED.to_owned() };
    board.finished(&key, Ok(pulled(1)), at(0));
    run(&mut board, 6, Err(problem("RateLimited", None)));
    assert_eq!(shown(&board), (State::Ready, 100, Some("RateLimited")));
    let (jobs, _) = board.begin(at(20), 9);
    assert_eq!(shown(&board).0, State::Ready);
    jobs[0].progress.needs(Digest::of(&[9]), 100);
    assert_eq!(shown(&board).0, State::Pulling, "another image, which is not here yet");
    board.finished(&key, Err(problem("NotFound", None)), at(20));
    board.begin(at(60), 9);
    assert_eq!(shown(&board).0, State::Pulling, "what failed is tried again");
}
