//! What the pages say about the saved results: `load tables` writes it, and a test compares.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::plot;

/// A line of the table: scenario, what was measured, against what, and the figure. `{name}` stands for a figure of the result,
/// `{=name}` for a measurement behind the figures.
type Row = (&'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("slow-upstream", "one cold 1 GiB blob, 75 MB/s per connection", "docker-registry's proxy", "{speedup_vs_docker_registry} times as fast"),
    ("slow-upstream", "", "Varnish", "{speedup_vs_varnish} times as fast"),
    ("slow-upstream", "requests upstream for it", "docker-registry, Varnish", "{=hearth-agent upstream GETs} instead of {=docker-registry upstream GETs} and {=Varnish upstream GETs}"),
    ("cold-burst", "8 clients, one cold 256 MiB blob: requests upstream", "docker-registry's proxy", "{upstream_gets} instead of {docker_registry_upstream_gets}"),
    ("cold-burst", "last client done", "Varnish, which verifies nothing", "{last_client_ratio_vs_varnish} times its time"),
    ("cold-burst", "first byte", "Varnish", "{=hearth-agent first byte ms} instead of {=Varnish first byte ms} ms"),
    ("warm", "throughput of cached blobs", "nginx", "{throughput_ratio_vs_nginx} times"),
    ("warm", "processor time per byte", "nginx", "{cpu_per_gb_ratio_vs_nginx} times"),
    ("forest", "16 nodes pull one 256 MiB blob at once, 200 Mbit/s each: last node done", "one transfer at the link's rate", "{last_over_bound} times its time"),
    ("forest", "", "no peers", "{speedup_vs_no_peers} times as fast"),
    ("forest", "", "the rule \"ask a peer that already has it\"", "{speedup_vs_holders} times as fast"),
    ("forest", "bytes from the registry", "the blob", "{upstream_bytes_ratio} times"),
    ("forest", "the same with one Spark image of 443 MiB: last node done", "one transfer at the link's rate", "{spark_last_over_bound} times its time"),
    ("forest", "", "no peers", "{spark_speedup_vs_no_peers} times as fast"),
    ("forest", "bytes from the registry", "the image", "{spark_upstream_bytes_ratio} times"),
    ("herd", "24 nodes, 76 MiB, 20 Mbit/s each and for the registry: bytes from the registry", "the image", "{upstream_bytes_ratio} times; {direct_gets} requests past the agents"),
    ("herd", "last node done", "one transfer at the link's rate", "{last_over_bound} times its time"),
    ("adversity", "16 nodes, 128 MiB, 40 Mbit/s, one corrupts pieces: last good node done", "the run without trouble", "{corrupt_last_over_none} times its time; {honest_blamed} honest peers blamed"),
    ("adversity", "four nodes killed in the middle", "the run without trouble", "{killed_last_over_none} times its time"),
    ("adversity", "one link ten times slower", "the run without trouble", "{slow_last_over_none} times its time; {slow_upstream_bytes_ratio} times the image from the registry"),
    ("adversity", "every other node begins late", "the run without trouble", "{late_last_over_none} times its time"),
    ("stall", "bytes from the registry after a pause, with a queue, with a slow disk", "the blob", "{pause_bytes_ratio}, {queued_bytes_ratio} and {slow_disk_bytes_ratio} times"),
    ("stall", "first success after a moment of 429s, of resets", "", "{recover_after_429_s} s, {recover_after_reset_s} s"),
    ("job-start", "8 executors on 8 cold nodes, registry throttled: last one can start", "every node by itself", "{speedup_agents_vs_direct} times as fast; pre-pulled when the driver starts {speedup_spark_aware_vs_direct}, before it {speedup_pre_pulled_vs_direct} times"),
    ("job-start", "429s seen", "every node by itself", "{agents_429s} instead of {direct_429s}"),
    ("cds", "Sparks 3.4.4, 3.5.9 and 4.1.4 on Java 17: an executor on a warm node, until its first query has returned: processor time", "the same image without class data", "{cpu_ratio_first_query} times"),
    ("cds", "until it is registered", "", "{cpu_ratio_registered} times"),
    ("cds", "its driver, until the first query has returned", "", "{driver_cpu_ratio_first_query} times"),
    ("partial-pull", "podman has Spark 3.5.8 and pulls 3.5.9: bytes from the registry", "the files that changed, compressed", "{bytes_over_changed} times"),
    ("partial-pull", "`hearth convert` of a gzip image of Spark: memory", "", "{convert_peak_mib} MiB"),
    ("startup", "100,000 blobs and 10,000 tags: a hit", "an empty store", "{hit_ratio_vs_empty} times its time; ready after {ready_ms} ms"),
    ("memory", "the same, at rest", "", "{rss_mib} MiB resident"),
    ("builder", "one Spark image, cold, zstd layers", "buildah, one zstd layer", "{speedup_zstd_vs_buildah_zstd} times as fast"),
    ("builder", "gzip layers", "buildah, one gzip layer", "{speedup_gzip_vs_buildah_gzip} times as fast"),
    ("builder", "", "umoci", "{speedup_gzip_vs_umoci} times as fast"),
    ("builder", "again, after one JAR changed", "buildah with its layer cache", "{rebuild_speedup_vs_buildah_cached} times as fast"),
    ("layering", "bytes of two sets of four Sparks, two Pythons each", "every distinct file once", "{unique_over_ceiling} times"),
    ("layering", "bytes saved", "one Dockerfile an image", "{saved_vs_dockerfiles} of them"),
    ("layering", "what a node fetches for a patch release: added to an existing lock", "", "{patch_added_later_mb} MB"),
    ("layering", "locked together with the old one", "", "{patch_upgrade_mb} MB"),
    ("push", "two images into an empty registry", "skopeo", "{speedup_vs_skopeo} times as fast"),
];

