//! `adversity`: one bad participant must harm nobody else. A cold burst of one image on a small cluster, without trouble
//! and then with one trouble each, every time with empty agents and with the same image, so that the same nodes have the
//! same parts to read and to pass on:
//!
//! | case | trouble |
//! | --- | --- |
//! | slow | one node's link is ten times slower |
//! | corrupt | one node sends one flipped byte in every piece that it sends to peers ([`crate::relay`]) |
//! | killed | a quarter of the nodes, at most four, are killed halfway with SIGKILL, agent and client |
//! | late | every other node begins after a third of the time that the run without trouble took |
//!
//! Times are those of good nodes only, each from its own beginning. Clients check digests ([`crate::checked`]).

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use kit::{
    agent::REGISTRY,
    metrics::Metrics,
    net::Net,
    process::AgentProcess,
    runtime::{Daemon, run as run_to_end},
};
use serde_json::Value;
use tokio::task::{AbortHandle, JoinSet};

use super::{
    content::Content,
    forest::{self, LEAD, LIMIT, PEER_PORT, PORT, agent_at, bytes_per_second, client_as, registry, requests},
};
use crate::{
    Arguments, machine,
    node::told,
    report::{Report, median_of},
};

/// Nodes, the rate of every link, the image's size in MiB and the number of its layers, unless told otherwise.
const NODES: u8 = 16;
const LINK: &str = "100mbit";
const SIZE_MIB: u64 = 128;
const LAYERS: u64 = 4;
/// How much slower the slow node's link is.
const SLOWER: f64 = 10.0;
/// Most nodes that are killed.
const KILLED: u8 = 4;
/// Longest wait for an agent's metrics.
const SCRAPE: Duration = Duration::from_secs(10);

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// Nothing.
    None,
    /// One slow link.
    Slow,
    /// One node corrupts what it sends to peers.
    Corrupt,
    /// Nodes die halfway.
    Killed,
    /// Half of the nodes begin later.
    Late,
}

const TROUBLES: [Case; 4] = [Case::Slow, Case::Corrupt, Case::Killed, Case::Late];

impl Case {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Slow => "slow",
            Self::Corrupt => "corrupt",
            Self::Killed => "killed",
            Self::Late => "late",
        }
    }

    /// Whether a node is a part of the trouble itself. The last ones are.
    fn is_bad(self, node: u8, nodes: u8) -> bool {
        match self {
            Self::None | Self::Late => false,
            Self::Slow | Self::Corrupt => node == nodes,
            Self::Killed => node > nodes - KILLED.min(nodes / 4),
        }
    }

    /// How much later than the others a node begins, when the run without trouble took `usual` seconds.
    fn delay(self, node: u8, usual: f64) -> Duration {
        let late = self == Self::Late && node.is_multiple_of(2);
        if late { Duration::from_secs_f64(usual / 3.0) } else { Duration::ZERO }
    }
}

/// The cluster and what it pulls.
struct Bench<'a> {
    net: &'a Net,
    nodes: u8,
    link: &'a str,
    content: &'a Content,
}

/// What one client did.
#[derive(Clone, Debug)]
struct Pull {
    node: u8,
    seconds: f64,
    /// Blobs with a wrong digest at first.
    wrong: u64,
    /// Why the client went to the registry by itself.
    refusals: Vec<String>,
    failure: Option<String>,
}

/// What came of one case.
#[derive(Clone, Debug)]
struct Outcome {
    good: Vec<Pull>,
    bad: Vec<Pull>,
    upstream: f64,
    direct: usize,
    honest_blamed: f64,
}

impl Outcome {
    fn last(&self) -> f64 {
        self.good.iter().map(|pull| pull.seconds).fold(0.0, f64::max)
    }

    fn median(&self) -> f64 {
        median_of(&self.good.iter().map(|pull| pull.seconds).collect::<Vec<_>>())
    }

