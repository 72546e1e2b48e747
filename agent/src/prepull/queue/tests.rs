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

fn queue(set: Set) -> PullQueue {
    let mut queue = PullQueue::new(Duration::from_mins(5), "n", Remembered::default());
    queue.accept(vec![set], at(0));
    queue
}

fn pulled(n: u8) -> Pulled {
    Pulled { digest: Digest::of(&[n]), bytes: 10 }
}

fn problem(reason: &'static str, retry_after: Option<Duration>) -> Problem {
    Problem { reason, message: "m".into(), retry_after }
}

/// Starts all tasks that are due and ends them with this outcome.
fn run(
    queue: &mut PullQueue,
    minute: i64,
    outcome: Result<Pulled, Problem>,
) -> Option<(Reference, PullEvent)> {
    let (tasks, _) = queue.begin(at(minute), 9);
    let task = tasks.first()?;
    Some((task.reference.clone(), queue.finished(&task.key, outcome, at(minute))))
}

fn tag() -> Reference {
    Reference::Tag("3.5".parse().unwrap())
}

#[test]
fn a_missing_image_is_pulled_at_once_and_a_tag_checked_again_by_the_policy() {
    let name = |n: u8| Digest::of(&[n]);
    let scheduled = Set { schedule: Some(Schedule::new("@yearly", None).unwrap()), ..set(&[TAGGED]) };
    let fixed = format!("r.test/spark@{}", name(1));
    for (set, first, later) in [
        (set(&[TAGGED]), tag(), Some((tag(), PullEvent::Changed { from: name(1), to: name(2) }))),
        (Set { policy: PullPolicy::Once, ..set(&[TAGGED]) }, tag(), None),
        (scheduled, tag(), None),
        (set(&[&fixed]), Reference::Digest(name(1)), None),
    ] {
        let mut queue = queue(set.clone());
        assert_eq!(run(&mut queue, 0, Ok(pulled(1))), Some((first, PullEvent::Cached(name(1)))), "{set:?}");
        assert_eq!(run(&mut queue, 1, Ok(pulled(1))), None, "nothing is due: {set:?}");
        assert_eq!(run(&mut queue, 6, Ok(pulled(2))), later, "{set:?}");
    }
}

#[test]
fn with_the_policy_once_the_first_digest_stays_after_a_restart() {
    for (policy, expected) in
        [(PullPolicy::Once, Reference::Digest(Digest::of(&[1]))), (PullPolicy::IfChanged, tag())]
    {
        let set = Set { policy, ..set(&[TAGGED]) };
        let mut first = queue(set.clone());
        run(&mut first, 0, Ok(pulled(1)));
        let mut second = PullQueue::new(Duration::from_mins(5), "n", first.remember(true));
        second.accept(vec![set], at(1));
        let (reference, news) = run(&mut second, 1, Ok(pulled(1))).unwrap();
        assert_eq!((reference, news), (expected, PullEvent::Cached(Digest::of(&[1]))));
    }
}

