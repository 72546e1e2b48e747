//! `job-start`: a Spark job starts its executors on as many cold nodes in the same second, and the registry throttles as
//! public ones do. How long until the last executor can start? Real agents in network namespaces, every link with a
//! token bucket; pods pull as a kubelet has them pulled, with its back-off after a failure.
//!
//! | way | what |
//! | --- | --- |
//! | direct | every node from the registry |
//! | central | one `docker-registry` proxy with upstream's link |
//! | agents | cold agents that share |
//! | spark-aware | the same, told of the image when the driver was created: 15 s before the executors |
//! | pre-pulled | the same, told of it long before |
//!
//! The registry's window is short, so that those who are refused get through in the end: public ones count over hours.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use kit::{
    agent::REGISTRY,
    net::Net,
    process::AgentProcess,
    runtime::{Daemon, run as run_to_end},
};
use tokio::task::JoinSet;

use super::forest::{self, PORT};
use crate::{Arguments, node::told, plot, report::Report};

const SIZE_MIB: u64 = 256;
const EXECUTORS: u8 = 8;
/// Manifests that the registry gives per window, and the window.
const MANIFESTS: u32 = 4;
const WINDOW: Duration = Duration::from_secs(30);
/// From the creation of the driver to that of its executors: a JVM's start and a few calls to the API server.
const DRIVER: Duration = Duration::from_secs(15);
/// Between starting the pods' processes and their common moment.
const LEAD: Duration = Duration::from_secs(2);
/// Longest time for one way.
const LIMIT: Duration = Duration::from_mins(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Central,
    Agents,
    SparkAware,
    PrePulled,
}

const WAYS: [(Way, &str); 5] = [
    (Way::Direct, "direct"),
    (Way::Central, "central docker-registry"),
    (Way::Agents, "agents"),
    (Way::SparkAware, "agents, Spark-aware"),
    (Way::PrePulled, "pre-pulled"),
];

#[derive(Clone, Copy, Debug)]
struct Measured {
    last: f64,
    failed: u64,
    refused: f64,
    upstream_ratio: f64,
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let (size, link) = (arguments.size.unwrap_or(SIZE_MIB) << 20, arguments.link_or("200mbit").to_owned());
    // Node 0 has the registry, the last one the central proxy.
    let links: Vec<_> = std::iter::once(&arguments.upstream_link)
        .chain(std::iter::repeat_n(&link, usize::from(EXECUTORS)))
        .chain([&arguments.upstream_link])
        .cloned()
        .collect();
    let net = Net::new(&links)?;
    let bound = size as f64 / forest::bytes_per_second(&link)?;
    for round in 0..arguments.rounds {
        let work = tempfile::Builder::new().prefix("hearth-job-").tempdir_in("/dev/shm")?;
        let mut all = Vec::new();
        for (way, name) in WAYS {
            let one = measure(&net, work.path(), way, size, round).await.context(name)?;
            report.detail(&format!("{name} last s"), one.last);
            report.detail(&format!("{name} 429s"), one.refused);
            report.detail(&format!("{name} failed pulls"), one.failed as f64);
            report.detail(&format!("{name} upstream ratio"), one.upstream_ratio);
            all.push(one);
        }
        let [direct, central, agents, aware, ready] = all[..] else { anyhow::bail!("every way is measured") };
        report.figure("speedup_agents_vs_direct", direct.last / agents.last);
        report.figure("speedup_agents_vs_central", central.last / agents.last);
        report.figure("speedup_spark_aware_vs_direct", direct.last / aware.last);
        report.figure("speedup_pre_pulled_vs_direct", direct.last / ready.last);
        report.figure("agents_429s", agents.refused);
        report.figure("direct_429s", direct.refused);
        report.figure("central_429s", central.refused);
        report.figure("agents_last_over_bound", agents.last / bound);
    }
    if arguments.save {
        let rows: Vec<_> =
            WAYS.iter().map(|(_, name)| (*name, report.median_detail(&format!("{name} last s")))).collect();
        let title = format!(
            "seconds until the last of {EXECUTORS} executors has its image ({} MiB, {} links)",
            size >> 20,
            link
        );
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("results/job-start.svg");
        fs::write(&path, plot::bars(&title, &rows))
            .with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(())
}

async fn measure(net: &Net, work: &Path, way: Way, size: u64, round: u32) -> Result<Measured> {
    let home = tempfile::Builder::new().prefix("turn-").tempdir_in(work)?;
    let mut upstream = registry(net, home.path(), size, round).await?;
    let central = match way {
        Way::Central => {
            let remote = format!("http://{}:{PORT}", Net::address(0));
            let storage = home.path().join("central-storage");
            Some(forest::registry(net, EXECUTORS + 1, home.path(), &storage, Some(remote)).await?)
        }
        _ => None,
    };
    let agents = match way {
        Way::Direct | Way::Central => Vec::new(),
        _ => agents(net, home.path()).await?,
    };
    let bases: Vec<_> = (0..usize::from(EXECUTORS))
        .map(|at| match (way, agents.get(at)) {
            (_, Some(agent)) => format!("http://{}", agent.addresses.mirror),
            (Way::Central, None) => format!("http://{}:{PORT}", Net::address(EXECUTORS + 1)),
            (_, None) => format!("http://{}:{PORT}", Net::address(0)),
        })
        .collect();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH);
    let warm = match way {
        Way::SparkAware | Way::PrePulled => Some(start(net, &bases, now()? + LEAD, true)?),
        _ => None,
    };
    let (begin, warm) = match (way, warm) {
        // Until every node has it.
        (Way::PrePulled, Some(mut warm)) => {
            last(&mut warm, &agents).await?;
            (now()? + LEAD, None)
        }
        (Way::SparkAware, warm) => (now()? + LEAD + DRIVER, warm),
        _ => (now()? + LEAD, None),
    };
    let mut pods = start(net, &bases, begin, !agents.is_empty())?;
    let (last, failed) = last(&mut pods, &agents).await?;
    drop((warm, central, agents));
    upstream.stop();
    let asked = told(&upstream.printed())?;
    let number =
        |name: &str| asked[name].as_f64().with_context(|| format!("the registry counts no `{name}`"));
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let upstream_ratio = number("blob_bytes")? / size as f64;
    Ok(Measured { last, failed, refused: number("refused")?, upstream_ratio })
}

