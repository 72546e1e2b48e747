//! What the scenarios about images share: programs that must succeed, files in a cache, trees of images.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

/// Nothing here takes longer on the slowest machine.
const LIMIT: Duration = Duration::from_mins(10);

/// Runs a program that must succeed.
pub(crate) async fn run(command: &mut Command) -> Result<()> {
    output(command).await.map(drop)
}

/// Runs a program that must succeed and gives what it prints.
pub(crate) async fn output(command: &mut Command) -> Result<Vec<u8>> {
    let name = format!("{:?}", command.as_std());
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(LIMIT, running).await.with_context(|| format!("{name} runs on"))?;
    let output = output.with_context(|| format!("cannot run {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{name} ended with {}:\n{said}", output.status);
    Ok(output.stdout)
}

/// Runs a program that must succeed and gives the most memory that it had, in KiB.
pub(crate) async fn run_watched(command: &mut Command) -> Result<u64> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let status = format!("/proc/{}/status", child.id().context("it was started")?);
    let mut peak = 0;
    loop {
        // The kernel keeps the mark; the last look before the end counts.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let mark = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        peak = mark.and_then(|mark| mark.trim().parse().ok()).unwrap_or(peak).max(peak);
        if let Ok(ended) = tokio::time::timeout(Duration::from_millis(20), child.wait()).await {
            ensure!(ended?.success(), "{:?} failed", command.as_std());
            return Ok(peak);
        }
    }
}

/// Removes a directory when it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove `{}`", path.display()))
        }
        _ => Ok(()),
    }
}

/// Puts a download into a cache of hearth's, as if it had come from its server; gives its SHA-256.
pub(crate) fn store(file: &Path, cache: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut fs::File::open(file)?, &mut HashWriter(&mut hasher))?;
    let hex = hex::encode(hasher.finalize());
    let place = cache.join("files-v1").join(&hex[..2]);
    fs::create_dir_all(&place)?;
    fs::copy(file, place.join(&hex))?;
    Ok(hex)
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Unpacks the layers of the only image of a layout but the lowest, which is its base.
pub(crate) async fn unpack_above(layout: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let manifest: Value = serde_json::from_slice(&fs::read(blob(layout, &index["manifests"][0])?)?)?;
    for layer in manifest["layers"].as_array().context("a manifest has layers")?.iter().skip(1) {
        let mut tar = Command::new("tar");
        run(tar.arg("-xzf").arg(blob(layout, layer)?).arg("-C").arg(to)).await?;
    }
    Ok(())
}

fn blob(layout: &Path, descriptor: &Value) -> Result<PathBuf> {
    let digest = descriptor["digest"].as_str().context("a descriptor has a digest")?;
    Ok(layout.join("blobs").join(digest.replace(':', "/")))
}
