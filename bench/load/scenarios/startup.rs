//! `startup`: how soon an agent with 100,000 blobs and 10,000 tags is ready, how soon it has counted them when its index
//! is lost, and whether a hit takes longer than in a store with one blob.

use anyhow::Result;

use super::milliseconds;
use crate::{
    Arguments,
    crowd::{self, BLOBS},
    report::{Report, median_of},
};

const HITS: u32 = 400;

pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let (work, _upstream) = super::world().await?;
    let (full, empty) = (work.path().join("full"), work.path().join("empty"));
    crowd::lay_out(&full, BLOBS)?;
    crowd::lay_out(&empty, 1)?;
    for _ in 0..arguments.rounds {
        let index = full.join("data/index-v1");
        if index.exists() {
            std::fs::remove_dir_all(&index)?;
        }
        let mut lost = crowd::start(&full, BLOBS).await?;
        report.figure("rebuild_ms", milliseconds(lost.counted));
        report.figure("ready_without_index_ms", milliseconds(lost.ready));
        lost.agent.terminate()?;
        lost.agent.wait().await?;

        let mut clean = crowd::start(&full, BLOBS).await?;
        report.figure("ready_ms", milliseconds(clean.ready));
        let among_many = median_of(&crowd::hits(&clean.agent, BLOBS, HITS).await?);
        clean.agent.terminate()?;
        clean.agent.wait().await?;

        let alone = crowd::start(&empty, 1).await?;
        let among_none = median_of(&crowd::hits(&alone.agent, 1, HITS).await?);
        report.detail("hit ms, 100,000 blobs", among_many);
        report.detail("hit ms, 1 blob", among_none);
        report.figure("hit_ratio_vs_empty", among_many / among_none);
    }
    Ok(())
}
