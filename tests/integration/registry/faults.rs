//! Each fault, seen on the wire.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kit::{
    registry::{BlackHole, FakeUpstream, Fault, Mute, On, Where},
    wire::{Answer, Ending, Exchange, exchange, get},
};

const LIMIT: Duration = Duration::from_secs(5);
const BLOB: &[u8] = b"0123456789";

struct Case {
    name: &'static str,
    fault: Fault,
    range: &'static str,
    expected: Expected,
}

struct Expected {
    status: u16,
    length: Option<&'static str>,
    content_range: Option<&'static str>,
    body: &'static [u8],
    ending: Ending,
}

const WHOLE: Expected =
    Expected { status: 200, length: Some("10"), content_range: None, body: BLOB, ending: Ending::Complete };
const SILENT: Expected =
    Expected { status: 0, length: None, content_range: None, body: b"", ending: Ending::Fin };

fn cases() -> Vec<Case> {
    let case = |name, fault, range, expected| Case { name, fault, range, expected };
    let from_four = Expected {
        status: 206,
        length: Some("6"),
        content_range: Some("bytes 4-9/10"),
        body: b"456789",
        ..WHOLE
    };
    vec![
        case("honest", Fault::Delay(Duration::ZERO), "", WHOLE),
        case("honest range", Fault::Delay(Duration::ZERO), "bytes=4-", from_four),
        case("close", Fault::Close, "", SILENT),
        case("reset", Fault::Reset, "", Expected { ending: Ending::Reset, ..SILENT }),
        case("cut", Fault::Cut(3), "", Expected { body: b"012", ending: Ending::Fin, ..WHOLE }),
        case(
            "cut by reset",
            Fault::CutReset(3),
            "",
            Expected { body: b"012", ending: Ending::Reset, ..WHOLE },
        ),
        case(
            "length too long",
            Fault::LengthOff(5),
            "",
            Expected { length: Some("15"), ending: Ending::Fin, ..WHOLE },
        ),
        case(
            "length too short",
            Fault::LengthOff(-5),
            "",
            Expected { length: Some("5"), body: b"01234", ..WHOLE },
        ),
        case("corrupt first", Fault::Corrupt(Where::First), "", Expected { body: b"\xcf123456789", ..WHOLE }),
        case(
            "corrupt middle",
            Fault::Corrupt(Where::Middle),
            "",
            Expected { body: b"01234\xca6789", ..WHOLE },
        ),
        case("corrupt last", Fault::Corrupt(Where::Last), "", Expected { body: b"012345678\xc6", ..WHOLE }),
        case(
            "replace",
            Fault::Replace(Bytes::from_static(b"else")),
            "",
            Expected { length: Some("4"), body: b"else", ..WHOLE },
        ),
        case("range ignored", Fault::IgnoreRange, "bytes=4-", WHOLE),
        case(
            "wrong offset",
            Fault::WrongOffset(1),
            "bytes=4-",
            Expected {
                status: 206,
                length: Some("5"),
                content_range: Some("bytes 5-9/10"),
                body: b"56789",
                ..WHOLE
            },
        ),
        case(
            "unasked 206",
            Fault::Unasked206,
            "",
            Expected { status: 206, content_range: Some("bytes 0-9/10"), ..WHOLE },
        ),
        case(
            "past the end",
            Fault::Delay(Duration::ZERO),
            "bytes=10-",
            Expected {
                status: 416,
                length: Some("67"),
                content_range: Some("bytes */10"),
                body: br#"{"errors":[{"code":"SIZE_INVALID","message":"range past the end"}]}"#,
                ..WHOLE
            },
        ),
        case(
            "chunked",
            Fault::Chunked,
            "",
            Expected { length: None, body: b"A\r\n0123456789\r\n0\r\n\r\n", ending: Ending::Silent, ..WHOLE },
        ),
        case("header left out", Fault::Header("content-length", None), "", WHOLE),
        case(
            "status",
            Fault::Status(418, vec![], Bytes::from_static(b"tea")),
            "",
            Expected { status: 418, length: Some("3"), body: b"tea", ..WHOLE },
        ),
        case(
            "raw",
            Fault::Raw(Bytes::from_static(b"HTTP/1.1 299 ok\r\ncontent-length: 1\r\n\r\nx")),
            "",
            Expected { status: 299, length: Some("1"), body: b"x", ..WHOLE },
        ),
    ]
}

