//! What each client of each release does in each situation, against the tables in `tests/README.md`: a test fails when a
//! cell changes. See [`table`] for how a cell is written and [`stage`] for what a cell is measured on.
//!
//! Every client starts once for a test; the cells of a test run side by side where the client allows it, for most of
//! them wait most of the time.

mod agent;
mod cell;
mod client;
mod faults;
mod node;
mod pulls;
mod stage;
mod table;

use std::collections::VecDeque;
use std::fs;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;
use kit::runtime::Suite;

use client::{Client, Kind};
use table::Seen;

/// One test for every group of scenarios, for every client in every release.
macro_rules! columns {
    ($($client:ident $kind:ident: $($release:ident $suite:ident),+;)+) => {$(
        mod $client {$(
            mod $release {
                use super::super::{Kind, agent, faults, node, pulls};
                use kit::runtime::Suite;

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn pulls_end_as_the_table_says() -> anyhow::Result<()> {
                    pulls::compare(Kind::$kind, Suite::$suite).await
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn setup_and_the_runtimes_images_are_as_the_table_says() -> anyhow::Result<()> {
                    node::compare(Kind::$kind, Suite::$suite).await
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn pulls_under_faults_of_the_registry_end_as_the_table_says() -> anyhow::Result<()> {
                    faults::compare(Kind::$kind, Suite::$suite).await
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn pulls_while_the_agent_changes_end_as_the_table_says() -> anyhow::Result<()> {
                    agent::compare(Kind::$kind, Suite::$suite).await
                }
            }
        )+}
    )+};
}

columns! {
    containerd Containerd: bookworm Own, trixie Trixie, sid Sid;
    podman Podman: bookworm Own, sid Sid;
    buildah Buildah: bookworm Own, sid Sid;
    skopeo Skopeo: bookworm Own, sid Sid;
    docker Docker: bookworm Own, sid Sid;
}

/// The suite's name: the column in the table.
fn column(suite: Suite) -> Result<String> {
    if let Some(name) = suite.name() {
        return Ok(name.to_owned());
    }
    let release = fs::read_to_string("/etc/os-release").context("the machine has no name of its release")?;
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("the machine's release has no name")?.trim_matches('"').to_owned())
}

/// Compares what was seen with a client's table of a group of scenarios.
fn compare(kind: Kind, suite: Suite, group: &str, seen: &[Seen]) -> Result<()> {
    table::compare(&format!("{}: {group}", kind.name()), &column(suite)?, seen)
}

/// Runs every case, a few side by side, and gives what came of them in their order.
async fn side_by_side<C, T>(
    kind: Kind,
    suite: Suite,
    lanes: usize,
    cases: Vec<C>,
    run: impl AsyncFn(&Client, C) -> Result<T>,
) -> Result<Vec<T>> {
    // A Docker daemon has one list of mirrors for all its pulls.
    let daemons = if kind == Kind::Docker { lanes.min(cases.len()) } else { 1 };
    let clients = try_join_all((0..daemons).map(|_| Client::start(kind, suite))).await?;
    let queue = Mutex::new(cases.into_iter().enumerate().collect::<VecDeque<_>>());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let done = try_join_all((0..lanes).map(async |lane| {
        let mut done = Vec::new();
        while let Some((index, case)) = next() {
            done.push((index, run(&clients[lane % daemons], case).await?));
        }
        anyhow::Ok(done)
    }));
    let mut done = done.await?.into_iter().flatten().collect::<Vec<_>>();
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, seen)| seen).collect())
}
