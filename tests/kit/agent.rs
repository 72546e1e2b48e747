//! The agent inside the test process: its own library, on free loopback ports, with its data in a temporary folder.
//!
//! [`AgentConfig`] writes the configuration file that a user would write; [`Agent`] runs it in process, and
//! [`AgentConfig::start_process`] runs the real binary with it, for signals and kills.

use std::{
    fmt::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use hearth_agent::{app::App, config::Config};
use reqwest::{Client, Method, RequestBuilder, Response};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    metrics::Metrics,
    process::{Addresses, AgentProcess},
    registry::FakeUpstream,
};

/// The registry's name in tests, as references say it.
pub const REGISTRY: &str = "registry.test";

/// Whom the kit's clients say they are: most tests are about what containerd is told.
pub const CLIENT: &str = "containerd/2.1.9";

/// How long an agent may take to drain in process.
const STOP: Duration = Duration::from_mins(1);

/// A configuration file in the making.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    registries: String,
    rest: String,
    log: String,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self { registries: String::new(), rest: String::new(), log: "info,hearth_agent=debug".to_owned() }
    }
}

impl AgentConfig {
    /// [`REGISTRY`] is this upstream.
    pub fn for_upstream(upstream: &FakeUpstream) -> Self {
        Self::default().registry(REGISTRY, &[&upstream.url()], "")
    }

    /// Adds a registry. `more` are further keys of its entry in flow style (`private: agent`), or nothing.
    #[must_use]
    pub fn registry(mut self, host: &str, endpoints: &[&str], more: &str) -> Self {
        let comma = if more.is_empty() { "" } else { ", " };
        let endpoints = endpoints.join(", ");
        let _ =
            writeln!(self.registries, "  - {{ host: \"{host}\", endpoints: [{endpoints}]{comma}{more} }}");
        self
    }

    /// Adds top-level keys as they stand.
    #[must_use]
    pub fn with(mut self, yaml: &str) -> Self {
        self.rest.push_str(yaml);
        self.rest.push('\n');
        self
    }

    /// Logs less or more than tests want.
    #[must_use]
    pub fn with_log(self, filter: &str) -> Self {
        Self { log: filter.to_owned(), ..self }
    }

    /// The file's text.
    pub fn yaml(&self, data: &Path) -> String {
        // A test must not depend on how full its machine's disk is.
        let store = if self.rest.contains("store:") { "" } else { "store: { minFree: \"0\" }\n" };
        let admin = if self.rest.contains("admin:") { "" } else { "admin: { listen: 127.0.0.1:0 }\n" };
        let peer = if self.rest.contains("peer:") { "" } else { "peer: { listen: 127.0.0.1:0 }\n" };
        format!(
            "dataDir: {}\n{store}{peer}{admin}mirror: {{ listen: 127.0.0.1:0 }}\n\
             log: {{ format: json, filter: \"{}\" }}\n{}registries:\n{}",
            data.display(),
            self.log,
            self.rest,
            self.registries
        )
    }

    /// Writes the file into a folder and starts the real binary with it; its data lies in the same folder.
    pub async fn start_process(&self, home: &Path) -> Result<AgentProcess> {
        AgentProcess::start(&self.write(home)?).await
    }

    /// Writes the file `agent.yaml` into a folder, with `data` beside it.
    pub fn write(&self, home: &Path) -> Result<PathBuf> {
        let path = home.join("agent.yaml");
        std::fs::write(&path, self.yaml(&home.join("data"))).context("cannot write the configuration")?;
        Ok(path)
    }
}

/// An agent in this process. Dropping it tells it to end.
#[derive(Debug)]
pub struct Agent {
    /// Where it listens.
    pub addresses: Addresses,
    home: Arc<TempDir>,
    stop: CancellationToken,
    _end: DropGuard,
    task: JoinHandle<Result<(), String>>,
    client: Client,
}