/// What the main page says.
#[rustfmt::skip]
const FIGURES: &[(&str, &str)] = &[
    ("job-start", "8 cold nodes, registry throttled: the last of 8 executors can start {speedup_agents_vs_direct} times as fast, and {speedup_spark_aware_vs_direct} times when its image is pre-pulled while the driver starts ({rounds} round)."),
    ("forest", "16 nodes pull one blob at once: the registry sends it {upstream_bytes_ratio} time, the last node has it after {last_over_bound} times the time of one transfer ({rounds} rounds)."),
    ("cds", "An executor on a warm node takes {cpu_ratio_first_query} times the processor time until its first query has returned when its image has an archive of class data ({rounds} rounds of three Sparks)."),
    ("partial-pull", "podman fetches {bytes_over_changed} times the bytes of the files that a patch release of Spark changed ({rounds} round)."),
    ("memory", "An agent with 100,000 blobs takes {rss_mib} MiB of memory at rest ({rounds} rounds)."),
];

const TABLE_STARTS: &str = "<!-- generated by `bench/run --tables`: do not edit -->\n";
const ENDS: &str = "<!-- end -->";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn result(scenario: &str) -> Result<Value> {
    let path = root().join(format!("results/{scenario}.json"));
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("`{}` is not JSON", path.display()))
}

/// A figure as people read it.
fn number(value: f64) -> String {
    match value.abs() {
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// One placeholder: the median, with minimum and maximum when they differ.
fn figure(result: &Value, name: &str) -> Result<String> {
    let lacks = || format!("{} has no `{name}`", result["scenario"]);
    if name == "rounds" {
        return Ok(result["rounds"].to_string());
    }
    if let Some(name) = name.strip_prefix('=') {
        return result["details"][name].as_f64().map(number).with_context(lacks);
    }
    let of = |end: &str| result["figures"][[name, end].concat()].as_f64().with_context(lacks);
    let (median, low, high) = (number(of("")?), number(of("_min")?), number(of("_max")?));
    Ok(if low == high { median } else { format!("{median} ({low} to {high})") })
}

/// A text with its placeholders filled in.
fn fill(result: &Value, text: &str) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').context("a `{` without `}`")?;
        out.push_str(before);
        out.push_str(&figure(result, name)?);
        rest = after;
    }
    Ok(out + rest)
}

