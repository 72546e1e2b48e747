//! One transfer of one digest, shared by everyone who wants it: what readers see of it. `downloader` does the work.
//!
//! ```text
//! Connecting --first answer--> Streaming --all bytes hash right--> Verified --on disk under its name--> Done
//!      |                           |                                   |
//!      +---------------------------+-----------------------------------+--> Failed
//! ```
//!
//! The download owns the partial blob; readers look at what is there and wait for event on a watch channel. It ends on
//! its own: every wait upstream has a limit, and so has the number of attempts without progress. Readers may finish
//! at `Verified`; the sync to disk that follows is not theirs to wait for.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{Notify, watch};

use super::{
    FetchError,
    expected_hashes::Expected,
    keyed_mutex::KeyedMutex,
    peer_requests::{PeerRequests, PieceSource},
    reader::{Growing, HELD_BACK, Source},
    segments::Segments,
};
use crate::{
    store::{Blob, Partial, RangeSet, StoreError},
    types::{ByteRange, Descriptor, Digest, RangeHeader, RegistryHost, Repository, Role},
    upstream::Distrust,
};

/// Blobs up to this size are sent only when they are verified, as configurations are.
const SMALL: u64 = HELD_BACK;

/// Where a download stands; see the module's diagram.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    Connecting,
    Streaming,
    Verified,
    Done,
    Failed(FetchError),
}

/// Event for readers. The count only makes every change a change.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) phase: Phase,
    writes: u64,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Download {
    digest: Digest,
    /// What a manifest said about the digest.
    described: Option<Descriptor>,
    /// Who sent wrong bytes for this digest before.
    distrust: Distrust,
    demand: Mutex<Demand>,
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
    streamed: AtomicBool,
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

/// What is wanted of a download, and from where it may come.
#[derive(Debug)]
struct Demand {
    sources: Vec<Repository>,
    whole: bool,
    wants: Vec<Want>,
    next: u64,
    /// Takes no one more.
    closed: bool,
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

/// What becomes of a peer's request for a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The download has ended.
    Ended,
    /// Nobody sees to it.
    ByNobody,
    /// It is seen to, after so many failures.
    After(u64),
}

#[derive(Debug)]
struct Want {
    id: u64,
    range: RangeHeader,
    /// How far its reader has come.
    position: u64,
}

/// A reader's place in a download; it leaves when dropped. The download goes on.
#[derive(Debug)]
pub(crate) struct Subscriber {
    download: Arc<Download>,
    id: u64,
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.download.demand().wants.retain(|want| want.id != self.id);
        self.download.wanted.notify_one();
    }
}

impl Subscriber {
    /// Whether all that its range names in a blob of `size` bytes can be sent as it is: the part is there and not of
    /// the held-back end, or the range lies outside of the blob.
    fn is_served_by(&self, partial: &Partial, size: u64) -> bool {
        let demand = self.download.demand();
        let want = demand.wants.iter().find(|want| want.id == self.id);
        let Some(RangeHeader::One(range)) = want.map(|want| want.range) else { return false };
        range
            .within(size)
            .is_none_or(|range| range.end <= size.saturating_sub(HELD_BACK) && partial.gaps(range).is_empty())
    }

    /// The first byte that its reader wants of a blob of `size` bytes.
    fn first(&self, size: u64) -> u64 {
        let demand = self.download.demand();
        match demand.wants.iter().find(|want| want.id == self.id).map(|want| want.range) {
            Some(RangeHeader::One(range)) => range.within(size).map_or(size, |range| range.start),
            Some(RangeHeader::Whole) | None => 0,
        }
    }

    /// Notes that its reader is given bytes.
    pub(crate) fn streams(&self) {
        self.download.streamed.store(true, Ordering::Relaxed);
    }

    /// Notes how far its reader has come, so that the next bytes are fetched for it.
    pub(crate) fn reached(&self, position: u64) {
        let mut demand = self.download.demand();
        if let Some(want) = demand.wants.iter_mut().find(|want| want.id == self.id) {
            want.position = position;
        }
        drop(demand);
        self.download.wanted.notify_one();
    }
}

