//! The clients, each in a release of its own, behind one way to pull.

use std::net::SocketAddr;

use anyhow::Result;
use kit::runtime::{Containerd, ContainersTools, Dockerd, Mirror, Suite};

/// Nothing listens there.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By CRI, as a kubelet has it pull.
    Containerd,
    /// Into its storage.
    Podman,
    /// Into its storage.
    Buildah,
    /// Into a directory.
    Skopeo,
    /// By its API.
    Docker,
}

impl Kind {
    /// Its name in the tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Podman => "podman",
            Self::Buildah => "buildah",
            Self::Skopeo => "skopeo",
            Self::Docker => "docker",
        }
    }

    /// Docker uses mirrors for Docker Hub alone; the others get a registry of the number's own.
    pub fn registry(self, number: u64) -> String {
        if self == Self::Docker { "docker.io".to_owned() } else { format!("r{number}.test") }
    }
}

/// Whom a client asks: the agent first.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// The registry's name.
    pub registry: &'a str,
    /// The agent's mirror listener.
    pub agent: SocketAddr,
    /// The registry that it falls back to; without one, nothing listens there.
    pub fallback: Option<SocketAddr>,
}

/// A client, started.
#[derive(Debug)]
pub enum Client {
    /// One daemon for all pulls.
    Containerd(Containerd),
    /// Started anew for each pull, with an empty storage.
    Tools(Kind, Suite),
    /// One daemon for one pull at a time: its mirrors are the same for all.
    Docker(Dockerd),
}

impl Client {
    /// Starts it where it is a daemon.
    pub async fn start(kind: Kind, suite: Suite) -> Result<Self> {
        Ok(match kind {
            Kind::Containerd => Self::Containerd(Containerd::start_of(suite).await?),
            Kind::Docker => Self::Docker(Dockerd::start_of(suite, "{}").await?),
            kind => Self::Tools(kind, suite),
        })
    }

    /// Pulls `image` (`repository:tag` or `repository@digest`) with nothing of it there before.
    pub async fn pull(&self, route: &Route<'_>, image: &str) -> Result<()> {
        let Route { registry, agent, fallback } = *route;
        let (mirror, fallback) = (format!("http://{agent}"), fallback.unwrap_or(NOWHERE));
        let name = format!("{registry}/{image}");
        match self {
            Self::Containerd(containerd) => {
                containerd.mirror(registry, &mirror, &format!("http://{fallback}"))?;
                containerd.pull_by_cri(&name).await.map(drop)
            }
            Self::Docker(docker) => {
                let fallback = format!("http://{fallback}");
                docker.set_mirrors(&[&mirror, &fallback]).await?;
                docker.pull(image).await
            }
            Self::Tools(kind, suite) => {
                let tools = ContainersTools::of(*suite, Mirror { registry, agent }, Some(fallback))?;
                pull_by_tool(&tools, *kind, &name).await
            }
        }
    }
}

/// Pulls `name` as one of the tools does.
pub async fn pull_by_tool(tools: &ContainersTools, kind: Kind, name: &str) -> Result<()> {
    match kind {
        Kind::Podman => tools.podman_pull(name).await,
        Kind::Buildah => tools.buildah_pull(name).await,
        _ => tools.skopeo_copy(name, "copied").await.map(drop),
    }
}
