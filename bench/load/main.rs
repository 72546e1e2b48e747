//! `cargo run --release -p bench --bin load -- SCENARIO`: the agent against real rivals, in the same run on the same
//! machine.
//!
//! Every scenario measures all of them in turn, round by round, and the order turns with the rounds. The last line is
//! one JSON object; figures are medians, with `_min` and `_max` beside them. Caveats: clients, upstream, rivals and the
//! agent share this machine's processors and its loopback; only ratios of one run mean something.

mod checked;
mod client;
mod crowd;
mod holders;
mod machine;
mod node;
mod plot;
mod relay;
mod report;
mod rivals;
mod scenarios;
mod tables;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::{report::Report, scenarios::adversity::Case};

/// Measures the agent against its rivals.
#[derive(Clone, Debug, Parser)]
#[command(name = "load")]
struct Arguments {
    /// What to measure.
    scenario: Scenario,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Size of the blob in MiB; each scenario has its own default.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    size: Option<u64>,
    /// Clients at the same time, where the scenario has several.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=256))]
    clients: u64,
    /// Nodes of the cluster, where the scenario has one [default: 16; `herd`: 24].
    #[arg(long, value_parser = clap::value_parser!(u8).range(4..=64))]
    nodes: Option<u8>,
    /// Rate of every node's link in the cluster [default: 200mbit; `herd`: 20mbit, `adversity`: 100mbit].
    #[arg(long)]
    link: Option<String>,
    /// Troubles of `adversity`; the run without trouble is always there [default: all].
    #[arg(long, value_delimiter = ',')]
    cases: Vec<Case>,
    /// Spark and Java of `cds`, such as `3.5.9-17` [default: five].
    #[arg(long, value_delimiter = ',')]
    cells: Vec<String>,
    /// Rate of upstream's link.
    #[arg(long, default_value = "1gbit")]
    upstream_link: String,
    /// Also write the result to `bench/results/<scenario>.json`.
    #[arg(long)]
    save: bool,
}

impl Arguments {
    fn nodes_or(&self, default: u8) -> u8 {
        self.nodes.unwrap_or(default)
    }

    fn link_or<'a>(&'a self, default: &'a str) -> &'a str {
        self.link.as_deref().unwrap_or(default)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// A blob that is there, against nginx with sendfile.
    Warm,
    /// Many clients, one cold blob, against docker-registry's proxy and Varnish.
    ColdBurst,
    /// One client, an upstream that is slow per connection, against docker-registry's proxy and Varnish.
    SlowUpstream,
    /// One Spark image, against buildah and umoci; needs root and real inputs.
    Builder,
    /// Processor time of a driver and an executor, with and without an archive of class data; needs root and real inputs.
    Cds,
    /// Bytes of several Sparks whose layers are planned together; downloads them once.
    Layering,
    /// Two images into an empty registry, against skopeo; needs real inputs.
    Push,
    /// Bytes of a patch upgrade that podman pulls chunk by chunk; needs root, real inputs, podman of `tests/runtimes.sh`.
    PartialPull,
    /// A cluster in network namespaces that pulls one image at once, against no peers and one central proxy; needs root.
    Forest,
    /// The same where the registry's link is no faster than a node's, with clients that go to the registry when the agent
    /// refuses; needs root.
    Herd,
    /// A cold burst with one slow link, one node that corrupts what it sends, killed agents, and late nodes, each against the
    /// same burst without trouble; needs root.
    Adversity,
    /// What one pause, a slow disk, a queue, and a moment of refusals or resets of the registry cost one agent.
    Stall,
    /// Eight executors on cold nodes and a registry that throttles: directly, through a central proxy, through agents; needs
    /// root.
    JobStart,
    /// An agent with 100,000 blobs: until it is ready, and until it has counted them.
    Startup,
    /// An agent with 100,000 blobs: its memory at rest.
    Memory,
    /// What agents cost the API server of a cluster of 5,000 nodes.
    ClusterApi,
    /// What it costs that nothing gets its name before it is on the disk.
    Sync,
}

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let outcome = tokio::select! {
        outcome = async {
            // This program again, on a node of a network that a scenario made.
            match words.first().map(String::as_str) {
                Some("checked") => checked::run_alone(&words[1..]).await,
                Some("metrics") => node::metrics(&words[1..]).await,
                Some("relay") => relay::run_alone(&words[1..]).await,
                Some("client") => client::run_alone(&words[1..]).await,
                Some("holder") => holders::run_alone(&words[1..]).await,
                Some("pod") => node::pod(&words[1..]).await,
                Some("registry") => node::registry(&words[1..]).await,
                Some("tables") => tables::write(),
                _ => {
                    let arguments = Arguments::parse();
                    // A scenario that is ended so still takes its processes and namespaces back.
                    let mut ended = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
                    tokio::select! {
                        outcome = measure(&arguments) => outcome,
                        _ = ended.recv() => Err(anyhow::anyhow!("terminated")),
                    }
                }
            }
        } => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do when even standard error is closed.
            let _ = writeln!(io::stderr(), "load failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(arguments: &Arguments) -> Result<()> {
    kit::process::build_binaries().await?;
    let name =
        arguments.scenario.to_possible_value().context("every scenario has a name")?.get_name().to_owned();
    let mut report = Report::new(&name, arguments.rounds);
    match arguments.scenario {
        Scenario::Warm => scenarios::warm::run(arguments, &mut report).await?,
        Scenario::ColdBurst => scenarios::cold_burst::run(arguments, &mut report).await?,
        Scenario::SlowUpstream => scenarios::slow_upstream::run(arguments, &mut report).await?,
        Scenario::Builder => scenarios::builder::run(arguments, &mut report).await?,
        Scenario::Cds => scenarios::cds::run(arguments, &mut report).await?,
        Scenario::Layering => scenarios::layering::run(arguments, &mut report).await?,
        Scenario::PartialPull => scenarios::partial_pull::run(arguments, &mut report).await?,
        Scenario::Push => scenarios::push::run(arguments, &mut report).await?,
        Scenario::Forest => scenarios::forest::run(arguments, &mut report).await?,
        Scenario::Herd => scenarios::herd::run(arguments, &mut report).await?,
        Scenario::Adversity => scenarios::adversity::run(arguments, &mut report).await?,
        Scenario::Stall => scenarios::stall::run(arguments, &mut report).await?,
        Scenario::JobStart => scenarios::job_start::run(arguments, &mut report).await?,
        Scenario::Startup => scenarios::startup::run(arguments, &mut report).await?,
        Scenario::ClusterApi => scenarios::cluster_api::run(arguments, &mut report).await?,
        Scenario::Sync => scenarios::sync::run(arguments, &mut report).await?,
        Scenario::Memory => scenarios::memory::run(arguments, &mut report).await?,
    }
    let json = report.json();
    if arguments.save {
        report.save(&json)?;
    }
    writeln!(io::stdout(), "{}\n{json}", report.table())?;
    Ok(())
}
