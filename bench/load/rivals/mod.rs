//! The agent and its rivals as real processes on loopback, each with its own folder.

mod docker_registry;
mod nginx;
mod varnish;

use std::{net::SocketAddr, path::Path};

use anyhow::Result;
use kit::{
    agent::{AgentConfig, REGISTRY},
    process::AgentProcess,
    registry::FakeUpstream,
    runtime::Daemon,
};

pub(crate) use self::{
    docker_registry::start as docker_registry, nginx::start as nginx, varnish::start as varnish,
};

/// Repository of all blobs.
pub(crate) const REPOSITORY: &str = "bench/blob";

/// Something that serves blobs.
#[derive(Debug)]
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    query: String,
    process: Process,
}

#[derive(Debug)]
enum Process {
    Agent(AgentProcess),
    Rival(Daemon),
}

impl Contestant {
    fn rival(name: &'static str, address: SocketAddr, daemon: Daemon) -> Self {
        Self { name, address, query: String::new(), process: Process::Rival(daemon) }
    }

    /// Path of a blob.
    pub(crate) fn path(&self, digest: &str) -> String {
        format!("/v2/{REPOSITORY}/blobs/{digest}{}", self.query)
    }

    /// What it logged, for the message of a failed measurement.
    pub(crate) fn log(&self) -> String {
        match &self.process {
            Process::Agent(agent) => agent.log(),
            Process::Rival(daemon) => daemon.printed(),
        }
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        match &self.process {
            Process::Agent(agent) => agent.id().unwrap_or_default(),
            Process::Rival(daemon) => daemon.id(),
        }
    }
}

/// The agent, with its defaults.
pub(crate) async fn agent(upstream: &FakeUpstream, work: &Path) -> Result<Contestant> {
    let home = work.join("agent");
    std::fs::create_dir_all(&home)?;
    let config = AgentConfig::for_upstream(upstream).with_log("warn,hearth_agent::app=info");
    let agent = config.start_process(&home).await?;
    let address = agent.addresses.mirror;
    Ok(Contestant {
        name: "hearth-agent",
        address,
        query: format!("?ns={REGISTRY}"),
        process: Process::Agent(agent),
    })
}

/// A loopback port that was free a moment ago, for programs that cannot say which one they took.
fn free_port() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Waits until something accepts connections there.
async fn accepting(daemon: &mut Daemon, address: SocketAddr) -> Result<()> {
    daemon.ready(async |_| tokio::net::TcpStream::connect(address).await.ok().map(drop)).await
}
