//! `hearth`: builds Spark images for CI.

mod cli;

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use hearth_builder::{
    build::{self, BuildError},
    convert::{self, ConvertError},
    progress::Progress,
    report, sandbox, spec,
};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command, Format, UsageError, former};

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|name| name == sandbox::SUBCOMMAND) {
        // What follows is another program's command line: nothing in it is replaced.
        return enter_sandbox();
    }
    let (arguments, warnings) = former::replace(std::env::args_os());
    let command = Cli::parse_from(arguments).command;
    for warning in warnings {
        // As with errors: nothing can be done if standard error is gone.
        let _ = io::stderr().write_all(format!("warning: {warning}\n").as_bytes());
    }
    let progress = Progress::detect();
    let level = if progress.draws() { "warn" } else { "info" };
    let filter = EnvFilter::try_from_env("HEARTH_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(colours())
        .init();
    match run(command, &progress) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            fail(&format!("{error:#}"));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Colours in log lines: on a terminal, unless `NO_COLOR` says otherwise (<https://no-color.org>).
fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn enter_sandbox() -> ExitCode {
    let Command::EnterSandbox { root, program, arguments } = Cli::parse().command else {
        return ExitCode::FAILURE;
    };
    let Err(error) = sandbox::enter(&root, &program, &arguments);
    fail(&error)
}

/// The one place that tells the user: nothing can be done if standard error is gone.
fn fail(error: &str) -> ExitCode {
    let _ = io::stderr().write_all(format!("error: {error}\n").as_bytes());
    ExitCode::FAILURE
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<UsageError>() {
        return 2;
    }
    if let Some(error) = error.downcast_ref::<ConvertError>() {
        return error.exit_code();
    }
    error.downcast_ref::<BuildError>().map_or(1, BuildError::exit_code)
}

fn run(command: Command, progress: &Progress) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let mut out = Vec::new();
    let mut stale = false;
    match command {
        Command::EnterSandbox { .. } => {}
        Command::Schema => out.extend(spec::schema().into_bytes()),
        Command::Init(arguments) => out.extend(arguments.run()?.into_bytes()),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "hearth", &mut out);
        }
        Command::Man { directory } => {
            std::fs::create_dir_all(&directory)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), &directory))
                .with_context(|| format!("cannot write man pages into `{}`", directory.display()))?;
        }
        Command::Build(arguments) => {
            let dry = arguments.dry_run;
            let (options, format) = arguments.options()?;
            if dry {
                let report = runtime.block_on(build::plan(&options, progress))?;
                show(&report, format, |out| report.write_text(out), &mut out)?;
            } else {
                let report = runtime.block_on(build::run(&options, progress))?;
                show(&report, format, |out| report.write_text(out), &mut out)?;
            }
        }
        Command::Plan(arguments) => {
            let (options, format) = arguments.options()?;
            let report = runtime.block_on(build::plan(&options, progress))?;
            show(&report, format, |out| report.write_text(out), &mut out)?;
        }
        Command::Convert(arguments) => {
            let (options, format) = arguments.options()?;
            let report = runtime.block_on(convert::run(&options, progress))?;
            show(&report, format, |out| report.write_text(out), &mut out)?;
        }
        Command::Cache(arguments) => {
            let (report, format) = arguments.run()?;
            show(&report, format, |out| report.write_text(out), &mut out)?;
        }
        Command::Lock(arguments) => {
            let (options, change, format) = arguments.options()?;
            let report = runtime.block_on(build::lock(&options, &change, progress))?;
            show(&report, format, |out| report.write_text(out), &mut out)?;
            stale = report.stale();
        }
    }
    io::stdout().lock().write_all(&out).context("cannot write the report")?;
    anyhow::ensure!(!stale, "the lock is stale: run `hearth lock`");
    Ok(())
}

/// Writes a report as it is asked for.
fn show(
    report: &impl Serialize,
    format: Format,
    text: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    match format {
        Format::Table => text(out),
        Format::Json => report::write_json(report, out),
        Format::Yaml => report::write_yaml(report, out),
    }
}
