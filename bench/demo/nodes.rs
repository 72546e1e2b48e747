//! Three nodes: three `hearth-agent run` processes that are peers, each with its own data folder and free ports.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use indicatif::ProgressBar;
use kit::{
    cluster::{Place, places},
    metrics::Metrics,
    process::AgentProcess,
    pull::{Progress, Pulled, Puller},
    registry::FakeUpstream,
};

use crate::{
    programs::Built,
    screen::{Screen, bytes, seconds, table},
};

/// The registry's name as image references say it; the agents know where it is.
pub(crate) const REGISTRY: &str = "registry.test";
/// The repository of the demonstration.
pub(crate) const REPOSITORY: &str = "data/spark";

/// Starts the agents.
pub(crate) async fn start(work: &Path, upstream: &FakeUpstream, count: usize) -> Result<Vec<AgentProcess>> {
    // They hold the ports until the agents listen there.
    let places = places(count);
    let entries: Vec<_> = places.iter().map(Place::entry).collect();
    let starts = (1..).zip(&places).map(|(number, place)| {
        let dir = work.join(format!("node-{number}"));
        let config = format!(
            "dataDir: {}\nmirror: {{ listen: 127.0.0.1:0 }}\n\
             peer: {{ listen: \"{}\", name: {}, members: \"{}\" }}\nadmin: {{ listen: 127.0.0.1:0 }}\n\
             log: {{ format: json, filter: info }}\nstore: {{ minFree: \"0\" }}\nregistries:\n  - host: {REGISTRY}\n    endpoints: [{}]\n",
            dir.join("data").display(),
            place.address,
            place.name,
            entries.join(","),
            upstream.url()
        );
        async move {
            tokio::fs::create_dir_all(&dir).await?;
            let path = dir.join("agent.yaml");
            tokio::fs::write(&path, config).await?;
            AgentProcess::start(&path).await.with_context(|| format!("node {number} does not start"))
        }
    });
    try_join_all(starts).await
}

/// What an agent's metrics say about what it had from where.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    upstream_bytes: f64,
    upstream_requests: f64,
    throttled: f64,
    hits: f64,
}

impl Counters {
    async fn read(agent: &AgentProcess) -> Result<Self> {
        let metrics = Metrics::scrape(agent.addresses.admin).await?;
        Ok(Self {
            upstream_bytes: metrics.sum("hearth_upstream_bytes_total", &[]),
            upstream_requests: metrics.sum("hearth_upstream_requests_total", &[]),
            throttled: metrics.sum("hearth_upstream_requests_total", &[("status", "429")]),
            hits: metrics.sum("hearth_content_total", &[("result", "hit")]),
        })
    }
}

/// What a whole round took from upstream, by upstream's own count.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Round {
    pub(crate) requests: usize,
    pub(crate) bytes: u64,
    pub(crate) throttled: usize,
    pub(crate) pulled: u64,
}

/// Pulls every image through all agents, one image after the other, all nodes at the same time, and shows the table.
pub(crate) async fn round(
    screen: &Screen,
    upstream: &FakeUpstream,
    agents: &[AgentProcess],
    images: &[Built],
) -> Result<Round> {
    let mark = upstream.log().len();
    let head = ["node", "time", "pulled", "upstream", "requests", "429s", "hits"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut pulled = 0;
    for image in images {
        rows.push(vec![image.tag.clone()]);
        let nodes = agents.iter().enumerate().map(|(index, agent)| one(screen, index + 1, agent, image));
        for (row, bytes) in try_join_all(nodes).await? {
            rows.push(row);
            pulled += bytes;
        }
    }
    let log = upstream.log().since(mark);
    let round = Round { requests: log.len(), bytes: log.bytes(), throttled: log.status(429).len(), pulled };
    rows.push(vec![
        "counted by upstream".to_owned(),
        String::new(),
        bytes(pulled),
        bytes(round.bytes),
        round.requests.to_string(),
        round.throttled.to_string(),
    ]);
    screen.line(&table(&rows, 1));
    Ok(round)
}

/// One pull and its row of the table.
async fn one(
    screen: &Screen,
    number: usize,
    agent: &AgentProcess,
    image: &Built,
) -> Result<(Vec<String>, u64)> {
    let before = Counters::read(agent).await?;
    let bar = screen.bytes(&format!("node {number}, {}", image.tag));
    let pulled = pull(agent, image, &bar).await;
    bar.finish_and_clear();
    let pulled = pulled.with_context(|| format!("node {number} cannot pull `{}`", image.tag))?;
    ensure!(pulled.digest == image.digest, "node {number} resolved `{}` to `{}`", image.tag, pulled.digest);
    let after = Counters::read(agent).await?;
    // Counters are whole numbers far below 2^52.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "see above")]
    let upstream_bytes = (after.upstream_bytes - before.upstream_bytes) as u64;
    let row = vec![
        format!("  node {number}"),
        seconds(pulled.elapsed),
        bytes(pulled.bytes),
        bytes(upstream_bytes),
        (after.upstream_requests - before.upstream_requests).to_string(),
        (after.throttled - before.throttled).to_string(),
        (after.hits - before.hits).to_string(),
    ];
    Ok((row, pulled.bytes))
}

async fn pull(agent: &AgentProcess, image: &Built, bar: &ProgressBar) -> Result<Pulled> {
    let puller = Puller::new(&format!("http://{}", agent.addresses.mirror), Some(REGISTRY));
    let progress = |news| match news {
        Progress::Expect(total) => bar.set_length(total),
        Progress::Received(count) => bar.inc(count),
    };
    puller.pull(REPOSITORY, &image.tag, progress).await
}
