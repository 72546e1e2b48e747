//! One transfer of one digest, shared by everyone who wants it: what readers see of it. `downloader` does the work.
//!
//! The download owns the partial blob; readers look at what is there and wait for news on a watch channel. It ends on
//! its own: every wait upstream has a limit, and so has the number of attempts without progress. Readers may finish
//! at `Verified` (see [`Phase`]); the sync to disk that follows is not theirs to wait for.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

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
    upstream::Distrust,
};

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Download {
    digest: Digest,
    /// What a manifest said about the digest.
    described: Option<Descriptor>,
    /// Who sent wrong bytes for this digest before.
    distrust: Distrust,
    demand: Mutex<Demand>,
    /// Cancelled when nothing of this download touches the partial blob any more.
    pub(super) ended: CancellationToken,
    /// The download of the same blob before this one, while it ends.
    before: Option<CancellationToken>,
    /// Someone wants something new.
    pub(crate) wanted: Notify,
    /// What other peers want.
    pub(crate) peer_requests: PeerRequests,
    /// What its pieces must hash to.
    pub(crate) expected: Expected,
    /// Bytes that this node has read from the registry itself.
    read: Mutex<RangeSet>,
    /// Segments that are being read once more.
    pub(crate) rereads: KeyedMutex<u64>,
    /// Bytes turned out to be wrong after clients may have been sent them.
    replaced: AtomicBool,
    /// What is read upstream for the cluster.
    pub(crate) segments: Segments,
    /// Set when it began for another peer's sake: the size that the peer named.
    hinted: Option<u64>,
    /// Which registry's limit of downloads or connections it waits at.
    queue: Mutex<Queue>,
    partial: OnceLock<Arc<Partial>>,
    /// Set instead when the blob turned out to be in the store.
    found: OnceLock<Blob>,
    progress: watch::Sender<Progress>,
    /// Bytes were sent to a client before the digest was checked.
    pub(super) streamed: AtomicBool,
}

/// A transfer as people see it.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TransferStatus {
    /// What is fetched.
    pub digest: String,
    /// Its size in bytes, once known.
    pub size: Option<u64>,
    /// Bytes that are there.
    pub have: u64,
    /// Clients that read it.
    pub readers: usize,
}

/// Waits at a registry's limits: how many, and at which registry.
#[derive(Debug, Default)]
struct Queue {
    waiting: usize,
    registry: Option<RegistryHost>,
}

