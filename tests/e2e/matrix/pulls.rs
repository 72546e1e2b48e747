//! Pulls with everything well.

use anyhow::Result;
use kit::runtime::Suite;

use super::client::{Client, Kind};
use super::stage::Stage;
use super::table::Seen;
use super::{compare as compare_with_table, side_by_side};

/// Compares the column of one client.
pub async fn compare(kind: Kind, suite: Suite) -> Result<()> {
    let seen = side_by_side(kind, suite, 1, vec![()], async |client, ()| column(kind, client).await).await?;
    compare_with_table(kind, suite, "pulls", &seen.concat())
}

/// One image after the other, for each its registry was asked by nobody else.
async fn column(kind: Kind, client: &Client) -> Result<Vec<Seen>> {
    let mut seen = Vec::new();

    let stage = Stage::set(kind).await?;
    let agent = stage.agent(None).await?;
    let route = stage.route(&agent, true);
    let tag = stage.by_tag();
    let pull = stage.pull(client, &route, &tag).await;
    seen.push(stage.cell("by tag", pull, [0, 0]));
    let marks = stage.marks();
    let pull = stage.pull(client, &route, &tag).await;
    seen.push(stage.cell("by tag, again", pull, marks));
    stage.upstream.stop().await;
    let marks = stage.marks();
    let pull = stage.pull(client, &stage.route(&agent, false), &tag).await;
    seen.push(stage.cell("by tag, again, the registry gone", pull, marks));

    let stage = Stage::set(kind).await?;
    let agent = stage.agent(None).await?;
    let route = stage.route(&agent, true);
    let pull = stage.pull(client, &route, &stage.by_digest()).await;
    seen.push(stage.cell("by digest", pull, [0, 0]));
    let marks = stage.marks();
    let pull = stage.pull(client, &route, &stage.by_digest()).await;
    seen.push(stage.cell("by digest, again", pull, marks));
    Ok(seen)
}