#[tokio::test]
async fn every_fault_is_on_the_wire_what_its_name_says() {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.blob("team/app", BLOB).await;
    let path = format!("/v2/team/app/blobs/{digest}");
    for Case { name, fault, range, expected } in cases() {
        upstream.heal();
        let handle = upstream.fault(On::blob().get(), fault).times(1);
        let header = if range.is_empty() { String::new() } else { format!("range: {range}\r\n") };
        let limit = if expected.ending == Ending::Silent { Duration::from_millis(200) } else { LIMIT };
        let answer =
            exchange(upstream.address(), &get(&path, &header), limit).await.expect("the registry is up");
        let seen =
            (answer.status(), answer.header("content-length"), answer.header("content-range"), answer.ending);
        assert_eq!(
            seen,
            (expected.status, expected.length, expected.content_range, expected.ending),
            "{name}"
        );
        assert_eq!(answer.body, expected.body, "{name}");
        assert_eq!(handle.hits(), 1, "{name}");
    }
}

async fn fetch(upstream: &FakeUpstream, digest: &str) -> (Answer, Duration) {
    let started = Instant::now();
    let request = get(&format!("/v2/team/app/blobs/{digest}"), "");
    let answer = exchange(upstream.address(), &request, LIMIT).await.expect("the registry is up");
    (answer, started.elapsed())
}

#[tokio::test]
async fn delays_stalls_and_rates_take_their_time_and_no_more() {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.random_blob("team/app", 1, 100_000).await;
    for (fault, least, head_at_once) in [
        (Fault::Delay(Duration::from_millis(300)), 300, false),
        (Fault::Stall(50_000, Duration::from_millis(300)), 300, true),
        (Fault::Rate(200_000), 500, true),
    ] {
        let shown = format!("{fault:?}");
        upstream.fault(On::blob(), fault).times(1);
        let (answer, took) = fetch(&upstream, &digest).await;
        assert_eq!(answer.body.len(), 100_000, "{shown}");
        assert!((least..least + 4_000).contains(&took.as_millis()), "{shown} took {took:?}");
        assert_eq!(
            answer.head_after < Duration::from_millis(100),
            head_at_once,
            "{shown}: {:?}",
            answer.head_after
        );
    }
}

#[tokio::test]
async fn extra_bytes_follow_a_right_body() {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.blob("team/app", BLOB).await;
    upstream.fault(On::blob(), Fault::Extra(3)).times(1);
    let request = get(&format!("/v2/team/app/blobs/{digest}"), "");
    let mut exchange = Exchange::open(upstream.address(), request.as_bytes(), LIMIT).await.expect("up");
    exchange.head().await.expect("a head");
    assert_eq!(exchange.read(13).await.expect("thirteen bytes"), b"0123456789xxx");
    assert_eq!(exchange.ending().await, Ending::Fin);
}

#[tokio::test]
async fn a_gzip_encoded_body_decodes_to_the_blob() {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.random_blob("team/app", 2, 200_000).await;
    upstream.fault(On::blob(), Fault::Gzip).times(1);
    let url = format!("{}/v2/team/app/blobs/{digest}", upstream.url());
    let response = reqwest::get(url).await.expect("the registry is up");
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let body = response.bytes().await.expect("a body");
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(body.as_ref()), &mut plain)
        .expect("valid gzip");
    assert_eq!(plain, kit::registry::random_bytes(2, 200_000));
}

#[tokio::test]
async fn faults_apply_to_the_requests_they_name_as_often_as_they_say() {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.blob("team/app", BLOB).await;
    upstream.fault(On::blob().get().reference(&digest), Fault::status(503)).skip(1).times(2);
    upstream.fault(On::blob().head(), Fault::status(500)).times(1);
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(fetch(&upstream, &digest).await.0.status());
    }
    assert_eq!(seen, [200, 503, 503, 200]);
    assert_eq!(upstream.log().status(503).len(), 2);
}

#[tokio::test]
async fn silent_upstreams_say_nothing() {
    let mute = Mute::start().await;
    let limit = Duration::from_millis(300);
    let answer = exchange(mute.address(), &get("/v2/", ""), limit).await.expect("a mute upstream accepts");
    assert_eq!(answer.ending, Ending::Silent);
    let hole = BlackHole::start().await;
    let connecting = tokio::time::timeout(limit, tokio::net::TcpStream::connect(hole.address())).await;
    assert!(connecting.is_err(), "a black hole does not complete the handshake");
}
