//! The registries, and the limits of requests to them.

use std::time::Duration;

use oci::signature::PublicKey;
use reqwest::Url;
use serde::Serialize;

use super::{Credentials, Login};
use crate::types::RegistryPattern;

/// What the agent does with images that anonymous users cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Private {
    /// Not served: the container runtime uses the registry with the pod's own secret.
    Decline,
    /// The agent uses its own credentials for everyone on the node.
    Agent,
    /// Each client shows its own credentials, which the registry judges.
    Challenge,
}

/// Whose credentials the agent shows a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shows {
    /// None: the registry gives what anyone may read.
    Nothing,
    /// The agent's own, or a certificate of its own.
    Agents,
    /// Those of clients, for the repositories that they may read.
    Clients,
}

/// Who a request to a registry is sent for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The agent: with the credentials that the registry's `private` provides for.
    Agent,
    /// Anyone: without credentials.
    Anyone,
    /// A client: with its credentials and no others.
    Client(Login),
}

/// One entry of the configuration's `registries`.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// The registries that the entry applies to.
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
    /// Hosts of token endpoints that get credentials, beside those of the registry's own domain; in lower case.
    pub realms: Vec<String>,
    /// Hosts in nearer networks to which a registry without TLS may redirect; in lower case.
    pub redirects: Vec<String>,
    /// Images must be signed by one of these; empty: signatures are not checked.
    pub verify: Vec<PublicKey>,
}

impl RegistryConfig {
    /// An entry with default settings.
    pub fn of(pattern: RegistryPattern, private: Private) -> Self {
        Self {
            pattern,
            endpoints: Vec::new(),
            private,
            connections: DEFAULT_CONNECTIONS,
            authorities: Vec::new(),
            identity: None,
            realms: Vec::new(),
            redirects: Vec::new(),
            verify: Vec::new(),
        }
    }

    /// Whose credentials the agent shows this registry.
    pub fn shows(&self) -> Shows {
        match self.private {
            _ if self.identity.is_some() => Shows::Agents,
            Private::Agent => Shows::Agents,
            Private::Challenge => Shows::Clients,
            Private::Decline => Shows::Nothing,
        }
    }
}

/// What the configuration says of a registry, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// The entry of `registries` that applies.
    pub entry: String,
    /// Its `private`.
    pub private: &'static str,
    /// Whether there are credentials.
    pub credentials: CredentialsFound,
}

/// Whether the agent has credentials for a repository. They are never shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum CredentialsFound {
    /// The configuration does not allow them for this registry.
    NotUsed,
    /// There are some.
    Found,
    /// There are none.
    None,
    /// A program that may have some failed, with its causes.
    Failed(String),
}

/// Default of the transfers of blobs from one registry at once.
pub const DEFAULT_CONNECTIONS: usize = 24;

/// Limits and credentials of requests to registries.
#[derive(Clone, Debug)]
pub struct Config {
    /// The registries that are served; all others are rejected.
    pub registries: Vec<RegistryConfig>,
    /// Longest wait for a connection.
    pub connect: Duration,
    /// Longest wait for the header of a response; with several endpoints, the time after which the next one is
    /// requested too.
    pub header: Duration,
    /// Longest wait for the header of a blob, or of a manifest that is requested by digest.
    pub blob_header: Duration,
    /// Longest silence inside a body.
    pub idle: Duration,
    /// Credentials, if any.
    pub credentials: Credentials,
}
