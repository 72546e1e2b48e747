use super::{
    super::tag_slot::{age, unix_now},
    *,
};

#[test]
fn the_registry_is_requested_when_the_record_is_old_and_not_soon_after_a_failure() {
    let seconds = Duration::from_secs;
    let table = [
        (None, false, None, Step::Request),
        (Some(0), false, None, Step::Use),
        (Some(59), false, Some(1), Step::Use),
        (Some(60), false, None, Step::Request),
        (Some(60), false, Some(1), Step::UseStale),
        (Some(60), false, Some(10), Step::Request),
        (Some(601), false, Some(1), Step::Request),
        (None, false, Some(1), Step::Request),
        // A digest that came from peers is never fresh.
        (Some(0), true, None, Step::Request),
        (Some(0), true, Some(1), Step::UseStale),
        (Some(601), true, Some(1), Step::Request),
    ];
    for (age, unconfirmed, failed, expected) in table {
        let step = step(age.map(seconds), unconfirmed, failed.map(seconds), seconds(60), Some(seconds(600)));
        assert_eq!(step, expected, "{age:?} {unconfirmed} {failed:?}");
    }
    assert_eq!(step(Some(seconds(u64::MAX)), false, Some(seconds(1)), seconds(60), None), Step::UseStale);
}

#[test]
fn pinned_and_imported_tags_are_served_after_the_registrys_not_found() {
    let record = |pinned, imported| TagRecord {
        digest: Digest::of(b""),
        media_type: "a/b".into(),
        size: 0,
        confirmed: 0,
        pinned,
        held: false,
        imported,
        unconfirmed: false,
    };
    let not_now = FetchError::NotNow { reason: String::new(), retry_after: None };
    let (not_found, denied) = (FetchError::NotFound(String::new()), FetchError::Denied(String::new()));
    for (pinned, imported, on_not_found, on_denied) in
        [(false, false, false, false), (true, false, true, false), (false, true, true, true)]
    {
        let record = record(pinned, imported);
        let stands = |error| stands_in(error, Some(&record));
        assert!(stands(&not_now));
        assert_eq!((stands(&not_found), stands(&denied)), (on_not_found, on_denied), "{record:?}");
    }
}

#[test]
fn a_record_from_the_future_is_never_fresh() {
    let record = TagRecord {
        digest: Digest::of(b""),
        media_type: "a/b".into(),
        size: 0,
        confirmed: unix_now() + 1_000,
        pinned: false,
        held: false,
        imported: false,
        unconfirmed: false,
    };
    assert_eq!(age(&record, None), Duration::MAX);
}
