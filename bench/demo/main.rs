//! `cargo demo`: Hearth at work on one machine, on real input.
//!
//! It has missing programs installed, obtains a real Spark and a base root file system, builds and pushes two images with `hearth`,
//! pulls them through three `hearth-agent` processes from a registry that throttles like a public one, switches the
//! registry off and pulls again, and runs Spark in one of the images where containerd is there. Everything it starts is
//! gone when it ends, however it ends.

mod nodes;
mod programs;
mod screen;
mod spark;

use std::{
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use kit::{process::AgentProcess, registry::FakeUpstream};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    nodes::{REPOSITORY, Round},
    programs::Built,
    screen::{Screen, bytes, seconds},
};

/// Two patch versions of one line: what they share is fetched once per node.
const VERSIONS: [&str; 2] = ["3.5.8", "3.5.9"];
const NODES: usize = 3;
/// Docker Hub's limit for anonymous users: manifest requests in six hours.
const LIMIT: u64 = 100;
const WINDOW: Duration = Duration::from_hours(6);

/// Builds two real Spark images and pulls them through three agents.
#[derive(Debug, Parser)]
#[command(name = "cargo demo")]
struct Arguments {
    /// Leave the registry and the agents running at the end until Ctrl-C, and print their addresses.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let screen = Screen::new();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            screen.line(&format!("demo failed: cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        let (world, last) = tokio::select! {
            outcome = demonstrate(&screen) => outcome?,
            outcome = interrupted() => return outcome.and_then(|()| bail!("interrupted; everything it started is stopped")),
        };
        if arguments.keep {
            world.keep(&screen).await;
            interrupted().await?;
        }
        world.stop().await?;
        anyhow::Ok(last)
    });
    // A download that was interrupted must not hold up the end.
    runtime.shutdown_background();
    match outcome {
        Ok(last) => {
            screen.line(&last);
            ExitCode::SUCCESS
        }
        Err(error) => {
            screen.line(&format!("demo failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Waits for Ctrl-C or SIGTERM.
async fn interrupted() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        outcome = tokio::signal::ctrl_c() => outcome.context("cannot listen for Ctrl-C"),
        _ = terminate.recv() => Ok(()),
    }
}

/// Everything that runs. Dropping it ends it, in this order.
#[derive(Debug)]
struct World {
    agents: Vec<AgentProcess>,
    upstream: FakeUpstream,
    images: Vec<Built>,
    _work: tempfile::TempDir,
}

impl World {
    /// Switches upstream on again and says where everything is.
    async fn keep(&self, screen: &Screen) {
        self.upstream.restart().await;
        screen.line(&format!("\nupstream registry  {}", self.upstream.url()));
        for (number, agent) in (1..).zip(&self.agents) {
            let (mirror, admin) = (agent.addresses.mirror, agent.addresses.admin);
            screen.line(&format!(
                "node {number}             mirror http://{mirror}, status page http://{admin}/"
            ));
        }
        for image in &self.images {
            screen.line(&format!("image              {}/{REPOSITORY}:{}", nodes::REGISTRY, image.tag));
        }
        screen.line("\nCtrl-C ends everything.");
    }

    /// Ends the agents as a cluster does, and makes sure that they end well.
    async fn stop(self) -> Result<()> {
        for mut agent in self.agents {
            agent.terminate()?;
            let status = agent.wait().await?;
            ensure!(status.success(), "an agent ended with {status}:\n{}", agent.log());
        }
        Ok(())
    }
}

/// The whole story; gives what runs at its end, and its last line.
async fn demonstrate(screen: &Screen) -> Result<(World, String)> {
    install(screen).await?;

    let base =
        obtain(screen, "a base root file system with Java 17 and Python 3.11", kit::fixtures::base_rootfs)
            .await?;
    let mut sparks = Vec::new();
    for version in VERSIONS {
        sparks.push(
            obtain(screen, &format!("Spark {version}"), move || kit::fixtures::pyspark(version)).await?,
        );
    }

    let home = kit::fixtures::directory();
    let work = tempfile::Builder::new().prefix("hearth-demo-").tempdir_in(&home)?;
    let upstream = FakeUpstream::start_in(Some(&work.path().join("upstream")), 0).await?;
    let registry = upstream.address().to_string();
    let spec = write_spec(work.path(), &registry, &base, &sparks)?;
    let step = screen.step("hearth build --push: two images, pushed");
    let images = programs::build_images(&spec, work.path(), &home.join("build-cache"), &registry).await?;
    ensure!(images.len() == VERSIONS.len(), "`hearth build` made {} images", images.len());
    step.done(&bytes(pushed(&upstream, &images)));

    let step = screen.step("starting three agents that are peers");
    let agents = nodes::start(work.path(), &upstream, NODES).await?;
    step.done("");

    screen.line(&format!("\nFirst pull, upstream limited to {LIMIT} manifest requests in {}:\n", window()));
    upstream.throttle(Some((LIMIT, WINDOW)));
    let first = nodes::round(screen, &upstream, &agents, &images).await?;
    screen.line("\nSecond pull, upstream switched off:\n");
    upstream.stop().await;
    let second = nodes::round(screen, &upstream, &agents, &images).await?;
    ensure!(second.requests == 0, "upstream was asked {} times while it was switched off", second.requests);
    screen.line("");

    run_spark(screen, &agents[0], &images).await?;
    let last = closing(screen, first, second);
    Ok((World { agents, upstream, images, _work: work }, last))
}

/// What this machine lacks, by the script that `tests/run` uses as well. `cargo demo` has run it before it compiled; this is for
/// a demonstration that was started without cargo.
async fn install(screen: &Screen) -> Result<()> {
    let step = screen.step("looking for the programs that the demo needs");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/setup");
    let output = tokio::process::Command::new("bash")
        .args([script, "demo"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("cannot run `bash`")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    ensure!(output.status.success(), "`tests/setup demo` ended with {}:\n{said}", output.status);
    step.done(&said);
    Ok(())
}

/// Makes or finds an input, on a thread that may block.
async fn obtain(
    screen: &Screen,
    what: &str,
    make: impl FnOnce() -> Result<PathBuf> + Send + 'static,
) -> Result<PathBuf> {
    let step = screen.step(what);
    let path = tokio::task::spawn_blocking(make).await??;
    step.done(&bytes(std::fs::metadata(&path)?.len()));
    Ok(path)
}

/// The specification of two images, as a user would write it.
fn write_spec(work: &Path, registry: &str, base: &Path, sparks: &[PathBuf]) -> Result<PathBuf> {
    // Both distributions lie in one folder under names that differ in the version only.
    let pattern = sparks[0].to_string_lossy().replace(VERSIONS[0], "{spark}");
    let spec = format!(
        "apiVersion: hearth.dev/v1alpha1\nkind: ImageMatrix\nrepository: {registry}/{REPOSITORY}\n\
         tag: \"{{spark}}-java{{java}}-python{{python}}\"\nbase: {{ rootfs: {} }}\n\
         axes:\n  spark: [{}]\n  java: [\"17\"]\n  python: [\"3.11\"]\nsources:\n  spark: {{ path: \"{pattern}\" }}\n",
        base.display(),
        VERSIONS.map(|version| format!("\"{version}\"")).join(", "),
    );
    let path = work.join("hearth.yaml");
    std::fs::write(&path, spec)?;
    Ok(path)
}

/// Bytes of the images in the registry.
fn pushed(upstream: &FakeUpstream, images: &[Built]) -> u64 {
    images.iter().map(|image| upstream.size_of(REPOSITORY, &image.digest)).sum()
}

async fn run_spark(screen: &Screen, agent: &AgentProcess, images: &[Built]) -> Result<()> {
    let image = images.last().context("there are images")?;
    if let Err(reason) = spark::possible() {
        screen.line(&format!("- running Spark in the image is skipped: {reason}"));
        return Ok(());
    }
    let step = screen.step("containerd pulls through node 1 and Spark computes pi");
    let line = spark::pi(agent, image).await?;
    step.done(&line);
    Ok(())
}

fn window() -> String {
    format!("{} hours", WINDOW.as_secs() / 3600)
}

fn closing(screen: &Screen, first: Round, second: Round) -> String {
    format!(
        "\ndemo passed in {}: {} pulled on {NODES} nodes, twice.\n\
         The upstream got {} requests ({}, {} throttled), and {} when it was switched off.",
        seconds(screen.elapsed()),
        bytes(first.pulled),
        first.requests,
        bytes(first.bytes),
        first.throttled,
        second.requests,
    )
}
