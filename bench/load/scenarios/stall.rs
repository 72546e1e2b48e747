//! `stall`: what a registry's or a disk's short weakness costs one agent with its defaults, a process of its own in front
//! of the test kit's registry.
//!
//! | figure | what happens |
//! | --- | --- |
//! | `pause_bytes_ratio` | a 64 MiB blob at 8 MiB/s, with one pause of 2.5 s after the first MiB |
//! | `slow_disk_bytes_ratio` | every write of the agent to a file is 2.3 s late (`strace`; without it there is no such figure) |
//! | `queued_bytes_ratio` | two connections at most, both with a slow blob; a third blob has to wait for its turn |
//! | `recover_after_429_s` | 24 requests at once, each answered 429 without `Retry-After` for 0.6 s, then all is well |
//! | `recover_after_reset_s` | the connections of 8 requests are reset at one instant, then all is well |
//!
//! Ratios are bytes that the registry sent over the blob's size; seconds are from the moment from which all is well to the
//! first blob that is whole at a client.

use std::{
    io::Write as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    agent::{AgentConfig, CLIENT, REGISTRY, blob_path},
    process::AgentProcess,
    registry::{FakeUpstream, Fault, On},
    runtime::Daemon,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::{seconds, world};
use crate::{Arguments, report::Report, rivals::REPOSITORY};

const MIB: u64 = 1 << 20;
/// Bytes of the blob that a pause meets, in MiB, and its rate.
const PAUSED_MIB: u64 = 64;
const PAUSED_RATE: u64 = 8 * MIB;
const PAUSE: Duration = Duration::from_millis(2_500);
/// The blob that a slow disk takes: few writes, for each is late.
const SLOW_DISK: u64 = MIB;
const LATE_MICROS: u32 = 2_300_000;
/// Bytes of each of three blobs where two may be under way, and their rate.
const QUEUED: u64 = 24 * MIB;
const QUEUED_RATE: u64 = 3_000_000;
/// So long after the first two the third one is asked for.
const HEAD_START: Duration = Duration::from_millis(300);
/// Requests at once that are refused, for how long, and how many are reset.
const REFUSED: u64 = 24;
const REFUSING: Duration = Duration::from_millis(600);
const RESET: u64 = 8;
/// Bytes of the blobs that are asked for in a moment of trouble and after it.
const SMALL: u64 = 64 << 10;
/// From one new client to the next after trouble.
const PROBE: Duration = Duration::from_millis(250);
/// Longest wait for anything.
const LIMIT: Duration = Duration::from_mins(3);

pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    for round in 0..arguments.rounds {
        let seed = u64::from(round) * 1_000;
        let size = arguments.size.unwrap_or(PAUSED_MIB) * MIB;
        report.figure("pause_bytes_ratio", pause(seed, size).await.context("a pause")?);
        if let Some(ratio) = slow_disk(seed).await.context("a slow disk")? {
            report.figure("slow_disk_bytes_ratio", ratio);
        }
        report.figure("queued_bytes_ratio", queued(seed).await.context("a queue")?);
        report.figure("recover_after_429_s", after_refusals(seed).await.context("refusals")?);
        report.figure("recover_after_reset_s", after_resets(seed).await.context("resets")?);
    }
    Ok(())
}

/// A registry and an agent in front of it.
struct Pair {
    agent: AgentProcess,
    upstream: FakeUpstream,
    work: TempDir,
}

impl Pair {
    /// `more` are further keys of the registry's entry.
    async fn start(more: &str) -> Result<Self> {
        let (work, upstream) = world().await?;
        let config = AgentConfig::default()
            .registry(REGISTRY, &[&upstream.url()], more)
            .with_log("warn,hearth_agent::app=info");
        let agent = config.start_process(work.path()).await?;
        Ok(Self { agent, upstream, work })
    }

    /// A client that reads a whole blob through the agent.
    fn read(&self, digest: &str, size: u64) -> impl Future<Output = Result<()>> + Send + use<> {
        let url = format!("http://{}{}", self.agent.addresses.mirror, blob_path(REPOSITORY, digest));
        async move {
            let client = reqwest::Client::builder().no_proxy().user_agent(CLIENT).build()?;
            let reading = async { client.get(url).send().await?.error_for_status()?.bytes().await };
            let body = tokio::time::timeout(LIMIT, reading).await.context("a client waits too long")??;
            ensure!(body.len() as u64 == size, "a client got {} bytes instead of {size}", body.len());
            Ok(())
        }
    }

    /// [`Self::read`]; a failure carries the agent's log.
    async fn read_well(&self, digest: &str, size: u64) -> Result<()> {
        self.read(digest, size).await.with_context(|| format!("the agent's log:\n{}", self.agent.log()))
    }

    /// Bytes that the registry sent of a blob over its size.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn ratio(&self, digest: &str, size: u64) -> f64 {
        self.upstream.log().blob_gets().reference(digest).bytes() as f64 / size as f64
    }
}

async fn pause(seed: u64, size: u64) -> Result<f64> {
    let pair = Pair::start("").await?;
    let digest = pair.upstream.random_blob(REPOSITORY, seed, size).await;
    pair.upstream.rate_per_connection(PAUSED_RATE);
    pair.upstream.fault(On::blob().get(), Fault::Stall(MIB, PAUSE)).times(1);
    pair.read_well(&digest, size).await?;
    Ok(pair.ratio(&digest, size))
}

