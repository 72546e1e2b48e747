//! Every single fault of an upstream, while it lasts and after it has healed.
//!
//! Whatever the fault: an answer comes within the limit, it is one of those expected, 429 never gets through, 404 only
//! when upstream said 404, what is sent as complete is right, and once upstream is well again the content is served.

use std::{fmt, ops::RangeInclusive, path::Path, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use kit::{
    agent::{Agent, AgentConfig, assert_store_is_right, blob_path, manifest_path},
    registry::{FakeUpstream, Fault, FaultHandle, Layer, On, RedirectTo, Where, sha256},
    wire::{Ending, Exchange, exchange, get},
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
        case(Fault::Stall(100, Duration::from_mins(1)), &[NotNow], &[NotNow, Short]),
        case(Fault::Stall(100_000, Duration::from_mins(1)), &[Served], &[Served]),
        case(Fault::Cut(100), &[NotNow], &[NotNow, Short]),
        case(Fault::Cut(100_000), &[Served], &[Served]),
        case(Fault::CutReset(100_000), &[Served], &[Served]),
        case(Fault::CutReset(100), &[NotNow], &[NotNow, Short]),
        case(Fault::LengthOff(1_000), &[NotNow], &[NotNow, Short]),
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
    /// The fault meets the request for the rest of a blob whose first connection broke off.
    BlobMidway,
    /// It meets the request for the rest of a blob of which an earlier process left the beginning.
    BlobResumed,
}

const ASKS: [Ask; 7] = [
    Ask::TagGet,
    Ask::TagHead,
    Ask::DigestGet,
    Ask::BlobGet,
    Ask::BlobHead,
    Ask::BlobMidway,
    Ask::BlobResumed,
];

impl Ask {
    fn is_head(self) -> bool {
        matches!(self, Self::TagHead | Self::BlobHead)
    }
}

/// Bytes of a blob that are there before the fault, where there are any.
const BEGUN: u64 = 100_000;

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

/// Makes what a way to ask needs to be there before the fault: the beginning of a blob. Gives the agent to ask.
async fn begin(
    upstream: &FakeUpstream,
    config: &AgentConfig,
    agent: Agent,
    ask: Ask,
    path: &str,
    digest: &str,
) -> Agent {
    let first = On::blob().get().whole().reference(digest);
    match ask {
        Ask::BlobMidway => {
            upstream.fault(first, Fault::Cut(BEGUN)).times(1);
            agent
        }
        Ask::BlobResumed => {
            let stall = Fault::Stall(BEGUN, Duration::from_mins(1));
            // Also the request that the agent sends while it drains.
            let rest =
                upstream.fault(On::blob().ranged().reference(digest), Fault::Delay(Duration::from_mins(1)));
            let stalled = [upstream.fault(first, stall), rest];
            let request = get(path, "");
            let opened = Exchange::open(agent.mirror(), request.as_bytes(), HEALED).await;
            let mut client = opened.expect("the agent accepts connections");
            client.head().await.expect("an answer");
            client.read(usize::try_from(BEGUN).expect("small")).await.expect("the beginning");
            drop(client);
            let home = agent.stop().await;
            stalled.iter().for_each(FaultHandle::clear);
            Agent::start_in(config, home).await
        }
        _ => agent,
    }
}

/// What happened under a fault.
struct Seen {
    outcome: Outcome,
    shown: String,
    /// Requests that upstream got for it.
    requests: usize,
    /// Bytes of the blob on disk afterwards, whole or not.
    kept: u64,
}

/// Asks during and after the fault; what went wrong, if anything, and the agent for the next one.
async fn run(
    upstream: &FakeUpstream,
    config: &AgentConfig,
    agent: Agent,
    case: &Case,
    ask: Ask,
) -> (Agent, Result<(), String>) {
    let repository = format!("fault/{}", format!("{ask:?}").to_lowercase());
    let image = upstream.image(&repository, "v1", [Layer::random(ask as u64, SIZE)]).await;
    let (layer, length) = image.layers[0].clone();
    let (path, digest, length) = match ask {
        Ask::TagGet | Ask::TagHead => (manifest_path(&repository, "v1"), image.digest, image.size),
        Ask::DigestGet => (manifest_path(&repository, &image.digest), image.digest, image.size),
        _ => (blob_path(&repository, &layer), layer, length),
    };
    let agent = begin(upstream, config, agent, ask, &path, &digest).await;
    let method = if ask.is_head() { "HEAD" } else { "GET" };
    let request = get(&path, "").replacen("GET", method, 1);
    let fault = upstream.fault(On::any().repository(&repository), case.fault.clone());
    let mark = upstream.log().len();
    let subject = Subject { agent: &agent, request, digest, length };
    let (outcome, shown) = subject.ask().await;
    let requests = upstream.log().since(mark).filter(|entry| entry.target.repository == repository).len();
    let seen = Seen { outcome, shown, requests, kept: kept(&agent.data(), &subject.digest) };
    let mut wrong = judge(case, ask, &seen);
    fault.clear();
    let healed = async {
        while subject.ask().await.0 != Served {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    if tokio::time::timeout(HEALED, healed).await.is_err() {
        wrong.push("not served after upstream healed".into());
    }
    let described = || format!("{:?} on {ask:?}: {}", Brief(&case.fault), wrong.join("; "));
    let verdict = if wrong.is_empty() { Ok(()) } else { Err(described()) };
    (agent, verdict)
}

/// Bytes of a blob that lie in the store: as itself, or as a partial one.
fn kept(data: &Path, digest: &str) -> u64 {
    let hex = digest.trim_start_matches("sha256:");
    let whole = data.join("blobs-v1/sha256").join(&hex[..2]).join(hex);
    let partial = data.join(format!("partial-v1/sha256-{hex}.data"));
    [whole, partial].iter().filter_map(|path| std::fs::metadata(path).ok()).map(|found| found.len()).sum()
}

/// What is wrong with what was seen.
fn judge(case: &Case, ask: Ask, seen: &Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    let expected = case.expected(ask);
    // A HEAD meets no fault of a body, and where upstream leaves out the length it has no answer.
    let without_body = ask.is_head() && matches!(seen.outcome, Served | NotNow);
    if !expected.contains(&seen.outcome) && !without_body {
        wrong.push(format!("{:?} ({}), expected {expected:?}", seen.outcome, seen.shown));
    }
    let most = case.most_requests(ask, seen.outcome);
    if seen.requests > most {
        wrong.push(format!("{} requests upstream, expected at most {most}", seen.requests));
    }
    let kept = case.kept(ask, seen.outcome);
    if !kept.contains(&seen.kept) {
        wrong.push(format!("{} bytes on disk, expected {kept:?}", seen.kept));
    }
    wrong
}

impl Case {
    /// What a client may see.
    fn expected(&self, ask: Ask) -> Vec<Outcome> {
        // The two that are about the rest of a blob only.
        let blob = match self.fault {
            Fault::WrongOffset(_) if matches!(ask, Ask::BlobMidway | Ask::BlobResumed) => &[NotNow],
            _ => self.blob,
        };
        match ask {
            Ask::TagGet | Ask::TagHead | Ask::DigestGet => self.manifest.to_vec(),
            Ask::BlobGet | Ask::BlobHead | Ask::BlobResumed => blob.to_vec(),
            // The header of a success has left: whatever is not served ends early.
            Ask::BlobMidway => {
                blob.iter().map(|outcome| if *outcome == Served { Served } else { Short }).collect()
            }
        }
    }

    /// Requests that upstream gets until the client has its answer. What upstream settles is not asked again; what it
    /// cannot do now is tried a few times.
    fn most_requests(&self, ask: Ask, outcome: Outcome) -> usize {
        let begun = usize::from(ask == Ask::BlobMidway);
        // A tag is asked for by HEAD first.
        let found = 1 + usize::from(matches!(ask, Ask::TagGet | Ask::TagHead));
        match (outcome, &self.fault) {
            (Denied | NotFound, _) => 1 + begun,
            (_, Fault::Redirect(_, RedirectTo::Loop)) => 30,
            (Served, Fault::Cut(_) | Fault::CutReset(_) | Fault::Stall(..)) => found + 2 + begun,
            (Served, _) => found + begun,
            _ => 6,
        }
    }

    /// Bytes on disk once the client has its answer.
    fn kept(&self, ask: Ask, outcome: Outcome) -> RangeInclusive<u64> {
        let begun = matches!(ask, Ask::BlobMidway | Ask::BlobResumed);
        match (outcome, &self.fault) {
            (Served, _) if ask == Ask::BlobHead => 0..=0,
            // The last byte may reach the client a moment before the file has its final name.
            (Served, _) => 1..=SIZE,
            // Known to be wrong, or not to be what it was: nothing is kept.
            (_, Fault::Corrupt(_) | Fault::Status(416 | 200, ..)) => 0..=0,
            (_, Fault::Replace(_)) => 0..=BEGUN,
            // Bytes that may well be right are kept for the next try.
            (_, Fault::Cut(_) | Fault::CutReset(_) | Fault::Stall(..) | Fault::LengthOff(_)) => 0..=SIZE,
            _ if begun => BEGUN..=BEGUN,
            _ => 0..=0,
        }
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
    let config = impatient(&upstream);
    let mut agent = Agent::start(&config).await;
    let mut wrong = Vec::new();
    for ask in ASKS {
        let (same, verdict) = run(&upstream, &config, agent, &case, ask).await;
        agent = same;
        wrong.extend(verdict.err());
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
