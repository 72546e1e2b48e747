//! Every single fault of an upstream, while it lasts and after it has healed.
//!
//! Whatever the fault: an answer comes within the limit, it is one of those expected, 429 never gets through, 404 only
//! when upstream said 404, what is sent as complete is right, and once upstream is well again the content is served.

use std::{fmt, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use kit::{
    agent::{Agent, AgentConfig, assert_store_is_right, blob_path, manifest_path},
    registry::{FakeUpstream, Fault, Layer, MANIFEST, On, RedirectTo, Where, sha256},
    wire::{Ending, exchange, get},
};

/// The limit to the first header in these tests; the product's default is 5 s.
const FIRST_HEADER: Duration = Duration::from_secs(2);
/// Blobs of the table: larger than what is verified before the first byte.
const SIZE: u64 = 300_000;
/// Cases under way at the same time: most of their time is waiting.
const AT_ONCE: usize = 24;
/// For content to be served after upstream healed.
const HEALED: Duration = Duration::from_secs(20);

/// What a client may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// 200 and the right bytes to the end.
    Served,
    /// 503 with `Retry-After`.
    NotNow,
    /// 403.
    Denied,
    /// 404.
    NotFound,
    /// 200, and the connection ended with FIN short of the end.
    Short,
    /// Anything else, which is never right.
    Wrong,
}

use Outcome::{Denied, NotFound, NotNow, Served, Short};

/// A blob of which a hundred bytes arrive a second is slow, not broken: it would be served for an hour.
const NOT_ASKED: &[Outcome] = &[];

struct Case {
    fault: Fault,
    /// For manifests by tag and by digest.
    manifest: &'static [Outcome],
    blob: &'static [Outcome],
}

fn cases() -> Vec<Case> {
    let case = |fault, manifest, blob| Case { fault, manifest, blob };
    let text = |status, body: &'static str| {
        Fault::Status(
            status,
            vec![("content-type", "text/html".to_owned())],
            Bytes::from_static(body.as_bytes()),
        )
    };
    let mut cases = vec![
        case(Fault::Delay(Duration::from_millis(300)), &[Served], &[Served]),
        case(Fault::Delay(Duration::from_mins(1)), &[NotNow], &[NotNow]),
        case(Fault::Close, &[NotNow], &[NotNow]),
        case(Fault::Reset, &[NotNow], &[NotNow]),
        case(Fault::Stall(100, Duration::from_mins(1)), &[NotNow], NOT_ASKED),
        case(Fault::Stall(100_000, Duration::from_mins(1)), &[Served], &[Served]),
        case(Fault::Cut(100), &[NotNow], NOT_ASKED),
        case(Fault::Cut(100_000), &[Served], &[Served]),
        case(Fault::CutReset(100_000), &[Served], &[Served]),
        case(Fault::CutReset(100), &[NotNow], NOT_ASKED),
        case(Fault::LengthOff(1_000), &[NotNow], NOT_ASKED),
        case(Fault::LengthOff(-100), &[NotNow], &[NotNow, Short]),
        case(Fault::Extra(10), &[Served], &[Served]),
        case(Fault::Corrupt(Where::First), &[NotNow], &[NotNow, Short]),
        case(Fault::Corrupt(Where::Middle), &[NotNow], &[NotNow, Short]),
        case(Fault::Corrupt(Where::Last), &[NotNow], &[NotNow, Short]),
        case(Fault::Replace(Bytes::from_static(b"{}")), &[NotNow], &[NotNow, Short]),
        case(Fault::IgnoreRange, &[Served], &[Served]),
        case(Fault::WrongOffset(7), &[Served], &[Served]),
        case(Fault::Unasked206, &[Served], &[Served, NotNow]),
        case(Fault::Rate(100_000), &[Served], &[Served]),
        case(Fault::Redirect(307, RedirectTo::Loop), &[NotNow], &[NotNow]),
        case(Fault::Redirect(307, RedirectTo::Expired), &[NotNow, Denied], &[NotNow, Denied]),
        case(Fault::Redirect(307, RedirectTo::OtherHost), &[Served], &[Served]),
        case(Fault::status(400), &[NotNow, Denied], &[NotNow, Denied]),
        case(Fault::status(401), &[Denied], &[Denied]),
        case(Fault::status(403), &[Denied], &[Denied]),
        case(Fault::status(404), &[NotFound], &[NotFound]),
        case(Fault::status(416), &[NotNow], &[NotNow]),
        case(Fault::too_many(Some("2")), &[NotNow], &[NotNow]),
        case(Fault::too_many(Some(&soon())), &[NotNow], &[NotNow]),
        case(Fault::too_many(None), &[NotNow], &[NotNow]),
        case(Fault::too_many_ghcr(), &[NotNow], &[NotNow]),
        case(Fault::too_many_line_feeds(), &[NotNow], &[NotNow]),
        case(text(429, "<html>slow down</html>"), &[NotNow], &[NotNow]),
        case(text(429, r#"{"message":"toomanyrequests"}"#), &[NotNow], &[NotNow]),
        case(text(200, "<html>please log in</html>"), &[NotNow], &[NotNow, Short]),
        case(Fault::Raw(Bytes::from_static(b"SSH-2.0-OpenSSH\r\n")), &[NotNow], &[NotNow]),
        case(Fault::Raw(Bytes::from_static(b"HTTP/1.1 204 No Content\r\n\r\n")), &[NotNow], &[NotNow]),
        case(Fault::Header("docker-content-digest", None), &[Served], &[Served]),
        case(Fault::Header("content-type", Some("text/plain".to_owned())), &[Served], &[Served]),
        case(Fault::Header("content-type", None), &[Served], &[Served]),
        case(Fault::Chunked, &[Served], &[Served]),
        case(Fault::Gzip, &[NotNow, Served], &[NotNow, Short]),
    ];
    cases.extend([408, 500, 502, 503, 504].map(|status| case(Fault::status(status), &[NotNow], &[NotNow])));
    cases
}

/// A date two seconds from now, as `Retry-After` may say it.
fn soon() -> String {
    httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(2))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    TagGet,
    TagHead,
    DigestGet,
    BlobGet,
    BlobHead,
}

