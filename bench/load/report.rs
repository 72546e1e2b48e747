//! Figures: collected by round, shown as a table, and given as the JSON object that other tools read; `raw` in a saved one has
//! every round.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::machine;

/// What a scenario measured.
#[derive(Debug)]
pub(crate) struct Report {
    scenario: String,
    rounds: u32,
    figures: BTreeMap<&'static str, Vec<f64>>,
    /// Plain measurements behind the figures, for the table only.
    details: BTreeMap<String, Vec<f64>>,
}

impl Report {
    pub(crate) fn new(scenario: &str, rounds: u32) -> Self {
        Self { scenario: scenario.to_owned(), rounds, figures: BTreeMap::new(), details: BTreeMap::new() }
    }

    /// Adds one round's value of a figure.
    pub(crate) fn figure(&mut self, name: &'static str, value: f64) {
        self.figures.entry(name).or_default().push(value);
    }

    /// Adds one round's value of a measurement behind the figures.
    pub(crate) fn detail(&mut self, name: &str, value: f64) {
        self.details.entry(name.to_owned()).or_default().push(value);
    }

    /// The median of a measurement behind the figures so far.
    pub(crate) fn median_detail(&self, name: &str) -> f64 {
        self.details.get(name).map_or(0.0, |values| spread(values).1)
    }

    pub(crate) fn table(&self) -> String {
        let figures = self.figures.iter().map(|(name, values)| ((*name).to_owned(), values));
        let details = self.details.iter().map(|(name, values)| (format!("  {name}"), values));
        let mut out = format!("{:44} {:>12} {:>12} {:>12}\n", self.scenario, "median", "min", "max");
        for (name, values) in figures.chain(details) {
            let (low, middle, high) = spread(values);
            let _ = writeln!(out, "{name:44} {middle:>12.3} {low:>12.3} {high:>12.3}");
        }
        out
    }

    pub(crate) fn json(&self) -> Value {
        let mut figures = Map::new();
        for (name, values) in &self.figures {
            let (low, middle, high) = spread(values);
            figures.insert((*name).to_owned(), json!(rounded(middle)));
            figures.insert(format!("{name}_min"), json!(rounded(low)));
            figures.insert(format!("{name}_max"), json!(rounded(high)));
        }
        json!({
            "scenario": self.scenario, "machine": machine::describe(), "commit": machine::commit(),
            "rounds": self.rounds, "figures": figures,
        })
    }

    /// Writes `bench/results/<scenario>.json`: the object, and the command that made it.
    pub(crate) fn save(&self, json: &Value) -> Result<()> {
        let mut json = json.clone();
        let arguments: Vec<_> = std::env::args().skip(1).collect();
        json["command"] = format!("{} {}", program(), arguments.join(" ")).into();
        json["details"] = self
            .details
            .iter()
            .map(|(name, values)| (name.clone(), json!(rounded(spread(values).1))))
            .collect();
        let figures = self.figures.iter().map(|(name, values)| (*name, values));
        let details = self.details.iter().map(|(name, values)| (name.as_str(), values));
        json["raw"] = figures
            .chain(details)
            .map(|(name, values)| {
                (name.to_owned(), json!(values.iter().copied().map(rounded).collect::<Vec<_>>()))
            })
            .collect();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("results/{}.json", self.scenario));
        let text = serde_json::to_string_pretty(&json)? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))
    }
}

/// How this program was started: with the profile that it was built with, and with agents from where.
fn program() -> String {
    let profile =
        std::env::current_exe().ok().and_then(|path| Some(path.parent()?.file_name()?.to_str()?.to_owned()));
    let profile = match profile.as_deref() {
        Some("debug") => String::new(),
        Some("release") | None => "--release ".to_owned(),
        Some(other) => format!("--profile {other} "),
    };
    let binaries = std::env::var("HEARTH_BIN_DIR").map(|path| format!("HEARTH_BIN_DIR={path} "));
    format!("{}cargo run {profile}-p bench --bin load --", binaries.unwrap_or_default())
}

/// Smallest, median and largest; zeros when there are none.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(low), Some(high)) = (sorted.first(), sorted.last()) else { return (0.0, 0.0, 0.0) };
    (*low, median(&sorted), *high)
}

/// The middle of sorted values; with an even number the mean of the two in the middle.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// Enough digits to compare, few enough to read.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// The value below which `share` of the values lie.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let index = ((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(0.0)
}

/// The median of unsorted values.
pub(crate) fn median_of(values: &[f64]) -> f64 {
    spread(values).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles_are_taken_from_sorted_values() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (1.0, 2.0, 3.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), (1.0, 2.5, 4.0));
        assert_eq!(spread(&[]), (0.0, 0.0, 0.0));
        let hundred: Vec<_> = (1..=100).map(f64::from).collect();
        assert!((percentile(&hundred, 0.99) - 99.0).abs() < f64::EPSILON);
    }
}