impl Download {
    pub(crate) fn new(digest: Digest, described: Option<Descriptor>, distrust: Distrust) -> Self {
        Self {
            digest,
            described,
            distrust,
            demand: Mutex::new(Demand {
                sources: Vec::new(),
                whole: false,
                wants: Vec::new(),
                next: 0,
                closed: false,
            }),
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
        download.demand().sources.push(source.clone());
        download
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

    /// Whether it takes no one more.
    pub(crate) fn is_closed(&self) -> bool {
        self.demand().closed
    }

    /// Another peer asks for a piece.
    pub(crate) fn ask_piece(&self, piece: u64, source: PieceSource) -> Asked {
        let demand = self.demand();
        if demand.closed {
            return Asked::Ended;
        }
        let failures = self.peer_requests.ask(piece, source, demand.whole);
        drop(demand);
        self.wanted.notify_one();
        failures.map_or(Asked::ByNobody, Asked::After)
    }

    /// Event of it.
    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    fn demand(&self) -> MutexGuard<'_, Demand> {
        self.demand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn status(&self) -> TransferStatus {
        let partial = self.partial.get();
        TransferStatus {
            digest: self.digest.to_string(),
            size: partial.and_then(|partial| partial.size()),
            have: partial.map_or(0, |partial| partial.total()),
            readers: self.demand().wants.len(),
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

    /// Subscribes: offers another place to ask and says what is wanted. Refused when the download has ended.
    ///
    /// `rest` says that a bounded range is to bring the whole blob with it.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        source: &Repository,
        range: RangeHeader,
        rest: bool,
    ) -> Option<Subscriber> {
        let mut demand = self.demand();
        if demand.closed {
            return None;
        }
        if !demand.sources.contains(source) {
            demand.sources.push(source.clone());
        }
        let bounded = matches!(range, RangeHeader::One(ByteRange::From { last: Some(_), .. }));
        demand.whole |= rest || !bounded;
        let id = demand.next;
        demand.next += 1;
        demand.wants.push(Want { id, range, position: 0 });
        drop(demand);
        self.wanted.notify_one();
        Some(Subscriber { download: self.clone(), id })
    }

    /// The source at `at`; past the last one the download is closed to new ones, so that none is missed.
    pub(crate) fn source(&self, at: usize) -> Option<Repository> {
        let mut demand = self.demand();
        let found = demand.sources.get(at).cloned();
        demand.closed |= found.is_none();
        found
    }

    /// What readers still wait for in a blob of `size` bytes, and whether everything is to be fetched: the held-back
    /// end can be given only when the whole was checked.
    pub(crate) fn wants(&self, size: u64) -> (Vec<Range<u64>>, bool) {
        let mut demand = self.demand();
        let mut wants = Vec::with_capacity(demand.wants.len());
        let mut reaches_end = false;
        for want in &demand.wants {
            let range = match want.range {
                RangeHeader::Whole => 0..size,
                RangeHeader::One(range) => range.within(size).unwrap_or(0..0),
            };
            reaches_end |= range.end > size.saturating_sub(HELD_BACK);
            wants.push(range.start.max(want.position)..range.end);
        }
        demand.whole |= reaches_end;
        (wants, demand.whole)
    }

    /// Whether the first who came wants everything: then one request without a range is the best beginning.
    pub(crate) fn wants_whole(&self) -> bool {
        self.demand().whole
    }

    /// Closes the download unless someone came who is not yet served.
    pub(crate) fn close_if_satisfied(&self, served: impl Fn(&Range<u64>) -> bool, size: u64) -> bool {
        let (wants, whole) = self.wants(size);
        let mut demand = self.demand();
        // Who came between the two locks is one more than were looked at; peers ask under the second.
        if whole
            || demand.wants.len() > wants.len()
            || !wants.iter().all(served)
            || self.peer_requests.has_requests()
        {
            return false;
        }
        demand.closed = true;
        true
    }

    pub(crate) fn close(&self) {
        self.demand().closed = true;
    }

    /// Waits until bytes can be sent and the download is known to be able to deliver; for a small blob or a
    /// configuration until it is verified.
    pub(crate) async fn ready(&self, subscriber: Subscriber) -> Result<Source, FetchError> {
        let mut progress = self.progress.subscribe();
        loop {
            let phase = progress.borrow_and_update().phase.clone();
            if let Some(blob) = self.found.get() {
                return Ok(Source::Whole(blob.clone()));
            }
            if let Some((partial, size)) =
                self.partial.get().and_then(|partial| Some((partial, partial.size()?)))
                && subscriber.is_served_by(partial, size)
            {
                return Ok(Source::Growing(Growing::new(partial.clone(), progress, size, subscriber)));
            }
            if let Phase::Failed(error) = phase {
                return Err(error);
            }
            if let Some((partial, size)) =
                self.partial.get().and_then(|partial| Some((partial, partial.size()?)))
                && self.may_start(&phase, partial, size, subscriber.first(size))
            {
                return Ok(Source::Growing(Growing::new(partial.clone(), progress, size, subscriber)));
            }
            if progress.changed().await.is_err() {
                return Err(FetchError::Stopping);
            }
        }
    }

    /// How it ended, once its blob is in the store under its name or cannot come there. Marks the event as seen.
    pub(crate) fn outcome(&self, progress: &mut watch::Receiver<Progress>) -> Option<Result<(), FetchError>> {
        let phase = progress.borrow_and_update().phase.clone();
        match phase {
            _ if self.found.get().is_some() => Some(Ok(())),
            Phase::Done => Some(Ok(())),
            Phase::Failed(error) => Some(Err(error)),
            Phase::Connecting | Phase::Streaming | Phase::Verified => None,
        }
    }

    /// Whether a header may leave: the byte at `first` can follow it at once.
    fn may_start(&self, phase: &Phase, partial: &Partial, size: u64, first: u64) -> bool {
        match phase {
            Phase::Verified | Phase::Done => true,
            Phase::Streaming => {
                let whole_first = size <= SMALL
                    || self.described.is_some_and(|known| !matches!(known.role, Role::Layer | Role::Foreign));
                !whole_first && first < size.saturating_sub(HELD_BACK) && partial.end_from(first) > first
            }
            Phase::Connecting | Phase::Failed(_) => false,
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

    pub(crate) fn enter(&self, phase: Phase) {
        self.progress.send_modify(|progress| progress.phase = phase);
    }

    pub(crate) fn wrote(&self) {
        self.progress.send_modify(|progress| progress.writes += 1);
    }
}

/// Runs store work off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, FetchError> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(StoreError::from)??)
}
