//! The command line, and what it comes to: checked [`Options`].

mod cache;
mod common;
mod convert;
pub mod former;
pub mod init;

use std::{env, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use hearth_builder::{
    build::{Change, Options},
    registry::{Repository, Settings},
    sandbox,
};

use self::common::default_cache;
pub use self::{
    cache::CacheArgs,
    common::{Format, UsageError},
    convert::ConvertArgs,
    init::InitArgs,
};

/// Builds reproducible Apache Spark images without a container engine and without root.
#[derive(Debug, Parser)]
#[command(name = "hearth", version, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Init(InitArgs),
    Build(BuildArgs),
    Plan(PlanArgs),
    Lock(LockArgs),
    Convert(ConvertArgs),
    Cache(CacheArgs),
    /// Prints the JSON schema of `hearth.yaml`, for editors and checks.
    Schema,
    /// Prints completions for a shell.
    #[command(after_long_help = COMPLETIONS_HELP)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Writes a man page for each command into a directory.
    #[command(after_long_help = "Example:\n  hearth man ~/.local/share/man/man1")]
    Man {
        /// The directory; it is made when it is missing.
        directory: PathBuf,
    },
    /// Becomes a program of an image that is built; `hearth` calls it itself.
    #[command(name = sandbox::SUBCOMMAND, hide = true)]
    EnterSandbox {
        /// The root directory.
        root: PathBuf,
        /// The program, by its path in the image.
        program: String,
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

const COMPLETIONS_HELP: &str = "\
Examples:
  hearth completions bash > ~/.local/share/bash-completion/completions/hearth
  hearth completions zsh > \"${fpath[1]}/_hearth\"
  hearth completions fish > ~/.config/fish/completions/hearth.fish";

const BUILD_HELP: &str = "\
Examples:
  hearth build                                      build ./hearth.yaml into ./dist
  hearth build -f specs/hearth.yaml --push          build and push
  hearth build --push --plain-http 127.0.0.1:5000   push to a registry without TLS
  hearth build --to images                          build into ./images
  hearth build --push --repository host/path --tag 1.2   push somewhere else, under another name
  hearth build -o json | jq -r '.images[].manifest'

Environment:
  SOURCE_DATE_EPOCH   creation time in image configurations (file times in layers never depend on it)
  HEARTH_LOG          what is logged, such as `debug` or `hearth_builder=debug`
  NO_COLOR            no colours in log lines
  HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE and the configuration of uv are honoured.

Exit codes: 0 done, 1 failed, 2 the command line or the specification has to be changed.";

/// Builds the images of a specification into an OCI image layout, and pushes them with --push.
#[derive(Debug, Args)]
#[command(after_long_help = BUILD_HELP)]
pub struct BuildArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// The OCI image layout to write or to add to [default: `dist` beside the specification].
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Also write the images into one file for `docker load`, `podman load` and `ctr image import`.
    #[arg(long, value_name = "FILE")]
    docker_archive: Option<PathBuf>,
    /// Push to the repository of the specification. Blobs that it has are not sent again.
    #[arg(long)]
    push: bool,
    /// The repository of the images, instead of the specification's.
    #[arg(long, value_name = "HOST/PATH")]
    repository: Option<Repository>,
    /// The tag of the images, instead of the specification's `tag`; with the same placeholders.
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Build the other combinations when some of the matrix cannot run or are untested.
    #[arg(long)]
    skip_refused: bool,
    /// Fail when there is no lock.
    #[arg(long)]
    locked: bool,
    /// Only show what would be built and sent, as `hearth plan` does.
    #[arg(long)]
    pub dry_run: bool,
    /// Attach to each image what is in it (SPDX and CycloneDX) and where it came from (in-toto provenance).
    #[arg(long)]
    sbom: bool,
}

const PLAN_HELP: &str = "\
Examples:
  hearth plan                           what a build of ./hearth.yaml would do
  hearth plan -o json | jq '.uniqueBytes'

Inputs are downloaded and read (the build will need them anyway); nothing is compressed, written or pushed. The target
registry is queried for the layers that it has, except with --offline.";

/// Shows what a build would do: images, refused combinations with the reason, layers and who shares them.
#[derive(Debug, Args)]
#[command(after_long_help = PLAN_HELP)]
pub struct PlanArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Also show what a node would download that has the images of this lock.
    #[arg(long, value_name = "LOCK")]
    against: Option<PathBuf>,
    /// Build layers that were never built, into the cache, to show the compressed size of each.
    #[arg(long)]
    exact: bool,
}

const LOCK_HELP: &str = "\
Examples:
  hearth lock                                 write hearth.lock beside hearth.yaml
  hearth lock --check                         fail when it is stale (for CI)
  hearth lock --upgrade 'base base.tar'       look up this input again and leave the others alone
  hearth lock --upgrade numpy                 a newer numpy; all other Python packages keep their versions

Locked inputs keep their digest, and existing images keep their layers.
Builds use the lock from then on, and need no network when the cache has the inputs.

Exit codes: 0 done or current, 1 failed or stale, 2 the command line or the specification has to be changed.";

