//! `hearth-agent setup` against a node's file system that the real client reads.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use kit::process::{AgentProcess, binary};
use kit::runtime::{Containerd, ContainersTools, Dockerd, Finished, Suite, run};

use super::super::client::{Kind, pull_by_tool};
use super::super::stage::{Pull, Stage};
use super::super::table::Seen;

const LIMIT: Duration = Duration::from_mins(3);

/// Of a Docker that somebody configured before.
const DAEMON_JSON: &str = "{\n  \"log-level\": \"warn\"\n}\n";

/// A node with one client.
enum Node {
    Containerd(Containerd),
    Tools(ContainersTools),
    /// Docker reads its configuration at its start.
    Docker(tempfile::TempDir, Option<Dockerd>),
}

struct Setup {
    kind: Kind,
    suite: Suite,
    stage: Stage,
    agent: AgentProcess,
    node: Node,
}

/// The rows of one client, one after the other on one node.
pub async fn column(kind: Kind, suite: Suite) -> Result<Vec<Seen>> {
    let stage = Stage::set(kind).await?;
    let agent = stage.agent(None).await?;
    let mut setup = Setup { kind, suite, stage, agent, node: Node::start(kind, suite).await? };
    let before = files(&setup.node.root().join("etc"))?;
    let mut seen = Vec::new();

    seen.extend(setup.check("`setup --check` before `setup`").await?);
    let (finished, took) = setup.run(&[]).await?;
    let word = if files(&setup.node.root().join("etc"))? == before { "nothing written" } else { "written" };
    seen.push(said("`setup`", word, &finished, took));
    let written = files(&setup.node.root().join("etc"))?;
    let (finished, took) = setup.run(&[]).await?;
    let word = if files(&setup.node.root().join("etc"))? == written { "unchanged" } else { "written" };
    seen.push(said("`setup`, again", word, &finished, took));

    setup.node.reload(suite).await?;
    seen.extend(setup.check("`setup --check`").await?);
    seen.push(setup.pull().await);
    let (finished, took) = setup.run(&["--uninstall"]).await?;
    let word = if files(&setup.node.root().join("etc"))? == before { "restored" } else { "changed" };
    seen.push(said("`setup --uninstall`", word, &finished, took));
    setup.node.reload(suite).await?;
    seen.extend(setup.check("`setup --check` after it").await?);
    Ok(seen)
}

impl Node {
    async fn start(kind: Kind, suite: Suite) -> Result<Self> {
        Ok(match kind {
            Kind::Containerd => Self::Containerd(Containerd::start_of(suite).await?),
            Kind::Docker => {
                let directory = tempfile::Builder::new().prefix("hearth-node-").tempdir()?;
                fs::create_dir_all(directory.path().join("etc/docker"))?;
                fs::write(directory.path().join("etc/docker/daemon.json"), DAEMON_JSON)?;
                Self::Docker(directory, Some(Dockerd::start_of(suite, DAEMON_JSON).await?))
            }
            _ => Self::Tools(ContainersTools::without_mirror(suite)?),
        })
    }

    fn root(&self) -> &Path {
        match self {
            Self::Containerd(containerd) => containerd.node(),
            Self::Tools(tools) => tools.path(),
            Self::Docker(directory, _) => directory.path(),
        }
    }

    fn socket(&self) -> Option<PathBuf> {
        match self {
            Self::Containerd(containerd) => Some(containerd.socket()),
            Self::Tools(_) => None,
            Self::Docker(_, docker) => docker.as_ref().map(Dockerd::socket),
        }
    }

    /// What has to happen after a change of the configuration.
    async fn reload(&mut self, suite: Suite) -> Result<()> {
        if let Self::Docker(directory, docker) = self {
            drop(docker.take());
            let configuration = fs::read_to_string(directory.path().join("etc/docker/daemon.json"))?;
            *docker = Some(Dockerd::start_of(suite, &configuration).await?);
        }
        Ok(())
    }
}

