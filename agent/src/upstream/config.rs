//! Which registries there are, and the limits of talking to them.

use std::time::Duration;

use reqwest::Url;

use super::Credentials;
use crate::types::RegistryPattern;

/// What the agent does with images that anonymous users cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Private {
    /// Not served: the container runtime goes upstream with the pod's own secret.
    Decline,
    /// The agent's own credentials decide for everyone on the node.
    Agent,
}

/// One entry of the configuration's `registries`.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// Which registries it speaks for.
    pub pattern: RegistryPattern,
    /// Base URLs in order; empty means `https://<host>`.
    pub endpoints: Vec<Url>,
    /// What to do with private images.
    pub private: Private,
    /// Most transfers of blobs at once.
    pub connections: usize,
    /// Certificate authorities beyond the system's.
    pub authorities: Vec<reqwest::Certificate>,
    /// The agent's own certificate and key.
    pub identity: Option<reqwest::Identity>,
}

impl RegistryConfig {
    /// An entry with nothing but its pattern and policy.
    pub fn of(pattern: RegistryPattern, private: Private) -> Self {
        Self {
            pattern,
            endpoints: Vec::new(),
            private,
            connections: DEFAULT_CONNECTIONS,
            authorities: Vec::new(),
            identity: None,
        }
    }
}

/// Transfers of blobs from one registry at once, unless configured.
pub const DEFAULT_CONNECTIONS: usize = 24;

/// Limits and credentials of the upstream side.
#[derive(Clone, Debug)]
pub struct Config {
    /// The registries that are served; all others are refused.
    pub registries: Vec<RegistryConfig>,
    /// Longest wait for a connection.
    pub connect: Duration,
    /// Longest wait for the header of an answer; with several endpoints, the time after which the next is asked too.
    pub header: Duration,
    /// Longest wait for the header of a blob, or of a manifest that is asked for by digest.
    pub blob_header: Duration,
    /// Longest silence inside a body.
    pub idle: Duration,
    /// Credentials, if any.
    pub credentials: Credentials,
}
