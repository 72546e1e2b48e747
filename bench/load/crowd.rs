//! A store with very many blobs and tags, as years on a node leave behind, and agents on it.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kit::{
    agent::{AgentConfig, REGISTRY, blob_path},
    process::AgentProcess,
    registry::sha256,
};
use serde_json::{Value, json};

use crate::client::Connection;

pub(crate) const BLOBS: u32 = 100_000;
const TAGS: u32 = 10_000;
const REPOSITORIES: u32 = 100;

/// What every blob holds behind its number.
const FILLING: [u8; 1024] = [7; 1024];

/// How long the agent may take to count everything.
const LIMIT: Duration = Duration::from_mins(2);

fn content(number: u32) -> Vec<u8> {
    [&number.to_be_bytes()[..], &FILLING].concat()
}

/// Lays out a data directory under `home`, as the store's module text draws it.
pub(crate) fn lay_out(home: &Path, blobs: u32) -> Result<()> {
    let data = home.join("data");
    fs::create_dir_all(&data)?;
    fs::write(data.join("format"), "hearth-store-v1")?;
    for shard in 0..=255_u8 {
        fs::create_dir_all(data.join(format!("blobs-v1/sha256/{shard:02x}")))?;
    }
    for number in 0..blobs {
        let bytes = content(number);
        let digest = sha256(&bytes);
        let hex = digest.trim_start_matches("sha256:");
        fs::write(data.join("blobs-v1/sha256").join(&hex[..2]).join(hex), &bytes)?;
        if number < TAGS {
            tag(&data, number, &digest, bytes.len())?;
        }
    }
    Ok(())
}

fn tag(data: &Path, number: u32, digest: &str, size: usize) -> Result<()> {
    let repository = data.join(format!("refs-v1/{REGISTRY}/team/app-{}", number % REPOSITORIES));
    fs::create_dir_all(repository.join("_tags"))?;
    fs::create_dir_all(repository.join("_manifests"))?;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let record = json!({ "digest": digest, "mediaType": media_type, "size": size, "confirmed": 1 });
    fs::write(repository.join(format!("_tags/v{number}")), record.to_string())?;
    fs::write(repository.join("_manifests").join(digest), json!({ "mediaType": media_type }).to_string())?;
    Ok(())
}

/// A real agent, and how long it took until it was ready and until it had counted its blobs.
pub(crate) struct Started {
    pub(crate) agent: AgentProcess,
    pub(crate) ready: Duration,
    pub(crate) counted: Duration,
}

/// Starts the agent on what was laid out under `home`.
pub(crate) async fn start(home: &Path, blobs: u32) -> Result<Started> {
    let config = AgentConfig::default()
        .registry(REGISTRY, &["http://127.0.0.1:9"], "")
        .with("store: { limit: 100%, minFree: \"0\", scrubRate: \"0\" }")
        .with_log("info")
        .write(home)?;
    let begun = Instant::now();
    let agent = AgentProcess::start(&config).await?;
    // It listens before it is ready, and says 503 until then.
    let ready = loop {
        if page(&agent, "/readyz").await.is_ok() {
            break begun.elapsed();
        }
        ensure!(begun.elapsed() < LIMIT, "not ready in time; its log:\n{}", agent.log());
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    loop {
        let status: Value = serde_json::from_str(&page(&agent, "/api/v1/status").await?)?;
        if status["store"]["counted"] == true {
            ensure!(status["store"]["blobs"] == blobs, "another number of blobs: {status}");
            return Ok(Started { agent, ready, counted: begun.elapsed() });
        }
        ensure!(begun.elapsed() < LIMIT, "not counted in time; its log:\n{}", agent.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A page of the admin listener, by the plainest client there is: what is measured is the agent.
async fn page(agent: &AgentProcess, path: &str) -> Result<String> {
    let (address, path) = (agent.addresses.admin, path.to_owned());
    let text = tokio::task::spawn_blocking(move || {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.write_all(
            format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    })
    .await??;
    ensure!(text.starts_with("HTTP/1.1 200"), "`{}`", text.lines().next().unwrap_or_default());
    Ok(text.split_once("\r\n\r\n").context("an answer has a head and a body")?.1.to_owned())
}

/// Time of each of `count` requests for blobs that are there.
pub(crate) async fn hits(agent: &AgentProcess, blobs: u32, count: u32) -> Result<Vec<f64>> {
    let mirror = agent.addresses.mirror;
    let times = tokio::task::spawn_blocking(move || {
        let ask = |turn: u32| {
            // Spread over the store.
            let number = turn.wrapping_mul(2_654_435_761) % blobs;
            let bytes = content(number);
            let path = blob_path("team/app", &sha256(&bytes));
            let mut connection = Connection::open(mirror, &path)?;
            connection.get(bytes.len() as u64)?;
            Ok(super::scenarios::milliseconds(connection.get(bytes.len() as u64)?.total))
        };
        (0..count).map(ask).collect::<Result<Vec<_>>>()
    });
    times.await?
}

/// Resident memory of a process, in MiB: all of it, and without pages of files, which the kernel takes back when it needs them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resident {
    pub(crate) all: f64,
    pub(crate) own: f64,
}

/// What an agent has in memory (proc_pid_status(5)).
pub(crate) fn resident(agent: &AgentProcess) -> Result<Resident> {
    let id = agent.id().context("it runs")?;
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let mib = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("a process has memory")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    };
    Ok(Resident { all: mib("VmRSS:")?, own: mib("RssAnon:")? })
}
