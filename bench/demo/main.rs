//! `cargo demo`: Hearth at work on one machine, on real input.
//!
//! It builds the programs, obtains a real Spark and a base root file system, builds and pushes two images with `hearth`,
//! pulls them through three `hearth-agent` processes from a registry that throttles like a public one, switches the
//! registry off and pulls again, and runs Spark in one of the images where containerd is there. Everything it starts is
//! gone when it ends, however it ends.

mod nodes;
mod programs;
mod screen;
mod spark;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
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
    fn window() -> String {
    format!("{} hours", WINDOW.as_secs() / 3600)
}

fn closing(screen: &Screen, first: Round, second: Round) -> String {
    format!(
        "demo passed in {}: {} pulled on {NODES} nodes twice; upstream was asked {} times ({}, {} throttled), then switched \
         off and asked {} times",
        seconds(screen.elapsed()),
        bytes(first.pulled),
        first.requests,
        bytes(first.bytes),
        first.throttled,
        second.requests,
    )
}
