//! A Docker daemon of its own, which only pulls.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::daemon::{signal, unmount_under};
use super::{Daemon, Suite};

/// A reload takes milliseconds.
const RELOAD: Duration = Duration::from_secs(20);

/// A daemon with root, state and socket of its own. It makes no network and touches no firewall.
#[derive(Debug)]
pub struct Dockerd {
    daemon: Daemon,
    directory: tempfile::TempDir,
}

impl Dockerd {
    /// Starts one that asks `mirror` for images of Docker Hub, and waits until it listens. Needs root.
    pub async fn start(mirror: &str) -> Result<Self> {
        Self::start_of(Suite::Own, &configuration(&[mirror])).await
    }

    /// The same in another release, with this `daemon.json`. Docker Hub itself is out of reach.
    pub async fn start_of(suite: Suite, configuration: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hearth-dockerd-").tempdir()?;
        let at = |name: &str| directory.path().join(name);
        let mut command = suite.command("dockerd");
        command.arg("--data-root").arg(at("root")).arg("--exec-root").arg(at("exec"));
        command.arg("--pidfile").arg(at("pid")).arg("--config-file").arg(at("daemon.json"));
        command.arg(format!("--host=unix://{}", at("docker.sock").display()));
        command.args(["--storage-driver=vfs", "--bridge=none"]);
        command.args(["--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
        // Nothing listens there. What is on loopback is reached without a proxy.
        command.env("HTTPS_PROXY", "http://127.0.0.1:9");
        fs::write(at("daemon.json"), configuration)?;
        let daemon = Daemon::start(&mut command, &at("log"))?;
        let mut this = Self { daemon, directory };
        let socket = this.socket();
        // It listens before it has a handler for signals, and answers after.
        this.daemon.ready(async |_| call(&socket, "GET", "/_ping").await.ok()).await?;
        Ok(this)
    }

    /// From here on it asks these mirrors, in this order.
    pub async fn set_mirrors(&self, mirrors: &[&str]) -> Result<()> {
        fs::write(self.directory.path().join("daemon.json"), configuration(mirrors))?;
        signal(self.daemon.id(), Signal::HUP);
        let reloaded = async {
            // It lists them with a slash at the end.
            while !{
                let info = call(&self.socket(), "GET", "/info").await?;
                let info: serde_json::Value = serde_json::from_str(&info).context("`/info` is JSON")?;
                let listed = info["RegistryConfig"]["Mirrors"].as_array().cloned().unwrap_or_default();
                let listed = listed.iter().filter_map(|one| Some(one.as_str()?.trim_end_matches('/')));
                listed.eq(mirrors.iter().copied())
            } {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(RELOAD, reloaded).await.context("the daemon does not take new mirrors")?
    }

    /// Pulls `repository:tag` or `repository@digest` of Docker Hub.
    pub async fn pull(&self, image: &str) -> Result<()> {
        let path = format!(
            "/images/create?fromImage={}",
            image.replace('/', "%2F").replace(':', "%3A").replace('@', "%40")
        );
        let steps = call(&self.socket(), "POST", &path).await?;
        let mut lines = steps.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        match lines.find_map(|line| Some(line.get("error")?.as_str()?.to_owned())) {
            Some(error) => bail!("Docker cannot pull `{image}`: {error}"),
            None => Ok(()),
        }
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

/// A `daemon.json` with these mirrors of Docker Hub.
fn configuration(mirrors: &[&str]) -> String {
    serde_json::json!({ "registry-mirrors": mirrors }).to_string()
}

/// The body of an answer of its API. In HTTP/1.0 an answer ends with the connection and has no chunks.
async fn call(socket: &Path, method: &str, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket).await.context("the Docker daemon does not listen")?;
    stream.write_all(format!("{method} {path} HTTP/1.0\r\nHost: docker\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.context("cannot read the Docker daemon's answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "`{method} {path}`: {answer}");
    Ok(body.to_owned())
}
