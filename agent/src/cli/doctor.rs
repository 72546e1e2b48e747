//! `doctor`: whether the agent of this node works, from its configuration to a pull of each container runtime.
//!
//! The facts come from the running agent and from this node's files; `judge` turns them into checks and is pure.

use std::{fmt::Write as _, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use reqwest::Method;
use serde::Serialize;
use serde_json::Value;

use super::{
    agent, as_json, check, client,
    client::Client,
    output, print, print_result, rights,
    setup::{ROOT, job, root},
    with_config,
};
use crate::{
    config::Config,
    setup::{self, Finding, Job, Plan, Runtime},
    types::format_size,
};

pub(super) const NAME: &str = "doctor";

const SOCKET: &str = "socket";
const NO_PULL: &str = "no-pull";

/// A clock that differs by more from the registries' is wrong, in seconds: tokens and certificates fail.
const CLOCK: u64 = 60;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    /// Worth a look.
    Warning,
    /// Something does not work.
    Failed,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    #[serde(rename = "check")]
    name: &'static str,
    outcome: Outcome,
    found: String,
    /// What to do.
    remedy: Option<String>,
}

impl Check {
    pub(super) fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Ok, found: found.into(), remedy: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Warning, found: found.into(), remedy: Some(remedy.into()) }
    }

    pub(super) fn failed(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { outcome: Outcome::Failed, ..Self::warning(name, found, remedy) }
    }
}

pub(super) fn command() -> Command {
    let socket = Arg::new(SOCKET)
        .long(SOCKET)
        .value_name("PATH")
        .value_parser(value_parser!(PathBuf))
        .help("Socket of the container runtime, if it is not the usual one");
    let no_pull = Arg::new(NO_PULL)
        .long(NO_PULL)
        .action(ArgAction::SetTrue)
        .help("Do not have the container runtimes pull a test image of a few hundred bytes");
    let command = Command::new(NAME)
        .about("Check that this node's agent works: configuration, disk, clock, registries, peers, rights, container runtimes")
        .args([root(), socket, no_pull, agent(), output()])
        .after_help(
            "Exit status: 0 when nothing failed (warnings are allowed), 1 when a check failed, 2 for a bad configuration.\n\n\
             Examples:\n  hearth-agent doctor --config /etc/hearth/agent.yaml\n  \
             hearth-agent doctor --no-pull --output json | jq -r '.checks[] | select(.outcome == \"failed\") | .remedy'",
        );
    with_config(command)
}

pub(super) fn run(arguments: &ArgMatches, config: &Config) -> anyhow::Result<()> {
    let root = arguments.get_one::<PathBuf>(ROOT).cloned().unwrap_or_else(|| PathBuf::from("/"));
    let job = job(root, config);
    // What cannot be loaded has ended the program before.
    let mut checks = vec![Check::ok("configuration", format!("registries served: {}", job.registries.len()))];
    if job.registries.is_empty() {
        checks[0] = Check::failed("configuration", "`registries` is empty", "name the registries to serve");
    }
    let client = client(arguments, config)?;
    let status = client.call::<Value>(Method::GET, "/api/v1/status", &[]);
    let peers = client.call::<Value>(Method::GET, "/api/v1/peers", &[]);
    match status {
        Ok(status) => checks.extend(judge(&status, &peers.unwrap_or_default())),
        Err(error) => checks.push(Check::failed("agent", "it does not answer", format!("{error:#}"))),
    }
    checks.extend(rights::check(config)?);
    let running = checks.iter().all(|check| check.name != "agent" || check.outcome == Outcome::Ok);
    let socket = arguments.get_one::<PathBuf>(SOCKET);
    match setup::plan(&job, false) {
        Ok(plan) => {
            checks.extend(judge_setup(&plan));
            if running && !arguments.get_flag(NO_PULL) {
                checks.extend(pulls(&plan, &job, socket, &client));
            }
        }
        Err(error) => checks.push(Check::warning(
            "container runtimes",
            error.to_string(),
            "run `doctor` on the node, or with `--root` where its root file system is mounted",
        )),
    }
    if as_json(arguments) {
        print_result(
            arguments,
            &(serde_json::to_string_pretty(&serde_json::json!({ "checks": checks }))? + "\n"),
        )?;
    } else {
        print(&describe(&checks))?;
    }
    match checks.iter().filter(|check| check.outcome == Outcome::Failed).count() {
        0 => Ok(()),
        failed => anyhow::bail!("{failed} of {} checks failed", checks.len()),
    }
}

