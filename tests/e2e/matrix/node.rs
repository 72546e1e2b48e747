//! What the agent writes on a node and has its runtime do: `setup`, its check and its way back, and images in the runtime.

mod images;
mod setup;

use anyhow::Result;
use kit::runtime::Suite;

use super::client::Kind;
use super::compare as compare_with_table;

/// Compares the column of one client.
pub async fn compare(kind: Kind, suite: Suite) -> Result<()> {
    let mut seen = setup::column(kind, suite).await?;
    if kind == Kind::Containerd {
        seen.extend(images::column(suite).await?);
    }
    compare_with_table(kind, suite, "setup and the runtime's images", &seen)
}
