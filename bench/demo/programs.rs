//! The project's own programs, built once and run as a user runs them.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail, ensure};
use kit::process::binary;
use serde_json::Value;
use tokio::process::Command;

/// Builds `hearth` and `hearth-agent` beside the demonstration's own program, with its profile. With `HEARTH_BIN_DIR`
/// set, the programs there are used as they are.
pub(crate) async fn build() -> Result<()> {
    if std::env::var_os("HEARTH_BIN_DIR").is_some() {
        return Ok(());
    }
    let own = std::env::current_exe()?;
    let profile_dir = own.parent().context("the running program lies in a folder")?;
    let target = profile_dir.parent().context("the profile's folder lies in the target folder")?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--quiet", "--package", "agent", "--package", "builder", "--target-dir"])
        .arg(target);
    command.arg("--manifest-path").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"));
    if profile_dir.ends_with("release") {
        command.arg("--release");
    }
    let output =
        command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("cannot run `cargo`")?;
    ensure!(output.status.success(), "`cargo build` failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

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
        .arg("--output")
        .arg(&output)
        .arg("--cache-dir")
        .arg(cache)
        .args(["--push", "--plain-http", registry, "--output-format", "json"])
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
