//! The file as it is written: every key optional, unknown keys refused, values parsed but not yet held against each
//! other.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_saphyr::Spanned;

use super::{
    peers::{HostPort, MemberList, Name, ServiceName, Signer},
    prepull::RawSet,
};
use crate::types::{Amount, RegistryHost, RegistryPattern, parse_duration, parse_percent, parse_size};

macro_rules! section {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub(super) struct $name { $(pub(super) $field: $type),* }

        impl Merge for $name {
            /// What `over` sets wins.
            fn merge(&mut self, over: Self) {
                $(self.$field.merge(over.$field);)*
            }
        }
    };
}

/// Laying one source of configuration over another.
pub(super) trait Merge {
    fn merge(&mut self, over: Self);
}

impl<T> Merge for Option<T> {
    fn merge(&mut self, over: Self) {
        if over.is_some() {
            *self = over;
        }
    }
}

section!(Raw {
    data_dir: Option<PathBuf>,
    store: RawStore,
    mirror: Listener,
    peer: RawPeer,
    runtime: RawRuntime,
    admin: RawAdmin,
    registries: Option<Vec<Spanned<RawRegistry>>>,
    default_registry: Option<Spanned<Text<RegistryHost>>>,
    credentials: RawCredentials,
    tags: RawTags,
    fetch: RawFetch,
    limits: RawLimits,
    traces: RawTraces,
    log: RawLog,
    prepull: RawPrepull,
    kubernetes: RawKubernetes,
});
impl Raw {
    /// What the controller reads of a file that it shares with agents. Its pod has none of their credentials, certificates and
    /// directories, so these are not read.
    pub(super) fn of_controller(self) -> Self {
        Self {
            peer: RawPeer {
                name: self.peer.name,
                tls: RawPeerTls {
                    signer: self.peer.tls.signer,
                    name: self.peer.tls.name,
                    ..RawPeerTls::default()
                },
                ..RawPeer::default()
            },
            admin: RawAdmin { listen: self.admin.listen, socket: None, token_file: None },
            limits: self.limits,
            log: self.log,
            kubernetes: self.kubernetes,
            ..Self::default()
        }
    }
}

section!(RawStore {
    limit: Option<Text<Space>>,
    min_free: Option<Text<Space>>,
    high_watermark: Option<Text<Percent>>,
    low_watermark: Option<Spanned<Text<Percent>>>,
    lock_wait: Option<Text<Span>>,
    scrub_rate: Option<Text<Bytes>>,
    runtime_content: Option<PathBuf>,
    runtime_link: Option<Text<bool>>,
});
section!(Listener { listen: Option<Text<Address>> });
section!(RawAdmin { listen: Option<Text<Address>>, socket: Option<Spanned<PathBuf>>, token_file: Option<PathBuf> });
section!(RawPeer {
    listen: Option<Text<Address>>,
    name: Option<Text<Name>>,
    zone: Option<Text<Name>>,
    members: Option<Spanned<Text<MemberList>>>,
    dns: Option<Spanned<Text<HostPort>>>,
    service: Option<Spanned<Text<ServiceName>>>,
    api: Option<Text<Endpoint>>,
    relay: Option<Text<bool>>,
    uploads: Option<Text<Count>>,
    upload_rate: Option<Text<Rate>>,
    wait: Option<Text<PositiveSpan>>,
    tag_quorum: Option<Text<Quorum>>,
    tls: RawPeerTls,
});
section!(RawPeerTls {
    signer: Option<Spanned<Text<Signer>>>,
    certificate: Option<Spanned<PathBuf>>,
    key: Option<Spanned<PathBuf>>,
    ca: Option<Spanned<PathBuf>>,
    name: Option<Spanned<Text<Name>>>,
});
section!(RawTraces { endpoint: Option<Text<Endpoint>>, ratio: Option<Text<Share>> });
section!(RawRuntime { socket: Option<PathBuf>, setup_report: Option<PathBuf> });
section!(RawCredentials {
    docker_config: Option<Spanned<PathBuf>>,
    kubelet_config: Option<Spanned<PathBuf>>,
    kubelet_bin_dir: Option<Spanned<PathBuf>>,
});
section!(RawTags {
    freshness: Option<Text<Span>>,
    max_stale: Option<Text<Age>>,
    negative: Option<Text<Span>>,
});
section!(RawFetch {
    blob_connections: Option<Text<Count>>,
    parallel_from: Option<Text<Bytes>>,
    whole_on_range: Option<Text<bool>>,
});
section!(RawLimits {
    first_header: Option<Text<PositiveSpan>>,
    connect: Option<Text<PositiveSpan>>,
    header: Option<Text<PositiveSpan>>,
    blob_header: Option<Text<PositiveSpan>>,
    idle: Option<Text<PositiveSpan>>,
    client_write: Option<Text<PositiveSpan>>,
    connections: Option<Text<Count>>,
    shutdown_grace: Option<Text<Span>>,
});
section!(RawPrepull {
    sets: Option<Vec<Spanned<RawSet>>>,
    parallel: Option<Text<Count>>,
    interval: Option<Text<PositiveSpan>>,
});
section!(RawKubernetes {
    image_sets: Option<Text<bool>>,
    api: Option<Text<Endpoint>>,
    node: Option<Text<Name>>,
    namespace: Option<Text<Name>>,
    taint: Option<Text<String>>,
    warm_deadline: Option<Text<PositiveSpan>>,
    status_interval: Option<Text<PositiveSpan>>,
    heartbeat: Option<Text<PositiveSpan>>,
    agent_nodes: Option<Text<String>>,
    agent_account: Option<Text<Name>>,
    warm_labels: Option<Text<bool>>,
    pod_events: Option<Text<bool>>,
    spark: Option<Text<bool>>,
    spark_lead: Option<Text<PositiveSpan>>,
    spark_ttl: Option<Text<PositiveSpan>>,
    spark_namespaces: Option<Text<crate::controller::spark::Namespaces>>,
    spark_images: Option<Text<Count>>,
    spark_bytes: Option<Text<Bytes>>,
});
section!(RawLog { format: Option<Text<Format>>, filter: Option<Text<Filter>> });

