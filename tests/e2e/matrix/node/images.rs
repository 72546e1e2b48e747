//! Images in containerd: loaded and pinned there by the agent, and read from there by it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kit::pull::Puller;
use kit::runtime::{Containerd, Suite};

use super::super::client::Kind;
use super::super::stage::{Pull, Stage, TAG};
use super::super::table::Seen;

const LIMIT: Duration = Duration::from_mins(1);
const PINNED: &str = "io.cri-containerd.pinned=pinned";

/// The rows, one after the other on one daemon.
pub async fn column(suite: Suite) -> Result<Vec<Seen>> {
    let containerd = Containerd::start_of(suite).await?;
    let mut seen = pin(&containerd).await.context("load and pin")?;
    seen.push(set(&containerd).await.context("a set with `runtime: true`")?);
    seen.push(content(&containerd).await.context("the content directory")?);
    containerd.runtime().version().await.context("containerd does not run any more")?;
    Ok(seen)
}

/// By the calls of the agent, one by one.
async fn pin(containerd: &Containerd) -> Result<Vec<Seen>> {
    let stage = Stage::set(Kind::Containerd).await?;
    let agent = stage.agent(None).await?;
    let mirror = format!("http://{}", agent.addresses.mirror);
    containerd.mirror(&stage.registry, &mirror, &mirror)?;
    let (runtime, name) = (containerd.runtime(), stage.name());

    let started = Instant::now();
    let loaded = runtime.load(&name, None).await?;
    let labels = containerd.labels_of(&name).await?;
    ensure!(labels.contains(PINNED), "the label is missing: {labels}");
    let pinned = Seen::of("load and pin", &format!("label set, pin {:?}", loaded.pin), started.elapsed());

    let started = Instant::now();
    runtime.release(&name).await?;
    let labels = containerd.labels_of(&name).await?;
    ensure!(!labels.contains("io.cri-containerd.pinned"), "the label stays: {labels}");
    ensure!(labels.contains("io.cri-containerd.image=managed"), "another label went: {labels}");
    ensure!(runtime.has(&name).await?, "the image went");
    let unpinned = Seen::of("unpin", "label gone", started.elapsed());

    let started = Instant::now();
    runtime.remove(&name).await?;
    ensure!(!runtime.has(&name).await?, "the image stays");
    Ok(vec![pinned, unpinned, Seen::of("remove", "image gone", started.elapsed())])
}

/// By an agent whose configuration says so.
async fn set(containerd: &Containerd) -> Result<Seen> {
    let stage = Stage::set(Kind::Containerd).await?;
    // Where the agent will listen has to be known before it loads anything.
    let earlier = stage.agent(None).await?;
    let addresses = earlier.addresses;
    earlier.kill().await?;
    let mirror = format!("http://{}", addresses.mirror);
    containerd.mirror(&stage.registry, &mirror, &mirror)?;
    let name = stage.name();
    let stage = stage.with(&format!(
        "runtime: {{ socket: \"{}\" }}\n\
         prepull: {{ interval: 1h, sets: [{{ name: cell, images: [\"{name}\"], runtime: true }}] }}",
        containerd.socket().display(),
    ));
    let started = Instant::now();
    let agent = stage.agent(Some(addresses)).await?;
    let pinned = async {
        while !(containerd.runtime().has(&name).await? && containerd.labels_of(&name).await?.contains(PINNED))
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, pinned).await.with_context(|| agent.log())??;
    let pull = Pull { took: started.elapsed(), error: None };
    Ok(stage.cell("a set with `runtime: true`", pull, [0, 0]))
}

/// An agent that may read what containerd has need not fetch it.
async fn content(containerd: &Containerd) -> Result<Seen> {
    let stage = Stage::set(Kind::Containerd).await?;
    let direct = stage.fallback.url();
    containerd.mirror(&stage.registry, &direct, &direct)?;
    containerd.pull_by_cri(&stage.name()).await?;
    let stage = stage.with(&format!(
        "store: {{ minFree: \"0\", runtimeContent: \"{}\" }}",
        containerd.content().display()
    ));
    let agent = stage.agent(None).await?;
    let marks = stage.marks();
    let puller = Puller::new(&format!("http://{}", agent.addresses.mirror), Some(&stage.registry));
    let started = Instant::now();
    let pulled = puller.pull(&stage.image.repository, TAG, |_| {}).await;
    let error = pulled.err().map(|error| format!("{error:#}"));
    Ok(stage.cell("pull with the content directory", Pull { took: started.elapsed(), error }, marks))
}
