//! The whole engine under random schedules: faults of upstream, readers that come, go and want parts, several
//! connections at once. Whoever is given an end is given right bytes, and the store holds nothing else.

use std::{ops::Range, time::Duration};

use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    future::{self, join_all},
    stream,
};
use kit::{
    agent::{Agent, AgentConfig, assert_store_is_right, blob_path},
    registry::{FakeUpstream, Fault, On, Where, sha256},
    wire::{Ending, Exchange, get},
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};

use super::REPOSITORY;

/// Several pieces, and several connections from the start.
const MOST: u64 = 12 << 20;
/// For one reader, whatever happens.
const LIMIT: Duration = Duration::from_secs(30);
/// For the blob once upstream is well.
const HEALED: Duration = Duration::from_secs(20);

/// Someone who wants the blob.
#[derive(Clone, Debug)]
struct Reader {
    /// When, in milliseconds.
    comes: u64,
    /// Which part, in thousandths of the blob.
    part: Option<(u64, u64)>,
    /// After how many bytes it leaves without a word.
    leaves: Option<u64>,
}

/// A fault for some of the requests.
#[derive(Clone, Debug)]
struct Trouble {
    fault: Fault,
    ranged: bool,
    skip: usize,
    times: usize,
}

#[derive(Clone, Debug)]
struct Schedule {
    size: u64,
    troubles: Vec<Trouble>,
    readers: Vec<Reader>,
}

fn fault() -> impl Strategy<Value = Fault> {
    let at = 0..MOST;
    prop_oneof![
        at.clone().prop_map(Fault::Cut),
        at.clone().prop_map(Fault::CutReset),
        at.prop_map(|at| Fault::Stall(at, Duration::from_mins(1))),
        Just(Fault::Delay(Duration::from_millis(200))),
        prop::sample::select(vec![404, 408, 416, 500, 503]).prop_map(Fault::status),
        Just(Fault::too_many(Some("1"))),
        prop::sample::select(vec![Where::First, Where::Middle, Where::Last]).prop_map(Fault::Corrupt),
        Just(Fault::IgnoreRange),
        (-9_i64..9).prop_map(Fault::WrongOffset),
        (-9_i64..9).prop_map(Fault::LengthOff),
        Just(Fault::Extra(10)),
        Just(Fault::Close),
        Just(Fault::Reset),
        Just(Fault::Chunked),
        Just(Fault::Rate(8_000_000)),
    ]
}

fn schedule() -> impl Strategy<Value = Schedule> {
    let trouble = (fault(), any::<bool>(), 0_usize..3, 1_usize..4);
    let trouble = trouble.prop_map(|(fault, ranged, skip, times)| Trouble { fault, ranged, skip, times });
    let reader = (0_u64..400, prop::option::of((0_u64..1_000, 0_u64..1_000)), prop::option::of(0..MOST));
    let reader = reader.prop_map(|(comes, part, leaves)| Reader { comes, part, leaves });
    (0..MOST, prop::collection::vec(trouble, 0..5), prop::collection::vec(reader, 1..6))
        .prop_map(|(size, troubles, readers)| Schedule { size, troubles, readers })
}

impl Schedule {
    /// Whether upstream sends wrong bytes at some time: then a part may be given before anyone can know.
    fn lies(&self) -> bool {
        self.troubles.iter().any(|trouble| matches!(trouble.fault, Fault::Corrupt(_)))
    }
}

impl Reader {
    fn range(&self, size: u64) -> Option<Range<u64>> {
        let (one, other) = self.part?;
        let at = |thousandths: u64| size * thousandths / 1_000;
        (at(one) != at(other)).then(|| at(one.min(other))..at(one.max(other)))
    }

    /// What is wrong with what it was given, if anything.
    async fn read(&self, agent: &Agent, digest: &str, content: &Bytes, lies: bool) -> Option<String> {
        tokio::time::sleep(Duration::from_millis(self.comes)).await;
        let size = content.len() as u64;
        let range = self.range(size);
        let header =
            range.as_ref().map(|range| format!("Range: bytes={}-{}\r\n", range.start, range.end - 1));
        let request = get(&blob_path(REPOSITORY, digest), &header.unwrap_or_default());
        let opened = Exchange::open(agent.mirror(), request.as_bytes(), LIMIT).await;
        let Ok(mut exchange) = opened else { return Some("the agent accepts no connection".into()) };
        if let Some(leaves) = self.leaves {
            // However far it gets.
            let _ = exchange.head().await;
            let _ = exchange.read(usize::try_from(leaves).unwrap_or(usize::MAX)).await;
            return None;
        }
        let answer = exchange.answer(false).await;
        let right = match (answer.status(), answer.ending, range) {
            (200, Ending::Complete, None) => answer.body == *content,
            (206, Ending::Complete, Some(range)) => {
                let part = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
                answer.body == content.slice(part)
                    || lies && answer.body.len() as u64 == range.end - range.start
            }
            (200 | 206, ending, _) => ending == Ending::Fin,
            (404 | 503, Ending::Complete, _) => true,
            _ => false,
        };
        let shown =
            || format!("{self:?}: {} {:?}, {} bytes", answer.status(), answer.ending, answer.body.len());
        (!right).then(shown)
    }
}

