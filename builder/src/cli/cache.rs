//! `hearth cache`: shows the size of the cache, and removes what is old.

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Subcommand};
use hearth_builder::{
    cache::{
        Cache,
        usage::{Pruned, Usage},
    },
    report::mebibytes,
};
use serde::Serialize;

use super::common::{Format, UsageError, default_cache};

const HELP: &str = "\
Examples:
  hearth cache stat                      size of the cache, by kind
  hearth cache prune                     remove what was not used for 30 days
  hearth cache prune --unused-for 0      empty it
  hearth cache prune --dry-run -o json | jq .removedBytes

A build downloads or makes again what it needs and was removed. Layers that an OCI layout on the same file system
shares with the cache keep their space until the layout is removed as well.";

/// Shows the size of the cache, and removes what was not used for some time.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Debug, Subcommand)]
enum CacheCommand {
    /// Shows the size of the cache, by kind.
    Stat(PlaceArgs),
    /// Removes what was not used for some time. Fails while a build runs.
    Prune {
        #[command(flatten)]
        place: PlaceArgs,
        /// Remove what was not used for this many days.
        #[arg(long, value_name = "DAYS", default_value_t = 30)]
        unused_for: u32,
        /// Only show what would be removed.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
struct PlaceArgs {
    /// The cache [default: `$XDG_CACHE_HOME/hearth` or `~/.cache/hearth`].
    #[arg(long, value_name = "DIR", env = "HEARTH_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
    /// Format of the result on standard output.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// What the cache takes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatReport {
    cache: String,
    bytes: u64,
    kinds: Vec<Usage>,
}

/// What was removed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PruneReport {
    cache: String,
    dry_run: bool,
    #[serde(flatten)]
    pruned: Pruned,
}

/// The result of a command on the cache.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum CacheReport {
    /// Of `stat`.
    Stat(StatReport),
    /// Of `prune`.
    Prune(PruneReport),
}

impl CacheArgs {
    /// Runs the command; gives its result, and how it is written.
    pub fn run(self) -> anyhow::Result<(CacheReport, Format)> {
        let (place, prune) = match self.command {
            CacheCommand::Stat(place) => (place, None),
            CacheCommand::Prune { place, unused_for, dry_run } => (place, Some((unused_for, dry_run))),
        };
        let path = place.cache_dir.map_or_else(default_cache, Ok::<_, UsageError>)?;
        let cache = Cache::open(&path)?;
        let shown = path.display().to_string();
        let report = match prune {
            None => {
                let kinds = cache.usage();
                let bytes = kinds.iter().map(|usage| usage.bytes).sum();
                CacheReport::Stat(StatReport { cache: shown, bytes, kinds })
            }
            Some((days, dry_run)) => {
                let pruned = cache.prune(Duration::from_hours(24) * days, dry_run)?;
                CacheReport::Prune(PruneReport { cache: shown, dry_run, pruned })
            }
        };
        Ok((report, place.output))
    }
}

impl CacheReport {
    /// Writes the result for people.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Stat(report) => {
                writeln!(out, "{}: {}", report.cache, mebibytes(report.bytes))?;
                for Usage { kind, files, bytes } in &report.kinds {
                    writeln!(out, "  {kind:14} {:>12} {files:>8} files", mebibytes(*bytes))?;
                }
                Ok(())
            }
            Self::Prune(PruneReport { cache, dry_run, pruned }) => {
                let verb = if *dry_run { "would remove" } else { "removed" };
                let Pruned { removed_files, removed_bytes, kept_bytes } = pruned;
                let (removed, kept) = (mebibytes(*removed_bytes), mebibytes(*kept_bytes));
                writeln!(out, "{cache}: {verb} {removed_files} files ({removed}), {kept} are left")
            }
        }
    }
}
