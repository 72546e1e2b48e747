//! A containerd of its own, with the CRI plugin and runc.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hearth_agent::runtime::Runtime;
use rustix::process::Signal;

use super::daemon::{signal, unmount_under};
use super::{Daemon, Finished, Suite, run};
use crate::net::Net;

/// Of images that CRI pulls: the only namespace that it looks into.
const NAMESPACE: &str = "k8s.io";

/// A pull and unpacking of 700 MB takes under a minute on two cores; a test that needs more than this is broken.
const PULL_LIMIT: Duration = Duration::from_mins(4);

/// A containerd daemon with root, state, socket and mirror configuration of its own.
#[derive(Debug)]
pub struct Containerd {
    daemon: Daemon,
    suite: Suite,
    directory: tempfile::TempDir,
}

impl Containerd {
    /// Starts one and waits until its CRI answers. Needs root.
    pub async fn start() -> Result<Self> {
        Self::start_of(Suite::Own).await
    }

    /// The same in another release.
    pub async fn start_of(suite: Suite) -> Result<Self> {
        Self::start_by(suite, suite.command("containerd")).await
    }

    /// The same on a node of a network: it pulls from there, and its containers have that node's network.
    pub async fn start_on(net: &Net, node: u8) -> Result<Self> {
        Self::start_by(Suite::Own, net.on(node, "containerd")).await
    }

    async fn start_by(suite: Suite, mut command: Command) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hearth-containerd-").tempdir()?;
        let path = directory.path();
        fs::create_dir_all(path.join("etc/containerd/certs.d"))?;
        let config = path.join("config.toml");
        let version = suite.version("containerd").await?;
        fs::write(&config, configuration(path, version))?;
        fs::write(path.join("etc/containerd/config.toml"), configuration(Path::new(""), version))?;
        command.arg("--config").arg(&config);
        let daemon = Daemon::start(&mut command, &path.join("log"))?;
        let mut this = Self { daemon, suite, directory };
        let runtime = this.runtime();
        this.daemon.ready(async |_| runtime.version().await.ok()).await?;
        Ok(this)
    }

    /// Where its clients reach it.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("containerd.sock")
    }

    /// Its directory as the file system of a node: `etc/containerd/config.toml` says what it was started with, and what
    /// is written where that says is what it reads.
    pub fn node(&self) -> &Path {
        self.directory.path()
    }

    /// Its CRI, by the client that the agent uses.
    pub fn runtime(&self) -> Runtime {
        Runtime::new(self.socket())
    }

    /// Writes `hosts.toml` for `registry`; it is read anew at every pull.
    pub fn configure(&self, registry: &str, hosts_toml: &str) -> Result<()> {
        let directory = self.hosts_directory().join(registry);
        fs::create_dir_all(&directory)?;
        Ok(fs::write(directory.join("hosts.toml"), hosts_toml)?)
    }

    /// Sends every request for `registry` to `mirror` and, when that fails, to `server`. A test that wants no way
    /// round the mirror names the mirror as the server.
    pub fn mirror(&self, registry: &str, mirror: &str, server: &str) -> Result<()> {
        let text = format!(
            "server = \"{server}\"\n\n[host.\"{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"200ms\"\n"
        );
        self.configure(registry, &text)
    }

    /// Pulls and unpacks `image` as `ctr images pull` does.
    pub async fn pull_by_ctr(&self, image: &str) -> Result<()> {
        let hosts = self.hosts_directory();
        let arguments = ["images", "pull", "--hosts-dir", &hosts.to_string_lossy(), image].map(str::to_owned);
        self.ctr(&arguments, PULL_LIMIT)
            .await?
            .output()
            .with_context(|| format!("`ctr` cannot pull `{image}`"))?;
        Ok(())
    }

    /// Pulls and unpacks `image` as a kubelet has it pulled; gives the image's id, the digest of its configuration.
    pub async fn pull_by_cri(&self, image: &str) -> Result<String> {
        let answer = tokio::time::timeout(PULL_LIMIT, self.runtime().pull(image, None)).await;
        answer
            .with_context(|| format!("CRI took longer than {PULL_LIMIT:?} to pull `{image}`"))?
            .with_context(|| format!("CRI cannot pull `{image}`"))
    }

    /// Removes every image, what only they needed, and what pulls that failed left: the next pull starts from nothing.
    pub async fn forget_images(&self) -> Result<()> {
        let names = self.output(&["images", "list", "--quiet"]).await?;
        if !names.trim().is_empty() {
            let names: Vec<_> = ["images", "remove"].into_iter().chain(names.lines()).collect();
            self.output(&names).await?;
        }
        // The end of a lease is what the collector can be made to be waited for at.
        self.output(&["leases", "create", "--id", "forget"]).await?;
        self.output(&["leases", "delete", "--sync", "forget"]).await?;
        Ok(())
    }

    /// Runs `ctr` and gives what it printed.
    pub async fn output(&self, words: &[&str]) -> Result<String> {
        let owned: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let finished = self.ctr(&owned, PULL_LIMIT).await?;
        finished.output().with_context(|| format!("`ctr {}` failed", words.join(" ")))
    }

    /// Its content directory, with `blobs/sha256/` in it.
    pub fn content(&self) -> PathBuf {
        self.directory.path().join("root/io.containerd.content.v1.content")
    }

    /// The blob `digest` (`sha256:...`) as containerd keeps it.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.content().join("blobs").join(digest.replace(':', "/"))
    }

    /// The labels of the record of the name `image`.
    pub async fn labels_of(&self, image: &str) -> Result<String> {
        let listed = self.output(&["images", "list", &format!("name=={image}")]).await?;
        let line = listed.lines().find(|line| line.starts_with(image));
        let labels = line.and_then(|line| line.split_whitespace().last());
        labels.map(str::to_owned).with_context(|| format!("`{image}` is not among the images:\n{listed}"))
    }

    /// The digest that the name `image` stands for here.
    pub async fn digest_of(&self, image: &str) -> Result<String> {
        let arguments = ["images", "list", &format!("name=={image}")].map(str::to_owned);
        let listed = self.ctr(&arguments, Duration::from_secs(20)).await?.output()?;
        let line = listed.lines().find(|line| line.starts_with(image));
        let digest = line.and_then(|line| line.split_whitespace().find(|word| word.starts_with("sha256:")));
        digest.map(str::to_owned).with_context(|| format!("`{image}` is not among the images:\n{listed}"))
    }

    /// Runs `command` in a container of `image` in the host's network, to its end, and removes it. `options` are
    /// flags of `ctr run`, which leaves the image's entry point out when there is a command.
    pub async fn run_container(
        &self,
        image: &str,
        options: &[&str],
        command: &[&str],
        limit: Duration,
    ) -> Result<Finished> {
        let id = format!(
            "hearth-{}-{}",
            std::process::id(),
            CONTAINER.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
        );
        let fixed = ["run", "--rm", "--net-host"];
        let words =
            fixed.iter().chain(options).copied().chain([image, id.as_str()]).chain(command.iter().copied());
        self.ctr(&words.map(str::to_owned).collect::<Vec<_>>(), limit).await
    }

    async fn ctr(&self, arguments: &[String], limit: Duration) -> Result<Finished> {
        run(self.ctr_command(arguments), limit).await
    }

    fn ctr_command(&self, arguments: &[String]) -> Command {
        let mut command = self.suite.command("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", NAMESPACE]).args(arguments);
        command
    }

    fn hosts_directory(&self) -> PathBuf {
        self.directory.path().join("etc/containerd/certs.d")
    }

    /// The process ids of the shims that serve this daemon: they name its socket among their arguments.
    fn shims(&self) -> Vec<u32> {
        let socket = self.socket();
        let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
        processes
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|id: &u32| *id != self.daemon.id())
            .filter(|id| {
                let arguments = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
                let mut words = arguments.split(|byte| *byte == 0);
                words.next().is_some_and(|program| program.ends_with(b"/containerd-shim-runc-v2"))
                    && words.any(|word| word == socket.as_os_str().as_encoded_bytes())
            })
            .collect()
    }
}

