//! `forest`: every node of a small cluster pulls one image at the same moment. Real agents in network namespaces on a
//! bridge, every link with a token bucket at both ends, `docker-registry` as the upstream behind a link of its own;
//! against agents without peers, one central `docker-registry` proxy, and the rule "ask a peer that already has it".
//!
//! All nodes share this machine's processors and keep their stores in memory: what is measured is the network.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use kit::{
    agent::{AgentConfig, REGISTRY},
    net::Net,
    process::AgentProcess,
    runtime::{Daemon, run as run_to_end},
};

use super::content::Content;
use crate::{Arguments, machine, report::Report};

const SIZE_MIB: u64 = 256;
/// Port of every registry.
pub(super) const PORT: u16 = 5000;
/// Port of every agent's peer listener.
pub(super) const PEER_PORT: u16 = 5051;
/// Between starting the clients and their common moment.
pub(super) const LEAD: Duration = Duration::from_secs(2);
/// Longest time for one contestant.
pub(super) const LIMIT: Duration = Duration::from_mins(10);
/// The smaller cluster that the figures are held against.
const FEW: u8 = 4;

/// Who distributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Forest,
    NoPeers,
    Central,
    Holders,
}

#[derive(Clone, Copy, Debug)]
struct Measured {
    last: f64,
    upstream_bytes: u64,
    manifest_gets: usize,
    max_upload: u64,
    processor: f64,
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let (nodes, link) = (arguments.nodes_or(16), arguments.link_or("200mbit").to_owned());
    ensure!(nodes >= FEW, "`--nodes` must be at least {FEW}");
    let links: Vec<_> = std::iter::once(&arguments.upstream_link)
        .chain(std::iter::repeat_n(&link, usize::from(nodes)))
        .cloned()
        .collect();
    let net = Net::new(&links)?;
    let size = arguments.size.unwrap_or(SIZE_MIB) << 20;
    let bound = size as f64 / bytes_per_second(&link)?;
    for round in 0..arguments.rounds {
        let work = tempfile::Builder::new().prefix("hearth-forest-").tempdir_in("/dev/shm")?;
        let content = Content::random(&work.path().join("storage"), u64::from(round), size)?;
        let measure = async |rule, nodes| measure(&net, work.path(), &content, rule, nodes).await;
        let forest = measure(Rule::Forest, nodes).await?;
        let few = measure(Rule::Forest, FEW).await?;
        let alone = measure(Rule::NoPeers, nodes).await?;
        let central = measure(Rule::Central, nodes).await?;
        let holders = measure(Rule::Holders, nodes).await?;
        let spark = Content::spark(&work.path().join("spark")).await?;
        let spark_bound = spark.size as f64 / bytes_per_second(&link)?;
        let spark_forest = self::measure(&net, work.path(), &spark, Rule::Forest, nodes).await?;
        let spark_alone = self::measure(&net, work.path(), &spark, Rule::NoPeers, nodes).await?;
        report.figure("spark_last_over_bound", spark_forest.last / spark_bound);
        report.figure("spark_speedup_vs_no_peers", spark_alone.last / spark_forest.last);
        report.figure("spark_upstream_bytes_ratio", spark_forest.upstream_bytes as f64 / spark.size as f64);
        report.detail("spark MiB", spark.size as f64 / f64::from(1 << 20));
        report.figure("last_over_bound", forest.last / bound);
        report.figure("upstream_bytes_ratio", forest.upstream_bytes as f64 / content.size as f64);
        report.figure("upstream_manifest_gets", forest.manifest_gets as f64);
        report.figure("max_upload_ratio", forest.max_upload as f64 / size as f64);
        let gigabytes = f64::from(nodes) * size as f64 / 1e9;
        report.figure("cpu_seconds_per_gb", forest.processor / gigabytes);
        report.figure("last_over_bound_vs_4_nodes", forest.last / few.last);
        report.figure("speedup_vs_central", central.last / forest.last);
        report.figure("speedup_vs_no_peers", alone.last / forest.last);
        report.figure("speedup_vs_holders", holders.last / forest.last);
        for (name, one) in [
            ("forest", forest),
            ("4 nodes", few),
            ("no peers", alone),
            ("central", central),
            ("holders", holders),
        ] {
            report.detail(&format!("{name} last s"), one.last);
            report.detail(&format!("{name} upstream ratio"), one.upstream_bytes as f64 / content.size as f64);
            report.detail(&format!("{name} manifest GETs"), one.manifest_gets as f64);
            report.detail(&format!("{name} max upload ratio"), one.max_upload as f64 / size as f64);
        }
    }
    Ok(())
}