impl Setup {
    /// `hearth-agent setup` with the registries of the agent that runs.
    async fn run(&self, more: &[&str]) -> Result<(Finished, Duration)> {
        let mut command = self.command()?;
        command.arg("--root").arg(self.node.root()).args(more);
        timed(run(command, LIMIT)).await
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(binary("hearth-agent")?);
        command.arg("setup").arg("--config").arg(self.stage.configuration()?);
        command.args(["--mirror-listen", &self.agent.addresses.mirror.to_string()]);
        command.args(["--admin-listen", &self.agent.addresses.admin.to_string()]);
        command.args([
            "--runtime",
            match self.kind {
                Kind::Containerd => "containerd",
                Kind::Docker => "docker",
                Kind::Podman | Kind::Buildah | Kind::Skopeo => "crio",
            },
        ]);
        Ok(command)
    }

    /// Has the client pull what only the agent has. buildah is no way in which a node can be checked.
    async fn check(&self, row: &str) -> Result<Option<Seen>> {
        let (finished, took) = match (&self.node, self.node.socket()) {
            (_, Some(socket)) => {
                let mut command = self.command()?;
                command.arg("--check").arg("--root").arg(self.node.root()).arg("--socket").arg(socket);
                timed(run(command, LIMIT)).await?
            }
            (Node::Tools(_), _) if self.kind == Kind::Buildah => return Ok(None),
            (Node::Tools(tools), _) => {
                // Where there is podman, skopeo is not asked.
                let alone = tools.path().join("alone");
                fs::create_dir_all(&alone)?;
                let link = alone.join(self.kind.name());
                fs::remove_file(&link).ok();
                symlink(program(&self.suite.command(self.kind.name()))?, &link)?;
                let command = self.command()?;
                let mut wrapped = Command::new("/usr/bin/env");
                wrapped.arg(format!("PATH={}", alone.display())).arg(command.get_program());
                wrapped.args(command.get_args()).arg("--check");
                timed(tools.run(wrapped)).await?
            }
            (_, None) => return Ok(None),
        };
        let word = if finished.success { "proved" } else { "refused" };
        Ok(Some(said(row, word, &Finished { success: true, ..finished }, took)))
    }

    /// A pull with the configuration as it is.
    async fn pull(&self) -> Seen {
        let (stage, marks) = (&self.stage, self.stage.marks());
        let name = stage.name();
        let pulled = timed(async {
            match &self.node {
                Node::Containerd(containerd) => containerd.pull_by_cri(&name).await.map(drop),
                Node::Tools(tools) => pull_by_tool(tools, self.kind, &name).await,
                Node::Docker(_, docker) => {
                    docker.as_ref().context("it was started")?.pull(&stage.by_tag()).await
                }
            }
            .map_err(|error| anyhow::anyhow!("{error:#}"))
        });
        let started = Instant::now();
        let (error, took) = match pulled.await {
            Ok(((), took)) => (None, took),
            Err(error) => (Some(error.to_string()), started.elapsed()),
        };
        stage.cell("pull with what `setup` wrote", Pull { took, error }, marks)
    }
}

async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<(T, Duration)> {
    let started = Instant::now();
    Ok((work.await?, started.elapsed()))
}

fn said(row: &str, word: &str, finished: &Finished, took: Duration) -> Seen {
    let outcome = if finished.success { word } else { "fails" };
    let why = format!("{}{}", finished.stdout, finished.stderr);
    Seen { why: Some(why), ..Seen::of(row, outcome, took) }
}

/// Where a command's program is.
fn program(command: &Command) -> Result<PathBuf> {
    let name = Path::new(command.get_program());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|directory| directory.join(name));
    // An absolute name is found in any directory.
    places.find(|place| place.is_file()).with_context(|| format!("`{}` is missing", name.display()))
}

/// Every file below a directory, with its bytes.
fn files(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(path.clone(), fs::read(&path)?);
            }
        }
    }
    Ok(found)
}