fn table() -> Result<String> {
    let mut out = String::from(
        "| scenario | what | against | figure | rounds | commit |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for (scenario, what, against, text) in ROWS {
        let result = result(scenario)?;
        let (rounds, commit) = (&result["rounds"], result["commit"].as_str().unwrap_or_default());
        let _ = writeln!(
            out,
            "| `{scenario}` | {what} | {against} | {} | {rounds} | `{commit}` |",
            fill(&result, text)?
        );
    }
    Ok(out)
}

fn figures() -> Result<String> {
    let line = |(scenario, text): &(&str, &str)| Ok(format!("* {}\n", fill(&result(scenario)?, text)?));
    FIGURES.iter().map(line).collect()
}

/// The page with what is between its marks replaced.
fn replaced(page: &str, inside: &str) -> Result<String> {
    let (before, rest) = page.split_once(TABLE_STARTS).context("the page has no place for the figures")?;
    let (_, after) = rest.split_once(ENDS).context("the place for the figures has no end")?;
    Ok([before, TABLE_STARTS, inside, ENDS, after].concat())
}

/// Both pages: where they are, and how they have to be.
fn pages() -> Result<[(PathBuf, String); 2]> {
    let page = |path: &str, inside: &str| {
        let path = root().join(path);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        anyhow::Ok((path, replaced(&text, inside)?))
    };
    Ok([page("README.md", &table()?)?, page("../README.md", &figures()?)?])
}

/// The plot of a result: a bar for each program's seconds; `None` when fewer than two were measured.
fn plotted(result: &Value) -> Option<String> {
    let details = result["details"].as_object()?;
    let seconds =
        details.iter().filter_map(|(name, value)| Some((name.strip_suffix(" s")?, value.as_f64()?)));
    let rows: Vec<_> = seconds.collect();
    let title = format!("{}: seconds, median of {}", result["scenario"].as_str()?, result["rounds"]);
    (rows.len() > 1).then(|| plot::bars(&title, &rows))
}

/// `load tables`: writes the pages and the plots from the saved results.
pub(crate) fn write() -> Result<()> {
    for (path, text) in pages()? {
        fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    let mut scenarios: Vec<_> = ROWS.iter().map(|row| row.0).collect();
    scenarios.dedup();
    // The plot of `job-start` has its own order and title.
    for scenario in scenarios.into_iter().filter(|name| *name != "job-start") {
        if let Some(drawn) = plotted(&result(scenario)?) {
            let path = root().join(format!("results/{scenario}.svg"));
            fs::write(&path, drawn).with_context(|| format!("cannot write `{}`", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_pages_say_what_was_saved() {
        for (path, text) in pages().unwrap() {
            let there = fs::read_to_string(&path).unwrap();
            assert!(there == text, "`{}` is not current: run `bench/run --tables`", path.display());
        }
    }

    #[test]
    fn placeholders_are_figures_with_their_range() {
        let result = json!({
            "scenario": "s", "rounds": 3, "details": {"a b s": 2.25, "c s": 1.0},
            "figures": {"x": 1.25, "x_min": 1.0, "x_max": 14.04, "y": 7.0, "y_min": 7.0, "y_max": 7.0},
        });
        let text = fill(&result, "{x} of {y}, {=a b s} in {rounds}").unwrap();
        assert_eq!(text, "1.25 (1 to 14.0) of 7, 2.25 in 3");
        assert!(fill(&result, "{z}").is_err());
        assert!(plotted(&result).unwrap().contains("a b"));
    }
}