/// Writes `hearth.lock`: every input by digest and every layer by its files, so that later builds give the same images.
#[derive(Debug, Args)]
#[command(after_long_help = LOCK_HELP)]
pub struct LockArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Write nothing; fail when `hearth lock` would change the lock.
    #[arg(long)]
    check: bool,
    /// Look up this input again, by its name in the lock, or a newer version of this Python package. May be given
    /// several times.
    #[arg(long, value_name = "NAME", conflicts_with = "check")]
    upgrade: Vec<String>,
    /// Divide all files into layers again. Existing images get other layers, and all images share more.
    #[arg(long, conflicts_with = "check")]
    regroup: bool,
    /// Lock the other combinations when some of the matrix cannot run or are untested.
    #[arg(long)]
    skip_refused: bool,
}

#[derive(Debug, Args)]
struct CommonArgs {
    /// The specification. Its keys are explained in `docker/README.md`.
    #[arg(short, long, value_name = "FILE", default_value = "hearth.yaml")]
    file: PathBuf,
    /// The lock [default: beside the specification, `hearth.lock` for `hearth.yaml`, when it is there].
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// A registry (`host` or `host:port`) to use without TLS; by default all use TLS, loopback addresses too.
    /// May be given several times.
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<String>,
    /// A Docker `config.json` with credentials [default: the user's, then that of podman].
    #[arg(long, value_name = "FILE")]
    docker_config: Option<PathBuf>,
    /// Directory in which downloads, compressed files and layers are kept between builds
    /// [default: `$XDG_CACHE_HOME/hearth` or `~/.cache/hearth`].
    #[arg(long, value_name = "DIR", env = "HEARTH_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
    /// Threads for compression [default: the number of processors].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    jobs: Option<u16>,
    /// Use this file instead of what the specification says: `base=PATH` (a root file system archive or an
    /// OCI layout) or `spark=PATH` (a release archive or pyspark source distribution; `{spark}` stands for the version).
    #[arg(long, value_name = "NAME=PATH", value_parser = source)]
    set_source: Vec<(Source, PathBuf)>,
    /// Download nothing: every input has to be in the cache.
    #[arg(long)]
    offline: bool,
    /// Format of the result on standard output.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Base,
    Spark,
}

fn source(text: &str) -> Result<(Source, PathBuf), String> {
    match text.split_once('=') {
        Some(("base", path)) if !path.is_empty() => Ok((Source::Base, path.into())),
        Some(("spark", path)) if !path.is_empty() => Ok((Source::Spark, path.into())),
        _ => Err("expected `base=PATH` or `spark=PATH`, for example `base=base.tar`".to_owned()),
    }
}

impl BuildArgs {
    /// The options, and how the result is written.
    pub fn options(self) -> Result<(Options, Format), UsageError> {
        let (options, format) = self.common.options()?;
        let (output, push, skip_refused, locked) = (self.to, self.push, self.skip_refused, self.locked);
        let (sbom, docker_archive, repository) = (self.sbom, self.docker_archive, self.repository);
        let options = Options { output, docker_archive, push, skip_refused, locked, sbom, ..options };
        Ok((Options { repository, tag: self.tag, ..options }, format))
    }
}

impl PlanArgs {
    /// The options, and how the result is written.
    pub fn options(self) -> Result<(Options, Format), UsageError> {
        let (options, format) = self.common.options()?;
        Ok((Options { against: self.against, exact: self.exact, ..options }, format))
    }
}

impl LockArgs {
    /// The options, what to do, and how the result is written.
    pub fn options(self) -> Result<(Options, Change, Format), UsageError> {
        let (options, format) = self.common.options()?;
        if options.base.is_some() || options.spark.is_some() {
            return Err(UsageError::LockedSources);
        }
        let change = Change { check: self.check, upgrade: self.upgrade, regroup: self.regroup };
        Ok((Options { skip_refused: self.skip_refused, ..options }, change, format))
    }
}

impl CommonArgs {
    fn options(self) -> Result<(Options, Format), UsageError> {
        // The last one counts, as with every other argument.
        let chosen =
            |name| self.set_source.iter().rev().find(|(set, _)| *set == name).map(|(_, path)| path.clone());
        let epoch = match env::var("SOURCE_DATE_EPOCH") {
            Ok(text) => Some(text.parse().map_err(|_| UsageError::Epoch(text))?),
            Err(_) => None,
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let options = Options {
            base: chosen(Source::Base),
            spark: chosen(Source::Spark),
            spec: self.file,
            output: None,
            docker_archive: None,
            push: false,
            repository: None,
            tag: None,
            skip_refused: false,
            lock: self.lock,
            locked: false,
            against: None,
            exact: false,
            cache: self.cache_dir.map_or_else(default_cache, Ok)?,
            jobs: self.jobs.map_or(processors, usize::from),
            sbom: false,
            offline: self.offline,
            registries: Settings { plain_http: self.plain_http, docker_config: self.docker_config },
            epoch,
        };
        Ok((options, self.output))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sources_are_replaced_by_name() {
        assert_eq!(source("base=a=b"), Ok((Source::Base, "a=b".into())));
        assert_eq!(source("spark=x-{spark}.tar.gz"), Ok((Source::Spark, "x-{spark}.tar.gz".into())));
        for text in ["base", "base=", "jre=x", ""] {
            assert!(source(text).is_err(), "{text}");
        }
    }
}
