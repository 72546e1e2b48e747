//! `herd`: a cold burst where the registry's link is no faster than a node's, with clients that do what containerd does:
//! what their mirror refuses they request from the registry. A mirror that refuses while the download is under way turns
//! the burst into a herd: the clients' own transfers slow the registry's link down, and more of them are refused.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use kit::{net::Net, process::AgentProcess, runtime::run as run_to_end};

use super::{
    content::Content,
    forest::{LEAD, LIMIT, PORT, agent, bytes_per_second, client, registry, requests},
};
use crate::{Arguments, machine, report::Report};

/// Nodes, the rate of every link, the image's size in MiB and the number of its layers, unless told otherwise.
const NODES: u8 = 24;
const LINK: &str = "20mbit";
const SIZE_MIB: u64 = 76;
const LAYERS: u64 = 8;

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let nodes = arguments.nodes_or(NODES);
    let link = arguments.link_or(LINK);
    let links = vec![link.to_owned(); usize::from(nodes) + 1];
    let net = Net::new(&links)?;
    let size = arguments.size.unwrap_or(SIZE_MIB) << 20;
    for round in 0..arguments.rounds {
        let work = tempfile::Builder::new().prefix("hearth-herd-").tempdir_in("/dev/shm")?;
        let content = Content::layered(&work.path().join("storage"), u64::from(round), size, LAYERS)?;
        machine::settle((u64::from(nodes) + 2) * content.size).await?;
        let upstream = registry(&net, 0, work.path(), &content.storage, None).await?;
        let mut agents = Vec::new();
        for node in 1..=nodes {
            agents.push(agent(&net, work.path(), node, nodes, true, "").await?);
        }
        // Every agent is to know every other.
        tokio::time::sleep(LEAD / 2).await;
        let begin = SystemTime::now().duration_since(UNIX_EPOCH)? + LEAD;
        let direct = format!("{}:{PORT}", Net::address(0));
        let mut clients = tokio::task::JoinSet::new();
        for node in 1..=nodes {
            let mirror = agents[usize::from(node) - 1].addresses.mirror.to_string();
            let query = format!("?ns={}", kit::agent::REGISTRY);
            let command = client(&net, node, [&mirror, &direct], begin, &content, &query)?;
            clients.spawn(run_to_end(command, LIMIT));
        }
        let mut last = 0.0_f64;
        while let Some(finished) = clients.join_next().await {
            let printed = finished??.output();
            let printed =
                printed.with_context(|| agents.iter().map(AgentProcess::log).collect::<String>())?;
            last = last.max(printed.trim().parse().context("a client prints its seconds")?);
        }
        let gets = requests(&upstream.printed());
        let blobs = || gets.iter().filter(|get| get.path.contains("/blobs/"));
        let bytes: u64 = blobs().map(|get| get.bytes).sum();
        report.figure("upstream_bytes_ratio", bytes as f64 / content.size as f64);
        report.figure("direct_gets", gets.iter().filter(|get| !get.by_agent).count() as f64);
        report.figure("last_over_bound", last / (content.size as f64 / bytes_per_second(link)?));
        report.detail("last s", last);
        report.detail("blob GETs", blobs().count() as f64);
    }
    Ok(())
}
