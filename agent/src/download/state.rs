//! One download of one digest, shared by all subscribers: the state that they see. `downloader` does the work.
//!
//! The download owns the partial blob; readers read the bytes that have arrived and wait for progress on a watch
//! channel. It always ends: every wait for the registry has a limit, and so has the number of retries without
//! progress. Readers may finish at `Verified` (see [`Phase`]); they do not wait for the sync to disk.

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    demand::Demand,
    error::FetchError,
    expected_hashes::Expected,
    keyed_mutex::KeyedMutex,
    peer_requests::PeerRequests,
    phase::{Phase, Progress, may_follow},
    segments::Segments,
};
use crate::{
    store::{Blob, Partial, RangeSet},
    types::{Descriptor, Digest, RegistryHost, Repository, Role},
    upstream::OriginPenalties,
};

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Download {
    digest: Digest,
    /// The manifest's descriptor of the digest.
    described: Option<Descriptor>,
    /// Origins that sent wrong bytes for this digest before.
    origin_penalties: OriginPenalties,
    demand: Mutex<Demand>,
    /// Cancelled when nothing of this download uses the partial blob any more.
    pub(super) ended: CancellationToken,
    /// The previous download of the same blob, while it ends.
    before: Option<CancellationToken>,
    /// Signalled when a subscriber or peer requests something new.
    pub(crate) wanted: Notify,
    /// The requests of peers.
    pub(crate) peer_requests: PeerRequests,
    /// The expected hashes of its pieces.
    pub(crate) expected: Expected,
    /// Bytes that this node has read from the registry itself.
    read: Mutex<RangeSet>,
    /// Bytes that an earlier download had left.
    resumed: AtomicU64,
    /// Segments that are being read again.
    pub(crate) rereads: KeyedMutex<u64>,
    /// Wrong bytes were replaced after clients may have received them.
    replaced: AtomicBool,
    /// The segments that are being read from the registry for the cluster.
    pub(crate) segments: Segments,
    /// Set when the download was started for a peer: the size in the peer's request.
    hinted: Option<u64>,
    /// The registry whose limit of downloads or connections it waits for.
    queue: Mutex<Queue>,
    partial: OnceLock<Arc<Partial>>,
    /// Set instead when the blob was found in the store.
    found: OnceLock<Blob>,
    progress: watch::Sender<Progress>,
    /// Bytes were sent to a client before the digest was checked.
    pub(super) streamed: AtomicBool,
}

/// The state of a download, for people.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TransferStatus {
    /// The digest of the blob.
    pub digest: String,
    /// Its size in bytes, once known.
    pub size: Option<u64>,
    /// Bytes that have arrived.
    pub have: u64,
    /// Bytes of them that came from the registry.
    pub from_registry: u64,
    /// Bytes of them that came from peers.
    pub from_peers: u64,
    /// `registry/repository` for which it was started.
    pub repository: Option<String>,
    /// The peers that have sent bytes of it.
    #[serde(skip)]
    pub peers: BTreeSet<String>,
    /// Clients that read it.
    pub readers: usize,
}

/// Number of waits at a registry's limits, and the registry.
#[derive(Debug, Default)]
struct Queue {
    waiting: usize,
    registry: Option<RegistryHost>,
}

/// A wait at a registry's limit; ends when dropped.
#[derive(Debug)]
pub(crate) struct Queued<'a>(&'a Download);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.waiting -= 1;
        if queue.waiting == 0 {
            queue.registry = None;
        }
    }
}

impl Download {
    pub(crate) fn new(
        digest: Digest,
        described: Option<Descriptor>,
        origin_penalties: OriginPenalties,
    ) -> Self {
        Self {
            digest,
            described,
            origin_penalties,
            demand: Mutex::default(),
            ended: CancellationToken::new(),
            before: None,
            wanted: Notify::new(),
            peer_requests: PeerRequests::default(),
            expected: Expected::default(),
            read: Mutex::default(),
            resumed: AtomicU64::new(0),
            rereads: KeyedMutex::default(),
            replaced: AtomicBool::new(false),
            segments: Segments::default(),
            hinted: None,
            queue: Mutex::default(),
            partial: OnceLock::new(),
            found: OnceLock::new(),
            progress: watch::Sender::new(Progress { phase: Phase::Connecting, writes: 0 }),
            streamed: AtomicBool::new(false),
        }
    }

    /// A download that starts because a peer requested a piece.
    pub(crate) fn for_peer(
        digest: Digest,
        described: Option<Descriptor>,
        origin_penalties: OriginPenalties,
        source: &Repository,
        size: u64,
    ) -> Self {
        let download = Self { hinted: Some(size), ..Self::new(digest, described, origin_penalties) };
        download.demand().offer(source);
        download
    }

    /// Makes the download wait for the end of the previous one: two must not write to one partial blob.
    pub(super) fn after(self, before: Option<&Self>) -> Self {
        Self { before: before.map(|before| before.ended.clone()), ..self }
    }

    /// Waits for the end of the previous download. Every download ends: each of its waits has a limit.
    pub(super) async fn wait_for_turn(&self) {
        if let Some(before) = &self.before {
            before.cancelled().await;
        }
    }

