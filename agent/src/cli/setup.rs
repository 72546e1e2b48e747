//! `hearth-agent setup`: points the container runtimes of a node at the agent.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::{as_json, check, output, print, print_result, with_config};
use crate::{
    config::Config,
    setup::{self, Edit, Finding, Job, Plan, Report, Runtime, SetupError},
    types::chain,
};

pub(super) const NAME: &str = "setup";

pub(super) const ROOT: &str = "root";
const RUNTIME: &str = "runtime";
const UNINSTALL: &str = "uninstall";
const DRY_RUN: &str = "dry-run";
const CHECK: &str = "check";
const SOCKET: &str = "socket";

/// The argument for the node's root file system.
pub(super) fn root() -> Arg {
    Arg::new(ROOT)
        .long(ROOT)
        .value_name("DIRECTORY")
        .value_parser(value_parser!(PathBuf))
        .default_value("/")
        .help("Where the node's root file system is mounted")
}

pub(super) fn command() -> Command {
    let runtime = Arg::new(RUNTIME)
        .long(RUNTIME)
        .value_name("NAME")
        .value_parser(Runtime::ALL.map(Runtime::name))
        .value_delimiter(',')
        .action(ArgAction::Append)
        .help("Runtimes to configure [default: those whose configuration exists]");
    let uninstall = Arg::new(UNINSTALL)
        .long(UNINSTALL)
        .action(ArgAction::SetTrue)
        .help("Restore all files byte for byte");
    let dry_run = Arg::new(DRY_RUN)
        .long(DRY_RUN)
        .action(ArgAction::SetTrue)
        .help("Show the changes and obstacles; write nothing");
    let check = Arg::new(CHECK)
        .long(CHECK)
        .action(ArgAction::SetTrue)
        .conflicts_with_all([UNINSTALL, DRY_RUN])
        .help("Write nothing; have each runtime pull an image that only the running agent has, which proves that it uses the agent");
    let socket = Arg::new(SOCKET)
        .long(SOCKET)
        .value_name("PATH")
        .value_parser(value_parser!(PathBuf))
        .requires(CHECK)
        .help("Socket of the runtime, if it is not the usual one");
    let command = Command::new(NAME)
        .about("Configure the node's container runtimes to use the agent for its registries, or uninstall that configuration")
        .args([root(), runtime, uninstall, dry_run, check, socket, output()])
        .after_help("Examples:\n  hearth-agent setup --config /etc/hearth/agent.yaml --dry-run\n  hearth-agent setup --config /etc/hearth/agent.yaml --root /host\n  hearth-agent setup --config /etc/hearth/agent.yaml --check\n  hearth-agent setup --uninstall --runtime containerd");
    with_config(command)
}

pub(super) fn run(arguments: &ArgMatches, config: &Config) -> anyhow::Result<()> {
    let names = arguments.get_many::<String>(RUNTIME).into_iter().flatten();
    let root = arguments.get_one::<PathBuf>(ROOT).cloned().unwrap_or_else(|| PathBuf::from("/"));
    let job = Job {
        runtimes: names.filter_map(|name| Runtime::ALL.into_iter().find(|one| one.name() == name)).collect(),
        ..job(root, config)
    };
    let undo = arguments.get_flag(UNINSTALL);
    if !undo && job.registries.is_empty() {
        anyhow::bail!("`registries` of the configuration is empty: there is nothing to set up");
    }
    if arguments.get_flag(CHECK) {
        let socket = arguments.get_one::<PathBuf>(SOCKET).map(PathBuf::as_path);
        return check::run(&job, &setup::plan(&job, undo)?, socket, config, arguments);
    }
    let dry_run = arguments.get_flag(DRY_RUN);
    let done = change(&job, undo, dry_run);
    let report = config.setup_report.as_deref().filter(|_| !dry_run);
    if let Some(path) = report {
        Report::new(done.as_ref(), undo).write(path)?;
    }
    let plan = match (done, report) {
        (Ok(plan), _) => plan,
        (Err(error), None) => return Err(error.into()),
        // The agent tells the cluster, which a container that does not end well would keep it from.
        (Err(error), Some(_)) => {
            tracing::error!(error = %chain(&error), "this node is not set up");
            return Ok(());
        }
    };
    if as_json(arguments) {
        print_result(arguments, &format!("{}\n", serde_json::to_string_pretty(&plan)?))?;
    } else {
        print(&describe(&plan, dry_run))?;
    }
    if !undo && report.is_none() && plan.is_in_vain() {
        anyhow::bail!(
            "no container runtime of this node sends its requests to the agent: see TRAP above for what to change"
        );
    }
    Ok(())
}

