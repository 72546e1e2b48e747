//! `cargo run --release -p bench --bin sim -- forest`: a cold burst on thousands of nodes in simulated time, with the
//! agent's own ranking, layout, piece order and answers. Prints a table and, last, one JSON object; `--save` writes
//! `bench/results/sim-forest.json` and a plot beside it. What is modelled and how: `model.rs`.
//!
//! Not modelled: processors, disks, and loss on the wire.

mod model;
mod node;
mod plot;
mod world;

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use serde_json::{Map, Value, json};

use crate::{
    model::Simulation,
    world::{Outcome, Rule, World},
};

/// Simulates what cannot be measured on one machine.
#[derive(Clone, Debug, Parser)]
#[command(name = "sim")]
struct Arguments {
    /// What to simulate.
    scenario: Scenario,
    /// Largest number of nodes.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(4..=10_000))]
    nodes: u32,
    /// Size of the blob in MiB.
    #[arg(long, default_value_t = 1_024, value_parser = clap::value_parser!(u64).range(1..=16_384))]
    size: u64,
    /// Rate of every node's link in Mbit/s.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=400_000))]
    link: u64,
    /// Also write the result and the plot to `bench/results/`.
    #[arg(long)]
    save: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// The piece forest against one owner for each piece and a central cache.
    Forest,
}

fn world(nodes: u32, size: u64, link: u64) -> World {
    World {
        nodes,
        size,
        rule: Rule::Forest,
        link: link * 125_000,
        connection: link * 100_000,
        lost: 0.0,
        lost_at_once: false,
        slow: 0.0,
        slower: 4,
        taking: 1.0,
        spread: 0,
        zones: 1,
        seed: 1,
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let Scenario::Forest = arguments.scenario;
    let size = arguments.size << 20;
    let mut out = io::stdout();
    let mut figures = Map::new();
    let (mut forest, mut owner, mut central) = (Vec::new(), Vec::new(), Vec::new());
    writeln!(
        out,
        "{:34} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "time over size/link", "last", "median", "upstream", "max upload", "bystander", "into zone"
    )?;
    for nodes in [4, 16, 64, 256, 1_000, 4_000, 10_000].into_iter().filter(|nodes| *nodes <= arguments.nodes)
    {
        let outcome = Simulation::run(world(nodes, size, arguments.link));
        row(&mut out, &mut figures, &format!("forest_{nodes}"), &outcome)?;
        forest.push((f64::from(nodes), outcome.last_over_bound));
        central.push((f64::from(nodes), f64::from(nodes)));
        if nodes <= 1_000 {
            let outcome = Simulation::run(World { rule: Rule::Owner, ..world(nodes, size, arguments.link) });
            row(&mut out, &mut figures, &format!("owner_{nodes}"), &outcome)?;
            owner.push((f64::from(nodes), outcome.last_over_bound));
        }
    }
    let nodes = arguments.nodes.min(1_000);
    let base = world(nodes, size, arguments.link);
    for (name, world) in [
        ("lost_10_percent", World { lost: 0.1, ..base.clone() }),
        ("killed_10_percent", World { lost: 0.1, lost_at_once: true, ..base.clone() }),
        ("slow_10_percent", World { slow: 0.1, ..base.clone() }),
        ("ten_times_slower_10_percent", World { slow: 0.1, slower: 10, ..base.clone() }),
        ("joining_within_2s", World { spread: 2_000_000_000, ..base.clone() }),
        ("three_zones", World { zones: 3, ..base.clone() }),
        ("taking_5_percent", World { taking: 0.05, ..base.clone() }),
        ("taking_50_percent", World { taking: 0.5, ..base.clone() }),
        ("slow_upstream", World { connection: arguments.link * 2_000, ..base }),
    ] {
        row(&mut out, &mut figures, &format!("{name}_{nodes}"), &Simulation::run(world))?;
    }
    let json = json!({ "scenario": "sim-forest", "size_mib": arguments.size, "figures": figures });
    if arguments.save {
        save(
            &arguments,
            &json,
            &plot::svg(&[
                ("forest", &forest),
                ("one owner per piece", &owner),
                ("one central cache", &central),
            ]),
        )?;
    }
    writeln!(out, "{json}")?;
    Ok(())
}

fn row(out: &mut impl Write, figures: &mut Map<String, Value>, name: &str, outcome: &Outcome) -> Result<()> {
    let columns = [
        ("last_over_bound", outcome.last_over_bound),
        ("median_over_bound", outcome.median_over_bound),
        ("upstream_bytes_ratio", outcome.upstream),
        ("max_upload_ratio", outcome.max_upload),
        ("bystander_ratio", outcome.bystander),
        ("most_into_a_zone_ratio", outcome.crossings),
    ];
    write!(out, "{name:34}")?;
    for (column, value) in columns {
        write!(out, " {value:>10.4}")?;
        figures.insert(format!("{name}_{column}"), json!((value * 1e4).round() / 1e4));
    }
    writeln!(out)?;
    Ok(())
}

fn save(arguments: &Arguments, json: &Value, plot: &str) -> Result<()> {
    let mut json = json.clone();
    json["command"] = format!(
        "cargo run --release -p bench --bin sim -- forest --nodes {} --size {} --link {}",
        arguments.nodes, arguments.size, arguments.link
    )
    .into();
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    fs::create_dir_all(&results).context("cannot make `bench/results`")?;
    for (name, text) in [
        ("sim-forest.json", serde_json::to_string_pretty(&json)? + "\n"),
        ("sim-forest.svg", plot.to_owned()),
    ] {
        fs::write(results.join(name), text)
            .with_context(|| format!("cannot write `bench/results/{name}`"))?;
    }
    Ok(())
}