    pub(super) fn demand(&self) -> MutexGuard<'_, Demand> {
        self.demand.lock()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// Notes a wait at a registry's limit.
    pub(crate) fn enter_queue(&self, registry: &RegistryHost) -> Queued<'_> {
        let mut queue = self.queue();
        queue.waiting += 1;
        queue.registry = Some(registry.clone());
        drop(queue);
        Queued(self)
    }

    /// The registry at whose limit the download waits, if it does.
    pub(crate) fn queued_for(&self) -> Option<RegistryHost> {
        self.queue().registry.clone()
    }

    /// The size in the peer's request, when the download was started for a peer.
    pub(crate) fn hinted_size(&self) -> Option<u64> {
        self.hinted
    }

    /// Whether bytes were sent to a client before the digest was checked.
    pub(crate) fn was_streamed(&self) -> bool {
        self.streamed.load(Ordering::Relaxed)
    }

    /// A receiver of the download's progress.
    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(crate) fn status(&self) -> TransferStatus {
        let partial = self.partial.get();
        let (from_registry, from_peers) = self.sources();
        TransferStatus {
            digest: self.digest.to_string(),
            size: partial.and_then(|partial| partial.size()),
            have: partial.map_or(0, |partial| partial.total()),
            from_registry,
            from_peers,
            repository: self.source(0).map(|repository| repository.to_string()),
            peers: self.peer_requests.senders(),
            readers: self.demand().subscribers(),
        }
    }

    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(crate) fn origin_penalties(&self) -> &OriginPenalties {
        &self.origin_penalties
    }

    pub(crate) fn described_size(&self) -> Option<u64> {
        self.described.map(|known| known.size)
    }

    /// Whether the blob is a layer as far as known, so that it may be sent before its end has arrived.
    pub(super) fn may_be_layer(&self) -> bool {
        self.described.is_none_or(|known| matches!(known.role, Role::Layer | Role::Foreign))
    }

    /// The store's blob, when it was found there.
    pub(super) fn found(&self) -> Option<&Blob> {
        self.found.get()
    }

    pub(crate) fn set_found(&self, blob: Blob) {
        // Set once, by the download's own task.
        let _ = self.found.set(blob);
    }

    pub(crate) fn set_partial(&self, partial: Arc<Partial>) {
        self.resumed.store(partial.total(), Ordering::Relaxed);
        let _ = self.partial.set(partial);
        self.wrote();
    }

    /// The partial blob, once it is open; `None` when the download ends before that.
    pub(crate) async fn opened(&self) -> Option<Arc<Partial>> {
        let mut progress = self.progress.subscribe();
        loop {
            let phase = progress.borrow_and_update().phase.clone();
            if let Some(partial) = self.partial.get() {
                return Some(partial.clone());
            }
            if matches!(phase, Phase::Done | Phase::Failed(_)) || progress.changed().await.is_err() {
                return None;
            }
        }
    }

    /// Notes that wrong bytes were replaced by right ones.
    pub(crate) fn note_replaced(&self) {
        self.replaced.store(true, Ordering::Relaxed);
    }

    /// Whether a client received bytes, and some of them may have been wrong.
    pub(crate) fn sent_wrong_bytes(&self) -> bool {
        self.replaced.load(Ordering::Relaxed) && self.was_streamed()
    }

    pub(crate) fn partial(&self) -> Option<&Arc<Partial>> {
        self.partial.get()
    }

    /// The size of the blob, once the registry has confirmed it in this download.
    pub(crate) fn size(&self) -> Option<u64> {
        match self.progress.borrow().phase {
            Phase::Streaming | Phase::Verified | Phase::Done => {
                self.partial.get().and_then(|partial| partial.size())
            }
            Phase::Connecting | Phase::Failed(_) => None,
        }
    }

    /// The result, once the blob is committed to the store or cannot be. Marks the progress as seen.
    pub(crate) fn outcome(&self, progress: &mut watch::Receiver<Progress>) -> Option<Result<(), FetchError>> {
        let phase = progress.borrow_and_update().phase.clone();
        match phase {
            _ if self.found.get().is_some() => Some(Ok(())),
            Phase::Done => Some(Ok(())),
            Phase::Failed(error) => Some(Err(error)),
            Phase::Connecting | Phase::Streaming | Phase::Verified => None,
        }
    }

    /// Notes bytes that this node has read from the registry itself.
    pub(crate) fn note_read(&self, bytes: &[Range<u64>]) {
        let mut read = self.read.lock();
        for bytes in bytes {
            read.insert(bytes.clone());
        }
    }

    /// Bytes that have come from the registry, and from peers.
    pub(crate) fn sources(&self) -> (u64, u64) {
        let (arrived, registry) =
            (self.partial().map_or(0, |partial| partial.total()), self.read.lock().total());
        (registry, arrived.saturating_sub(self.resumed.load(Ordering::Relaxed)).saturating_sub(registry))
    }

    /// Whether this node has read all of `bytes` from the registry itself.
    pub(crate) fn has_read(&self, bytes: Range<u64>) -> bool {
        self.read.lock().gaps(bytes).is_empty()
    }

    /// Enters a phase. A change that the diagram does not allow is ignored: a late response to a range request must
    /// not undo the verification of a blob.
    pub(crate) fn enter(&self, phase: Phase) {
        self.progress.send_if_modified(|progress| {
            let allowed = may_follow(&progress.phase, &phase);
            if allowed {
                progress.phase = phase;
            }
            allowed
        });
    }

    pub(crate) fn wrote(&self) {
        self.progress.send_modify(|progress| progress.writes += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_response_does_not_undo_the_verification_of_a_blob() {
        let download = Download::new(Digest::of(b"x"), None, OriginPenalties::default());
        download.enter(Phase::Verified);
        download.enter(Phase::Streaming);
        assert!(matches!(download.progress.borrow().phase, Phase::Verified));
    }

    #[tokio::test]
    async fn a_download_starts_when_the_previous_one_has_ended() {
        let new = || Download::new(Digest::of(b"x"), None, OriginPenalties::default());
        let first = new();
        first.wait_for_turn().await;
        let second = new().after(Some(&first));
        let soon = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, second.wait_for_turn()).await.is_err());
        drop(first.ended.clone().drop_guard());
        second.wait_for_turn().await;
    }
}