/// A wait at a registry's limit; over when dropped.
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
    pub(crate) fn new(digest: Digest, described: Option<Descriptor>, distrust: Distrust) -> Self {
        Self {
            digest,
            described,
            distrust,
            demand: Mutex::default(),
            ended: CancellationToken::new(),
            before: None,
            wanted: Notify::new(),
            peer_requests: PeerRequests::default(),
            expected: Expected::default(),
            read: Mutex::default(),
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

    /// One that begins because another peer asked for a piece of it.
    pub(crate) fn for_peer(
        digest: Digest,
        described: Option<Descriptor>,
        distrust: Distrust,
        source: &Repository,
        size: u64,
    ) -> Self {
        let download = Self { hinted: Some(size), ..Self::new(digest, described, distrust) };
        download.demand().offer(source);
        download
    }

    /// The same, begun only when the download before it has ended: two must not write to one partial blob.
    pub(super) fn after(self, before: Option<&Self>) -> Self {
        Self { before: before.map(|before| before.ended.clone()), ..self }
    }

    /// Waits for the end of the download before this one. Every download ends: each of its waits has a limit.
    pub(super) async fn wait_for_turn(&self) {
        if let Some(before) = &self.before {
            before.cancelled().await;
        }
    }

    pub(super) fn demand(&self) -> MutexGuard<'_, Demand> {
        self.demand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a wait at a registry's limit.
    pub(crate) fn enter_queue(&self, registry: &RegistryHost) -> Queued<'_> {
        let mut queue = self.queue();
        queue.waiting += 1;
        queue.registry = Some(registry.clone());
        drop(queue);
        Queued(self)
    }

    /// The registry at whose limit it waits, if it does.
    pub(crate) fn queued_for(&self) -> Option<RegistryHost> {
        self.queue().registry.clone()
    }

    /// The size that another peer named, when it began for its sake.
    pub(crate) fn hinted_size(&self) -> Option<u64> {
        self.hinted
    }

    /// Whether bytes were sent to a client before the digest was checked.
    pub(crate) fn was_streamed(&self) -> bool {
        self.streamed.load(Ordering::Relaxed)
    }

    /// News of it.
    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(crate) fn status(&self) -> TransferStatus {
        let partial = self.partial.get();
        TransferStatus {
            digest: self.digest.to_string(),
            size: partial.and_then(|partial| partial.size()),
            have: partial.map_or(0, |partial| partial.total()),
            readers: self.demand().subscribers(),
        }
    }

    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(crate) fn distrust(&self) -> &Distrust {
        &self.distrust
    }

    pub(crate) fn described_size(&self) -> Option<u64> {
        self.described.map(|known| known.size)
    }

    /// Whether it is a layer, which may leave before its end is there, as far as is known.
    pub(super) fn may_be_layer(&self) -> bool {
        self.described.is_none_or(|known| matches!(known.role, Role::Layer | Role::Foreign))
    }

    /// The store's own blob, when it turned out to be there.
    pub(super) fn found(&self) -> Option<&Blob> {
        self.found.get()
    }

    pub(crate) fn set_found(&self, blob: Blob) {
        // Set once, by the download's own task.
        let _ = self.found.set(blob);
    }

    pub(crate) fn set_partial(&self, partial: Arc<Partial>) {
        let _ = self.partial.set(partial);
        self.wrote();
    }

    /// The partial blob, once it is open; `None` when the download ends without.
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

    /// Bytes that were here turned out to be wrong, and right ones have their place.
    pub(crate) fn note_replaced(&self) {
        self.replaced.store(true, Ordering::Relaxed);
    }

    /// Whether a client was sent bytes, and some of them may have been wrong.
    pub(crate) fn sent_wrong_bytes(&self) -> bool {
        self.replaced.load(Ordering::Relaxed) && self.was_streamed()
    }

    pub(crate) fn partial(&self) -> Option<&Arc<Partial>> {
        self.partial.get()
    }

    /// The blob's size, once upstream has confirmed it in this download.
    pub(crate) fn size(&self) -> Option<u64> {
        match self.progress.borrow().phase {
            Phase::Streaming | Phase::Verified | Phase::Done => {
                self.partial.get().and_then(|partial| partial.size())
            }
            Phase::Connecting | Phase::Failed(_) => None,
        }
    }

    /// How it ended, once its blob is in the store under its name or cannot come there. Marks the news as seen.
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
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        for bytes in bytes {
            read.insert(bytes.clone());
        }
    }

    /// Whether this node has read all of `bytes` from the registry itself.
    pub(crate) fn has_read(&self, bytes: Range<u64>) -> bool {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).gaps(bytes).is_empty()
    }

    /// The only way from one phase to another. What the diagram does not have is ignored: a range request that is answered
    /// late must not bring a verified blob back to where it was.
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
    fn a_late_answer_does_not_bring_a_verified_blob_back() {
        let download = Download::new(Digest::of(b"x"), None, Distrust::default());
        download.enter(Phase::Verified);
        download.enter(Phase::Streaming);
        assert!(matches!(download.progress.borrow().phase, Phase::Verified));
    }

    #[tokio::test]
    async fn a_download_begins_when_the_one_before_it_has_ended() {
        let new = || Download::new(Digest::of(b"x"), None, Distrust::default());
        let first = new();
        first.wait_for_turn().await;
        let second = new().after(Some(&first));
        let soon = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, second.wait_for_turn()).await.is_err());
        drop(first.ended.clone().drop_guard());
        second.wait_for_turn().await;
    }
}
