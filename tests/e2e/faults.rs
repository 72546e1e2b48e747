//! A mirror must never make a pull worse than no mirror: the real containerd pulls through an agent whose upstream
//! misbehaves, and has the healthy upstream itself as the last host to try. Every pull must succeed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use kit::metrics::Metrics;
use kit::registry::{FakeUpstream, Fault, Image, Layer, On, RedirectTo, Where, random_bytes};
use kit::runtime::Containerd;

use crate::support::{Agent, REGISTRY, archive, assert_same_bytes};

/// Five requests one after the other, each within the agent's own limit of five seconds, twice over. A kubelet
/// waits longer, a person does not.
const PULL_LIMIT: Duration = Duration::from_mins(1);

/// Past every limit of the agent's.
const FOREVER: Duration = Duration::from_mins(10);

/// One fault for one kind of request, for as long as the pull takes.
struct Case {
    name: &'static str,
    on: On,
    fault: Fault,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let kinds =
        [("tag", On::manifest().head()), ("manifest", On::manifest().get()), ("blob", On::blob().get())];
    for (name, on) in &kinds {
        cases.extend(refusals().into_iter().map(|fault| Case { name, on: on.clone(), fault }));
    }
    // Within the manifest, and past the agent's first reads of the largest layer.
    for ((name, on), at) in kinds.iter().skip(1).zip([100, 1 << 20]) {
        cases.extend(broken_bodies(at).into_iter().map(|fault| Case { name, on: on.clone(), fault }));
    }
    let name = "tag and manifest";
    cases.extend(odd_heads().into_iter().map(|fault| Case { name, on: On::manifest(), fault }));
    cases.extend(corruptions().into_iter().map(|fault| Case {
        name: "manifest",
        on: On::manifest().get(),
        fault,
    }));
    cases
}

/// What only a look at the content shows before anything of it was sent.
fn lies() -> Vec<Case> {
    let name = "tag and manifest";
    let mut cases: Vec<_> =
        lying_heads().into_iter().map(|fault| Case { name, on: On::manifest(), fault }).collect();
    cases.push(Case { name: "blob", on: On::blob().get(), fault: Fault::Corrupt(Where::Last) });
    cases
}

/// A wrong byte in a body that is right otherwise.
fn corruptions() -> Vec<Fault> {
    [Where::First, Where::Middle, Where::Last].map(Fault::Corrupt).into()
}

/// No answer, or one that is not a success.
fn refusals() -> Vec<Fault> {
    let mut faults: Vec<_> =
        [400, 401, 403, 404, 408, 416, 500, 502, 503].into_iter().map(Fault::status).collect();
    faults.extend([
        Fault::Delay(FOREVER),
        Fault::Close,
        Fault::Reset,
        Fault::too_many(None),
        Fault::too_many(Some("60")),
        Fault::too_many_ghcr(),
        Fault::too_many_line_feeds(),
        Fault::Raw(Bytes::from_static(b"\x15\x03\x01\x00\x02\x02\x46")),
        Fault::Redirect(307, RedirectTo::Loop),
        Fault::Redirect(307, RedirectTo::Expired),
    ]);
    faults
}

/// A success whose body is not what was asked for, some from byte `at` on.
fn broken_bodies(at: u64) -> Vec<Fault> {
    vec![
        Fault::Stall(0, FOREVER),
        Fault::Stall(at, FOREVER),
        Fault::Cut(0),
        Fault::Cut(at),
        Fault::CutReset(0),
        Fault::CutReset(at),
        Fault::LengthOff(1),
        Fault::LengthOff(-1),
        Fault::Extra(10),
        Fault::Replace(Bytes::from_static(b"<html>please log in</html>")),
        Fault::Unasked206,
        Fault::Chunked,
        Fault::Gzip,
    ]
}

/// Headers that a registry should send and does not.
fn odd_heads() -> Vec<Fault> {
    vec![Fault::Header("docker-content-digest", None), Fault::Header("content-type", None)]
}