static CONTAINER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

impl Drop for Containerd {
    fn drop(&mut self) {
        // A container that a failed test left behind outlives the daemon: end it through runc's own state first.
        for shim in self.shims() {
            let children =
                fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap_or_default();
            children
                .split_whitespace()
                .filter_map(|id| id.parse().ok())
                .for_each(|id| signal(id, Signal::KILL));
            signal(shim, Signal::KILL);
        }
        self.daemon.stop();
        unmount_under(self.directory.path());
    }
}

/// Only what these tests need: no CNI, no other snapshotter, nothing outside `path`.
fn configuration(path: &Path, (major, _): (u32, u32)) -> String {
    let path = path.display();
    // Not every machine lets a process lower its own oom score.
    let cri = if major < 2 {
        format!(
            r#"version = 2

[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{path}/cni"
bin_dir = "{path}/cni"

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{path}/etc/containerd/certs.d"
"#
        )
    } else {
        format!(
            r#"version = 3

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
conf_dir = "{path}/cni"
bin_dirs = ["{path}/cni"]

[plugins."io.containerd.cri.v1.images".registry]
config_path = "{path}/etc/containerd/certs.d"
"#
        )
    };
    // Of the snapshotters only overlayfs; NRI listens outside of `path`.
    let (version, cri) = cri.split_once('\n').unwrap_or_default();
    format!(
        r#"{version}
root = "{path}/root"
state = "{path}/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.tracing", "io.containerd.nri.v1.nri",
]

[grpc]
address = "{path}/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
path = "{path}/opt"
{cri}"#
    )
}