    #[expect(clippy::cast_precision_loss, reason = "a few nodes")]
    fn count(&self, counts: impl Fn(&Pull) -> bool) -> f64 {
        self.good.iter().filter(|pull| counts(pull)).count() as f64
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let (nodes, link) = (arguments.nodes_or(NODES), arguments.link_or(LINK));
    let mut links = vec![link.to_owned(); usize::from(nodes) + 1];
    links[0].clone_from(&arguments.upstream_link);
    let net = Net::new(&links)?;
    let size = arguments.size.unwrap_or(SIZE_MIB) << 20;
    let wanted = |case: &Case| arguments.cases.is_empty() || arguments.cases.contains(case);
    for round in 0..arguments.rounds {
        let work = tempfile::Builder::new().prefix("hearth-adversity-").tempdir_in("/dev/shm")?;
        let content = Content::layered(&work.path().join("storage"), u64::from(round), size, LAYERS)?;
        let bench = Bench { net: &net, nodes, link, content: &content };
        let none = bench.measure(work.path(), Case::None, 0.0).await.context("none")?;
        tell(report, Case::None, &none, &none);
        report.detail("none last over bound", none.last() / (content.size as f64 / bytes_per_second(link)?));
        for case in TROUBLES.into_iter().filter(wanted) {
            let outcome = bench.measure(work.path(), case, none.last()).await.context(case.name())?;
            tell(report, case, &outcome, &none);
        }
    }
    Ok(())
}

/// Figures of one case, and what lies behind them.
#[expect(clippy::cast_precision_loss, reason = "a few requests")]
fn tell(report: &mut Report, case: Case, outcome: &Outcome, none: &Outcome) {
    let last = outcome.last() / none.last();
    match case {
        Case::None => {}
        Case::Slow => {
            report.figure("slow_last_over_none", last);
            report.figure("slow_median_over_none", outcome.median() / none.median());
            report.figure("slow_upstream_bytes_ratio", outcome.upstream);
        }
        Case::Corrupt => {
            report.figure("corrupt_last_over_none", last);
            report.figure("corrupt_upstream_bytes_ratio", outcome.upstream);
            report.figure("corrupt_failed_pulls", outcome.count(|pull| pull.wrong > 0));
            report.figure("honest_blamed", outcome.honest_blamed);
        }
        Case::Killed => report.figure("killed_last_over_none", last),
        Case::Late => report.figure("late_last_over_none", last),
    }
    let name = case.name();
    let mut detail = |what: &str, value| report.detail(&format!("{name} {what}"), value);
    detail("last s", outcome.last());
    detail("median s", outcome.median());
    detail("upstream ratio", outcome.upstream);
    detail("direct GETs", outcome.direct as f64);
    detail("pulls with a wrong digest", outcome.count(|pull| pull.wrong > 0));
    detail("pulls that failed", outcome.count(|pull| pull.failure.is_some()));
    if let Some(bad) = outcome.bad.first() {
        detail("bad node s", bad.seconds);
    }
}

impl Bench<'_> {
    /// One burst with one trouble, from nothing.
    async fn measure(&self, work: &Path, case: Case, usual: f64) -> Result<Outcome> {
        machine::settle((u64::from(self.nodes) + 2) * self.content.size).await?;
        let home = tempfile::Builder::new().prefix("turn-").tempdir_in(work)?;
        let _slow =
            (case == Case::Slow).then(|| SlowLink::set(self.net, self.nodes, self.link)).transpose()?;
        let upstream = registry(self.net, 0, home.path(), &self.content.storage, None).await?;
        let (mut agents, _relay) = self.agents(home.path(), case).await?;
        // Every agent is to know every other.
        tokio::time::sleep(LEAD / 2).await;
        let begin = SystemTime::now().duration_since(UNIX_EPOCH)? + LEAD;
        let mut clients = JoinSet::new();
        let mut handles = Vec::new();
        for (node, agent) in &agents {
            let begin = begin + case.delay(*node, usual);
            handles.push((*node, self.client(&mut clients, *node, agent, begin)?));
        }
        if case == Case::Killed {
            tokio::time::sleep(LEAD + Duration::from_secs_f64(usual / 2.0)).await;
            self.kill(&mut agents, &handles).await?;
        }
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        while let Some(finished) = clients.join_next().await {
            let pull = match finished {
                Ok(pull) => pull,
                // It went with its node.
                Err(error) if error.is_cancelled() => continue,
                Err(error) => return Err(error.into()),
            };
            (if case.is_bad(pull.node, self.nodes) { &mut bad } else { &mut good }).push(pull);
        }
        complain(good.iter().chain(&bad), &agents);
        let gets = requests(&upstream.printed());
        let bytes: u64 = gets.iter().filter(|get| get.path.contains("/blobs/")).map(|get| get.bytes).sum();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let upstream = bytes as f64 / self.content.size as f64;
        let direct = gets.iter().filter(|get| !get.by_agent).count();
        let honest_blamed = if case == Case::Corrupt { self.honest_blamed(&agents).await? } else { 0.0 };
        Ok(Outcome { good, bad, upstream, direct, honest_blamed })
    }

