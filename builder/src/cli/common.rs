//! What several commands take.

use std::{env, path::PathBuf};

use clap::ValueEnum;

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// One JSON object.
    Json,
    /// The same object as YAML.
    Yaml,
}

/// What the environment lacks or has wrong; like a wrong argument, it ends with exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    #[error("SOURCE_DATE_EPOCH is `{0}`, not a number of seconds since 1970 such as 1700000000")]
    Epoch(String),
    #[error("`hearth lock` locks the sources of the specification: leave --set-source out")]
    LockedSources,
    #[error("neither HOME nor XDG_CACHE_HOME is set: name the directory of the cache with --cache-dir")]
    NoHome,
}

pub(super) fn default_cache() -> Result<PathBuf, UsageError> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    caches.map(|caches| caches.join("hearth")).ok_or(UsageError::NoHome)
}
