//! Configuration: one YAML file, every key also as an environment variable and a flag, checked before anything starts.
//!
//! Flags win over the environment, the environment wins over the file, the file over the defaults. Every key is a row
//! of [`keys::KEYS`]; the file's shape is in `raw`; [`Config`] is what is left when everything has been checked.

mod credentials;
mod error;
mod flags;
mod keys;
mod kubernetes;
mod load;
mod peers;
mod prepull;
mod raw;
mod registries;
mod tls;
mod verify;

use std::time::Duration;
use std::{net::SocketAddr, path::PathBuf};

pub use error::ConfigError;
pub use flags::{explain, file_flag, flags};
pub use keys::{KEYS, Key};
pub use load::{Purpose, load};

use crate::{
    controller, download, http::Limits, peers as cluster, prepull as prepulling, runtime::Runtime, store,
    trace, types::RegistryHost, upstream,
};

/// Everything the agent needs to know, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The store.
    pub store: store::Config,
    /// For how long an old agent may hold the store.
    pub lock_wait: Duration,
    /// Bytes of stored blobs that are checked per second.
    pub scrub_rate: u64,
    /// The upstream side.
    pub upstream: upstream::Config,
    /// How fetching behaves.
    pub fetch: download::Config,
    /// Where the container runtime on this node reaches the mirror.
    pub mirror_listen: SocketAddr,
    /// Where probes, Prometheus and people reach the agent.
    pub admin_listen: SocketAddr,
    /// The Unix socket of programs of this node.
    pub admin_socket: PathBuf,
    /// File with the token that shows names on the admin listener.
    pub admin_token: Option<PathBuf>,
    /// Where other agents reach this one.
    pub peer_listen: SocketAddr,
    /// Who they are, and how this one takes part.
    pub peers: cluster::Config,
    /// What is to be here before anyone asks for it.
    pub prepull: prepulling::Config,
    /// This agent's part in a cluster, if it has one.
    pub kubernetes: Option<prepulling::cluster::Config>,
    /// The controller's settings, if there is a cluster.
    pub controller: Option<controller::Config>,
    /// Limits of the mirror's listener.
    pub limits: Limits,
    /// The node's container runtime, if images may be loaded into it.
    pub runtime: Option<Runtime>,
    /// The file by which `setup` tells the agent of the same pod what it found on the node.
    pub setup_report: Option<PathBuf>,
    /// The registry that requests without one mean.
    pub default_registry: Option<RegistryHost>,
    /// Where spans of pulls are sent, if anywhere.
    pub traces: Option<trace::Config>,
    /// Logs.
    pub log: Log,
}

/// How logs look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// One JSON object a line, or text.
    pub json: bool,
    /// A `tracing` filter.
    pub filter: String,
}

impl Config {
    /// Reads a document alone: no environment, no flags.
    pub fn from_yaml(text: &str) -> Result<Self, ConfigError> {
        load::from_parts(
            Some((PathBuf::from("hearth-agent.yaml"), text.to_owned())),
            Vec::new(),
            Purpose::Serve,
        )
    }
}