/// `200mbit` in bytes per second.
pub(super) fn bytes_per_second(link: &str) -> Result<f64> {
    let (number, factor) = match (link.strip_suffix("mbit"), link.strip_suffix("gbit")) {
        (Some(number), _) => (number, 125_000.0),
        (_, Some(number)) => (number, 125_000_000.0),
        _ => anyhow::bail!("`{link}` is not a rate: write `200mbit` or `1gbit`"),
    };
    Ok(number.parse::<f64>().with_context(|| format!("`{link}` is not a rate"))? * factor)
}

async fn measure(net: &Net, work: &Path, content: &Content, rule: Rule, nodes: u8) -> Result<Measured> {
    machine::settle((u64::from(nodes) + 2) * content.size).await?;
    let home = tempfile::Builder::new().prefix("turn-").tempdir_in(work)?;
    let upstream = registry(net, 0, home.path(), &content.storage, None).await?;
    let central = match rule {
        Rule::Central => {
            let storage = home.path().join("central-storage");
            Some(
                registry(net, 1, home.path(), &storage, Some(format!("http://{}:{PORT}", Net::address(0))))
                    .await?,
            )
        }
        Rule::Forest | Rule::NoPeers | Rule::Holders => None,
    };
    let (mut agents, mut holders) = (Vec::new(), Vec::new());
    if rule == Rule::Holders {
        for node in 1..=nodes {
            holders.push(holder(net, home.path(), node, nodes).await?);
        }
    }
    if matches!(rule, Rule::Forest | Rule::NoPeers) {
        for node in 1..=nodes {
            agents.push(agent(net, home.path(), node, nodes, rule == Rule::Forest, "").await?);
        }
        // Everyone is to have met everyone.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let processor = |agents: &[AgentProcess]| -> Result<f64> {
        agents.iter().filter_map(AgentProcess::id).map(machine::processor_seconds).sum()
    };
    let (before, used) = (net.sent()?, processor(&agents)?);
    let begin = SystemTime::now().duration_since(UNIX_EPOCH)? + LEAD;
    let mut clients = tokio::task::JoinSet::new();
    for node in 1..=nodes {
        let address = match rule {
            Rule::Central => format!("{}:{PORT}", Net::address(1)),
            Rule::Holders => format!("{}:{PORT}", Net::address(node)),
            Rule::Forest | Rule::NoPeers => agents[usize::from(node) - 1].addresses.mirror.to_string(),
        };
        let query = if agents.is_empty() { String::new() } else { format!("?ns={REGISTRY}") };
        clients.spawn(run_to_end(client(net, node, [&address, "-"], begin, content, &query)?, LIMIT));
    }
    let mut last = 0.0_f64;
    while let Some(finished) = clients.join_next().await {
        let printed = finished??.output();
        let printed = printed.with_context(|| agents.iter().map(AgentProcess::log).collect::<String>())?;
        last = last.max(printed.trim().parse().context("a client prints its seconds")?);
    }
    let processor = processor(&agents)? - used;
    let sent: Vec<_> = net.sent()?.iter().zip(before).map(|(after, before)| after - before).collect();
    let asked = requests(&upstream.printed());
    drop((agents, central, holders));
    Ok(Measured {
        last,
        upstream_bytes: asked.iter().filter(|get| get.path.contains("/blobs/")).map(|get| get.bytes).sum(),
        manifest_gets: asked.iter().filter(|get| get.path.contains("/manifests/")).count(),
        max_upload: sent.iter().skip(1).copied().max().unwrap_or(0),
        processor,
    })
}

/// A registry on a node; with `remote` a pull-through proxy of that one.
pub(super) async fn registry(
    net: &Net,
    node: u8,
    home: &Path,
    storage: &Path,
    remote: Option<String>,
) -> Result<Daemon> {
    let address = format!("{}:{PORT}", Net::address(node));
    let mut config = serde_json::json!({
        "version": "0.1",
        "log": { "level": "error" },
        "storage": { "filesystem": { "rootdirectory": storage, "maxthreads": 100 } },
        "http": { "addr": address },
    });
    if let Some(remote) = remote {
        config["proxy"] = serde_json::json!({ "remoteurl": remote });
    }
    let path = home.join(format!("registry-{node}.json"));
    fs::write(&path, config.to_string())?;
    let mut command = net.on(node, "docker-registry");
    command.arg("serve").arg(&path).env("OTEL_TRACES_EXPORTER", "none");
    listening(net, node, PORT, Daemon::start(&mut command, &home.join(format!("registry-{node}.log")))?).await
}

/// This program again, with the rule "ask a peer that already has it".
async fn holder(net: &Net, home: &Path, node: u8, nodes: u8) -> Result<Daemon> {
    let directory = home.join(format!("holder-{node}"));
    fs::create_dir_all(&directory)?;
    let place = |node| format!("{}:{PORT}", Net::address(node));
    let mut command = net.on(node, &std::env::current_exe()?.to_string_lossy());
    command.args(["holder", &place(node), &place(0)]).arg(directory);
    command.args((1..=nodes).filter(|other| *other != node).map(place));
    listening(net, node, PORT, Daemon::start(&mut command, &home.join(format!("holder-{node}.log")))?).await
}

