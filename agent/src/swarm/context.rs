//! The state that all parts of the swarm share.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::{evidence::Evidence, piece_hashes::PieceHashes};
use crate::{
    download::Fetcher, metrics::Metrics, peers::Peers, store::Store, task::Tasks, upstream::Upstream,
};

/// The peers as one source of blobs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Swarm(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) fetcher: Fetcher,
    pub(super) store: Store,
    pub(super) upstream: Arc<Upstream>,
    pub(super) peers: Peers,
    pub(super) metrics: Metrics,
    pub(super) tasks: Tasks,
    pub(super) evidence: Evidence,
    pub(super) hashes: PieceHashes,
    /// Permits of a slow node to fetch pieces, for all blobs together.
    pub(super) slow_turns: Semaphore,
}
