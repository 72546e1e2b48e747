//! `cargo run --release -p bench --bin sim -- forest`: a cold burst on thousands of nodes in simulated time, with the
//! agent's own ranking, layout, piece order and answers; `adversity`: the same with slow and lost nodes. Prints a table and,
//! last, one JSON object; `--save` writes `bench/results/sim-<scenario>.json` and a plot beside it. What is modelled and how: `model.rs`.
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
    /// Rate of every node's link in Mbit/s [default: 10000; `adversity`: 1000].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=400_000))]
    link: Option<u64>,
    /// Also write the result and the plot to `bench/results/`.
    #[arg(long)]
    save: bool,
}

impl Arguments {
    fn link_or(&self, default: u64) -> u64 {
        self.link.unwrap_or(default)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// The piece forest against one owner for each piece and a central cache.
    Forest,
    /// The piece forest while some nodes are slow, gone, or killed halfway.
    Adversity,
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

/// What a scenario found: its figures, and the lines of its plot.
type Found = (Map<String, Value>, Vec<(&'static str, Vec<(f64, f64)>)>);

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut out = io::stdout();
    writeln!(
        out,
        "{:34} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "time over size/link", "last", "median", "upstream", "max upload", "bystander", "into zone"
    )?;
    let (name, (figures, lines)) = match arguments.scenario {
        Scenario::Forest => ("sim-forest", forest(&arguments, &mut out)?),
        Scenario::Adversity => ("sim-adversity", adversity(&arguments, &mut out)?),
    };
    let json = json!({ "scenario": name, "size_mib": arguments.size, "figures": figures });
    if arguments.save {
        let lines: Vec<_> = lines.iter().map(|(name, points)| (*name, points.as_slice())).collect();
        save(&arguments, name, &json, &plot::svg(&lines))?;
    }
    writeln!(out, "{json}")?;
    Ok(())
}

fn forest(arguments: &Arguments, out: &mut impl Write) -> Result<Found> {
    let (size, link) = (arguments.size << 20, arguments.link_or(10_000));
    let mut figures = Map::new();
    let (mut forest, mut owner, mut central) = (Vec::new(), Vec::new(), Vec::new());
    for nodes in [4, 16, 64, 256, 1_000, 4_000, 10_000].into_iter().filter(|nodes| *nodes <= arguments.nodes)
    {
        let outcome = Simulation::run(world(nodes, size, link));
        row(out, &mut figures, &format!("forest_{nodes}"), &outcome)?;
        forest.push((f64::from(nodes), outcome.last_over_bound));
        central.push((f64::from(nodes), f64::from(nodes)));
        if nodes <= 1_000 {
            let outcome = Simulation::run(World { rule: Rule::Owner, ..world(nodes, size, link) });
            row(out, &mut figures, &format!("owner_{nodes}"), &outcome)?;
            owner.push((f64::from(nodes), outcome.last_over_bound));
        }
    }
    let nodes = arguments.nodes.min(1_000);
    let base = world(nodes, size, link);
    for (name, world) in [
        ("joining_within_2s", World { spread: 2_000_000_000, ..base.clone() }),
        ("three_zones", World { zones: 3, ..base.clone() }),
        ("taking_5_percent", World { taking: 0.05, ..base.clone() }),
        ("taking_50_percent", World { taking: 0.5, ..base.clone() }),
        ("slow_upstream", World { connection: link * 2_000, ..base }),
    ] {
        row(out, &mut figures, &format!("{name}_{nodes}"), &Simulation::run(world))?;
    }
    let lines = vec![("forest", forest), ("one owner per piece", owner), ("one central cache", central)];
    Ok((figures, lines))
}

/// What slow and lost nodes cost the others: the last of those that are neither.
fn adversity(arguments: &Arguments, out: &mut impl Write) -> Result<Found> {
    let (size, link) = (arguments.size << 20, arguments.link_or(1_000));
    let mut figures = Map::new();
    let mut lines: Vec<(&'static str, Vec<(f64, f64)>)> = Vec::new();
    for nodes in [16, 64, 256, 1_000, 4_000].into_iter().filter(|nodes| *nodes <= arguments.nodes) {
        let base = world(nodes, size, link);
        for (name, label, world) in [
            ("none", "no trouble", base.clone()),
            ("lost_10_percent", "10 % gone", World { lost: 0.1, ..base.clone() }),
            ("killed_10_percent", "10 % killed", World { lost: 0.1, lost_at_once: true, ..base.clone() }),
            ("slow_10_percent", "10 % four times slower", World { slow: 0.1, ..base.clone() }),
            (
                "ten_times_slower_10_percent",
                "10 % ten times slower",
                World { slow: 0.1, slower: 10, ..base.clone() },
            ),
        ] {
            let outcome = Simulation::run(world);
            row(out, &mut figures, &format!("{name}_{nodes}"), &outcome)?;
            let point = (f64::from(nodes), outcome.last_over_bound);
            match lines.iter_mut().find(|(known, _)| *known == label) {
                Some((_, points)) => points.push(point),
                None => lines.push((label, vec![point])),
            }
        }
    }
    Ok((figures, lines))
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

fn save(arguments: &Arguments, name: &str, json: &Value, plot: &str) -> Result<()> {
    let mut json = json.clone();
    let mut command = format!(
        "cargo run --release -p bench --bin sim -- {} --nodes {} --size {}",
        name.trim_start_matches("sim-"),
        arguments.nodes,
        arguments.size
    );
    if let Some(link) = arguments.link {
        command.push_str(" --link ");
        command.push_str(&link.to_string());
    }
    json["command"] = command.into();
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    fs::create_dir_all(&results).context("cannot make `bench/results`")?;
    for (file, text) in [
        (format!("{name}.json"), serde_json::to_string_pretty(&json)? + "\n"),
        (format!("{name}.svg"), plot.to_owned()),
    ] {
        fs::write(results.join(&file), text)
            .with_context(|| format!("cannot write `bench/results/{file}`"))?;
    }
    Ok(())
}
