//! `hearth build`, run as a user runs it.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use kit::process::binary;
use serde_json::Value;
use tokio::process::Command;

/// An image that `hearth build` made and pushed.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    /// Its tag.
    pub(crate) tag: String,
    /// Digest of its manifest.
    pub(crate) digest: String,
}

/// Runs `hearth build --push` on a specification and reads its report.
pub(crate) async fn build_images(
    spec: &Path,
    work: &Path,
    cache: &Path,
    registry: &str,
) -> Result<Vec<Built>> {
    let output: PathBuf = work.join("images");
    let child = Command::new(binary("hearth")?)
        .arg("build")
        .arg("--file")
        .arg(spec)
        .arg("--to")
        .arg(&output)
        .arg("--cache-dir")
        .arg(cache)
        .args(["--push", "--plain-http", registry, "--output", "json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start `hearth`")?;
    let result = child.wait_with_output().await?;
    if !result.status.success() {
        bail!("`hearth build` ended with {}; it says why above", result.status);
    }
    let report: Value =
        serde_json::from_slice(&result.stdout).context("`hearth build` printed no JSON report")?;
    read_report(&report).context("the report of `hearth build` lacks images")
}

fn read_report(report: &Value) -> Option<Vec<Built>> {
    let images = report["images"].as_array()?.iter();
    images
        .map(|image| {
            let tag = image["reference"].as_str()?.rsplit_once(':')?.1.to_owned();
            Some(Built { tag, digest: image["manifest"].as_str()?.to_owned() })
        })
        .collect()
}
