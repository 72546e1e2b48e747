//! Opens and closes cases against peers ([`super::evidence`]): a blob was wrong, and the right bytes are there.

use std::{io, sync::Arc};

use super::{context::Inner, evidence::Case};
use crate::{
    download::Download,
    metrics::BlameLabels,
    store::Partial,
    types::{Digest, chain},
};

impl Inner {
    /// A blob turned out wrong: the hashes that peers named of its pieces are remembered. Says whether what has come is
    /// worth keeping, to be compared with a second read.
    pub(super) fn open_case(&self, download: &Download, size: Option<u64>) -> bool {
        size.filter(|_| download.peer_requests.has_peers()).is_some_and(|size| {
            self.evidence.note(download.digest(), Case::new(size, download.expected.claims()))
        })
    }

    /// The right bytes are there: peers that named wrong hashes are left out for a while.
    pub(super) async fn close_case(&self, digest: &Digest, partial: &Arc<Partial>) {
        let Some(case) = self.evidence.take(digest) else { return };
        let partial = partial.clone();
        let closed = tokio::task::spawn_blocking(move || {
            let wrong = case.close(partial.file())?;
            Ok(wrong.into_iter().map(|(peer, piece)| (peer.to_owned(), piece)).collect::<Vec<_>>())
        });
        let wrong = closed.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let wrong = wrong.inspect_err(
            |error| tracing::warn!(error = %chain(error), "cannot tell which peer named wrong hashes"),
        );
        for (peer, piece) in wrong.unwrap_or_default() {
            tracing::warn!(digest = %digest.short(), piece, peer, "peer named a wrong hash for a piece: skipped for a while");
            self.metrics.peer_wrong_pieces.get_or_create(&BlameLabels { peer: peer.clone() }).inc();
            self.peers.blame(&peer);
        }
    }
}