/// One entry of `registries`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawRegistry {
    pub(super) host: Text<RegistryPattern>,
    #[serde(default)]
    pub(super) endpoints: Vec<Text<Endpoint>>,
    pub(super) private: Option<Text<PrivatePolicy>>,
    pub(super) connections: Option<Text<Count>>,
    pub(super) tls: Option<RawTls>,
    #[serde(default)]
    pub(super) realms: Vec<String>,
    #[serde(default)]
    pub(super) redirects: Vec<String>,
    pub(super) verify: Option<RawVerify>,
}

/// Whose signatures images must have.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawVerify {
    pub(super) keys: Spanned<Vec<Spanned<PathBuf>>>,
}

/// Trust and identity towards one registry.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawTls {
    pub(super) ca: Option<Spanned<PathBuf>>,
    pub(super) certificate: Option<Spanned<PathBuf>>,
    pub(super) key: Option<Spanned<PathBuf>>,
}

/// A value that is written as text.
#[derive(Clone, Debug)]
pub(super) struct Text<T>(pub(super) T);

impl<'de, T: FromStr<Err: std::fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

macro_rules! from_text {
    ($(#[$meta:meta])* $name:ident($inner:ty), $parse:expr) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        pub(super) struct $name(pub(super) $inner);

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let parse: fn(&str) -> Result<$inner, String> = $parse;
                parse(text).map(Self)
            }
        }
    };
}

from_text!(
    /// An address to listen on.
    Address(SocketAddr),
    |text| text.parse().map_err(|_| format!("`{text}` is not an address with a port, for example `127.0.0.1:5050` or `[::1]:5050`"))
);
from_text!(
    /// A duration, zero allowed.
    Span(Duration),
    |text| parse_duration(text).map_err(|error| error.to_string())
);
from_text!(
    /// A duration above zero.
    PositiveSpan(Duration),
    |text| match parse_duration(text) {
        Ok(span) if span.is_zero() => Err("must be more than zero".into()),
        Ok(span) => Ok(span),
        Err(error) => Err(error.to_string()),
    }
);
from_text!(
    /// A duration or `forever`.
    Age(Option<Duration>),
    |text| if text == "forever" {
        Ok(None)
    } else {
        parse_duration(text).map(Some).map_err(|error| format!("{error}, or write `forever`"))
    }
);
from_text!(
    /// A size, or a share of the file system.
    Space(Amount),
    str::parse
);
from_text!(
    /// A percentage.
    Percent(u8),
    parse_percent
);
from_text!(
    /// A number of bytes.
    Bytes(u64),
    |text| parse_size(text).map_err(|error| error.to_string())
);
from_text!(
    /// Bytes a second, or no limit.
    Rate(Option<u64>),
    |text| match text {
        "unlimited" => Ok(None),
        text => match parse_size(text.trim_end_matches("/s")) {
            Ok(0) => Err("must be more than zero".into()),
            Ok(rate) => Ok(Some(rate)),
            Err(error) => Err(format!("{error}, or write `unlimited`")),
        },
    }
);
from_text!(
    /// A number above zero.
    Count(usize),
    |text| match text.parse() {
        Ok(0) | Err(_) => Err(format!("`{text}` is not a whole number above zero")),
        Ok(number) => Ok(number),
    }
);
from_text!(
    /// How many peers have to agree: one alone must never be enough.
    Quorum(usize),
    |text| match text.parse() {
        Ok(number @ 2..=64) => Ok(number),
        _ => Err(format!("`{text}` is not a whole number from 2 to 64")),
    }
);
from_text!(
    /// A share.
    Share(f64),
    |text| match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("`{text}` is not a number from 0 to 1")),
    }
);
from_text!(
    /// Whether logs are JSON.
    Format(bool),
    |text| match text {
        "json" => Ok(true),
        "text" => Ok(false),
        other => Err(format!("`{other}` is neither `text` nor `json`")),
    }
);
from_text!(
    /// A filter that `tracing` understands.
    Filter(String),
    |text| match tracing_subscriber::EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("`{text}` is not a tracing filter: {error}")),
    }
);
from_text!(
    /// What to do with private images.
    PrivatePolicy(crate::upstream::Private),
    |text| match text {
        "decline" => Ok(crate::upstream::Private::Decline),
        "agent" => Ok(crate::upstream::Private::Agent),
        "challenge" => Ok(crate::upstream::Private::Challenge),
        other => Err(format!("`{other}` is none of `decline`, `agent` and `challenge`")),
    }
);
from_text!(
    /// A base URL of a registry.
    Endpoint(reqwest::Url),
    |text| {
        let url = reqwest::Url::parse(text).map_err(|error| format!("`{text}` is not a URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(format!("`{text}` must start with http:// or https:// and name a host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("an endpoint must not contain credentials: use `credentials`".into());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(format!("`{text}` has a query or a fragment: an endpoint is scheme, host, port and path"));
        }
        Ok(url)
    }
);