/// `None` where `strace` cannot slow the agent's writes down.
async fn slow_disk(seed: u64) -> Result<Option<f64>> {
    let pair = Pair::start("").await?;
    let digest = pair.upstream.random_blob(REPOSITORY, seed, SLOW_DISK).await;
    let id = pair.agent.id().context("the agent has ended")?;
    let _slow = match delay_writes(id, pair.work.path()).await {
        Ok(slow) => slow,
        Err(error) => {
            // Nothing is lost when standard error is closed.
            let _ = writeln!(
                std::io::stderr(),
                "no `slow_disk_bytes_ratio`: `strace` cannot be attached to the agent (is it installed, and is this root?): {error:#}"
            );
            return Ok(None);
        }
    };
    let began = Instant::now();
    pair.read_well(&digest, SLOW_DISK).await?;
    let late = Duration::from_micros(LATE_MICROS.into());
    // The client may have its bytes before the disk has them, but the blob is in the store only after a late write.
    while kit::agent::stored_blobs(&pair.work.path().join("data")).is_empty() {
        ensure!(began.elapsed() < LIMIT, "the blob does not reach the store:\n{}", pair.agent.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(began.elapsed() >= late, "no write was late: `strace` slows nothing down");
    Ok(Some(pair.ratio(&digest, SLOW_DISK)))
}

/// Makes each write of a process late for as long as the value lives. It ends by itself with the process.
async fn delay_writes(id: u32, work: &Path) -> Result<Daemon> {
    let mut command = Command::new("strace");
    command.args(["-f", "-o", "/dev/null", "-e", "trace=pwrite64", "-e"]);
    command.arg(format!("inject=pwrite64:delay_enter={LATE_MICROS}"));
    command.args(["-p", &id.to_string()]);
    let mut strace = Daemon::start(&mut command, &work.join("strace.log"))?;
    strace.ready(async |printed| printed.contains("attached").then_some(())).await?;
    Ok(strace)
}

async fn queued(seed: u64) -> Result<f64> {
    let pair = Pair::start("connections: 2").await?;
    let mut digests = Vec::new();
    for at in 0..3 {
        digests.push(pair.upstream.random_blob(REPOSITORY, seed + at, QUEUED).await);
    }
    pair.upstream.rate_per_connection(QUEUED_RATE);
    let mut clients = JoinSet::new();
    let (third, first) = digests.split_last().context("there are three")?;
    for digest in first {
        clients.spawn(pair.read(digest, QUEUED));
    }
    tokio::time::sleep(HEAD_START).await;
    clients.spawn(pair.read(third, QUEUED));
    while let Some(read) = clients.join_next().await {
        read?.with_context(|| format!("the agent's log:\n{}", pair.agent.log()))?;
    }
    Ok(pair.ratio(third, QUEUED))
}

async fn after_refusals(seed: u64) -> Result<f64> {
    let pair = Pair::start("").await?;
    let digests = small_blobs(&pair, seed, REFUSED).await;
    let fault = pair.upstream.fault(On::any(), Fault::too_many(None));
    let mut clients = JoinSet::new();
    for digest in &digests {
        clients.spawn(pair.read(digest, SMALL));
    }
    tokio::time::sleep(REFUSING).await;
    fault.clear();
    ensure!(fault.hits() > 0, "nothing was refused");
    recovered(&pair, clients, seed + REFUSED).await
}

async fn after_resets(seed: u64) -> Result<f64> {
    let pair = Pair::start("").await?;
    let digests = small_blobs(&pair, seed, RESET).await;
    let fault = pair.upstream.fault(On::any(), Fault::Reset).times(usize::try_from(RESET)?);
    let mut clients = JoinSet::new();
    for digest in &digests {
        clients.spawn(pair.read(digest, SMALL));
    }
    let began = Instant::now();
    while fault.hits() < usize::try_from(RESET)? {
        ensure!(began.elapsed() < LIMIT, "only {} connections were reset", fault.hits());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    recovered(&pair, clients, seed + RESET).await
}

async fn small_blobs(pair: &Pair, seed: u64, count: u64) -> Vec<String> {
    let mut digests = Vec::new();
    for at in 0..count {
        digests.push(pair.upstream.random_blob(REPOSITORY, seed + at, SMALL).await);
    }
    digests
}

/// Seconds from now to the first success of a client: of one that waits already, or of a new one, which comes every
/// [`PROBE`] for a blob of its own.
async fn recovered(pair: &Pair, mut clients: JoinSet<Result<()>>, mut seed: u64) -> Result<f64> {
    let well = Instant::now();
    let mut ticks = tokio::time::interval(PROBE);
    loop {
        tokio::select! {
            // Clients that were refused are what this waits out.
            Some(read) = clients.join_next() => if read?.is_ok() { return Ok(seconds(well.elapsed())) },
            _ = ticks.tick() => {
                ensure!(well.elapsed() < LIMIT, "no success within {LIMIT:?}:\n{}", pair.agent.log());
                let digest = pair.upstream.random_blob(REPOSITORY, seed, SMALL).await;
                seed += 1;
                clients.spawn(pair.read(&digest, SMALL));
            }
        }
    }
}
