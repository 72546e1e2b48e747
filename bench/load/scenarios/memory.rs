//! `memory`: resident memory of an agent with 100,000 blobs and 10,000 tags, at rest: after a clean start, after its index
//! was rebuilt, and after hits.

use std::time::Duration;

use anyhow::Result;
use kit::process::AgentProcess;

use crate::{
    Arguments,
    crowd::{self, BLOBS},
    report::Report,
};

const HITS: u32 = 2_000;
const REST: Duration = Duration::from_secs(12);

pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let (work, _upstream) = super::world().await?;
    let home = work.path().join("full");
    crowd::lay_out(&home, BLOBS)?;
    for _ in 0..arguments.rounds {
        let index = home.join("data/index-v1");
        if index.exists() {
            std::fs::remove_dir_all(&index)?;
        }
        let mut rebuilt = crowd::start(&home, BLOBS).await?;
        tokio::time::sleep(REST).await;
        tell(report, ["rss_after_rebuild_mib", "own_after_rebuild_mib"], &rebuilt.agent)?;
        rebuilt.agent.terminate()?;
        rebuilt.agent.wait().await?;

        let clean = crowd::start(&home, BLOBS).await?;
        tokio::time::sleep(REST).await;
        tell(report, ["rss_mib", "own_mib"], &clean.agent)?;
        crowd::hits(&clean.agent, BLOBS, HITS).await?;
        tokio::time::sleep(REST).await;
        tell(report, ["rss_after_hits_mib", "own_after_hits_mib"], &clean.agent)?;
    }
    Ok(())
}

/// Resident memory, and its part without the program and other files.
fn tell(report: &mut Report, [all, own]: [&'static str; 2], agent: &AgentProcess) -> Result<()> {
    let resident = crowd::resident(agent)?;
    report.figure(all, resident.all);
    report.figure(own, resident.own);
    Ok(())
}
