//! The reference registry as a pull-through proxy: the honest anchor for features.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::Result;
use kit::runtime::Daemon;

use super::{Contestant, accepting, free_port};

/// A proxy of `upstream`, which must be up.
pub(crate) async fn start(upstream: SocketAddr, work: &Path) -> Result<Contestant> {
    let dir = work.join("docker-registry");
    fs::create_dir_all(&dir)?;
    let address = free_port()?;
    let config = serde_json::json!({
        "version": "0.1",
        "log": { "level": "error", "accesslog": { "disabled": true } },
        "storage": { "filesystem": { "rootdirectory": dir.join("data"), "maxthreads": 100 } },
        "proxy": { "remoteurl": format!("http://{upstream}") },
        "http": { "addr": address.to_string() },
    });
    let path = dir.join("config.yml");
    fs::write(&path, config.to_string())?;
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&path).env("OTEL_TRACES_EXPORTER", "none");
    let mut daemon = Daemon::start(&mut command, &dir.join("log"))?;
    accepting(&mut daemon, address).await?;
    Ok(Contestant::rival("docker-registry", address, daemon))
}
