//! The public interface of the download engine; see the module documentation.

use std::{
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{
    context::{Config, Context},
    descriptors::{Descriptors, read_repositories},
    error::FetchError,
    growing,
    keyed_mutex::KeyedMutex,
    lifecycle,
    memory::Memory,
    negative_cache::NegativeCache,
    passthrough::BlobRef,
    penalties::Penalties,
    reader::{Content, Source},
    reading::Reading,
    reservation::{MakeRoom, Reservations},
    source::PeerSource,
    spoiled::SpoiledBlobs,
    state::{Download, TransferStatus},
    subscribers::Subscriber,
    tag_slot::tag_slots,
};
use crate::{
    journal::Journal,
    metrics::{Found, Kind, Metrics},
    peers::Peers,
    store::{Partial, Store},
    task::Tasks,
    types::{ByteRange, Digest, RangeHeader, Repository},
    upstream::{Caller, Listing, Upstream},
};

use crate::limits::download::fetcher::HANDED_OVER;

/// Delivers content to all parts of the agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fetcher(pub(super) Arc<Context>);

impl Fetcher {
    /// Downloads run in `tasks`, and stop and keep their partial blobs when `stop` is cancelled.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part of its own, and one caller puts them together"
    )]
    pub fn new(
        config: Config,
        store: Store,
        upstream: Arc<Upstream>,
        peers: Peers,
        metrics: Metrics,
        journal: Journal,
        tasks: Tasks,
        stop: CancellationToken,
        room: MakeRoom,
    ) -> Self {
        Self(Arc::new(Context {
            store,
            upstream,
            peers,
            metrics,
            journal,
            tasks,
            stop,
            peer_source: OnceLock::new(),
            downloads: Mutex::default(),
            manifests: KeyedMutex::default(),
            tags: tag_slots(),
            descriptors: Descriptors::default(),
            read: read_repositories(),
            penalties: Penalties::default(),
            spoiled: SpoiledBlobs::default(),
            rechecks: Semaphore::new(1),
            negative: NegativeCache::new(config.negative),
            room: Arc::new(Reservations::new(room)),
            memory: Memory::default(),
            refusals: Mutex::default(),
            config,
        }))
    }

    /// Sets the peers for all later downloads. To be called once.
    pub(crate) fn use_peers(&self, source: Weak<dyn PeerSource>) {
        let _ = self.0.peer_source.set(source);
    }

    /// Whether this node serves the registry of a repository.
    pub fn serves(&self, repository: &Repository) -> bool {
        self.0.upstream.serves(&repository.registry).is_some()
    }

    /// Opens a blob for reading: from the store, while it arrives, or streamed without caching when the store cannot
    /// take it. `range` is the range that will be read; its bytes are fetched first.
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: RangeHeader,
    ) -> Result<Content, FetchError> {
        let way = BlobRef { context: self.0.clone(), repository: repository.clone(), digest: *digest };
        if let Some(blob) = self.0.stored_blob(digest).await {
            self.0.metrics.count_content(Kind::blob, Found::hit);
            return Ok(Content::new(Source::Whole(blob), way));
        }
        let key = (repository.clone(), *digest);
        self.0.negative.check(&key)?;
        let source = self.fetch_blob(&way, range).await;
        let source = source.inspect_err(|error| self.0.negative.note(&key, error))?;
        Ok(Content::new(source, way))
    }

    /// Rejects a request for the rest of a blob from a client that may have been sent a wrong beginning of it:
    /// together they would be complete and wrong.
    pub fn check_resume(&self, digest: &Digest, client: &str, asked: RangeHeader) -> Result<(), FetchError> {
        let first = match asked {
            RangeHeader::Whole => 0,
            RangeHeader::One(ByteRange::From { first, .. }) => first,
            RangeHeader::One(ByteRange::Suffix { .. }) => u64::MAX,
        };
        if self.0.spoiled.allows(digest, client, first) {
            return Ok(());
        }
        let reason =
            "wrong bytes of this blob were sent before; request it again from the beginning".to_owned();
        Err(FetchError::NotNow { reason, retry_after: None })
    }

    async fn fetch_blob(&self, way: &BlobRef, range: RangeHeader) -> Result<Source, FetchError> {
        let inner = &self.0;
        if inner.store.is_paused()
            && self.download(&way.digest).is_none()
            && !inner.store.is_handed_over(&way.digest, HANDED_OVER).await
        {
            inner.metrics.count_content(Kind::blob, Found::miss);
            return way.clone().open(range).await.map(Box::new).map(Source::Passthrough);
        }
        // One retry when the bytes were wrong and none of them was sent: the next download may be right.
        let mut again = true;
        loop {
            let (download, subscriber, found) = self.join(&way.repository, &way.digest, range);
            inner.metrics.count_content(Kind::blob, found);
            match growing::ready(&download, subscriber).await {
                Err(FetchError::Corrupt { .. } | FetchError::Changed(_) | FetchError::Parked) if again => {
                    again = false;
                }
                Err(FetchError::Store(_)) => {
                    return way.clone().open(range).await.map(Box::new).map(Source::Passthrough);
                }
                outcome => return outcome.map(Source::from),
            }
        }
    }

    /// The size of a blob.
    pub async fn blob_size(&self, repository: &Repository, digest: &Digest) -> Result<u64, FetchError> {
        let inner = &self.0;
        if let Some(blob) = self.0.stored_blob(digest).await {
            inner.metrics.count_content(Kind::blob, Found::hit);
            return Ok(blob.size());
        }
        let under_way = self.download(digest).and_then(|download| download.size());
        if let Some(size) = under_way {
            inner.metrics.count_content(Kind::blob, Found::joined);
            return Ok(size);
        }
        let key = (repository.clone(), *digest);
        inner.negative.check(&key)?;
        inner.metrics.count_content(Kind::blob, Found::miss);
        let size = self.0.upstream_size(repository, digest).await;
        size.inspect_err(|error| inner.negative.note(&key, error))
    }

    /// The download of a blob, if there is one.
    pub(crate) fn download(&self, digest: &Digest) -> Option<Arc<Download>> {
        self.0.download(digest)
    }

    /// Reads segments of a blob from the registry.
    pub(crate) fn reading(&self, download: &Arc<Download>, partial: &Arc<Partial>) -> Reading {
        Reading::new(self.0.clone(), download.clone(), partial.clone())
    }

    /// A number that rises while bytes of a blob arrive at this node, or at the peer that is to send them; `None`
    /// without a download.
    pub fn movement(&self, digest: &Digest) -> Option<u64> {
        self.0.movement(digest)
    }

    /// How long nothing may arrive for a client that usually waits for `patience`: longer on a node with a slow link, where
    /// the registry that the client would ask instead is behind the same link.
    pub fn patience(&self, patience: Duration) -> Duration {
        self.0.patience(patience)
    }

    /// Subscribes to the download of a digest, and starts the download if there is none.
    pub(super) fn join(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: RangeHeader,
    ) -> (Arc<Download>, Subscriber, Found) {
        let rest = self.0.config.whole_on_range;
        let mut downloads = self.0.downloads.lock();
        if let Some(download) = downloads.get(digest)
            && let Some(subscriber) = download.subscribe(repository, range, rest)
        {
            return (download.clone(), subscriber, Found::joined);
        }
        let origin_penalties = self.0.penalties.of(digest);
        let download = Download::new(*digest, self.0.descriptors.get(repository, digest), origin_penalties);
        let download = Arc::new(download.after(downloads.get(digest).map(Arc::as_ref)));
        let subscriber = download.subscribe(repository, range, rest).expect("a new download is open");
        downloads.insert(*digest, download.clone());
        drop(downloads);
        lifecycle::start(self.0.clone(), download.clone());
        (download, subscriber, Found::miss)
    }

    /// The download of a blob that another peer requests pieces of. `size` is the size in the peer's request.
    pub(crate) fn carry(&self, digest: &Digest, repository: &Repository, size: u64) -> Option<Arc<Download>> {
        let mut downloads = self.0.downloads.lock();
        if let Some(download) = downloads.get(digest).filter(|download| !download.is_closed()) {
            return Some(download.clone());
        }
        if !self.0.upstream.may_relay(&repository.registry) {
            return None;
        }
        let origin_penalties = self.0.penalties.of(digest);
        let described = self.0.descriptors.get(repository, digest);
        let download = Download::for_peer(*digest, described, origin_penalties, repository, size);
        let download = Arc::new(download.after(downloads.get(digest).map(Arc::as_ref)));
        downloads.insert(*digest, download.clone());
        drop(downloads);
        lifecycle::start(self.0.clone(), download.clone());
        Some(download)
    }

    /// The running downloads.
    pub fn status(&self) -> Vec<TransferStatus> {
        let downloads = self.0.downloads.lock();
        let mut all: Vec<_> = downloads.values().map(|download| download.status()).collect();
        all.sort_by(|a, b| a.digest.cmp(&b.digest));
        all
    }

    /// A tag list or the referrers of a digest, as the registry sends it to a caller.
    pub async fn listing(
        &self,
        repository: &Repository,
        path: &str,
        query: Option<&str>,
        kind: Kind,
        caller: Caller,
    ) -> Result<Listing, FetchError> {
        Ok(self.0.upstream.listing(repository, path, query, kind, caller).await?)
    }
}
