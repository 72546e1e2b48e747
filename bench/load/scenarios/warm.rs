//! `warm`: whole blobs that are there, for eight clients, against nginx with `sendfile`; and how long a small blob waits
//! behind them.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result};
use kit::registry::FakeUpstream;

use super::{milliseconds, world};
use crate::{
    Arguments,
    client::{Connection, burst_aside},
    machine::processor_seconds,
    report::{Report, percentile},
    rivals::{self, Contestant, REPOSITORY},
};

const SIZE_MIB: u64 = 256;
/// Transfers per client and round: about 4 GB with the defaults.
const TIMES: u32 = 2;
const SMALL: u64 = 16 << 10;
/// Small requests while the bulk runs: enough for a 99th percentile.
const PROBES: usize = 400;

struct Measured {
    bytes_per_second: f64,
    processor_per_gb: f64,
    first_byte_p99_ms: f64,
}

pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let (work, upstream) = world().await?;
    let size = arguments.size.unwrap_or(SIZE_MIB) << 20;
    let (bulk, small) =
        (upstream.random_blob(REPOSITORY, 1, size).await, upstream.random_blob(REPOSITORY, 2, SMALL).await);
    let contestants = [rivals::agent(&upstream, work.path()).await?, rivals::nginx(work.path()).await?];
    let root = work.path().join(format!("nginx/root/v2/{REPOSITORY}/blobs"));
    std::fs::create_dir_all(&root)?;
    for digest in [&bulk, &small] {
        publish(&upstream, digest, &root.join(digest))?;
    }
    for contestant in &contestants {
        // Into the agent's store, and everything into the page cache.
        burst_aside(contestant, &bulk, size, 1, 1).await?;
        burst_aside(contestant, &small, SMALL, 1, 1).await?;
    }
    for round in 0..arguments.rounds {
        let mut measured = [None, None];
        for turn in 0..2 {
            let index = (turn + round as usize) % 2;
            let contestant = &contestants[index];
            let one = measure(contestant, &bulk, &small, size, arguments.clients).await?;
            report.detail(&format!("{} GB/s", contestant.name), one.bytes_per_second / 1e9);
            report.detail(&format!("{} processor s/GB", contestant.name), one.processor_per_gb);
            report.detail(&format!("{} first byte p99 ms", contestant.name), one.first_byte_p99_ms);
            measured[index] = Some(one);
        }
        if let [Some(agent), Some(nginx)] = measured {
            report.figure("throughput_ratio_vs_nginx", agent.bytes_per_second / nginx.bytes_per_second);
            report.figure("cpu_per_gb_ratio_vs_nginx", agent.processor_per_gb / nginx.processor_per_gb);
            report.figure("first_byte_p99_ms_over_nginx", agent.first_byte_p99_ms - nginx.first_byte_p99_ms);
        }
    }
    Ok(())
}

/// Puts a blob where nginx finds it, without a copy where the file system allows.
fn publish(upstream: &FakeUpstream, digest: &str, to: &std::path::Path) -> Result<()> {
    let from = upstream.blob_file(digest).context("the blob was just stored")?;
    if std::fs::hard_link(&from, to).is_err() {
        std::fs::copy(&from, to)?;
    }
    Ok(())
}

async fn measure(one: &Contestant, bulk: &str, small: &str, size: u64, clients: u64) -> Result<Measured> {
    let before = processor_seconds(one.id())?;
    let started = Instant::now();
    burst_aside(one, bulk, size, clients, TIMES).await?;
    let took = started.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let bytes = (size * clients * u64::from(TIMES)) as f64;
    let processor_per_gb = (processor_seconds(one.id())? - before) / (bytes / 1e9);
    let first_byte_p99_ms = probe(one, bulk, small, size, clients).await?;
    Ok(Measured { bytes_per_second: bytes / took, processor_per_gb, first_byte_p99_ms })
}

/// The 99th percentile of the wait for a small blob while bulk streams run.
async fn probe(one: &Contestant, bulk: &str, small: &str, size: u64, clients: u64) -> Result<f64> {
    let done = Arc::new(AtomicBool::new(false));
    let background: Vec<_> = (0..clients)
        .map(|_| {
            let (done, address, path) = (Arc::clone(&done), one.address, one.path(bulk));
            std::thread::spawn(move || stream_until(&done, address, &path, size))
        })
        .collect();
    let (address, path) = (one.address, one.path(small));
    let probes = tokio::task::spawn_blocking(move || {
        let mut connection = Connection::open(address, &path)?;
        (0..PROBES).map(|_| Ok(milliseconds(connection.get(SMALL)?.first_byte))).collect::<Result<Vec<f64>>>()
    })
    .await?;
    done.store(true, Ordering::Relaxed);
    for thread in background {
        thread.join().ok().context("a client's thread panicked")??;
    }
    Ok(percentile(&probes?, 0.99))
}

fn stream_until(done: &AtomicBool, address: SocketAddr, path: &str, size: u64) -> Result<()> {
    let mut connection = Connection::open(address, path)?;
    while !done.load(Ordering::Relaxed) {
        connection.get(size)?;
    }
    Ok(())
}
