//! `hearth-agent`: arguments -> telemetry -> configuration -> build -> run.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Arg, ArgAction, ArgMatches, Command};
use hearth_agent::{
    app::{App, AppError, ControllerApp},
    cli,
    config::{self, Config, Log, Purpose},
    gc,
    prepull::crd,
    scrub,
    store::{Store, StoreError},
    trace::{self, Exporter},
    types::format_size,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// Bad usage or configuration.
const BAD_USAGE: u8 = 2;

fn main() -> ExitCode {
    let matches = command().get_matches();
    match matches.subcommand() {
        Some(("config", arguments)) => match arguments.subcommand() {
            Some((_, arguments)) => finish(cli::generate::init(arguments)),
            None => print(&config::explain()),
        },
        Some(("completions", arguments)) => finish(cli::generate::completions(command(), arguments)),
        Some(("man", arguments)) => finish(cli::generate::man(command(), arguments)),
        Some(("crds", _)) => print(&crd::definitions()),
        Some(("run", arguments)) => match load(arguments, Purpose::Serve) {
            Ok(config) => run(config),
            Err(error) => complain(&error.to_string(), BAD_USAGE),
        },
        Some(("controller", arguments)) => match load(arguments, Purpose::Control) {
            Ok(config) => control(config),
            Err(error) => complain(&error.to_string(), BAD_USAGE),
        },
        Some(("gc", arguments)) => match load(arguments, Purpose::Maintain) {
            Ok(config) => collect(&config, arguments.get_flag("dry-run")),
            Err(error) => complain(&error.to_string(), BAD_USAGE),
        },
        Some(("verify", arguments)) => match load(arguments, Purpose::Maintain) {
            Ok(config) => verify(&config, arguments),
            Err(error) => complain(&error.to_string(), BAD_USAGE),
        },
        Some((name, arguments)) => match load(arguments, Purpose::Maintain) {
            Ok(config) => command_of(name, arguments, &config),
            Err(error) => complain(&error.to_string(), BAD_USAGE),
        },
        None => unreachable!("clap requires a subcommand"),
    }
}

fn command() -> Command {
    let explain = Arg::new("explain")
        .long("explain")
        .action(ArgAction::SetTrue)
        .help("Print every key with its default and meaning");
    let dry_run = Arg::new("dry-run")
        .long("dry-run")
        .action(ArgAction::SetTrue)
        .help("Print what would be evicted and why; remove nothing");
    Command::new("hearth-agent")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Registry mirror and image cache for one node")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(cli::with_all_keys(
            Command::new("run")
                .about("Serve until SIGTERM or SIGINT")
                .after_help("Examples:\n  hearth-agent run --config /etc/hearth/agent.yaml\n  hearth-agent run --data-dir /tmp/hearth --registries '[{host: \"*\"}]'\n  HEARTH_LOG_FORMAT=json hearth-agent run --config agent.yaml"),
        ))
        .subcommand(cli::with_all_keys(
            Command::new("controller")
                .about("Do the work of one process for the whole cluster until SIGTERM or SIGINT: the status of ImageSets, and ImageSets for Spark applications")
                .after_help("Several processes elect one of them by a lease. Of the configuration only `kubernetes`, `admin.listen`, `limits`, `log` and `peer.name` (its name in the lease) are used; the same file as the agents' does.\n\nExamples:\n  hearth-agent controller --config /etc/hearth/agent.yaml\n  hearth-agent controller --kubernetes-image-sets true --kubernetes-api http://127.0.0.1:8001 --kubernetes-namespace hearth"),
        ))
        .subcommand(cli::with_all_keys(
            Command::new("gc")
                .about("Evict until the store is within its limits, in the data directory of a stopped agent (a running agent does this itself)")
                .arg(dry_run)
                .after_help("Example:\n  hearth-agent gc --dry-run --config /etc/hearth/agent.yaml --store-limit 10GiB"),
        ))
        .subcommands(cli::commands())
        .subcommand(cli::with_all_keys(
            Command::new("verify")
                .about("Check every stored blob now; damaged ones are quarantined, and fetched again at the next request. Works beside a running agent")
                .arg(cli::output())
                .after_help("Exit codes: 0 ok, 1 a blob is damaged or could not be read, 2 bad usage or configuration\n\nExample:\n  hearth-agent verify -o json --config /etc/hearth/agent.yaml"),
        ))
        .subcommand(
            Command::new("crds")
                .about("Print the definitions of the cluster's objects, `ImageSet` and `NodeCache`")
                .after_help("Example:\n  hearth-agent crds | kubectl apply --server-side -f -"),
        )
        .subcommand(
            Command::new("config")
                .about("Explain the configuration keys, or write a first configuration file")
                .arg(explain)
                .subcommand(cli::generate::init_command())
                .args_conflicts_with_subcommands(true)
                .arg_required_else_help(true)
                .after_help("Examples:\n  hearth-agent config init\n  hearth-agent config --explain"),
        )
        .subcommands(cli::generate::commands())
}

fn load(arguments: &ArgMatches, purpose: Purpose) -> Result<Config, config::ConfigError> {
    #[expect(clippy::disallowed_methods, reason = "the only place that reads the environment")]
    let variable = |name: &str| std::env::var(name).ok();
    let flag = |path: &str| arguments.get_one::<String>(path).cloned();
    config::load(arguments.get_one::<PathBuf>("config").cloned(), variable, flag, purpose)
}

fn command_of(name: &str, arguments: &ArgMatches, config: &Config) -> ExitCode {
    telemetry(&config.log);
    match cli::run(name, arguments, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&format!("{error:#}"), 1),
    }
}

