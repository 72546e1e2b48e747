//! `hearth`: builds Spark images for CI.

use std::{
    env,
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use hearth_builder::{
    build::{self, BuildError, Options},
    progress::Progress,
    registry::Settings,
};
use tracing_subscriber::EnvFilter;

/// Builds reproducible Apache Spark images without a container engine and without root.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(BuildArgs),
}

const EXAMPLES: &str = "\
Examples:
  hearth build                                      build ./hearth.yaml into ./dist
  hearth build -f specs/hearth.yaml --push          build and push
  hearth build --push --plain-http 127.0.0.1:5000   push to a registry without TLS
  hearth build --output-format json | jq -r '.images[].manifest'

Environment:
  SOURCE_DATE_EPOCH   creation time in image configurations (file times in layers never depend on it)
  HEARTH_LOG          what is logged, such as `debug` or `hearth_builder=debug`
  HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE and the configuration of uv are honoured.

Exit codes: 0 done, 1 failed, 2 the command line or the specification has to be changed.";

/// Builds the images of a specification into an OCI image layout, and pushes them with --push.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct BuildArgs {
    /// The specification. Its keys are explained in `docker/README.md`.
    #[arg(short, long, value_name = "FILE", default_value = "hearth.yaml")]
    file: PathBuf,
    /// The OCI image layout to write or to add to [default: `dist` beside the specification].
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Push to the repository that the specification names. What is there already is not sent again.
    #[arg(long)]
    push: bool,
    /// A registry (`host` or `host:port`) that is spoken to without TLS. No host is by itself, not even a
    /// loopback address. May be given several times.
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<String>,
    /// A Docker `config.json` with credentials [default: the user's, then that of podman].
    #[arg(long, value_name = "FILE")]
    docker_config: Option<PathBuf>,
    /// Where downloads, compressed files and layers are kept between builds
    /// [default: `$XDG_CACHE_HOME/hearth` or `~/.cache/hearth`].
    #[arg(long, value_name = "DIR", env = "HEARTH_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
    /// Threads for compression [default: the number of processors].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    jobs: Option<u16>,
    /// Use this file instead of what the specification says: `base=PATH` (a root file system archive or an
    /// OCI layout) or `spark=PATH` (a pyspark source distribution; `{spark}` stands for the version).
    #[arg(long, value_name = "NAME=PATH", value_parser = source)]
    set_source: Vec<(Source, PathBuf)>,
    /// Build the other combinations when some of the matrix cannot run or are untested.
    #[arg(long)]
    skip_refused: bool,
    /// How the result is written to standard output.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    output_format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Base,
    Spark,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

fn source(text: &str) -> Result<(Source, PathBuf), String> {
    match text.split_once('=') {
        Some(("base", path)) if !path.is_empty() => Ok((Source::Base, path.into())),
        Some(("spark", path)) if !path.is_empty() => Ok((Source::Spark, path.into())),
        _ => Err("expected `base=PATH` or `spark=PATH`".to_owned()),
    }
}

fn main() -> ExitCode {
    let Command::Build(arguments) = Cli::parse().command;
    let progress = Progress::detect();
    let level = if progress.draws() { "warn" } else { "info" };
    let filter = EnvFilter::try_from_env("HEARTH_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .init();
    match run(arguments, &progress) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.downcast_ref::<BuildError>().map_or(1, BuildError::exit_code);
            // The one place that tells the user: nothing can be done if standard error is gone.
            let _ = io::Write::write_all(&mut io::stderr(), format!("error: {error:#}\n").as_bytes());
            ExitCode::from(code)
        }
    }
}

fn run(arguments: BuildArgs, progress: &Progress) -> anyhow::Result<()> {
    let format = arguments.output_format;
    let options = options(arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let report = runtime.block_on(build::run(&options, progress))?;
    let mut out = io::stdout().lock();
    let written = match format {
        Format::Text => report.write_text(&mut out),
        Format::Json => report.write_json(&mut out),
    };
    written.context("cannot write the report")
}

fn options(arguments: BuildArgs) -> anyhow::Result<Options> {
    let chosen =
        |name| arguments.set_source.iter().rev().find(|(set, _)| *set == name).map(|(_, path)| path.clone());
    let epoch = match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => Some(
            text.parse()
                .with_context(|| format!("SOURCE_DATE_EPOCH is `{text}`, not a number of seconds"))?,
        ),
        Err(_) => None,
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Options {
        base: chosen(Source::Base),
        spark: chosen(Source::Spark),
        spec: arguments.file,
        output: arguments.output,
        push: arguments.push,
        skip_refused: arguments.skip_refused,
        cache: arguments.cache_dir.map_or_else(default_cache, Ok)?,
        jobs: arguments.jobs.map_or(processors, usize::from),
        registries: Settings { plain_http: arguments.plain_http, docker_config: arguments.docker_config },
        epoch,
    })
}

fn default_cache() -> anyhow::Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .map(|caches| caches.join("hearth"))
        .context("neither HOME nor XDG_CACHE_HOME is set: say with --cache-dir where the cache is")
}
