//! The peers as one source of blobs: what this node fetches from peers, what it sends to them, and how it finds the
//! peer that sent wrong bytes.
//!
//! `exchange` fills one download from peers; `piece` fetches one piece; `share` answers requests of peers;
//! `piece_hashes` holds the hashes that this node guarantees; `evidence` and `cross_check` find the peer that was
//! wrong. The membership, the ranking and the protocol are in [`crate::peers`].
//!
//! [`crate::download`] uses all of it through the trait `PeerSource`.

mod cases;
mod context;
mod cross_check;
mod evidence;
mod exchange;
mod piece;
mod piece_hashes;
mod share;
mod vouch;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use context::Inner;
pub use context::Swarm;
use evidence::Evidence;
use piece_hashes::PieceHashes;
pub use share::Share;

use crate::{
    download::{Download, FetchError, Fetcher, PeerSource},
    metrics::Metrics,
    peers::Peers,
    store::{Partial, Store},
    task::Tasks,
    upstream::Upstream,
};

use crate::limits::swarm::turns::SLOW_TURNS;

impl Swarm {
    /// Creates the swarm and registers it as a source of `fetcher` for as long as it exists.
    pub fn new(
        fetcher: Fetcher,
        store: Store,
        upstream: Arc<Upstream>,
        peers: Peers,
        metrics: Metrics,
        tasks: Tasks,
    ) -> Self {
        let inner = Arc::new(Inner {
            fetcher,
            store,
            upstream,
            peers,
            metrics,
            tasks,
            evidence: Evidence::default(),
            hashes: PieceHashes::default(),
            slow_turns: Semaphore::new(SLOW_TURNS),
        });
        let source: Arc<dyn PeerSource> = inner.clone();
        inner.fetcher.use_peers(Arc::downgrade(&source));
        Self(inner)
    }
}

impl PeerSource for Inner {
    fn fill<'a>(
        self: Arc<Self>,
        download: &'a Arc<Download>,
        partial: &'a Arc<Partial>,
    ) -> BoxFuture<'a, Result<(), FetchError>> {
        Box::pin(exchange::fill(Swarm(self), download, partial))
    }

    fn bring_one<'a>(
        self: Arc<Self>,
        download: &'a Arc<Download>,
        partial: &'a Arc<Partial>,
    ) -> BoxFuture<'a, bool> {
        Box::pin(exchange::bring_one(Swarm(self), download, partial))
    }

    fn found_wrong(self: Arc<Self>, download: &Download, size: Option<u64>) -> bool {
        let kept = self.note_wrong_blob(download, size);
        if !kept {
            self.hashes.forget(download.digest());
        }
        kept
    }

    fn found_right<'a>(
        self: Arc<Self>,
        download: &'a Arc<Download>,
        partial: &'a Arc<Partial>,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            self.hashes.keep(download, partial);
            self.blame_peers(download.digest(), partial).await;
        })
    }
}
