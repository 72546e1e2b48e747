//! The interface to the peers: what a download needs from them, independent of how they work.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{error::FetchError, state::Download};
use crate::store::Partial;

/// The peers of this node as one source of blobs.
pub(crate) trait PeerSource: std::fmt::Debug + Send + Sync {
    /// Fetches from peers, and serves what they request of this node meanwhile. After `Ok` the download continues
    /// with the registry; all bytes may have arrived by then.
    fn fill<'a>(
        self: Arc<Self>,
        download: &'a Arc<Download>,
        partial: &'a Arc<Partial>,
    ) -> BoxFuture<'a, Result<(), FetchError>>;

    /// Fetches one of the missing pieces from peers, and nothing from the registry. Returns whether a peer sent it.
    fn bring_one<'a>(
        self: Arc<Self>,
        download: &'a Arc<Download>,
        partial: &'a Arc<Partial>,
    ) -> BoxFuture<'a, bool>;

    /// The blob has the wrong digest. Returns whether to keep its bytes, to compare them with a second read.
    fn found_wrong(self: Arc<Self>, download: &Download, size: Option<u64>) -> bool;

    /// The blob has the right digest: peers that sent other hashes for its pieces can be identified now.
    fn found_right<'a>(
        self: Arc<Self>,
        download: &'a Arc<Download>,
        partial: &'a Arc<Partial>,
    ) -> BoxFuture<'a, ()>;
}
