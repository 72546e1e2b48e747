//! What each cell has for itself: an image that nobody else has, two registries with it, and an agent in front of one.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kit::agent::AgentConfig;
use kit::process::{Addresses, AgentProcess, binary};
use kit::registry::{FakeUpstream, Image, Layer, Log, random_bytes};

use super::cell::{Cell, Load};
use super::client::{Client, Kind, Route};
use super::table::Seen;
use crate::support::archive;

/// Longer than any pull that ends by itself.
const PULL_LIMIT: Duration = Duration::from_mins(3);

/// The tag of the index over the image.
pub const TAG: &str = "latest";

/// Of the layers in bytes; the largest is more than one of the agent's reads.
pub const LARGEST: u64 = 3 << 20;
const LAYERS: [u64; 3] = [200 << 10, LARGEST, 1 << 20];

static NUMBER: AtomicU64 = AtomicU64::new(1);

/// How one pull ended.
#[derive(Debug)]
pub struct Pull {
    /// How long it took.
    pub took: Duration,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// The registries, the agent and the image of one cell.
#[derive(Debug)]
pub struct Stage {
    /// The registry behind the agent.
    pub upstream: FakeUpstream,
    /// The same registry under another address, which is always well: what a client falls back to.
    pub fallback: FakeUpstream,
    /// The registry's name.
    pub registry: String,
    /// The image.
    pub image: Image,
    /// Digest of its index.
    pub index: String,
    home: tempfile::TempDir,
    config: AgentConfig,
}

impl Stage {
    /// Both registries with a new image.
    pub async fn set(kind: Kind) -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (upstream, fallback) = (FakeUpstream::start().await, FakeUpstream::start().await);
        let (image, index) = put_image(&upstream, number).await;
        ensure!(put_image(&fallback, number).await.1 == index, "the same layers make the same image");
        let registry = kind.registry(number);
        let mut config = AgentConfig::default().registry(&registry, &[&upstream.url()], "");
        if kind == Kind::Docker {
            config = config.with(&format!("defaultRegistry: {registry}"));
        }
        let home = tempfile::Builder::new().prefix("hearth-cell-").tempdir()?;
        Ok(Self { upstream, fallback, registry, image, index, home, config: config.with_log("info") })
    }

    /// Adds to the configuration of the agents that are started from here on.
    #[must_use]
    pub fn with(mut self, more: &str) -> Self {
        self.config = self.config.with(more);
        self
    }

    /// The agent's configuration file.
    pub fn configuration(&self) -> Result<PathBuf> {
        self.config.write(self.home.path())
    }

    /// The image by its tag.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.by_tag())
    }

    /// Starts an agent on the data directory of this cell, at the address of an earlier one if there is one.
    pub async fn agent(&self, earlier: Option<Addresses>) -> Result<AgentProcess> {
        let mut command = Command::new(binary("hearth-agent")?);
        command.args(["run", "--config"]).arg(self.configuration()?);
        if let Some(earlier) = earlier {
            command.args(["--mirror-listen", &earlier.mirror.to_string()]);
        }
        AgentProcess::start_by(command).await
    }

    /// The agent's data directory.
    pub fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The image by its tag, without the registry.
    pub fn by_tag(&self) -> String {
        format!("{}:{TAG}", self.image.repository)
    }

    /// The image by the digest of its index, without the registry.
    pub fn by_digest(&self) -> String {
        format!("{}@{}", self.image.repository, self.index)
    }

    /// Whom a client asks.
    pub fn route(&self, agent: &AgentProcess, fallback: bool) -> Route<'_> {
        let fallback = fallback.then(|| self.fallback.address());
        Route { registry: &self.registry, agent: agent.addresses.mirror, fallback }
    }

    /// One pull to its end.
    pub async fn pull(&self, client: &Client, route: &Route<'_>, image: &str) -> Pull {
        let started = Instant::now();
        let pulled = tokio::time::timeout(PULL_LIMIT, client.pull(route, image)).await;
        let error = match pulled {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(_) => Some(format!("no end after {PULL_LIMIT:?}")),
        };
        Pull { took: started.elapsed(), error }
    }

    /// Bytes of the configuration and the layers.
    pub fn whole(&self) -> u64 {
        self.upstream.size_of(&self.image.repository, &self.image.digest)
    }

    /// How many requests the two registries have had.
    pub fn marks(&self) -> [usize; 2] {
        [self.upstream.log().len(), self.fallback.log().len()]
    }

    /// The cell of a pull: with all that the registries were asked after `marks`.
    pub fn cell(&self, row: &str, pull: Pull, marks: [usize; 2]) -> Seen {
        let load = |log: &Log| Load::new(log.len() as u64, log.bytes());
        let Pull { took, error } = pull;
        let cell = Cell::new(if error.is_none() { "pulled" } else { "fails" }, took)
            .upstream(load(&self.upstream.log().since(marks[0])))
            .direct(load(&self.fallback.log().since(marks[1])));
        Seen { row: row.to_owned(), cell, took, why: error, chance: None }
    }
}

async fn put_image(upstream: &FakeUpstream, number: u64) -> (Image, String) {
    let layers = (number * 10..).zip(LAYERS).map(|(seed, size)| {
        let size = usize::try_from(size).expect("a few megabytes");
        Layer::Bytes(archive(&random_bytes(seed, size)))
    });
    let image = upstream.image(&format!("data/app-{number}"), "1", layers).await;
    let index = upstream.index(TAG, &image);
    (image, index)
}
