//! `status`: the state of the running agent, its registries and peers, its last errors, and the images of sets.

use std::fmt::Write as _;

use clap::{ArgMatches, Command};
use reqwest::Method;
use serde_json::Value;

use super::{
    agent, as_json, client, output, print, print_result,
    table::{ago, table},
    with_config,
};
use crate::{config::Config, journal, types::format_size};

pub(super) const NAME: &str = "status";

/// Errors that are shown; the JSON has more.
const ERRORS: usize = 5;

pub(super) fn command() -> Command {
    let command = Command::new(NAME)
        .about("Show the running agent's store, downloads, registries, peers, last errors, and images of sets")
        .after_help("Examples:\n  hearth-agent status\n  hearth-agent status -o json | jq '.prepull[].images[] | select(.state == \"Failed\")'")
        .args([agent(), output()]);
    with_config(command)
}

pub(super) fn run(arguments: &ArgMatches, config: &Config) -> anyhow::Result<()> {
    let client = client(arguments, config)?;
    let document: Value = client.call(Method::GET, "/api/v1/status", &[])?;
    if as_json(arguments) {
        return print_result(arguments, &(serde_json::to_string_pretty(&document)? + "\n"));
    }
    print(&show(&document, journal::now()))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn size(value: &Value) -> String {
    format_size(value.as_u64().unwrap_or(0))
}

fn show(document: &Value, now: u64) -> String {
    let mut out = numbers(document);
    for one in list(&document["transfers"]) {
        let _ = writeln!(out, "  {}", download(one));
    }
    for registry in list(&document["registries"]) {
        for endpoint in list(&registry["endpoints"]) {
            let _ = writeln!(out, "{}", registry_line(text(&registry["registry"]), endpoint));
        }
    }
    let failures = list(&document["recent"]["failures"]);
    if !failures.is_empty() {
        out.push_str("last errors:\n");
    }
    for failure in failures.iter().take(ERRORS) {
        let when = ago(now.saturating_sub(failure["at"].as_u64().unwrap_or(now)));
        let times = failure["times"].as_u64().filter(|times| *times > 1);
        let times = times.map(|times| format!(" ({times} times)")).unwrap_or_default();
        let (subject, reason) = (text(&failure["subject"]), text(&failure["reason"]));
        let _ = writeln!(out, "  {when}{times}: {subject}: {}: {reason}", failure["status"]);
    }
    out + &sets(document)
}

/// Store, requests, bytes, downloads and peers.
fn numbers(document: &Value) -> String {
    let (store, requests, bytes) = (&document["store"], &document["requests"], &document["bytes"]);
    let mut out = format!("store: {} blobs, {}", store["blobs"], size(&store["bytes"]));
    if store["allowedBytes"].is_u64() {
        let _ = write!(out, " of {}", size(&store["allowedBytes"]));
    }
    if let Some(trouble) = store["trouble"].as_str() {
        let _ = write!(out, "; {trouble}");
    }
    let number = |key: &str| requests[key].as_u64().unwrap_or(0);
    match requests["lastSecondsAgo"].as_u64() {
        None => out.push_str("\nrequests: none since the agent started"),
        Some(last) => {
            let _ = write!(out, "\nrequests: {}, the last {last} s ago", number("total"));
            let (found, misses) = (number("hits") + number("joined"), number("misses"));
            if let Some(rate) = (100 * found).checked_div(found + misses) {
                let _ = write!(out, "; hit rate {rate} %");
            }
        }
    }
    if let Some(runtime) = document["runtime"]["message"].as_str() {
        let _ = write!(out, "\ncontainer runtime: {runtime}");
    }
    let _ = write!(
        out,
        "\nbytes: {} served, {} from registries, {} from peers, {} to peers\npeers: {}\ndownloads: {}\n",
        size(&bytes["served"]),
        size(&bytes["fromRegistries"]),
        size(&bytes["fromPeers"]),
        size(&bytes["toPeers"]),
        peers(&document["peers"]),
        list(&document["transfers"]).len(),
    );
    out
}

fn peers(peers: &Value) -> String {
    if peers["on"] != true {
        return "off".to_owned();
    }
    let failing: Vec<_> = list(&peers["skipped"]).iter().map(text).collect();
    let known = &peers["known"];
    if failing.is_empty() { format!("{known}") } else { format!("{known}, failing: {}", failing.join(", ")) }
}

fn download(one: &Value) -> String {
    let total = if one["size"].is_u64() { format!(" of {}", size(&one["size"])) } else { String::new() };
    let repository = one["repository"].as_str().unwrap_or("for a peer");
    format!("{repository} {}: {}{total}", text(&one["digest"]), size(&one["have"]))
}

fn registry_line(registry: &str, endpoint: &Value) -> String {
    let place = text(&endpoint["endpoint"]);
    let mut out = format!("registry {registry}");
    if place != registry {
        let _ = write!(out, " at {place}");
    }
    let rate = &endpoint["rate"];
    let mut notes = Vec::new();
    if let Some(seconds) = rate["throttledForSeconds"].as_u64() {
        notes.push(format!("takes no requests for {seconds} s (429)"));
    }
    if let Some(seconds) = endpoint["circuitOpenForSeconds"].as_u64() {
        notes.push(format!("gets no requests for {seconds} s after failures"));
    }
    if let (Some(limit), Some(left)) = (rate["limit"].as_u64(), rate["remaining"].as_u64()) {
        let refill = rate["refillsInSeconds"].as_u64().map(|seconds| seconds.div_ceil(60));
        let refill =
            refill.map(|minutes| format!(", refilled in {minutes} min at the latest")).unwrap_or_default();
        notes.push(format!("{left} of {limit} requests left{refill}"));
    }
    if let Some(error) = endpoint["lastError"].as_str() {
        notes.push(format!("last error {} s ago: {error}", endpoint["lastErrorSecondsAgo"]));
    }
    let notes = if notes.is_empty() { "no trouble seen".to_owned() } else { notes.join("; ") };
    out + ": " + &notes
}

fn sets(document: &Value) -> String {
    let row = |set: &Value, image: &Value| {
        let digest = text(&image["digest"]).split_once(':').map_or("", |(_, hex)| hex);
        vec![
            text(&set["set"]).to_owned(),
            text(&image["image"]).to_owned(),
            text(&image["state"]).to_owned(),
            format!("{} %", image["progress"]),
            digest.chars().take(12).collect(),
            image["message"].as_str().or(image["reason"].as_str()).unwrap_or_default().to_owned(),
        ]
    };
    let sets = list(&document["prepull"]).iter();
    let rows: Vec<_> =
        sets.flat_map(|set| list(&set["images"]).iter().map(move |image| row(set, image))).collect();
    if rows.is_empty() {
        return String::new();
    }
    "\n".to_owned() + &table(&["SET", "IMAGE", "STATE", "PROGRESS", "DIGEST", "PROBLEM"], &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_image_of_a_set_is_a_line_with_its_problem() {
        let document = json!({"prepull": [{"set": "file/s", "images": [
            {"image": "r.test/a:1", "state": "Ready", "progress": 100, "digest": format!("sha256:{}", "ab".repeat(32))},
            {"image": "r.test/b:1", "state": "Failed", "progress": 0, "reason": "NotFound", "message": "not found: b"},
        ]}]});
        let text = sets(&document);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[2].contains("r.test/a:1") && lines[2].contains("abababababab"), "{text}");
        assert!(lines[3].ends_with("not found: b"), "{text}");
        assert_eq!(sets(&json!({"prepull": []})), "");
    }

    #[test]
    fn the_text_shows_what_the_document_shows() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let document = json!({
            "store": {"blobs": 3, "bytes": 1024, "allowedBytes": 2048, "trouble": "disk full"},
            "requests": {"total": 10, "lastSecondsAgo": 4, "hits": 6, "joined": 1, "misses": 1},
            "runtime": {"usesAgent": true, "message": "containerd 2.1.9 pulls through this agent (proved by a pull)"},
            "bytes": {"served": 1024, "fromRegistries": 0, "fromPeers": 0, "toPeers": 0},
            "transfers": [{"repository": "r.test/a", "digest": digest, "have": 512, "size": 1024}],
            "peers": {"on": true, "known": 3, "skipped": ["n1"]},
            "registries": [{"registry": "r.test", "endpoints": [
                {"endpoint": "r.test", "rate": {}},
                {"endpoint": "m.test", "circuitOpenForSeconds": 9, "lastError": "connection reset", "lastErrorSecondsAgo": 2,
                 "rate": {"limit": 100, "remaining": 7, "refillsInSeconds": 61}},
            ]}],
            "recent": {"failures": [{"at": 880, "subject": "r.test/a:1", "status": 503, "reason": "too slow", "times": 2}]},
        });
        let expected = format!(
            "store: 3 blobs, 1.0 KiB of 2.0 KiB; disk full\n\
             requests: 10, the last 4 s ago; hit rate 87 %\n\
             container runtime: containerd 2.1.9 pulls through this agent (proved by a pull)\n\
             bytes: 1.0 KiB served, 0 B from registries, 0 B from peers, 0 B to peers\n\
             peers: 3, failing: n1\n\
             downloads: 1\n  \
             r.test/a {digest}: 512 B of 1.0 KiB\n\
             registry r.test: no trouble seen\n\
             registry r.test at m.test: gets no requests for 9 s after failures; 7 of 100 requests left, refilled in 2 min \
             at the latest; last error 2 s ago: connection reset\n\
             last errors:\n  2 min ago (2 times): r.test/a:1: 503: too slow\n"
        );
        assert_eq!(show(&document, 1_000), expected);
        let idle =
            json!({"store": {"blobs": 0, "bytes": 0}, "requests": {"total": 0}, "peers": {"on": false}});
        assert!(show(&idle, 0).contains("requests: none since the agent started\n"));
    }
}
