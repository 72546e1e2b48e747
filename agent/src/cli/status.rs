//! `status`: the state of the running agent and of the images of sets.

use clap::{Arg, ArgMatches, Command};
use reqwest::Method;
use serde_json::Value;

use super::{agent, as_json, client, output, print, print_result, table::table, with_config};
use crate::{config::Config, types::format_size};

pub(super) const NAME: &str = "status";

pub(super) fn command(file: &Arg) -> Command {
    let command = Command::new(NAME)
        .about("Show the running agent's store, downloads, registries, and images of sets")
        .after_help("Examples:\n  hearth-agent status\n  hearth-agent status -o json | jq '.prepull[].images[] | select(.state == \"Failed\")'")
        .args([agent(), output()]);
    with_config(command, file)
}

pub(super) fn run(arguments: &ArgMatches, config: &Config) -> anyhow::Result<()> {
    let client = client(arguments, config)?;
    let document: Value = client.call(Method::GET, "/api/v1/status", &[])?;
    if as_json(arguments) {
        return print_result(arguments, &(serde_json::to_string_pretty(&document)? + "\n"));
    }
    print(&show(&document))
}

fn show(document: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let count = |value: &Value| value.as_array().map_or(0, Vec::len);
    let store = &document["store"];
    let mut out = format!(
        "store: {} blobs, {}{}\ndownloads: {}\n",
        store["blobs"],
        format_size(store["bytes"].as_u64().unwrap_or(0)),
        store["trouble"].as_str().map(|trouble| format!("; {trouble}")).unwrap_or_default(),
        count(&document["transfers"]),
    );
    let row = |set: &Value, image: &Value| {
        let digest =
            image["digest"].as_str().and_then(|digest| digest.split_once(':')).map_or("", |(_, hex)| hex);
        vec![
            text(&set["set"]),
            text(&image["image"]),
            text(&image["state"]),
            format!("{}%", image["progress"]),
            digest.chars().take(12).collect(),
            image["message"].as_str().or(image["reason"].as_str()).unwrap_or_default().to_owned(),
        ]
    };
    let sets = document["prepull"].as_array().into_iter().flatten();
    let rows: Vec<_> = sets
        .flat_map(|set| set["images"].as_array().into_iter().flatten().map(move |image| row(set, image)))
        .collect();
    if !rows.is_empty() {
        out.push('\n');
        out.push_str(&table(&["SET", "IMAGE", "STATE", "PROGRESS", "DIGEST", "PROBLEM"], &rows));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_image_of_a_set_is_a_line_with_its_problem() {
        let document = json!({
            "store": {"blobs": 3, "bytes": 1024, "trouble": null}, "transfers": [],
            "prepull": [{"set": "file/s", "images": [
                {"image": "r.test/a:1", "state": "Ready", "progress": 100, "digest": format!("sha256:{}", "ab".repeat(32))},
                {"image": "r.test/b:1", "state": "Failed", "progress": 0, "reason": "NotFound", "message": "not found: b"},
            ]}],
        });
        let text = show(&document);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "store: 3 blobs, 1.0 KiB");
        assert!(lines[4].contains("r.test/a:1") && lines[4].contains("abababababab"), "{text}");
        assert!(lines[5].ends_with("not found: b"), "{text}");
        assert_eq!(show(&json!({"store": {"blobs": 0, "bytes": 0}, "transfers": []})).lines().count(), 2);
    }
}
