//! The state that all parts of the download engine share: the configuration, the parts below, the running downloads,
//! and the caches. It decides nothing.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{
    descriptors::Descriptors, error::FetchError, keyed_mutex::KeyedMutex, memory::Memory,
    negative_cache::NegativeCache, penalties::Penalties, refusals::Refusals, reservation::Reservations,
    source::PeerSource, spoiled::SpoiledBlobs, state::Download, tag_slot::TagSlot,
};
use crate::{
    journal::Journal,
    metrics::Metrics,
    peers::Peers,
    store::{Blob, Store},
    task::Tasks,
    types::{Cache, Digest, Repository, Tag, chain},
    upstream::Upstream,
};

/// How fetching behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// For how long the digest of a tag is used without a request to the registry.
    pub freshness: Duration,
    /// How old the last known digest of a tag may be when the registry cannot answer; `None` means any age.
    pub max_stale: Option<Duration>,
    /// For how long a "not found" of the registry is cached.
    pub negative: Duration,
    /// Longest wait before a client gets the header of a response.
    pub first_header: Duration,
    /// Most connections for one blob.
    pub blob_connections: usize,
    /// Blobs from this size on are fetched over several connections when that is faster, in bytes.
    pub parallel_from: u64,
    /// A bounded range brings the whole blob with it.
    pub whole_on_range: bool,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) config: Config,
    pub(super) store: Store,
    pub(super) upstream: Arc<Upstream>,
    pub(super) peers: Peers,
    pub(super) metrics: Metrics,
    pub(super) journal: Journal,
    pub(super) tasks: Tasks,
    pub(super) stop: CancellationToken,
    /// Empty until the peers are set up, and after they have stopped.
    pub(super) peer_source: OnceLock<Weak<dyn PeerSource>>,
    pub(super) downloads: Mutex<HashMap<Digest, Arc<Download>>>,
    pub(super) manifests: KeyedMutex<(Repository, Digest)>,
    pub(super) tags: Cache<(Repository, Tag), Arc<TagSlot>>,
    pub(super) descriptors: Descriptors,
    /// Repositories whose manifests were all read a moment ago.
    pub(super) read: Cache<Repository, ()>,
    pub(super) penalties: Penalties,
    pub(super) spoiled: SpoiledBlobs,
    /// One check of a stored blob at a time. A check that is skipped happens at the next failed read.
    pub(super) rechecks: Semaphore,
    pub(super) negative: NegativeCache<(Repository, Digest)>,
    pub(super) room: Arc<Reservations>,
    pub(super) memory: Memory,
    pub(super) refusals: Mutex<Refusals>,
}

impl Context {
    /// The peers, while they are running.
    pub(super) fn peer_source(&self) -> Option<Arc<dyn PeerSource>> {
        self.peer_source.get()?.upgrade()
    }

    /// A blob of the store. A blob that cannot be opened counts as missing: the registry can send it again.
    pub(super) async fn stored_blob(&self, digest: &Digest) -> Option<Blob> {
        self.store.blob(digest).await.unwrap_or_else(|error| {
            tracing::warn!(digest = %digest.short(), error = %chain(&error), "stored blob cannot be opened");
            None
        })
    }

    /// The download of a blob, if there is one.
    pub(super) fn download(&self, digest: &Digest) -> Option<Arc<Download>> {
        self.downloads.lock().get(digest).cloned()
    }

    /// A number that rises while bytes of a blob arrive at this node, or at the peer that is to send them; `None`
    /// without a download. While a download waits for a place at the registry, bytes of the downloads before it
    /// count.
    pub(super) fn movement(&self, digest: &Digest) -> Option<u64> {
        let download = self.download(digest)?;
        let arrived = download.partial().map_or(0, |partial| partial.total());
        let before = download.queued_for().map_or(0, |registry| self.upstream.received(&registry));
        let before = before.wrapping_add(self.peers.arrived_if_slow().unwrap_or(0));
        Some(arrived.wrapping_add(download.peer_requests.moved()).wrapping_add(before))
    }

    /// How long nothing may arrive for a client that usually waits for `patience`.
    pub(super) fn patience(&self, patience: Duration) -> Duration {
        patience + self.peers.extra_silence()
    }

    /// Removes a download that has ended, unless a newer one has replaced it.
    pub(super) fn leave(&self, download: &Arc<Download>) {
        let mut downloads = self.downloads.lock();
        if downloads.get(download.digest()).is_some_and(|current| Arc::ptr_eq(current, download)) {
            downloads.remove(download.digest());
        }
    }

    /// The size of a blob according to the registry, or to a manifest.
    pub(super) async fn upstream_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<u64, FetchError> {
        let size = self.upstream.blob_head(repository, digest).await?;
        size.or_else(|| self.descriptors.get(repository, digest).map(|descriptor| descriptor.size))
            .ok_or_else(|| FetchError::NotNow {
                reason: "the registry did not send the size of the blob".into(),
                retry_after: None,
            })
    }

    /// Notes an error of the store, so that health checks and other downloads see it.
    pub(super) fn note_trouble(&self, error: &FetchError) {
        if let FetchError::Store(error) = error {
            self.store.note_trouble(error);
            if let Some(kind) = error.trouble() {
                self.metrics.count_store_error(kind.as_str());
            }
        }
    }
}
