//! `sync`: what it costs that nothing gets its name before it is on the disk: a small file stored with and without fsync,
//! and the share of a layer's transfer that is its commit.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use hearth_agent::{
    store::{Config, Limits, Store},
    types::Digest,
};

use super::milliseconds;
use crate::{Arguments, report::Report};

const SMALL: usize = 16 << 10;
/// Small files per round.
const COUNT: u32 = 100;
const LAYER_MIB: u64 = 64;
const CHUNK: usize = 256 << 10;

pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let (work, _upstream) = super::world().await?;
    let size = usize::try_from(arguments.size.unwrap_or(LAYER_MIB) << 20)?;
    let store = Store::open(&Config {
        data_dir: work.path().join("data"),
        limits: Limits::default(),
        runtime: None,
    })?;
    store.rebuild_index_if_needed()?;
    let plain = work.path().join("plain");
    fs::create_dir_all(&plain)?;
    for round in 0..arguments.rounds {
        let synced = small(round, |digest, bytes| Ok(store.put(digest, bytes)?))?;
        let unsynced = small(round, |digest, bytes| put_unsynced(&plain, digest, bytes))?;
        report.figure("put_ms", synced);
        report.figure("put_unsynced_ms", unsynced);
        let (write, commit) = layer(&store, round, size)?;
        report.figure("layer_write_ms", write);
        report.figure("layer_commit_ms", commit);
    }
    store.close();
    Ok(())
}

/// Milliseconds for each of many small files.
fn small(round: u32, mut put: impl FnMut(&Digest, &[u8]) -> Result<()>) -> Result<f64> {
    let contents: Vec<_> = (0..COUNT)
        .map(|number| kit::registry::random_bytes(u64::from(round * COUNT + number), SMALL))
        .map(|bytes| (Digest::of(&bytes), bytes))
        .collect();
    let started = Instant::now();
    for (digest, bytes) in &contents {
        put(digest, bytes)?;
    }
    Ok(milliseconds(started.elapsed()) / f64::from(COUNT))
}

fn put_unsynced(directory: &Path, digest: &Digest, bytes: &[u8]) -> Result<()> {
    digest.verify(bytes)?;
    let aside = directory.join("aside");
    fs::write(&aside, bytes)?;
    fs::rename(aside, directory.join(digest.hex())).context("cannot rename")
}

/// Milliseconds of writing and hashing a layer, and of its commit.
fn layer(store: &Store, round: u32, size: usize) -> Result<(f64, f64)> {
    let content = Bytes::from(kit::registry::random_bytes(u64::from(round) + 1_000_000, size));
    let digest = Digest::of(&content);
    let partial = store.partial(&digest)?;
    let started = Instant::now();
    partial.set_size(size as u64)?;
    for start in (0..size).step_by(CHUNK) {
        partial.write(start as u64, &[content.slice(start..size.min(start + CHUNK))])?;
    }
    partial.finish()?;
    let written = started.elapsed();
    partial.commit()?;
    let committed = started.elapsed();
    drop(partial);
    store.remove_blob(&digest)?;
    Ok((milliseconds(written), milliseconds(committed.saturating_sub(written))))
}
