//! The scenarios, one file each.

pub(crate) mod adversity;
pub(crate) mod builder;
pub(crate) mod cds;
pub(crate) mod cluster_api;
pub(crate) mod cold_burst;
mod content;
pub(crate) mod forest;
pub(crate) mod herd;
mod images;
pub(crate) mod job_start;
pub(crate) mod layering;
pub(crate) mod memory;
pub(crate) mod partial_pull;
pub(crate) mod push;
pub(crate) mod slow_upstream;
pub(crate) mod stall;
pub(crate) mod startup;
pub(crate) mod sync;
pub(crate) mod warm;

use anyhow::Result;
use kit::registry::FakeUpstream;
use tempfile::TempDir;

/// A folder on a disk, not in memory, and an upstream with its blobs there.
async fn world() -> Result<(TempDir, FakeUpstream)> {
    let home = kit::fixtures::directory();
    std::fs::create_dir_all(&home)?;
    let work = tempfile::Builder::new().prefix("hearth-load-").tempdir_in(home)?;
    let upstream = FakeUpstream::start_in(Some(&work.path().join("upstream")), 0).await?;
    Ok((work, upstream))
}

/// Seconds as a number.
fn seconds(time: std::time::Duration) -> f64 {
    time.as_secs_f64()
}

/// Milliseconds as a number.
pub(crate) fn milliseconds(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