impl Agent {
    /// Starts one with an empty store.
    pub async fn start(config: &AgentConfig) -> Self {
        let home =
            tempfile::Builder::new().prefix("kit-agent-").tempdir().expect("temporary folders are available");
        Self::start_in(config, Arc::new(home)).await
    }

    /// Starts one on the data of an earlier one.
    pub async fn start_in(config: &AgentConfig, home: Arc<TempDir>) -> Self {
        let yaml = config.yaml(&home.path().join("data"));
        let parsed = Config::from_yaml(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
        let app = App::build(parsed).await.expect("free ports and an own folder");
        let bound = app.addresses();
        let addresses = Addresses { mirror: bound.mirror, admin: bound.admin };
        let stop = CancellationToken::new();
        let (token, end) = (stop.clone(), stop.clone().drop_guard());
        let task = tokio::spawn(async move { app.run(token).await.map_err(|error| error.to_string()) });
        let client = Client::builder().no_proxy().user_agent(CLIENT).build().expect("a plain client");
        Self { addresses, home, stop, _end: end, task, client }
    }

    /// Drains and ends it, and gives its data back.
    pub async fn stop(self) -> Arc<TempDir> {
        self.stop.cancel();
        let mut task = self.task;
        let ended = tokio::time::timeout(STOP, &mut task).await.expect("the agent drains within a minute");
        ended.expect("the agent does not panic").expect("the agent drains without an error");
        self.home
    }

    /// Tells it to end; it goes on draining.
    pub fn begin_stop(&self) {
        self.stop.cancel();
    }

    /// What [`Self::start_in`] needs to start another one on the same data.
    pub fn home(&self) -> Arc<TempDir> {
        self.home.clone()
    }

    /// Its folder; the store lies in `data` below.
    pub fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The Unix socket for its commands.
    pub fn socket(&self) -> PathBuf {
        self.data().join("agent.sock")
    }

    /// Where the mirror listens.
    pub fn mirror(&self) -> SocketAddr {
        self.addresses.mirror
    }

    /// `http://<mirror>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addresses.mirror)
    }

    /// A request to the mirror.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url()))
    }

    /// `GET` of a path of the mirror.
    pub async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.expect("the mirror answers")
    }

    /// `HEAD` of a path of the mirror.
    pub async fn head(&self, path: &str) -> Response {
        self.request(Method::HEAD, path).send().await.expect("the mirror answers")
    }

    /// Its metrics now.
    pub async fn metrics(&self) -> Metrics {
        Metrics::scrape(self.addresses.admin).await.expect("the admin listener answers")
    }

    /// Names of the whole blobs in its store.
    pub fn stored(&self) -> Vec<String> {
        stored_blobs(&self.data())
    }
}

/// Path on the mirror of a blob of [`REGISTRY`].
pub fn blob_path(repository: &str, digest: &str) -> String {
    format!("/v2/{repository}/blobs/{digest}?ns={REGISTRY}")
}

/// Path on the mirror of a manifest of [`REGISTRY`].
pub fn manifest_path(repository: &str, reference: &str) -> String {
    format!("/v2/{repository}/manifests/{reference}?ns={REGISTRY}")
}

/// Digests of the whole blobs in a store, by their file names; their bytes may be anything.
pub fn stored_blobs(data: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![data.join("blobs-v1/sha256")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if name.len() == 64 {
                found.push(format!("sha256:{name}"));
            }
        }
    }
    found.sort();
    found
}

/// Asserts that every blob in a store is what its name says.
pub fn assert_store_is_right(data: &Path) {
    for digest in stored_blobs(data) {
        let hex = digest.trim_start_matches("sha256:");
        let path = data.join("blobs-v1/sha256").join(&hex[..2]).join(hex);
        let bytes = std::fs::read(&path).expect("a stored blob is readable");
        assert_eq!(crate::registry::sha256(&bytes), digest, "{} holds other bytes", path.display());
    }
}