pub(super) async fn listening(net: &Net, node: u8, port: u16, mut daemon: Daemon) -> Result<Daemon> {
    let probe = || {
        let mut probe = net.on(node, "bash");
        probe.args(["-c", &format!("exec 3<>/dev/tcp/{}/{port}", Net::address(node))]);
        run_to_end(probe, Duration::from_secs(5))
    };
    daemon.ready(async |_| probe().await.ok().filter(|finished| finished.success).map(drop)).await?;
    Ok(daemon)
}

/// An agent on a node; with `peers` it knows the others. `more` are further keys of its configuration.
pub(super) async fn agent(
    net: &Net,
    home: &Path,
    node: u8,
    nodes: u8,
    peers: bool,
    more: &str,
) -> Result<AgentProcess> {
    agent_at(net, home, node, nodes, peers, more, Net::address(node)).await
}

/// The same with its peer listener on another address of the node.
pub(super) async fn agent_at(
    net: &Net,
    home: &Path,
    node: u8,
    nodes: u8,
    peers: bool,
    more: &str,
    address: IpAddr,
) -> Result<AgentProcess> {
    let home = home.join(format!("agent-{node}"));
    fs::create_dir_all(&home)?;
    let kept = std::env::var_os(kit::process::LOGS).is_some();
    let listen = format!("peer: {{ listen: \"{address}:{PEER_PORT}\", name: node-{node}");
    let entries: Vec<_> =
        (1..=nodes).map(|other| format!("node-{other}={}:{PEER_PORT}", Net::address(other))).collect();
    let members = if peers { format!(", members: \"{}\"", entries.join(",")) } else { String::new() };
    let config = AgentConfig::default()
        .registry(REGISTRY, &[&format!("http://{}:{PORT}", Net::address(0))], "")
        .with(&format!("{listen}{members} }}"))
        .with(more)
        .with_log(if kept { DETAILED_LOG } else { "warn,hearth_agent::app=info" });
    let path = config.write(&home)?;
    let program = kit::process::binary("hearth-agent")?;
    let mut command = net.on(node, &program.to_string_lossy());
    command.args(["run", "--config"]).arg(path);
    AgentProcess::start_by(command).await
}

/// What agents log when their logs are kept.
const DETAILED_LOG: &str =
    "info,hearth_agent::download=debug,hearth_agent::swarm=debug,hearth_agent::peers=debug";

/// This program again, as a client on a node; the second place is where it goes when the first one refuses.
pub(super) fn client(
    net: &Net,
    node: u8,
    places: [&str; 2],
    begin: Duration,
    content: &Content,
    query: &str,
) -> Result<Command> {
    client_as("client", net, node, places, begin, content, query)
}

/// The same of another kind: `client`, or `checked` ([`crate::checked`]).
pub(super) fn client_as(
    kind: &str,
    net: &Net,
    node: u8,
    places: [&str; 2],
    begin: Duration,
    content: &Content,
    query: &str,
) -> Result<Command> {
    let mut command = net.on(node, &std::env::current_exe()?.to_string_lossy());
    command.args([kind, places[0], places[1], &begin.as_millis().to_string()]);
    command.args(content.parts.iter().map(|(path, size)| format!("{path}{query} {size}")));
    Ok(command)
}

/// A GET request of an access log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Get {
    pub(super) path: String,
    /// Of the answer's body.
    pub(super) bytes: u64,
    /// Sent by an agent, not by a client itself.
    pub(super) by_agent: bool,
}

/// The GET requests of an access log in the combined format.
pub(super) fn requests(log: &str) -> Vec<Get> {
    let read = |line: &str| {
        let (_, rest) = line.split_once("\"GET ")?;
        let (path, rest) = rest.split_once(' ')?;
        let rest = rest.split_once("\" ")?.1;
        let bytes = rest.split(' ').nth(1)?.parse().ok()?;
        Some(Get { path: path.to_owned(), bytes, by_agent: rest.contains("\"hearth-agent/") })
    };
    log.lines().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_logs_and_rates_are_read() {
        let log = "10.77.0.3 - - [21/Nov/2026:17:00:00 +0000] \"GET /v2/a/blobs/sha256:1 HTTP/1.1\" 206 4194304 \"\" \"hearth-agent/1\"\n\
                   10.77.0.3 - - [21/Nov/2026:17:00:00 +0000] \"HEAD /v2/a/manifests/v1 HTTP/1.1\" 200 700 \"\" \"hearth\"\nother";
        let get = Get { path: "/v2/a/blobs/sha256:1".into(), bytes: 4_194_304, by_agent: true };
        assert_eq!(requests(log), [get]);
        assert!((bytes_per_second("200mbit").unwrap() - 25e6).abs() < 1.0);
        assert!(bytes_per_second("fast").is_err());
    }
}