#[test]
fn a_failure_is_retried_after_a_growing_pause_and_the_complete_image_is_kept() {
    let mut queue = queue(set(&[TAGGED]));
    run(&mut queue, 0, Ok(pulled(1)));
    run(&mut queue, 6, Err(problem("NotFound", None)));
    let held = queue.holds();
    let repository = "r.test/spark".parse::<ImageName>().unwrap().repository;
    let fact =
        |name, digest| RefFact { repository: repository.clone(), name, digest, pinned: false, held: false };
    assert!(held(&fact(RefName::Digest, Digest::of(&[1]))));
    assert!(held(&fact(RefName::Tag("3.5".parse().unwrap()), Digest::of(&[7]))));
    assert!(!held(&fact(RefName::Digest, Digest::of(&[2]))));
    let report = &queue.report(&|_| 0)[0].images[0];
    assert_eq!((report.state, report.reason, report.here), (State::Failed, Some("NotFound"), true));
    assert!(run(&mut queue, 6, Ok(pulled(1))).is_none(), "not at once");
    assert_eq!(run(&mut queue, 7, Ok(pulled(1))).unwrap().1, PullEvent::Cached(Digest::of(&[1])));
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
fn only_a_limited_number_of_tasks_starts_and_missing_images_come_first() {
    let mut queue = queue(set(&["r.test/a:1"]));
    run(&mut queue, 0, Ok(pulled(1)));
    queue.accept(vec![set(&["r.test/a:1", "r.test/b:1", "r.test/c:1"])], at(10));
    let (tasks, next) = queue.begin(at(10), 1);
    assert_eq!((tasks[0].key.image.as_str(), next), ("r.test/b:1", None));
    let images = |tasks: &[PullTask]| tasks.iter().map(|task| task.key.image.clone()).collect::<Vec<_>>();
    assert_eq!(images(&queue.begin(at(10), 9).0), ["r.test/c:1", "r.test/a:1"]);
}

#[test]
fn a_node_waits_for_its_turn_and_reports_the_reason() {
    let mut queue = queue(Set { admitted: false, ..set(&[TAGGED]) });
    assert!(queue.begin(at(0), 9).0.is_empty());
    let report = &queue.report(&|_| 0)[0].images[0];
    assert_eq!((report.state, report.reason), (State::Waiting, Some("OtherNodesFirst")));
    queue.accept(vec![Set { retries: false, ..set(&[TAGGED]) }], at(1));
    assert_eq!(run(&mut queue, 1, Err(problem("NotFound", None))).unwrap().0, tag());
    assert!(queue.begin(at(60), 9).0.is_empty(), "a failed image has no turn");
    queue.accept(vec![Set { admitted: false, ..set(&[TAGGED]) }], at(60));
    assert_eq!(queue.begin(at(60), 9).0.len(), 1, "it takes a free place");
}

#[test]
fn a_removed_set_keeps_nothing_and_its_task_ends_without_a_report() {
    let mut queue = queue(set(&[TAGGED]));
    let (tasks, _) = queue.begin(at(0), 9);
    queue.accept(Vec::new(), at(0));
    assert_eq!(queue.finished(&tasks[0].key, Ok(pulled(1)), at(0)), PullEvent::Gone);
    assert_eq!(queue.remember(true), Remembered::default());
}

#[test]
fn other_platforms_are_pulled_at_once() {
    let mut queue = queue(set(&[TAGGED]));
    run(&mut queue, 0, Ok(pulled(1)));
    let platforms = vec!["linux/arm64".parse().unwrap()];
    queue.accept(vec![Set { platforms, ..set(&[TAGGED]) }], at(1));
    assert_eq!(queue.begin(at(1), 9).0.len(), 1);
}

#[test]
fn a_check_for_a_changed_tag_does_not_change_the_state_of_a_complete_image() {
    let mut queue = queue(set(&[TAGGED]));
    let shown = |queue: &PullQueue| {
        let report = &queue.report(&|_| 0)[0].images[0];
        (report.state, report.progress, report.reason)
    };
    queue.begin(at(0), 9);
    assert_eq!(shown(&queue), (State::Pulling, 0, None), "a missing image is being pulled from the start");
    let key = Key { set: queue.report(&|_| 0)[0].name.clone(), image: TAGGED.to_owned() };
    queue.finished(&key, Ok(pulled(1)), at(0));
    run(&mut queue, 6, Err(problem("RateLimited", None)));
    assert_eq!(shown(&queue), (State::Ready, 100, Some("RateLimited")));
    let (tasks, _) = queue.begin(at(20), 9);
    assert_eq!(shown(&queue).0, State::Ready);
    tasks[0].progress.needs(Digest::of(&[9]), 100);
    assert_eq!(shown(&queue).0, State::Pulling, "another image, which is not complete yet");
    queue.finished(&key, Err(problem("NotFound", None)), at(20));
    queue.begin(at(60), 9);
    assert_eq!(shown(&queue).0, State::Pulling, "a failed image is retried");
}