/// Plans, and changes the files unless that is only to be shown.
fn change(job: &Job, undo: bool, dry_run: bool) -> Result<Plan, SetupError> {
    let plan = setup::plan(job, undo)?;
    if !dry_run {
        setup::apply(&job.root, &plan.edits)?;
    }
    Ok(plan)
}

/// What to set up on this node for its configuration, for all runtimes that are found.
pub(super) fn job(root: PathBuf, config: &Config) -> Job {
    Job {
        root,
        mirror: reachable(config.mirror_listen),
        registries: config.upstream.registries.iter().map(|entry| entry.pattern.clone()).collect(),
        runtimes: Vec::new(),
    }
}

/// A listener on all addresses is reached on loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    if !listen.ip().is_unspecified() {
        return listen;
    }
    let loopback: std::net::IpAddr = if listen.is_ipv4() {
        std::net::Ipv4Addr::LOCALHOST.into()
    } else {
        std::net::Ipv6Addr::LOCALHOST.into()
    };
    SocketAddr::new(loopback, listen.port())
}

fn describe(plan: &Plan, dry_run: bool) -> String {
    let names: Vec<_> = plan.runtimes.iter().map(|runtime| runtime.name()).collect();
    let mut lines = vec![format!("runtimes: {}", names.join(", "))];
    let would = if dry_run { "would be " } else { "" };
    for Edit { path, before, after } in &plan.edits {
        let done = match (before, after) {
            (None, _) => "created",
            (_, None) => "removed",
            _ => "changed",
        };
        lines.push(format!("{path}: {would}{done}"));
    }
    if plan.edits.is_empty() {
        lines.push("all files are up to date".to_owned());
    }
    for Finding { trap, place, what, remedy } in &plan.findings {
        let word = if *trap { "TRAP" } else { "note" };
        lines.push(format!("{word}: {place}: {what}: {remedy}"));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_lists_the_changes_and_the_findings() {
        let edit = |path: &str, before: Option<&str>, after: Option<&str>| Edit {
            path: path.into(),
            before: before.map(Into::into),
            after: after.map(Into::into),
        };
        let plan = Plan {
            runtimes: vec![Runtime::Containerd, Runtime::Docker],
            edits: vec![
                edit("/a", None, Some("x")),
                edit("/b", Some("x"), Some("y")),
                edit("/c", Some("x"), None),
            ],
            findings: vec![Finding {
                trap: true,
                place: "/d".into(),
                what: "it is so".into(),
                remedy: "do this".into(),
            }],
            bypassing: Vec::new(),
        };
        assert_eq!(
            describe(&plan, false),
            "runtimes: containerd, docker\n/a: created\n/b: changed\n/c: removed\nTRAP: /d: it is so: do this\n"
        );
        assert!(describe(&plan, true).contains("/a: would be created"));
        let nothing = Plan { runtimes: vec![Runtime::Crio], ..Plan::default() };
        assert_eq!(describe(&nothing, false), "runtimes: crio\nall files are up to date\n");
    }

    #[test]
    fn the_mirror_is_reached_on_loopback_when_it_listens_everywhere() {
        for (listen, expected) in
            [("0.0.0.0:5050", "127.0.0.1:5050"), ("[::]:5050", "[::1]:5050"), ("10.0.0.7:1", "10.0.0.7:1")]
        {
            assert_eq!(reachable(listen.parse().unwrap()), expected.parse().unwrap());
        }
    }
}