async fn run(schedule: &Schedule) -> Result<(), String> {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.random_blob(REPOSITORY, 1, schedule.size).await;
    let file = upstream.blob_file(&digest).ok_or("the blob has a file")?;
    let content = Bytes::from(std::fs::read(file).map_err(|error| error.to_string())?);
    for trouble in &schedule.troubles {
        let on = On::blob().get();
        let on = if trouble.ranged { on.ranged() } else { on };
        upstream.fault(on, trouble.fault.clone()).skip(trouble.skip).times(trouble.times);
    }
    let config = AgentConfig::for_upstream(&upstream)
        .with("fetch: { parallelFrom: 4MiB }")
        .with("limits: { firstHeader: 2s, header: 2s, idle: 300ms }");
    let agent = Agent::start(&config).await;
    let readers =
        schedule.readers.iter().map(|reader| reader.read(&agent, &digest, &content, schedule.lies()));
    let mut wrong: Vec<String> = join_all(readers).await.into_iter().flatten().collect();
    upstream.heal();
    let whole = async {
        loop {
            let response = agent.get(&blob_path(REPOSITORY, &digest)).await;
            if response.status() == 200
                && let Ok(body) = response.bytes().await
            {
                return body;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    match tokio::time::timeout(HEALED, whole).await {
        Ok(body) if sha256(&body) == digest => {}
        Ok(_) => wrong.push("wrong bytes after upstream healed".into()),
        Err(_) => wrong.push("not served after upstream healed".into()),
    }
    assert_store_is_right(&agent.data());
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("{}\n{}", wrong.join("\n"), upstream.log().describe()))
    }
}

/// Schedules tried, and how many of them at the same time: most of their time is waiting.
const SCHEDULES: usize = 24;
const AT_ONCE: usize = 8;
/// Simpler schedules tried after one that went wrong.
const SIMPLER: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_any_schedule_a_reader_gets_right_bytes_or_an_error() {
    let mut dice = TestRunner::new(ProptestConfig::default());
    let trees: Vec<_> = std::iter::repeat_with(|| schedule().new_tree(&mut dice))
        .take(SCHEDULES)
        .map(|tree| tree.expect("every schedule is a good one"))
        .collect();
    let runs = trees.into_iter().map(|tree| async move {
        let wrong = run(&tree.current()).await.err()?;
        Some((tree, wrong))
    });
    let wrong: Vec<_> =
        stream::iter(runs).buffer_unordered(AT_ONCE).filter_map(future::ready).collect().await;
    let count = wrong.len();
    if let Some((tree, wrong)) = wrong.into_iter().next() {
        let simplest = simplify(tree, wrong, async |schedule| run(&schedule).await.err()).await;
        panic!("{count} of {SCHEDULES} went wrong; the first, simplified:\n{simplest}");
    }
}

/// The simplest case that goes wrong still, with what went wrong, after a few tries: each may wait for time-outs.
async fn simplify<T: ValueTree>(
    mut tree: T,
    wrong: String,
    run: impl AsyncFn(T::Value) -> Option<String>,
) -> String {
    let (mut simplest, mut went_wrong) = (format!("{:?}\n{wrong}", tree.current()), true);
    for _ in 0..SIMPLER {
        if !(if went_wrong { tree.simplify() } else { tree.complicate() }) {
            break;
        }
        let wrong = run(tree.current()).await;
        went_wrong = wrong.is_some();
        if let Some(wrong) = wrong {
            simplest = format!("{:?}\n{wrong}", tree.current());
        }
    }
    simplest
}

#[tokio::test]
async fn a_case_that_goes_wrong_is_simplified() {
    let mut dice = TestRunner::new(ProptestConfig::default());
    let trees = std::iter::repeat_with(|| (0_u32..1000).new_tree(&mut dice).expect("a number"));
    let tree = trees.into_iter().find(|tree| tree.current() >= 700).expect("one of them");
    let run = async |number| (number >= 700).then(|| "too large".to_owned());
    assert_eq!(simplify(tree, String::new(), run).await, "700\ntoo large");
}