    /// All agents; the one that corrupts lies behind its relay.
    async fn agents(&self, home: &Path, case: Case) -> Result<(Vec<(u8, AgentProcess)>, Option<Daemon>)> {
        let (mut agents, mut relay) = (Vec::new(), None);
        for node in 1..=self.nodes {
            let corrupts = case == Case::Corrupt && case.is_bad(node, self.nodes);
            let address = if corrupts { IpAddr::from(Ipv4Addr::LOCALHOST) } else { Net::address(node) };
            let agent = agent_at(self.net, home, node, self.nodes, true, "", address).await?;
            agents.push((node, agent));
            if corrupts {
                let mut command = self.net.on(node, &std::env::current_exe()?.to_string_lossy());
                command.args(["relay", &format!("{}:{PEER_PORT}", Net::address(node))]);
                command.arg(format!("{address}:{PEER_PORT}"));
                let daemon = Daemon::start(&mut command, &home.join("relay.log"))?;
                relay = Some(forest::listening(self.net, node, PEER_PORT, daemon).await?);
            }
        }
        Ok((agents, relay))
    }

    /// A client beside an agent. One that ends badly is a failed pull, not the end of the run.
    fn client(
        &self,
        clients: &mut JoinSet<Pull>,
        node: u8,
        agent: &AgentProcess,
        begin: Duration,
    ) -> Result<AbortHandle> {
        let mirror = agent.addresses.mirror.to_string();
        let direct = format!("{}:{PORT}", Net::address(0));
        let (places, query) = ([mirror.as_str(), &direct], format!("?ns={REGISTRY}"));
        let command = client_as("checked", self.net, node, places, begin, self.content, &query)?;
        Ok(clients.spawn(async move {
            let printed = run_to_end(command, LIMIT).await.and_then(kit::runtime::Finished::output);
            let pull = printed.and_then(|printed| Pull::read(node, &told(&printed)?));
            pull.unwrap_or_else(|error| Pull {
                node,
                seconds: LIMIT.as_secs_f64(),
                wrong: 0,
                refusals: Vec::new(),
                failure: Some(format!("{error:#}")),
            })
        }))
    }

    /// The bad nodes go down, agent and client.
    async fn kill(&self, agents: &mut Vec<(u8, AgentProcess)>, clients: &[(u8, AbortHandle)]) -> Result<()> {
        let is_bad = |node: u8| Case::Killed.is_bad(node, self.nodes);
        for (_, client) in clients.iter().filter(|(node, _)| is_bad(*node)) {
            client.abort();
        }
        for (_, agent) in agents.extract_if(.., |(node, _)| is_bad(*node)) {
            agent.kill().await?;
        }
        Ok(())
    }

