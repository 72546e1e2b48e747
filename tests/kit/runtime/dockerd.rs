//! A Docker daemon of its own, which only pulls.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use tokio::net::UnixStream;

use super::Daemon;
use super::daemon::unmount_under;

/// A daemon with root, state and socket of its own. It makes no network and touches no firewall.
#[derive(Debug)]
pub struct Dockerd {
    daemon: Daemon,
    directory: tempfile::TempDir,
}

impl Dockerd {
    /// Starts one that asks `mirror` for images of Docker Hub, and waits until it listens. Needs root.
    pub async fn start(mirror: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hearth-dockerd-").tempdir()?;
        let at = |name: &str| directory.path().join(name);
        let mut command = Command::new("dockerd");
        command.arg("--data-root").arg(at("root")).arg("--exec-root").arg(at("exec"));
        command.arg("--pidfile").arg(at("pid")).arg("--config-file").arg(at("daemon.json"));
        command.arg(format!("--host=unix://{}", at("docker.sock").display()));
        command.args(["--registry-mirror", mirror, "--storage-driver=vfs", "--bridge=none"]);
        command.args(["--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
        std::fs::write(at("daemon.json"), "{}")?;
        let daemon = Daemon::start(&mut command, &at("log"))?;
        let mut this = Self { daemon, directory };
        let socket = this.socket();
        this.daemon.ready(async |_| UnixStream::connect(&socket).await.ok()).await?;
        Ok(this)
    }

    /// Where its clients reach it.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.daemon.printed()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.daemon.stop();
        unmount_under(self.directory.path());
    }
}
