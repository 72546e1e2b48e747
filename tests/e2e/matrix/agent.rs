//! Pulls while the agent stops, comes back or is replaced, and through an agent whose disk is full.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kit::disk::SmallDisk;
use kit::process::AgentProcess;
use kit::runtime::Suite;

use super::cell::Chance;
use super::client::{Client, Kind};
use super::stage::{LARGEST, Stage};
use super::table::Seen;
use super::{compare as compare_with_table, side_by_side};

const LANES: usize = 4;

/// The largest layer comes in about so many seconds when an agent is to change meanwhile.
const SECONDS: u64 = 3;

/// The pull is in its middle from here on; the registry does not send more slowly than it was told to.
const MIDDLE: u64 = LARGEST / 3;

/// Longest wait for that.
const LIMIT: Duration = Duration::from_mins(1);

/// What happens to the agent.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// It does not run.
    Absent,
    /// It is told to end and may finish what it is sending.
    Stopped,
    /// It is gone at once.
    Killed,
    /// The same, and another one starts on its data.
    Restarted,
    /// Another one starts on its data while it runs, and then it is told to end.
    Replaced,
    /// Its disk has room for the smallest layer alone.
    FullDisk,
}

const CASES: [(&str, Change, bool); 11] = [
    ("no agent", Change::Absent, true),
    ("agent told to end", Change::Stopped, true),
    ("agent told to end, no registry to fall back to", Change::Stopped, false),
    ("agent killed", Change::Killed, true),
    ("agent killed, no registry to fall back to", Change::Killed, false),
    ("agent killed and started again", Change::Restarted, true),
    ("agent killed and started again, no registry to fall back to", Change::Restarted, false),
    ("agent replaced", Change::Replaced, true),
    ("agent replaced, no registry to fall back to", Change::Replaced, false),
    ("disk full", Change::FullDisk, true),
    ("disk full, no registry to fall back to", Change::FullDisk, false),
];

/// Compares the column of one client.
pub async fn compare(kind: Kind, suite: Suite) -> Result<()> {
    let seen = side_by_side(kind, suite, LANES, CASES.to_vec(), async |client, (row, change, fallback)| {
        one(kind, client, row, change, fallback).await.with_context(|| row.to_owned())
    });
    compare_with_table(kind, suite, "the agent changes", &seen.await?)
}

async fn one(kind: Kind, client: &Client, row: &str, change: Change, fallback: bool) -> Result<Seen> {
    let stage = Stage::set(kind).await?;
    let _disk = match change {
        Change::FullDisk => Some(SmallDisk::mount(&stage.data(), 1 << 20)?),
        _ => None,
    };
    let agent = stage.agent(None).await?;
    let route = stage.route(&agent, fallback);
    let image = stage.by_tag();
    let pull = if matches!(change, Change::FullDisk) {
        stage.pull(client, &route, &image).await
    } else {
        stage.upstream.rate_per_connection(LARGEST / SECONDS);
        let pulled = stage.pull(client, &route, &image);
        let changed = async {
            let agents = change_in_the_middle(&stage, agent, change).await?;
            anyhow::Ok(agents)
        };
        if matches!(change, Change::Absent) {
            changed.await?;
            pulled.await
        } else {
            let (pull, agents) = tokio::join!(pulled, changed);
            drop(agents?);
            pull
        }
    };
    let mut seen = stage.cell(row, pull, [0, 0]);
    if !fallback {
        seen.cell = seen.cell.without_direct();
    }
    // How far the layers have come when the agent is gone, and whether a client tries again before another one is there.
    let changed = !matches!(change, Change::Absent | Change::FullDisk);
    seen.chance = changed.then(|| Chance { whole: stage.whole(), layers: true });
    Ok(seen)
}

/// Does it as soon as a layer is on its way, and gives those that are left.
async fn change_in_the_middle(
    stage: &Stage,
    agent: AgentProcess,
    change: Change,
) -> Result<Vec<AgentProcess>> {
    let middle = async {
        while stage.upstream.log().blob_gets().bytes() < MIDDLE {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if !matches!(change, Change::Absent) {
        tokio::time::timeout(LIMIT, middle).await.context("no layer was asked for")?;
    }
    Ok(match change {
        Change::FullDisk => vec![agent],
        Change::Absent | Change::Killed => {
            agent.kill().await?;
            Vec::new()
        }
        Change::Stopped => {
            agent.terminate()?;
            vec![agent]
        }
        Change::Restarted => {
            let addresses = agent.addresses;
            agent.kill().await?;
            vec![stage.agent(Some(addresses)).await?]
        }
        Change::Replaced => {
            let next = stage.agent(Some(agent.addresses)).await?;
            agent.terminate()?;
            vec![agent, next]
        }
    })
}