    /// Wrong pieces that good agents say others than the one that corrupts have sent.
    async fn honest_blamed(&self, agents: &[(u8, AgentProcess)]) -> Result<f64> {
        const NAME: &str = "hearth_peer_wrong_pieces_total";
        let is_bad = |node: u8| Case::Corrupt.is_bad(node, self.nodes);
        let culprits: Vec<_> =
            (1..=self.nodes).filter(|node| is_bad(*node)).map(|node| format!("node-{node}")).collect();
        let mut blamed = 0.0;
        for (node, agent) in agents.iter().filter(|(node, _)| !is_bad(*node)) {
            let mut command = self.net.on(*node, &std::env::current_exe()?.to_string_lossy());
            command.args(["metrics", &agent.addresses.admin.to_string()]);
            let metrics = Metrics::from(run_to_end(command, SCRAPE).await?.output()?);
            let rightly: f64 = culprits.iter().map(|name| metrics.sum(NAME, &[("peer", name)])).sum();
            blamed += metrics.sum(NAME, &[]) - rightly;
        }
        Ok(blamed)
    }
}

impl Pull {
    fn read(node: u8, told: &Value) -> Result<Self> {
        Ok(Self {
            node,
            seconds: told["seconds"].as_f64().context("a client tells its seconds")?,
            wrong: told["wrong"].as_u64().context("a client tells how many digests were wrong")?,
            refusals: serde_json::from_value(told["refusals"].clone())
                .context("a client tells what was refused")?,
            failure: told["failure"].as_str().map(str::to_owned),
        })
    }
}

/// Refused requests and failed pulls go to standard error at once, the latter with the agent's last words: the table has
/// only their number.
fn complain<'a>(pulls: impl Iterator<Item = &'a Pull>, agents: &[(u8, AgentProcess)]) {
    use std::io::Write as _;
    for pull in pulls {
        for refusal in &pull.refusals {
            let _ = writeln!(std::io::stderr(), "node {}: the mirror refused {refusal}", pull.node);
        }
        let Some(failure) = &pull.failure else { continue };
        let log = agents.iter().find(|(node, _)| *node == pull.node).map(|(_, agent)| agent.log());
        // Nothing is lost when standard error is closed.
        let _ = writeln!(
            std::io::stderr(),
            "node {}: the pull failed: {failure}\n{}",
            pull.node,
            log.unwrap_or_default()
        );
    }
}

/// The slow node's link; with this value it gets its rate back, so that the next case is not slow as well.
struct SlowLink<'a> {
    net: &'a Net,
    node: u8,
    rate: &'a str,
}

impl<'a> SlowLink<'a> {
    fn set(net: &'a Net, node: u8, rate: &'a str) -> Result<Self> {
        let link = Self { net, node, rate };
        // `tc` takes bits a second.
        net.set_rate(node, &format!("{:.0}", bytes_per_second(rate)? * 8.0 / SLOWER))?;
        Ok(link)
    }
}

impl Drop for SlowLink<'_> {
    fn drop(&mut self) {
        // A network that is gone has no link to set.
        self.net.set_rate(self.node, self.rate).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_its_bad_and_its_late_nodes() {
        for (case, bad, late) in [
            (Case::None, 0, 0),
            (Case::Slow, 1, 0),
            (Case::Corrupt, 1, 0),
            (Case::Killed, 4, 0),
            (Case::Late, 0, 8),
        ] {
            assert_eq!((1..=16).filter(|node| case.is_bad(*node, 16)).count(), bad, "{case:?}");
            assert_eq!((1..=16).filter(|node| !case.delay(*node, 9.0).is_zero()).count(), late, "{case:?}");
        }
        assert_eq!((1..=4).filter(|node| Case::Killed.is_bad(*node, 4)).count(), 1, "most nodes stay");
    }
}
