//! The commands that the documentation shows are those of the program.

use std::{fs, process::Command};

use kit::{
    build_fixture::{Fixture, finish, report},
    layering::root,
    process::binary,
};

/// Every `hearth ...` line of a page, without its comment, as words.
fn commands(page: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join(page)).expect("readable");
    let lines = text.lines().filter_map(|line| line.strip_prefix("    ").or(line.strip_prefix("$ ")));
    let lines = lines.filter_map(|line| line.trim_start_matches("$ ").strip_prefix("hearth "));
    lines.map(|line| words(line.split(" #").next().unwrap_or(line))).collect()
}

/// Splits at spaces outside quotes; there is no other syntax in the examples.
fn words(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, part) in line.split('\'').enumerate() {
        if at % 2 == 1 {
            found.push(part.to_owned());
        } else {
            found.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    found
}

#[test]
fn every_documented_command_is_one_that_the_program_takes() {
    let commands = [commands("README.md"), commands("docker/README.md")].concat();
    assert!(commands.len() > 10, "the commands were not found: {commands:?}");
    for arguments in commands {
        let mut command = Command::new(binary("hearth").expect("the binary is built"));
        // An argument that is unknown or lacks its value is refused before the help is shown.
        let output = finish(command.args(&arguments).arg("--help").current_dir(root()));
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_cache_is_shown_and_emptied_on_request() {
    let fixture = Fixture::new();
    fixture.build(&[]);
    let cache = |arguments: &[&str]| {
        let mut command = fixture.subcommand("cache", arguments);
        report(&finish(command.args(["--output-format", "json"])))
    };
    let bytes = |shown: &serde_json::Value| {
        let kinds = shown["kinds"].as_array().expect("a list").iter();
        kinds.filter_map(|kind| kind["bytes"].as_u64()).sum::<u64>()
    };
    let before = bytes(&cache(&["stat"]));
    assert!(before > 6_000_000, "{before}");
    assert_eq!(cache(&["prune", "--unused-for", "30"])["removedBytes"], 0, "all of it is new");
    assert_eq!(cache(&["prune", "--unused-for", "0", "--dry-run"])["removedBytes"], before);
    assert_eq!(cache(&["prune", "--unused-for", "0"])["removedBytes"], before);
    assert_eq!(bytes(&cache(&["stat"])), 0);
    fixture.build(&[]);
}
