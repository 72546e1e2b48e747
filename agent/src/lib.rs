//! Hearth's node agent: keeps Spark images warm on a Kubernetes node and serves them as a registry mirror.
//!
//! ```text
//! main -> app -> { http, prepull, controller } -> { swarm, verify -> access } -> download -> { store, peers, upstream } -> types
//!             -> gc -> images --> store
//!             -> scrub ---------> store
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`app`] | wiring, start and stop order; the only file that names every module |
//! | [`cli`] | the commands other than `run`, over the admin API or on a stopped agent's data |
//! | [`controller`] | the work of one process for the whole cluster: status of sets, sets for Spark applications |
//! | [`config`] | file + environment + flags -> one checked [`config::Config`] |
//! | [`http`] | the listeners: mirror (`/v2`), other agents (`/peer/v1`) and admin |
//! | [`download`] | one download per digest, growing reads, tag resolution |
//! | [`access`] | who may have cached content that came with credentials |
//! | [`verify`] | whether images are signed by a listed key |
//! | [`explain`] | why a pull of an image is as it is, and advice (pure) |
//! | [`swarm`] | the peers as one source of blobs: fetches pieces from peers, serves pieces to them, detects corrupt peers |
//! | [`images`] | which images the store holds: list, pin, remove |
//! | [`gc`] | what to evict (pure), and the loop that does it |
//! | [`scrub`] | the background check of stored blobs, and `verify` |
//! | [`runtime`] | the container runtime's socket: loads images into it and pins them |
//! | [`proof`] | whether the node's container runtime pulls through this agent |
//! | [`setup`] | configures the node's container runtimes to use the agent, and uninstalls that |
//! | [`store`] | verified blobs, partial blobs and references on disk; sled only in its index |
//! | [`upstream`] | registries: endpoints, authentication, redirects, limits |
//! | [`prepull`] | images to cache before a pod needs them: sets, schedules, what is due (pure), pulling |
//! | [`peers`] | other agents: the membership, the division of blobs and the ranking of peers (pure), requests to a peer |
//! | [`types`] | types for the terms of the protocol |
//! | `kubernetes` | access to the API server: a client, time limits, watching a kind of objects |
//! | `limits` | the durations and counts of the data path that are not configurable |
//! | [`journal`] | the last pulls, downloads and failures, in memory, for people |
//! | [`metrics`], [`task`] | counters; the only place that starts tasks |
//!
//! Invariants, each kept by the module that could break it:
//! 1. A [`store::Blob`] exists only after its digest was verified.
//! 2. A cache hit uses no database, channel or global lock.
//! 3. Nothing in the index is unique.
//! 4. Each outside crate is used in one place (sled: `store/index.rs`).
//! 5. A request from another agent is answered from this node or along the tree, never towards a lower weight.
//! 6. Decisions are pure functions; I/O sits beside them.

pub mod access;
pub mod app;
pub mod certificates;
pub mod cli;
pub mod config;
pub mod controller;
pub mod download;
pub mod explain;
#[doc(hidden)]
pub mod fuzz;
pub mod gc;
pub mod http;
pub mod images;
pub mod journal;
mod kubernetes;
mod limits;
pub mod metrics;
pub mod peers;
pub mod prepull;
pub mod proof;
pub mod runtime;
pub mod scrub;
pub mod setup;
pub mod store;
pub mod swarm;
pub mod task;
pub mod trace;
pub mod types;
pub mod upstream;
pub mod verify;
