//! Handles blobs with a wrong digest: keeps the hashes that peers sent ([`super::evidence`]), and blames the peers
//! whose hashes were wrong.

use std::{io, sync::Arc};

use super::{context::Inner, evidence::WrongBlob};
use crate::{
    download::Download,
    metrics::BlameLabels,
    store::Partial,
    types::{Digest, chain},
};

impl Inner {
    /// A blob has the wrong digest: keeps the hashes that peers sent for its pieces. Returns whether to keep the
    /// bytes that have arrived, to compare them with a second read.
    pub(super) fn note_wrong_blob(&self, download: &Download, size: Option<u64>) -> bool {
        size.filter(|_| download.peer_requests.has_peers()).is_some_and(|size| {
            self.evidence.note(download.digest(), WrongBlob::new(size, download.expected.claims()))
        })
    }

    /// The right bytes have arrived: peers that sent wrong hashes are quarantined.
    pub(super) async fn blame_peers(&self, digest: &Digest, partial: &Arc<Partial>) {
        let Some(case) = self.evidence.take(digest) else { return };
        let partial = partial.clone();
        let closed = tokio::task::spawn_blocking(move || {
            let wrong = case.close(partial.file())?;
            Ok(wrong.into_iter().map(|(peer, piece)| (peer.to_owned(), piece)).collect::<Vec<_>>())
        });
        let wrong = closed.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let wrong = wrong.inspect_err(
            |error| tracing::warn!(error = %chain(error), "cannot find the peer that sent wrong hashes"),
        );
        for (peer, piece) in wrong.unwrap_or_default() {
            tracing::warn!(digest = %digest.short(), piece, peer, "peer sent a wrong hash for a piece: quarantined");
            self.metrics.peer_wrong_pieces.get_or_create(&BlameLabels { peer: peer.clone() }).inc();
            self.peers.blame(&peer);
        }
    }
}