const ASKS: [Ask; 5] = [Ask::TagGet, Ask::TagHead, Ask::DigestGet, Ask::BlobGet, Ask::BlobHead];

/// One piece of content and one way to ask for it, in a repository of its own.
struct Subject<'a> {
    agent: &'a Agent,
    request: String,
    digest: String,
    length: u64,
}

impl Subject<'_> {
    async fn ask(&self) -> (Outcome, String) {
        let head = self.request.starts_with("HEAD ");
        let answer = match exchange(self.agent.mirror(), &self.request, Duration::from_secs(40)).await {
            Ok(answer) => answer,
            Err(error) => return (Outcome::Wrong, format!("no connection: {error}")),
        };
        let shown = format!(
            "{} {:?}, {} bytes, head after {:?}",
            answer.status(),
            answer.ending,
            answer.body.len(),
            answer.head_after
        );
        if answer.head_after > FIRST_HEADER + Duration::from_secs(1) {
            return (Outcome::Wrong, shown);
        }
        let length = answer.header("content-length").and_then(|text| text.parse().ok());
        let right = |body: &[u8]| head || (sha256(body) == self.digest && length == Some(self.length));
        let outcome = match (answer.status(), answer.ending) {
            (200, Ending::Complete) if right(&answer.body) => Served,
            (200, Ending::Fin) => Short,
            (503, Ending::Complete) if answer.header("retry-after").is_some() => NotNow,
            (403, Ending::Complete) => Denied,
            (404, Ending::Complete) => NotFound,
            _ => Outcome::Wrong,
        };
        (outcome, shown)
    }
}