fn pulls(plan: &Plan, job: &Job, socket: Option<&PathBuf>, client: &Client) -> Vec<Check> {
    let one = |runtime| {
        let name = Runtime::name(runtime);
        let checked = check::one(runtime, job, socket.map(PathBuf::as_path), client);
        match checked.map(|checked| (checked.took, checked.problem)) {
            Ok((Some(took), _)) => Check::ok("pull", format!("{name} pulled through the agent in {took} ms")),
            Ok((None, problem)) => Check::failed(
                "pull",
                format!("{name} does not pull through the agent: {}", problem.unwrap_or_default()),
                "see the setup checks; restart the runtime if it was configured after it had started",
            ),
            Err(error) => Check::failed("pull", format!("{name}: {error:#}"), "see the agent's log"),
        }
    };
    plan.runtimes.iter().copied().map(one).collect()
}

/// What the agent reports about itself. Pure.
fn judge(status: &Value, peers: &Value) -> Vec<Check> {
    let own = env!("CARGO_PKG_VERSION");
    let version = status["version"].as_str().unwrap_or("unknown");
    let agent = if version == own {
        Check::ok("agent", format!("version {version} answers"))
    } else {
        let found = format!("version {version} is running, this program has {own}");
        Check::warning("agent", found, "restart the agent, or run `doctor` of its version")
    };
    let mut checks = vec![agent, disk(&status["store"]), requests(&status["requests"])];
    checks.extend(runtime(&status["runtime"]));
    checks.extend(clock(&status["registries"]));
    checks.extend(status["registries"].as_array().into_iter().flatten().map(registry));
    checks.extend(peer_check(peers));
    checks
}

fn disk(store: &Value) -> Check {
    let (bytes, allowed) = (store["bytes"].as_u64().unwrap_or(0), store["allowedBytes"].as_u64());
    let used = format_size(bytes);
    match (store["trouble"].as_str(), allowed) {
        (Some(trouble), _) => Check::failed(
            "disk",
            trouble,
            "free space or mend the disk; until then the agent streams through without caching",
        ),
        (None, Some(allowed)) => Check::ok("disk", format!("{used} of {} used", format_size(allowed))),
        (None, None) => Check::ok("disk", format!("{used} used")),
    }
}

fn requests(requests: &Value) -> Check {
    match requests["lastSecondsAgo"].as_u64() {
        Some(seconds) => Check::ok("requests", format!("the last one came {seconds} s ago")),
        None => Check::warning(
            "requests",
            "no container runtime has sent a request since the agent started",
            "if pods have pulled images since then, the runtime does not use the agent: see the setup checks",
        ),
    }
}

/// What the agent has found out itself, in a cluster.
fn runtime(proof: &Value) -> Option<Check> {
    let (message, since) = (proof["message"].as_str()?, proof["since"].as_str().unwrap_or_default());
    Some(match proof["usesAgent"].as_bool() {
        Some(true) => Check::ok("container runtime", format!("{message}, since {since}")),
        Some(false) => Check::failed(
            "container runtime",
            message,
            "see the setup checks, or replace the agent's pod after a change",
        ),
        None => Check::warning(
            "container runtime",
            message,
            "see the setup checks if pods have pulled images since",
        ),
    })
}

fn clock(registries: &Value) -> Option<Check> {
    let endpoints =
        registries.as_array()?.iter().flat_map(|one| one["endpoints"].as_array().into_iter().flatten());
    // One endpoint with a wrong clock says nothing about this node.
    let ahead = endpoints
        .filter_map(|endpoint| endpoint["clockAheadSeconds"].as_i64())
        .min_by_key(|ahead| ahead.unsigned_abs())?;
    let word = if ahead < 0 { "behind" } else { "ahead of" };
    let found = format!("{} s {word} the registries' clocks", ahead.unsigned_abs());
    Some(if ahead.unsigned_abs() > CLOCK {
        Check::failed("clock", found, "set this node's clock (NTP): tokens and certificates fail")
    } else {
        Check::ok("clock", found)
    })
}