fn collect(config: &Config, dry_run: bool) -> ExitCode {
    telemetry(&config.log);
    let collected = Store::open(&config.store).and_then(|store| {
        let plan = gc::run_once(&store, dry_run);
        store.close();
        plan
    });
    match collected {
        Ok(plan) => print(&gc::describe(&plan, dry_run)),
        Err(error) => {
            let error = anyhow::Error::from(error);
            complain(&format!("{error:#}"), code_of(&error))
        }
    }
}

fn verify(config: &Config, arguments: &ArgMatches) -> ExitCode {
    telemetry(&config.log);
    let verified = Store::visit(&config.store).and_then(|store| {
        scrub::verify(&store, |so_far, percent| {
            // Errors when printing progress are ignored.
            let _ = writeln!(
                std::io::stderr(),
                "{percent} %: {} blobs, {}, {} bad",
                so_far.blobs,
                format_size(so_far.bytes),
                so_far.bad.len()
            );
        })
    });
    let verdict = match verified {
        Ok(verdict) => verdict,
        Err(error) => return complain(&format!("{:#}", anyhow::Error::from(error)), 1),
    };
    let printed = if cli::as_json(arguments) {
        let json = format!("{}\n", serde_json::json!(verdict));
        finish(cli::print_result(arguments, &json).map(|()| String::new()))
    } else {
        let line = |bad: &scrub::Bad| format!("bad: {}: {}\n", bad.digest, bad.problem);
        let bad = verdict.bad.iter().map(line).collect::<Vec<_>>().concat();
        let size = format_size(verdict.bytes);
        print(&format!("{bad}{} blobs, {size}, {} bad\n", verdict.blobs, verdict.bad.len()))
    };
    if verdict.bad.is_empty() { printed } else { ExitCode::FAILURE }
}

fn run(config: Config) -> ExitCode {
    // Before the runtime starts, and dropped after it has ended: it sends in a thread of its own.
    let _exporter = match config.traces.as_ref().map(Exporter::start).transpose() {
        Ok(exporter) => {
            subscribe(&config.log, exporter.as_ref());
            exporter
        }
        Err(error) => return complain(&format!("{:#}", anyhow::Error::from(error)), 1),
    };
    let stop = CancellationToken::new();
    block_on(async {
        let app = App::build(config).await?;
        Box::pin(until_signal(app.run(stop.clone()), &stop)).await
    })
}

fn control(config: Config) -> ExitCode {
    telemetry(&config.log);
    let stop = CancellationToken::new();
    block_on(async { until_signal(ControllerApp::build(config)?.run(stop.clone()), &stop).await })
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    // A small event interval keeps small blobs fast beside bulk streams.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().event_interval(4).build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(work));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&format!("{error:#}"), code_of(&error)),
    }
}

/// Two agents on one directory are a configuration error, and so is a controller without a cluster.
fn code_of(error: &anyhow::Error) -> u8 {
    let wrong = error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(StoreError::Locked(_)))
            || matches!(cause.downcast_ref(), Some(AppError::NoCluster))
    });
    if wrong { BAD_USAGE } else { 1 }
}

/// Cancels `stop` at the first signal, and ends at the second.
async fn until_signal(
    running: impl Future<Output = Result<(), AppError>>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::pin!(running);
    for second in [false, true] {
        tokio::select! {
            outcome = &mut running => return Ok(outcome?),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if second {
            anyhow::bail!("stopped by a second signal before open requests had finished");
        }
        stop.cancel();
    }
    Ok(())
}

fn telemetry(log: &Log) {
    subscribe(log, None);
}

fn subscribe(log: &Log, exporter: Option<&Exporter>) {
    subscriber(log, exporter).init();
}

/// Logs to standard error, and spans to the exporter of traces.
fn subscriber(log: &Log, exporter: Option<&Exporter>) -> Box<dyn Subscriber + Send + Sync> {
    // The client for the API server logs each failed request without URL and cause; the agent says so itself, once.
    let directives = format!("kube_client=off,{}=off,{}", trace::TARGET, log.filter);
    let lines =
        fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal() && !no_color());
    let lines = if log.json { lines.json().boxed() } else { lines.boxed() };
    let lines = tracing_subscriber::registry().with(lines.with_filter(EnvFilter::new(directives)));
    // Not an absent layer: that one would enable all spans.
    match exporter {
        None => Box::new(lines),
        Some(exporter) => {
            let only = Targets::new().with_target(trace::TARGET, LevelFilter::INFO);
            let spans = tracing_opentelemetry::layer().with_tracer(exporter.tracer());
            Box::new(lines.with(spans.with_filter(only)))
        }
    }
}

/// Whether the user wants no colours (https://no-color.org).
fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

fn finish(outcome: anyhow::Result<String>) -> ExitCode {
    match outcome {
        Ok(text) => print(&text),
        Err(error) => complain(&format!("{error:#}"), 1),
    }
}

fn print(text: &str) -> ExitCode {
    let written = std::io::stdout().write_all(text.as_bytes());
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn complain(text: &str, code: u8) -> ExitCode {
    // If standard error is closed, there is no way to report that.
    let _ = writeln!(std::io::stderr(), "error: {text}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cost_nothing_while_traces_are_off() {
        let log = Log { json: false, filter: "info".into() };
        let exporter = Exporter::start(&trace::Config {
            endpoint: "http://127.0.0.1:9".parse().unwrap(),
            ratio: 1.0,
            node: "a".into(),
        });
        let exporter = exporter.unwrap();
        for (exporter, expected) in [(None, false), (Some(&exporter), true)] {
            tracing::subscriber::with_default(subscriber(&log, exporter), || {
                let span = tracing::info_span!(target: trace::TARGET, "a span");
                assert_eq!(!span.is_disabled(), expected, "traces: {expected}");
            });
        }
    }
}
