//! `hearth convert`: the command line.

use std::path::PathBuf;

use clap::Args;
use hearth_builder::{
    convert::{Options, Place},
    registry::Settings,
};

use super::{Format, UsageError, default_cache};

const HELP: &str = "\
Examples:
  hearth convert registry.example.com/upstream/spark:3.5.9 registry.example.com/spark:3.5.9
  hearth convert registry.example.com/spark:3.5.9 oci:dist:3.5.9
  hearth convert docker-archive:spark.tar registry.example.com/spark:3.5.9
  hearth convert oci:dist:3.5.9 127.0.0.1:5000/spark:3.5.9 --plain-http 127.0.0.1:5000 --output json

Images are named by a reference, `oci:DIR[:TAG]` (an OCI layout) or, as the source only, `docker-archive:FILE[:REFERENCE]`
(what `docker save` writes). All platforms of an image are converted.

The configuration stays as it is, with the image id, the history and the files of every layer; layers that are zstd:chunked
already are passed on. Annotations of the manifest (dev.hearth.converted.name and .digest) say what it was made from.
Signatures and documents about the old image are left out: they name its digest.

Exit codes: 0 done, 1 failed, 2 the command line has to be changed.";

/// Rewrites an image of any builder as zstd:chunked, so that podman and CRI-O fetch only what they lack.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub struct ConvertArgs {
    /// The image.
    #[arg(value_name = "SRC")]
    source: Place,
    /// Where the converted image goes: a reference or `oci:DIR[:TAG]`; the tag is `latest` where none is named.
    #[arg(value_name = "DST")]
    target: Place,
    /// A registry (`host` or `host:port`) that is spoken to without TLS. May be given several times.
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<String>,
    /// A Docker `config.json` with credentials [default: the user's, then that of podman].
    #[arg(long, value_name = "FILE")]
    docker_config: Option<PathBuf>,
    /// Where old and converted layers are kept: converting again, or another image with the same layers, takes them from
    /// there [default: `$XDG_CACHE_HOME/hearth` or `~/.cache/hearth`].
    #[arg(long, value_name = "DIR", env = "HEARTH_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
    /// Layers converted at once, at most 4 [default: the number of processors].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    jobs: Option<u16>,
    /// How the result is written to standard output.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    output: Format,
}

impl ConvertArgs {
    /// The options, and how the result is written.
    pub fn options(self) -> Result<(Options, Format), UsageError> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let options = Options {
            source: self.source,
            target: self.target,
            cache: self.cache_dir.map_or_else(default_cache, Ok)?,
            jobs: self.jobs.map_or(processors, usize::from),
            registries: Settings { plain_http: self.plain_http, docker_config: self.docker_config },
        };
        Ok((options, self.output))
    }
}