fn registry(registry: &Value) -> Check {
    let name = registry["registry"].as_str().unwrap_or_default();
    let endpoints: Vec<_> = registry["endpoints"].as_array().into_iter().flatten().collect();
    let refused: Vec<_> = endpoints
        .iter()
        .filter_map(|endpoint| {
            let place = endpoint["endpoint"].as_str()?;
            if let Some(wait) = endpoint["rate"]["throttledForSeconds"].as_u64() {
                return Some(format!("`{place}` takes no requests for {wait} s (429)"));
            }
            let wait = endpoint["circuitOpenForSeconds"].as_u64()?;
            let error = endpoint["lastError"].as_str().unwrap_or("several requests failed");
            Some(format!("`{place}` gets no requests for {wait} s after failures: {error}"))
        })
        .collect();
    if refused.is_empty() {
        return Check::ok("registry", format!("`{name}`: no trouble seen"));
    }
    let found = format!("`{name}`: {}", refused.join("; "));
    let remedy = "check the network, the registry and its rate limit; cached images are served meanwhile";
    if refused.len() == endpoints.len() {
        Check::failed("registry", found, remedy)
    } else {
        Check::warning("registry", found, remedy)
    }
}

fn peer_check(peers: &Value) -> Option<Check> {
    if peers["on"] != true {
        return None;
    }
    let all: Vec<_> = peers["peers"].as_array().into_iter().flatten().collect();
    let silent: Vec<_> = all
        .iter()
        .filter_map(|peer| {
            let problem = peer["problem"].as_str()?;
            Some(format!("{} ({problem})", peer["peer"].as_str().unwrap_or_default()))
        })
        .collect();
    let remedy = "open `peer.listen`'s port between nodes (network policies, firewalls), and give all agents the same peer TLS";
    Some(match (all.len(), silent.len()) {
        (0, _) => Check::warning(
            "peers",
            "peers are on, and there are no others",
            "with one node that is right; otherwise check `peer` in the configuration",
        ),
        (all, 0) => Check::ok("peers", format!("{all} of {all} answer")),
        (all, silent_count) if silent_count == all => {
            Check::failed("peers", format!("none of {all} answers: {}", silent.join(", ")), remedy)
        }
        (all, silent_count) => Check::warning(
            "peers",
            format!("{silent_count} of {all} do not answer: {}", silent.join(", ")),
            remedy,
        ),
    })
}

/// What keeps container runtimes from the agent. Pure.
fn judge_setup(plan: &Plan) -> Vec<Check> {
    let mut checks = Vec::new();
    for edit in &plan.edits {
        checks.push(Check::failed(
            "setup",
            format!("{} is not as `setup` would write it", edit.path),
            "run `hearth-agent setup`",
        ));
    }
    for Finding { trap, place, what, remedy } in &plan.findings {
        let found = format!("{place}: {what}");
        checks.push(if *trap {
            Check::failed("setup", found, remedy)
        } else {
            Check::warning("setup", found, remedy)
        });
    }
    if checks.is_empty() {
        let names: Vec<_> = plan.runtimes.iter().map(|runtime| runtime.name()).collect();
        checks.push(Check::ok("setup", format!("configured to use the agent: {}", names.join(", "))));
    }
    checks
}

