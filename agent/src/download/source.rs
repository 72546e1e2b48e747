//! The seam to the other nodes: what a download needs of them, without knowing how they work together.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{error::FetchError, state::Download};
use crate::{store::Partial, types::Digest};

/// The peers of this node as one source of blobs.
pub(crate) trait PeerSource: std::fmt::Debug + Send + Sync {
    /// Brings what peers can bring, and what they request of this node meanwhile. With `Ok` the download goes on with the
    /// registry; all bytes may be there by then.
    fn fill<'a>(
        self: Arc<Self>,
        download: &'a Arc<Download>,
        partial: &'a Arc<Partial>,
    ) -> BoxFuture<'a, Result<(), FetchError>>;

    /// Asks peers for one of the missing pieces, and the registry for nothing. Returns whether a peer gave it.
    fn bring_one<'a>(
        self: Arc<Self>,
        download: &'a Arc<Download>,
        partial: &'a Arc<Partial>,
    ) -> BoxFuture<'a, bool>;

    /// The blob has the wrong digest. Returns whether its bytes are worth keeping, to be compared with a second read.
    fn found_wrong(self: Arc<Self>, download: &Download, size: Option<u64>) -> bool;

    /// The blob has the right digest: peers that named other hashes for its pieces can be told now.
    fn found_right<'a>(self: Arc<Self>, digest: &'a Digest, partial: &'a Arc<Partial>) -> BoxFuture<'a, ()>;
}