/// Asks during and after the fault; what went wrong, if anything.
async fn run(upstream: &FakeUpstream, agent: &Agent, case: &Case, ask: Ask) -> Result<(), String> {
    let expected = if matches!(ask, Ask::BlobGet | Ask::BlobHead) { case.blob } else { case.manifest };
    if expected == NOT_ASKED {
        return Ok(());
    }
    let repository = format!("fault/{}", format!("{ask:?}").to_lowercase());
    let image = upstream.image(&repository, "v1", [Layer::random(ask as u64, SIZE)]).await;
    let (layer, length) = image.layers[0].clone();
    let (path, digest, length) = match ask {
        Ask::TagGet | Ask::TagHead => (manifest_path(&repository, "v1"), image.digest, image.size),
        Ask::DigestGet => (manifest_path(&repository, &image.digest), image.digest, image.size),
        Ask::BlobGet | Ask::BlobHead => (blob_path(&repository, &layer), layer, length),
    };
    let method = if matches!(ask, Ask::TagHead | Ask::BlobHead) { "HEAD" } else { "GET" };
    let request = get(&path, "").replacen("GET", method, 1);
    let subject = Subject { agent, request, digest, length };
    let fault = upstream.fault(On::any().repository(&repository), case.fault.clone());
    let described = || format!("{:?} on {ask:?}", Brief(&case.fault));
    let (outcome, shown) = subject.ask().await;
    // A HEAD meets no fault of a body, and where upstream leaves out the length it has no answer.
    let without_body = method == "HEAD" && matches!(outcome, Served | NotNow);
    if !expected.contains(&outcome) && !without_body {
        return Err(format!("{}: {outcome:?} ({shown}), expected {expected:?}", described()));
    }
    fault.clear();
    let until = tokio::time::Instant::now() + HEALED;
    loop {
        let (outcome, shown) = subject.ask().await;
        if outcome == Served {
            return Ok(());
        }
        if tokio::time::Instant::now() > until {
            return Err(format!("{}: not served after upstream healed: {outcome:?} ({shown})", described()));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Short limits, so that a case takes seconds; tags are asked for every time, so that every fault is met.
fn impatient(upstream: &FakeUpstream) -> AgentConfig {
    let seconds = FIRST_HEADER.as_secs();
    AgentConfig::for_upstream(upstream)
        .with(&format!("limits: {{ firstHeader: {seconds}s, header: 3s, idle: 1s }}"))
        .with("tags: { freshness: 0s }")
}

/// All ways to ask, one after the other, on an agent that knows nothing of other faults.
async fn run_all(case: Case) -> Vec<String> {
    let upstream = FakeUpstream::start().await;
    let agent = Agent::start(&impatient(&upstream)).await;
    let mut wrong = Vec::new();
    for ask in ASKS {
        wrong.extend(run(&upstream, &agent, &case, ask).await.err());
    }
    assert_store_is_right(&agent.data());
    wrong
}

/// A fault without its body text, for messages.
struct Brief<'a>(&'a Fault);

impl fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:?}", self.0);
        f.write_str(&text.chars().take(64).collect::<String>())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_upstream_fault_gets_a_quick_honest_answer_and_heals() {
    let runs = stream::iter(cases()).map(run_all).buffer_unordered(AT_ONCE);
    let wrong: Vec<String> = runs.concat().await;
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn a_length_that_upstream_claimed_wrongly_is_forgotten_when_it_heals() {
    let upstream = FakeUpstream::start().await;
    let agent = Agent::start(&impatient(&upstream)).await;
    let digest = upstream.random_blob("team/app", 1, SIZE).await;
    let fault = upstream.fault(On::blob(), Fault::LengthOff(1_000));
    let request = get(&blob_path("team/app", &digest), "");
    let subject = Subject { agent: &agent, request, digest, length: SIZE };
    let (outcome, shown) = subject.ask().await;
    assert!(matches!(outcome, NotNow | Short), "{outcome:?} ({shown})");
    fault.clear();
    let healed = async {
        while subject.ask().await.0 != Served {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(HEALED, healed).await.expect("the blob is served once upstream is well");
}

#[tokio::test]
async fn a_tag_that_moves_between_head_and_get_gives_one_of_the_two_whole() {
    let upstream = FakeUpstream::start().await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream).with("tags: { freshness: 0s }")).await;
    let old = upstream.image("team/app", "v1", [Layer::random(1, 10)]).await;
    let new = upstream.image("team/app", "other", [Layer::random(2, 10)]).await;
    let path = manifest_path("team/app", "v1");
    let before = agent.head(&path).await.headers()["docker-content-digest"].clone();
    assert_eq!(before, old.digest.as_str());
    let bytes = std::fs::read(upstream.blob_file(&new.config).expect("there")).expect("readable");
    assert!(!bytes.is_empty());
    let moved = agent.get(&manifest_path("team/app", "other")).await.bytes().await.expect("a manifest");
    upstream.manifest("team/app", "v1", MANIFEST, moved);
    let response = agent.get(&path).await;
    assert_eq!(response.headers()["docker-content-digest"], new.digest.as_str());
    assert_eq!(sha256(&response.bytes().await.expect("a manifest")), new.digest);
    // The old one can still be had by its digest, from the store.
    assert_eq!(agent.get(&manifest_path("team/app", &old.digest)).await.status(), 200);
}

#[tokio::test]
async fn a_manifest_larger_than_the_limit_of_the_specification_is_refused() {
    let (upstream, agent) = super::start().await;
    let padding = "x".repeat(5 << 20);
    let manifest = serde_json::json!({ "schemaVersion": 2, "mediaType": MANIFEST, "annotations": { "padding": padding } });
    upstream.manifest("team/app", "v1", MANIFEST, manifest.to_string());
    assert_eq!(super::refusal(agent.get(&manifest_path("team/app", "v1")).await).await.0, 503);
}