fn describe(checks: &[Check]) -> String {
    let mut out = String::new();
    for Check { name, outcome, found, remedy } in checks {
        let word = match outcome {
            Outcome::Ok => "ok",
            Outcome::Warning => "WARN",
            Outcome::Failed => "FAIL",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{word:4}  {name}: {found}");
        if let Some(remedy) = remedy {
            let _ = writeln!(out, "      -> {remedy}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::setup::Edit;

    fn status(change: impl FnOnce(&mut Value)) -> Value {
        let mut status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "store": {"bytes": 1024, "allowedBytes": 2048, "trouble": null},
            "requests": {"lastSecondsAgo": 3},
            "registries": [{"registry": "r.test", "endpoints": [
                {"endpoint": "r.test", "rate": {}, "clockAheadSeconds": 1},
                {"endpoint": "s.test", "rate": {}, "clockAheadSeconds": -900},
            ]}],
        });
        change(&mut status);
        status
    }

    #[test]
    fn each_trouble_fails_its_own_check() {
        let fine = json!({"on": true, "peers": [{"peer": "n1", "problem": null}]});
        let table: Vec<(&str, Value, Value, &str, Outcome)> = vec![
            ("agent", status(|_| {}), fine.clone(), "agent", Outcome::Ok),
            ("version", status(|at| at["version"] = "9".into()), fine.clone(), "agent", Outcome::Warning),
            (
                "disk",
                status(|at| at["store"]["trouble"] = "full".into()),
                fine.clone(),
                "disk",
                Outcome::Failed,
            ),
            ("idle", status(|at| at["requests"] = json!({})), fine.clone(), "requests", Outcome::Warning),
            ("one clock", status(|_| {}), fine.clone(), "clock", Outcome::Ok),
            (
                "clock",
                status(|at| at["registries"][0]["endpoints"][0]["clockAheadSeconds"] = 61.into()),
                fine.clone(),
                "clock",
                Outcome::Failed,
            ),
            (
                "throttled",
                status(|at| at["registries"][0]["endpoints"][0]["rate"]["throttledForSeconds"] = 9.into()),
                fine.clone(),
                "registry",
                Outcome::Warning,
            ),
            (
                "all endpoints",
                status(|at| {
                    for endpoint in 0..2 {
                        at["registries"][0]["endpoints"][endpoint]["circuitOpenForSeconds"] = 9.into();
                    }
                }),
                fine.clone(),
                "registry",
                Outcome::Failed,
            ),
            (
                "proved",
                status(|at| at["runtime"] = json!({"usesAgent": true, "message": "m", "since": "s"})),
                fine.clone(),
                "container runtime",
                Outcome::Ok,
            ),
            (
                "a trap",
                status(|at| at["runtime"] = json!({"usesAgent": false, "message": "m", "since": "s"})),
                fine.clone(),
                "container runtime",
                Outcome::Failed,
            ),
            (
                "no proof",
                status(|at| at["runtime"] = json!({"usesAgent": null, "message": "m", "since": "s"})),
                fine.clone(),
                "container runtime",
                Outcome::Warning,
            ),
            ("peers", status(|_| {}), fine, "peers", Outcome::Ok),
            ("alone", status(|_| {}), json!({"on": true, "peers": []}), "peers", Outcome::Warning),
            (
                "silent",
                status(|_| {}),
                json!({"on": true, "peers": [{"peer": "n1", "problem": "no answer"}]}),
                "peers",
                Outcome::Failed,
            ),
        ];
        for (name, status, peers, check, expected) in table {
            let checks = judge(&status, &peers);
            let found = checks.iter().find(|one| one.name == check).expect("it is checked");
            assert_eq!(found.outcome, expected, "{name}: {found:?}");
            assert_eq!(found.remedy.is_some(), expected != Outcome::Ok, "{name}: {found:?}");
        }
        assert!(judge(&status(|_| {}), &json!({"on": false})).iter().all(|check| check.name != "peers"));
    }

    #[test]
    fn traps_and_missing_files_fail_and_notes_warn() {
        let finding = |trap| Finding { trap, place: "/d".into(), what: "so".into(), remedy: "do".into() };
        let edit = Edit { path: "/a".into(), before: None, after: Some("x".into()) };
        let plan =
            Plan { edits: vec![edit], findings: vec![finding(true), finding(false)], ..Plan::default() };
        let outcomes: Vec<_> = judge_setup(&plan).iter().map(|check| check.outcome).collect();
        assert_eq!(outcomes, [Outcome::Failed, Outcome::Failed, Outcome::Warning]);
        let fine = Plan { runtimes: vec![Runtime::Crio], ..Plan::default() };
        assert_eq!(describe(&judge_setup(&fine)), "ok    setup: configured to use the agent: crio\n");
    }
}