async fn registry(net: &Net, home: &Path, size: u64, round: u32) -> Result<Daemon> {
    let mut command = net.on(0, &std::env::current_exe()?.to_string_lossy());
    command.args(["registry", &format!("{}:{PORT}", Net::address(0))]);
    command.arg(home.join("storage"));
    command.args([size, u64::from(round), MANIFESTS.into(), WINDOW.as_secs()].map(|word| word.to_string()));
    let mut daemon = Daemon::start(&mut command, &home.join("registry.log"))?;
    daemon.ready(async |printed| printed.contains("ready").then_some(())).await?;
    Ok(daemon)
}

async fn agents(net: &Net, home: &Path) -> Result<Vec<AgentProcess>> {
    let mut agents = Vec::new();
    for node in 1..=EXECUTORS {
        agents.push(forest::agent(net, home, node, EXECUTORS, true, "").await?);
    }
    // Everyone is to have met everyone.
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(agents)
}

type Pods = JoinSet<Result<kit::runtime::Finished>>;

/// A pod on every node, all of them from one moment on.
fn start(net: &Net, bases: &[String], begin: Duration, mirrors: bool) -> Result<Pods> {
    let mut pods = Pods::new();
    for (node, base) in (1..=EXECUTORS).zip(bases) {
        let mut command = net.on(node, &std::env::current_exe()?.to_string_lossy());
        command.args(["pod", base, &begin.as_millis().to_string()]);
        command.args(mirrors.then_some(REGISTRY));
        pods.spawn(run_to_end(command, LIMIT));
    }
    Ok(pods)
}

/// Seconds until the last pod has its image, and how many pulls failed.
async fn last(pods: &mut Pods, agents: &[AgentProcess]) -> Result<(f64, u64)> {
    let (mut last, mut failed) = (0.0_f64, 0);
    while let Some(finished) = pods.join_next().await {
        let printed = finished??.output();
        let printed = printed.with_context(|| agents.iter().map(AgentProcess::log).collect::<String>())?;
        let said = told(&printed)?;
        last = last.max(said["seconds"].as_f64().context("a pod tells its seconds")?);
        failed += said["failed"].as_u64().context("a pod tells its failed pulls")?;
    }
    Ok((last, failed))
}
