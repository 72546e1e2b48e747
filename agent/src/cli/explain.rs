//! `explain`: why a pull of an image is as it is on this node. The agent's side is the module `explain`.

use std::fmt::Write as _;

use clap::{Arg, ArgMatches, Command, value_parser};
use reqwest::Method;
use serde_json::Value;

use super::{agent, as_json, client, output, print, print_result, table::ago, with_config};
use crate::{
    config::Config,
    journal,
    types::{ImageName, format_size},
};

pub(super) const NAME: &str = "explain";

const IMAGE: &str = "image";

pub(super) fn command() -> Command {
    let image = Arg::new(IMAGE)
        .value_name("IMAGE")
        .required(true)
        .value_parser(value_parser!(ImageName))
        .help("`registry/repository:tag` or `registry/repository@digest`, as in pods");
    let command = Command::new(NAME)
        .about("Explain how an image is pulled on this node: cached or not, registry, peers, last requests, and what to do")
        .args([image, agent(), output()])
        .after_help(
            "Examples:\n  hearth-agent explain registry.example.com/team/spark:3.5.9\n  \
             hearth-agent explain registry.example.com/team/spark:3.5.9 --output json | jq -r .advice",
        );
    with_config(command)
}

pub(super) fn run(arguments: &ArgMatches, config: &Config) -> anyhow::Result<()> {
    let client = client(arguments, config)?;
    let name: &ImageName = arguments.get_one(IMAGE).expect("clap requires it");
    let document: Value = client.call(Method::GET, "/api/v1/explain", &[name])?;
    if as_json(arguments) {
        return print_result(arguments, &(serde_json::to_string_pretty(&document)? + "\n"));
    }
    print(&show(&document, journal::now()))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The document for people. Pure.
fn show(document: &Value, now: u64) -> String {
    let mut lines = vec![text(&document["image"]).to_owned(), String::new()];
    lines.push(format!("cached      {}", cached(&document["cached"])));
    lines.push(format!("registry    {}", policy(&document["policy"])));
    lines
        .extend(list(&document["registry"]["endpoints"]).map(|one| format!("            {}", endpoint(one))));
    lines.push(format!("peers       {}", peers(&document["peers"])));
    let mut entries = |heading: &str, key: &str, line: &dyn Fn(&Value) -> String| {
        for (row, entry) in list(&document[key]).enumerate() {
            let heading = if row == 0 { heading } else { "" };
            lines.push(format!("{heading:11} {}", line(entry)));
        }
    };
    entries("arriving", "downloadsUnderWay", &|one| {
        let (have, size) = (number(&one["have"]), number(&one["size"]));
        format!("{} of {} of {}", format_size(have), format_size(size.max(have)), short(text(&one["digest"])))
    });
    let when = |entry: &Value| ago(now.saturating_sub(number(&entry["at"])));
    entries("pulls", "lastPulls", &|one| {
        let client = one["client"].as_str().map(|client| format!(", {client}")).unwrap_or_default();
        format!(
            "{}: from {} in {} ms{client}, request {}",
            when(one),
            text(&one["source"]),
            number(&one["millis"]),
            text(&one["request"])
        )
    });
    entries("downloads", "lastDownloads", &|one| format!("{}: {}", when(one), download(one)));
    entries("failures", "lastFailures", &|one| {
        let times = number(&one["times"]);
        let again = if times > 1 { format!(" ({times} times)") } else { String::new() };
        let (status, reason) = (number(&one["status"]), text(&one["reason"]));
        format!("{}{again}: {status}, {reason}, request {}", when(one), text(&one["request"]))
    });
    lines.extend([String::new(), text(&document["advice"]).to_owned()]);
    lines.join("\n") + "\n"
}

fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

fn cached(cached: &Value) -> String {
    if cached.is_null() {
        return "no".to_owned();
    }
    let image = &cached["image"];
    let mut out = if image.is_null() {
        "only the tag".to_owned()
    } else if image["complete"] == true {
        format!("complete, {}", format_size(number(&image["bytes"])))
    } else {
        let (missing, bytes) = (number(&image["missingBlobs"]), format_size(number(&image["bytes"])));
        format!("incomplete: {bytes} here, {missing} blobs missing")
    };
    // Writing to a string cannot fail.
    let _ = write!(out, ", {}", short(text(&cached["digest"])));
    if let Some(seconds) = cached["confirmedSecondsAgo"].as_u64() {
        let _ = write!(out, ", tag confirmed: {}", ago(seconds));
    }
    if cached["unconfirmed"] == true {
        out.push_str(", by peers alone");
    }
    out
}

fn policy(policy: &Value) -> String {
    if policy.is_null() {
        return "not served: it is not in `registries` of the configuration".to_owned();
    }
    let credentials = match &policy["credentials"] {
        Value::String(word) if word == "notUsed" => "not used".to_owned(),
        Value::String(word) => word.clone(),
        other => format!("failed: {}", text(&other["failed"])),
    };
    format!(
        "entry `{}`, private: {}, credentials: {credentials}",
        text(&policy["entry"]),
        text(&policy["private"])
    )
}

fn endpoint(endpoint: &Value) -> String {
    let (rate, mut parts) = (&endpoint["rate"], Vec::new());
    if let (Some(remaining), Some(limit)) = (rate["remaining"].as_u64(), rate["limit"].as_u64()) {
        let refills = rate["refillsInSeconds"].as_u64();
        let refills = refills.map(|wait| format!(", refilled in {wait} s at the latest")).unwrap_or_default();
        parts.push(format!("{remaining} of {limit} requests left{refills}"));
    }
    if let Some(wait) = rate["throttledForSeconds"].as_u64() {
        parts.push(format!("takes no requests for {wait} s (429)"));
    }
    if let Some(wait) = endpoint["circuitOpenForSeconds"].as_u64() {
        parts.push(format!("circuit open for {wait} s"));
    }
    if let (Some(error), Some(age)) =
        (endpoint["lastError"].as_str(), endpoint["lastErrorSecondsAgo"].as_u64())
    {
        parts.push(format!("last error {age} s ago: {error}"));
    }
    if parts.is_empty() {
        parts.push("no trouble seen".to_owned());
    }
    format!("{}: {}", text(&endpoint["endpoint"]), parts.join("; "))
}

fn peers(peers: &Value) -> String {
    let (known, skipped, asked) =
        (number(&peers["known"]), number(&peers["skipped"]), number(&peers["asked"]));
    let have: Vec<_> = list(&peers["have"]).map(text).collect();
    match (known, asked) {
        (0, _) => "none".to_owned(),
        (_, 0) => format!("{known} known, {skipped} of them skipped after failures"),
        _ if have.is_empty() => format!("{known} known, none of {asked} asked has it"),
        _ => format!("{known} known; {} of {asked} asked have it: {}", have.len(), have.join(", ")),
    }
}

fn download(one: &Value) -> String {
    let part = |key: &str| format_size(number(&one[key]));
    let mut out = format!(
        "{}, {} from the registry, {} from peers; {} ms in the queue, {} ms of transfer, {} ms to check and keep",
        short(text(&one["digest"])),
        part("fromRegistry"),
        part("fromPeers"),
        number(&one["waitedMillis"]),
        number(&one["transferMillis"]),
        number(&one["commitMillis"])
    );
    if let Some(error) = one["error"].as_str() {
        let _ = write!(out, "; failed: {error}");
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_is_shown_with_the_advice_last() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let document = json!({
            "image": "r.test/a:1", "advice": "Wait.",
            "cached": {"digest": digest, "confirmedSecondsAgo": 120, "unconfirmed": false, "image": {
                "complete": false, "bytes": 1024, "missingBlobs": 2}},
            "policy": {"entry": "*", "private": "agent", "credentials": {"failed": "it hung"}},
            "registry": {"endpoints": [{"endpoint": "r.test", "circuitOpenForSeconds": 7, "lastError": "refused", "lastErrorSecondsAgo": 3,
                "rate": {"limit": 100, "remaining": 7, "refillsInSeconds": 60}}]},
            "peers": {"known": 3, "skipped": 0, "asked": 3, "have": ["n1", "n2"]},
            "downloadsUnderWay": [{"digest": digest, "have": 512, "size": 1024}],
            "lastPulls": [{"at": 0, "source": "disk", "millis": 3, "client": "containerd/2.1", "request": "aa-1"}],
            "lastDownloads": [{"at": 0, "digest": digest, "fromRegistry": 1024, "fromPeers": 0, "waitedMillis": 1, "transferMillis": 2,
                "commitMillis": 3, "error": null}],
            "lastFailures": [{"at": 0, "status": 503, "reason": "throttled", "times": 2, "request": "aa-2"}],
        });
        let expected = "\
r.test/a:1

cached      incomplete: 1.0 KiB here, 2 blobs missing, sha256:abababababab, tag confirmed: 2 min ago
registry    entry `*`, private: agent, credentials: failed: it hung
            r.test: 7 of 100 requests left, refilled in 60 s at the latest; circuit open for 7 s; last error 3 s ago: refused
peers       3 known; 2 of 3 asked have it: n1, n2
arriving    512 B of 1.0 KiB of sha256:abababababab
pulls       5 min ago: from disk in 3 ms, containerd/2.1, request aa-1
downloads   5 min ago: sha256:abababababab, 1.0 KiB from the registry, 0 B from peers; 1 ms in the queue, 2 ms of transfer, 3 ms to check and keep
failures    5 min ago (2 times): 503, throttled, request aa-2

Wait.
";
        assert_eq!(show(&document, 300), expected);
    }

    #[test]
    fn an_image_that_nobody_asked_for_is_shown_too() {
        let document = json!({"image": "r.test/a:1", "advice": "Add it.", "cached": null, "policy": null, "peers": {"known": 0}});
        let shown = show(&document, 0);
        assert!(shown.contains("cached      no\nregistry    not served"), "{shown}");
        assert!(shown.contains("peers       none\n\nAdd it.\n"), "{shown}");
    }
}