/// Headers that promise what is not there.
fn lying_heads() -> Vec<Fault> {
    vec![
        Fault::Header("docker-content-digest", Some(format!("sha256:{}", "0".repeat(64)))),
        Fault::Header("content-type", Some("text/html".to_owned())),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_pull_succeeds_under_each_single_fault_of_the_agents_upstream() -> Result<()> {
    assert_every_pull_succeeds(cases).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_pull_succeeds_when_the_agents_upstream_lies_about_its_content() -> Result<()> {
    assert_every_pull_succeeds(lies).await
}

/// Bytes that were streamed before the whole was known cannot be taken back, and containerd resumes after them until
/// its collector has removed what the failed pull left. It does the same without any mirror: that is what is compared
/// with. No wrong byte is taken for a right one, and the next pull that starts afresh succeeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_that_were_streamed_fail_a_pull_as_without_a_mirror_and_nothing_of_them_stays()
-> Result<()> {
    let stage = Stage::set().await?;
    for place in [Where::First, Where::Middle] {
        stage.containerd.mirror(REGISTRY, &stage.faulty.url(), &stage.healthy.url())?;
        stage.assert_lie_is_noticed(place).await?;

        let agent = Agent::start(stage.faulty.address()).await?;
        stage.containerd.mirror(REGISTRY, &agent.url(), &stage.healthy.url())?;
        stage.assert_lie_is_noticed(place).await?;
        stage.containerd.pull_by_cri(&stage.name()).await?;
        stage.assert_pulled()?;
        stage.containerd.forget_images().await?;
    }
    Ok(())
}

async fn assert_every_pull_succeeds(cases: fn() -> Vec<Case>) -> Result<()> {
    let shares = (0..WORKERS).map(|worker| try_all(cases().into_iter().skip(worker).step_by(WORKERS)));
    let failures = try_join_all(shares).await?.concat();
    let (failed, tried) = (failures.len(), cases().len());
    assert!(failures.is_empty(), "{failed} of {tried} pulls failed:\n{}", failures.join("\n"));
    Ok(())
}

/// Most cases wait most of the time.
const WORKERS: usize = 4;

/// One case after the other; gives what failed.
async fn try_all(cases: impl Iterator<Item = Case>) -> Result<Vec<String>> {
    let stage = Stage::set().await?;
    let mut failures = Vec::new();
    for case in cases {
        let started = Instant::now();
        stage.faulty.fault(case.on, case.fault.clone());
        if let Err(error) = stage.pull().await {
            failures.push(format!(
                "{} {:?}, after {:?}: {error:#}",
                case.name,
                case.fault,
                started.elapsed()
            ));
        }
        stage.faulty.heal();
        stage.containerd.forget_images().await?;
    }
    Ok(failures)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_goes_on_when_the_agent_is_killed_while_it_sends_a_layer() -> Result<()> {
    let stage = Stage::set().await?;
    // Two seconds for the largest layer.
    stage.faulty.rate_per_connection(LARGEST / 2);
    let agent = Agent::start(stage.faulty.address()).await?;
    stage.containerd.mirror(REGISTRY, &agent.url(), &stage.healthy.url())?;

    let killed = async {
        while stage.faulty.log().blob_gets().bytes() < LARGEST / 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        agent.kill().await
    };
    let name = stage.name();
    let (pulled, killed) = tokio::join!(stage.containerd.pull_by_cri(&name), killed);

    killed?;
    pulled?;
    stage.assert_pulled()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_goes_straight_to_upstream_when_no_agent_listens() -> Result<()> {
    let stage = Stage::set().await?;
    let agent = Agent::start(stage.faulty.address()).await?;
    stage.containerd.mirror(REGISTRY, &agent.url(), &stage.healthy.url())?;
    agent.kill().await?;

    stage.containerd.pull_by_cri(&stage.name()).await?;
    stage.assert_pulled()
}

/// The agent's disk has room for the small layer alone, and nobody else has the image.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_succeeds_through_an_agent_whose_disk_is_full() -> Result<()> {
    let stage = Stage::set().await?;
    let agent = Agent::start_on_small_disk(stage.healthy.address(), 4 << 20).await?;
    stage.containerd.mirror(REGISTRY, &agent.url(), "http://127.0.0.1:9")?;

    stage.containerd.pull_by_cri(&stage.name()).await?;
    stage.assert_pulled()?;
    let metrics = Metrics::scrape(agent.admin).await?;
    assert!(metrics.sum("hearth_passed_through_total", &[]) >= 1.0, "{}", metrics.text());
    Ok(())
}

/// The tag of the index over the image: a pull asks for a tag, two manifests, a configuration and layers.
const INDEX: &str = "latest";

/// Of the layers, as many bytes as make a few of the agent's pieces.
const LARGEST: u64 = 12 << 20;

/// Two upstreams with the same image, one to be broken, and a containerd.
struct Stage {
    healthy: FakeUpstream,
    faulty: FakeUpstream,
    containerd: Containerd,
    image: Image,
}

impl Stage {
    async fn set() -> Result<Self> {
        let (healthy, faulty) = (FakeUpstream::start().await, FakeUpstream::start().await);
        let image = put_image(&healthy).await;
        ensure!(put_image(&faulty).await.digest == image.digest, "the same layers make the same image");
        let containerd = Containerd::start().await?;
        Ok(Self { healthy, faulty, containerd, image })
    }

    fn name(&self) -> String {
        format!("{REGISTRY}/{}:{INDEX}", self.image.repository)
    }

    /// Pulls the image through an agent that has nothing yet, within the limit.
    async fn pull(&self) -> Result<()> {
        let agent = Agent::start(self.faulty.address()).await?;
        self.containerd.mirror(REGISTRY, &agent.url(), &self.healthy.url())?;
        let pulled = tokio::time::timeout(PULL_LIMIT, self.containerd.pull_by_cri(&self.name())).await;
        pulled.with_context(|| format!("no end after {PULL_LIMIT:?}"))??;
        self.assert_pulled()
    }

    /// A pull fails on the digest of a layer with a wrong byte; then containerd's collector takes what it left, and
    /// upstream is well again.
    async fn assert_lie_is_noticed(&self, place: Where) -> Result<()> {
        self.faulty.fault(On::blob().get(), Fault::Corrupt(place));
        let pulled = tokio::time::timeout(PULL_LIMIT, self.containerd.pull_by_cri(&self.name())).await;
        let error = pulled.context("no end")?.err().context("a wrong byte was accepted")?;
        let text = format!("{error:#}");
        ensure!(text.contains("unexpected commit digest"), "failed on something else: {text}");
        self.faulty.heal();
        self.containerd.forget_images().await
    }

    fn assert_pulled(&self) -> Result<()> {
        for digest in self.image.blobs().chain([self.image.digest.as_str()]) {
            if let Some(file) = self.healthy.blob_file(digest) {
                assert_same_bytes(&file, &self.containerd.blob(digest))?;
            }
        }
        Ok(())
    }
}

async fn put_image(upstream: &FakeUpstream) -> Image {
    let layers = [200 << 10, LARGEST, 2 << 20].map(|size| {
        let size = usize::try_from(size).expect("a few megabytes");
        Layer::Bytes(archive(&random_bytes(size as u64, size)))
    });
    let image = upstream.image("data/app", "1", layers).await;
    upstream.index(INDEX, &image);
    image
}
