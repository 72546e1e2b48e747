//! This program as a part of a cluster, in a process of its own in a node's namespace: the registry, and a pod that waits
//! for its image.

use std::{
    io::{self, Write},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use kit::{
    metrics::Metrics,
    pull::Puller,
    registry::{FakeUpstream, Layer},
};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

/// Of the image that pods wait for.
pub(crate) const REPOSITORY: &str = "data/spark";
pub(crate) const TAG: &str = "v1";

/// The kubelet waits so long before it tries a failed pull again, then twice as long, up to the most.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// Layers of the image: about as many as a Spark image has.
const LAYERS: u64 = 8;

/// A pod as its kubelet sees it: from the moment `begin` it pulls the image, and tries again until it has it. Prints how
/// many seconds that took, and how many pulls failed. Words: `http://host:port`, milliseconds since 1970, and the
/// registry's name, which mirrors are told.
pub(crate) async fn pod(words: &[String]) -> Result<()> {
    let [base, begin, rest @ ..] = words else { bail!("a pod needs an address and a moment") };
    let puller = Puller::new(base, rest.first().map(String::as_str));
    let begin = UNIX_EPOCH + Duration::from_millis(begin.parse()?);
    tokio::time::sleep(begin.duration_since(SystemTime::now()).unwrap_or_default()).await;
    let (mut failed, mut pause) = (0, FIRST_PAUSE);
    while let Err(error) = puller.pull(REPOSITORY, TAG, |_| ()).await {
        writeln!(io::stderr(), "{error:#}")?;
        failed += 1;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    let took = SystemTime::now().duration_since(begin)?.as_secs_f64();
    writeln!(io::stdout(), "{}", json!({ "seconds": took, "failed": failed }))?;
    Ok(())
}

/// A registry with one image that gives so many manifests per window and answers 429 past that. Ends at SIGTERM, and then
/// prints what was asked of it. Words: address, folder, bytes of the image, seed, manifests, seconds.
pub(crate) async fn registry(words: &[String]) -> Result<()> {
    let [address, folder, size, seed, manifests, seconds] = words else {
        bail!("a registry needs six words")
    };
    let mut ended = signal(SignalKind::terminate())?;
    let upstream = FakeUpstream::start_at(Some(Path::new(folder)), address.parse()?).await?;
    let (size, seed): (u64, u64) = (size.parse()?, seed.parse()?);
    let layers = (0..LAYERS).map(|at| Layer::random(seed * LAYERS + at, size / LAYERS));
    upstream.image(REPOSITORY, TAG, layers).await;
    upstream.throttle(Some((manifests.parse()?, Duration::from_secs(seconds.parse()?))));
    writeln!(io::stdout(), "ready")?;
    ended.recv().await;
    let log = upstream.log();
    let asked = json!({
        "manifest_gets": log.manifest_gets().len(),
        "refused": log.status(429).len(),
        "blob_bytes": log.blob_gets().bytes(),
    });
    writeln!(io::stdout(), "{asked}")?;
    Ok(())
}

/// Prints what an agent counts, from within its node's network. Words: the address of its admin listener.
pub(crate) async fn metrics(words: &[String]) -> Result<()> {
    let [address] = words else { bail!("the address of an admin listener is needed") };
    writeln!(io::stdout(), "{}", Metrics::scrape(address.parse()?).await?.text())?;
    Ok(())
}

/// The last line of what such a process printed.
pub(crate) fn told(printed: &str) -> Result<Value> {
    let last = printed.trim().lines().last().context("it printed nothing")?;
    serde_json::from_str(last).with_context(|| format!("it printed `{last}`"))
}
