//! Parts of blobs: cold, half fetched and warm.

use std::time::Duration;

use kit::{
    agent::{REGISTRY, blob_path},
    registry::{Fault, On, random_bytes},
    wire::{exchange, get},
};
use reqwest::Method;

use super::{REPOSITORY, start};

const SIZE: usize = 200_000;
const LIMIT: Duration = Duration::from_secs(6);

struct Case {
    range: &'static str,
    status: u16,
    /// First byte and one past the last.
    part: (usize, usize),
}

const fn part(range: &'static str, first: usize, end: usize) -> Case {
    Case { range, status: 206, part: (first, end) }
}

const fn whole(range: &'static str) -> Case {
    Case { range, status: 200, part: (0, SIZE) }
}

const fn none(range: &'static str) -> Case {
    Case { range, status: 416, part: (0, 0) }
}

const CASES: [Case; 18] = [
    part("bytes=0-", 0, SIZE),
    part("bytes=150000-", 150_000, SIZE),
    part("bytes=199999-", 199_999, SIZE),
    part("bytes=0-0", 0, 1),
    part("bytes=65535-65536", 65_535, 65_537),
    part("bytes=10-99", 10, 100),
    part("bytes=100000-999999999", 100_000, SIZE),
    part("bytes=-1", SIZE - 1, SIZE),
    part("bytes=-70000", SIZE - 70_000, SIZE),
    part("bytes=-999999999", 0, SIZE),
    none("bytes=200000-"),
    none("bytes=200000-200001"),
    none("bytes=-0"),
    // Malformed ranges and unknown units are ignored, and so are several that are more than the whole (RFC 9110).
    whole("bytes=0-199999,5-6"),
    whole("bytes=5-2"),
    whole("bytes=x-"),
    whole("items=0-1"),
    whole("bytes=1"),
];

#[tokio::test]
async fn every_range_is_answered_as_rfc_9110_says_cold_and_warm() {
    let (upstream, agent) = start().await;
    for (seed, case) in (100..).zip(&CASES) {
        let bytes = random_bytes(seed, SIZE);
        let digest = upstream.random_blob(REPOSITORY, seed, SIZE as u64).await;
        let request = get(&blob_path(REPOSITORY, &digest), &format!("range: {}\r\n", case.range));
        for state in ["cold", "warm"] {
            let answer = exchange(agent.mirror(), &request, LIMIT).await.expect("an answer");
            let (first, end) = case.part;
            assert_eq!(answer.status(), case.status, "{} {state}", case.range);
            let content_range = match case.status {
                206 => Some(format!("bytes {first}-{}/{SIZE}", end - 1)),
                416 => Some(format!("bytes */{SIZE}")),
                _ => None,
            };
            assert_eq!(answer.header("content-range"), content_range.as_deref(), "{} {state}", case.range);
            if case.status != 416 {
                assert!(
                    answer.body == bytes[first..end],
                    "{} {state}: {} bytes",
                    case.range,
                    answer.body.len()
                );
            }
        }
        let gets = upstream.log().blob_gets().reference(&digest);
        assert!(
            gets.bytes() <= SIZE as u64,
            "{}: upstream sent more than the blob\n{}",
            case.range,
            gets.describe()
        );
    }
}

#[tokio::test]
async fn if_range_with_another_tag_gets_everything() {
    let (upstream, agent) = start().await;
    let digest = upstream.random_blob(REPOSITORY, 1, SIZE as u64).await;
    for (tag, status) in [(format!("\"{digest}\""), 206), ("\"other\"".to_owned(), 200)] {
        let request = agent.request(Method::GET, &blob_path(REPOSITORY, &digest));
        let response =
            request.header("range", "bytes=5-").header("if-range", &tag).send().await.expect("an answer");
        assert_eq!(response.status(), status, "{tag}");
    }
}

/// containerd 2.1 and later in parallel mode: every connection asks `bytes=<n>-`, takes a piece, and resets.
#[tokio::test]
async fn open_ended_ranges_that_are_dropped_after_a_piece_cost_one_transfer() {
    let (upstream, agent) = start().await;
    let size = 4_000_000;
    let bytes = random_bytes(2, size);
    let digest = upstream.random_blob(REPOSITORY, 2, size as u64).await;
    upstream.rate_per_connection(8_000_000);
    let piece = 500_000;
    let readers = (0..size / piece).map(|index| {
        let (path, address, expected) = (blob_path(REPOSITORY, &digest), agent.mirror(), &bytes);
        async move {
            let first = index * piece;
            let request = get(&path, &format!("range: bytes={first}-\r\n"));
            let mut reader =
                kit::wire::Exchange::open(address, request.as_bytes(), LIMIT).await.expect("connected");
            let head = reader.head().await.expect("a head");
            assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
            let read = reader.read(piece).await.expect("a piece");
            assert!(read == expected[first..first + piece], "piece {index}");
            reader.reset();
        }
    });
    futures_util::future::join_all(readers).await;
    let gets = upstream.log().blob_gets();
    assert!(gets.bytes() <= size as u64, "upstream sent more than the blob:\n{}", gets.describe());
}

#[tokio::test]
async fn a_range_of_a_blob_under_way_is_served_while_it_goes_on() {
    let (upstream, agent) = start().await;
    let size = 1_000_000;
    let bytes = random_bytes(3, size);
    let digest = upstream.random_blob(REPOSITORY, 3, size as u64).await;
    upstream.fault(On::blob().get(), Fault::Stall(600_000, Duration::from_secs(2))).times(1);
    let mut first = agent.get(&blob_path(REPOSITORY, &digest)).await;
    first.chunk().await.expect("bytes").expect("some");
    let part = agent
        .request(Method::GET, &format!("/v2/{REGISTRY}/{REPOSITORY}/blobs/{digest}"))
        .header("range", "bytes=100000-399999")
        .send();
    let part = tokio::time::timeout(Duration::from_secs(1), async { part.await?.bytes().await }).await;
    let part = part.expect("these bytes are there already").expect("a whole part");
    assert!(part == bytes[100_000..400_000]);
}
