//! The listeners: the mirror (`/v2`), other agents (`/peer/v1`) and the admin side.
//!
//! `route` turns a request into a value, without I/O; `mirror` and `peer` answer it with one call into `download`; `answers` makes responses, `error` is the
//! one place where errors meet the protocol; `body` sends content; `record` writes log lines and the journal; `listener` and
//! `admission` decide who is served; `serve` owns connections; `handover` gives the listening sockets to the next agent.

mod admin;
mod admission;
mod answers;
mod api;
mod body;
mod client;
mod cluster;
mod connection;
mod descriptors;
mod error;
mod handover;
mod head;
mod listener;
mod local;
mod mirror;
mod multipart;
mod page;
mod peer;
mod probes;
mod record;
mod report;
mod route;
mod serve;
mod token;
mod transfer;

pub use admin::{Admin, Detail, Latch, Readiness, Section};
pub use client::HeaderLimits;
pub use cluster::ClusterView;
pub use descriptors::Shares;
pub use handover::{Handover, Inherited};
pub use local::LocalServer;
pub use mirror::Mirror;
pub use peer::PeerApi;
pub use probes::Probes;
pub use report::Report;
pub(crate) use route::try_parse as try_route;
pub use serve::{Limits, Server};
pub use token::Token;
