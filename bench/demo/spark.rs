//! The built image at work: a containerd of its own pulls it through an agent and runs the pi example.

use std::time::Duration;

use anyhow::{Context, Result};
use kit::{process::AgentProcess, runtime::Containerd};

use crate::{
    nodes::{REGISTRY, REPOSITORY},
    programs::Built,
};

/// Spark needs a dozen seconds on two cores.
const LIMIT: Duration = Duration::from_mins(5);

/// Whether this machine can run it: root, containerd and runc are there.
pub(crate) fn possible() -> Result<(), &'static str> {
    if !rustix::process::geteuid().is_root() {
        return Err("not root");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = ["containerd", "ctr", "runc"]
        .into_iter()
        .find(|name| !std::env::split_paths(&path).any(|dir| dir.join(name).is_file()));
    match missing {
        Some("containerd") => Err("containerd is not installed"),
        Some("ctr") => Err("ctr is not installed"),
        Some(_) => Err("runc is not installed"),
        None => Ok(()),
    }
}

/// Pulls the image through the agent with containerd, runs the pi example and gives the line with the result.
pub(crate) async fn pi(agent: &AgentProcess, image: &Built) -> Result<String> {
    let containerd = Containerd::start().await.context("cannot start a containerd")?;
    let mirror = format!("http://{}", agent.addresses.mirror);
    // The mirror is also the last resort: nothing goes round the agent.
    containerd.mirror(REGISTRY, &mirror, &mirror)?;
    let reference = format!("{REGISTRY}/{REPOSITORY}:{}", image.tag);
    containerd.pull_by_cri(&reference).await?;
    let example = "/opt/spark/examples/src/main/python/pi.py";
    let arguments = ["/opt/spark/bin/spark-submit", "--master", "local[2]", example, "4"];
    let output = containerd.run_container(&reference, &[], &arguments, LIMIT).await?.output()?;
    let line = output.lines().find(|line| line.starts_with("Pi is roughly"));
    line.map(str::to_owned).with_context(|| format!("spark-submit did not print pi but:\n{output}"))
}
