//! From "a client wants this" to content: the store, else one transfer per digest, else a clear reason.
//!
//! * [`Fetcher::blob`]: a whole blob of the store, or a blob that grows while it is read. One download per digest,
//!   however many readers; a reader that leaves does not stop it.
//! * [`Fetcher::manifest`], [`Fetcher::manifest_head`]: complete and verified, or an error. Tags are asked upstream
//!   once per freshness period; when upstream cannot answer, the last known meaning is given, marked as such.
//! * [`Fetcher::keep`]: a blob that nobody reads, until it is in the store.
//! * [`Fetcher::listing`]: tag lists and referrers, passed on.
//!
//! Invariant: what is returned as complete hashed to its digest; "not found" is said only when upstream said it.

mod descriptors;
mod downloader;
mod error;
mod expected_hashes;
mod growth;
mod hashing;
mod keep;
mod keyed_mutex;
mod lifecycle;
mod manifests;
mod memory;
mod negative_cache;
mod passthrough;
mod peer_requests;
mod peer_tags;
mod penalties;
mod range_request;
mod reader;
mod recheck;
mod reservation;
mod runtime;
mod schedule;
mod segments;
mod source;
mod spoiled;
mod state;
mod stillness;
mod subscribers;
mod tags;
mod verifying_stream;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use descriptors::Descriptors;
pub use error::FetchError;
pub(crate) use expected_hashes::{Claim, Verdict, is_worth_reading, judge};
pub(crate) use hashing::CatchUp;
use keyed_mutex::KeyedMutex;
use memory::Memory;
use negative_cache::NegativeCache;
use passthrough::BlobRef;
pub(crate) use peer_requests::PieceSource;
use peer_tags::Ask;
use penalties::Penalties;
use reader::HELD_BACK;
pub use reader::{Content, ContentReader};
pub(crate) use reader::{Landed, Source};
pub use reservation::MakeRoom;
use reservation::Room;
pub(crate) use segments::{ReadError, Reading};
pub(crate) use source::PeerSource;
use spoiled::SpoiledBlobs;
pub use state::TransferStatus;
pub(crate) use state::{Download, Phase, blocking};
pub use stillness::{CHECK, Stillness};
pub(crate) use subscribers::Asked;
use subscribers::Subscriber;
use tags::TagSlot;

use crate::{
    metrics::{Found, Kind, Metrics},
    peers::Peers,
    store::{Blob, Store},
    task::Tasks,
    types::{ByteRange, Digest, MediaType, RangeHeader, Repository, Tag, chain},
    upstream::{Listing, Upstream},
};

/// How fetching behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// For how long a tag's meaning is used without asking upstream.
    pub freshness: Duration,
    /// How old a last known meaning may be when upstream cannot answer; `None` means any age.
    pub max_stale: Option<Duration>,
    /// For how long a "does not exist" is believed.
    pub negative: Duration,
    /// Longest wait before a client gets the header of an answer.
    pub first_header: Duration,
    /// Most connections for one blob.
    pub blob_connections: usize,
    /// Blobs from this size on are fetched over several connections when that is faster, in bytes.
    pub parallel_from: u64,
    /// A bounded range brings the whole blob with it.
    pub whole_on_range: bool,
}

/// What a manifest request is answered with.
#[derive(Clone, Debug)]
pub struct ManifestInfo {
    /// What it hashes to.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// Its size in bytes.
    pub size: u64,
    /// The registry could not confirm what the tag resolves to.
    pub stale: bool,
}

/// The one entrance to content. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fetcher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    store: Store,
    upstream: Arc<Upstream>,
    peers: Peers,
    metrics: Metrics,
    tasks: Tasks,
    stop: CancellationToken,
    /// Nothing before the peers are there, and after they have ended.
    peer_source: OnceLock<Weak<dyn PeerSource>>,
    downloads: Mutex<HashMap<Digest, Arc<Download>>>,
    manifests: KeyedMutex<(Repository, Digest)>,
    tags: Mutex<HashMap<(Repository, Tag), Arc<TagSlot>>>,
    descriptors: Descriptors,
    penalties: Penalties,
    spoiled: SpoiledBlobs,
    recheck: recheck::Recheck,
    negative: NegativeCache<(Repository, Digest)>,
    room: Room,
    memory: Memory,
}

impl Fetcher {
    /// Puts the parts together. Downloads run in `tasks` and park when `stop` is cancelled.
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
        tasks: Tasks,
        stop: CancellationToken,
        room: MakeRoom,
    ) -> Self {
        Self(Arc::new(Inner {
            config,
            store,
            upstream,
            peers,
            metrics,
            tasks,
            stop,
            peer_source: OnceLock::new(),
            downloads: Mutex::default(),
            manifests: KeyedMutex::default(),
            tags: Mutex::default(),
            descriptors: Descriptors::default(),
            penalties: Penalties::default(),
            spoiled: SpoiledBlobs::default(),
            recheck: recheck::Recheck::default(),
            negative: NegativeCache::default(),
            room: Room::new(room),
            memory: Memory::default(),
        }))
    }

    /// Downloads use these peers from now on. Once.
    pub(crate) fn use_peers(&self, source: Weak<dyn PeerSource>) {
        let _ = self.0.peer_source.set(source);
    }

    fn peer_source(&self) -> Option<Arc<dyn PeerSource>> {
        self.0.peer_source.get()?.upgrade()
    }

    /// Whether this node serves a registry at all.
    pub fn serves(&self, repository: &Repository) -> bool {
        self.0.upstream.serves(&repository.registry).is_some()
    }

    /// Opens a blob for reading: whole, growing while upstream sends it, or passing through when the store cannot take
    /// it. `range` is what will be read; its bytes are fetched first.
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: RangeHeader,
    ) -> Result<Content, FetchError> {
        let way = BlobRef { fetcher: self.clone(), repository: repository.clone(), digest: *digest };
        if let Some(blob) = self.stored_blob(digest).await {
            self.0.metrics.count_content(Kind::blob, Found::hit);
            return Ok(Content::new(Source::Whole(blob), way));
        }
        let key = (repository.clone(), *digest);
        self.0.negative.check(&key)?;
        let source = self.fetch_blob(&way, range).await;
        let source = source.inspect_err(|error| self.0.negative.note(&key, error, self.0.config.negative))?;
        Ok(Content::new(source, way))
    }

    /// Refuses the rest of a blob to a client that may have been sent a wrong beginning of it: together they would be
    /// complete and wrong.
    pub fn check_resume(&self, digest: &Digest, client: &str, asked: RangeHeader) -> Result<(), FetchError> {
        let first = match asked {
            RangeHeader::Whole => 0,
            RangeHeader::One(ByteRange::From { first, .. }) => first,
            RangeHeader::One(ByteRange::Suffix { .. }) => u64::MAX,
        };
        if self.0.spoiled.allows(digest, client, first) {
            return Ok(());
        }
        let reason = "wrong bytes of this blob were sent before: request it from its beginning".to_owned();
        Err(FetchError::NotNow { reason, retry_after: None })
    }

    /// A blob of the store. One that cannot be opened counts as missing: upstream has it too.
    async fn stored_blob(&self, digest: &Digest) -> Option<Blob> {
        self.0.store.blob(digest).await.unwrap_or_else(|error| {
            tracing::warn!(digest = %digest.short(), error = %chain(&error), "stored blob cannot be opened");
            None
        })
    }

    async fn fetch_blob(&self, way: &BlobRef, range: RangeHeader) -> Result<Source, FetchError> {
        let inner = &self.0;
        if inner.store.is_paused() && self.download(&way.digest).is_none() {
            inner.metrics.count_content(Kind::blob, Found::miss);
            return way.clone().open(range).await.map(Box::new).map(Source::Passthrough);
        }
        // Once more when the bytes were wrong and nothing of them has left: the next transfer may be right.
        let mut again = true;
        loop {
            let (download, subscriber, found) = self.join(&way.repository, &way.digest, range);
            inner.metrics.count_content(Kind::blob, found);
            match download.ready(subscriber).await {
                Err(FetchError::Corrupt { .. } | FetchError::Changed(_) | FetchError::Parked) if again => {
                    again = false;
                }
                Err(FetchError::Store(_)) => {
                    return way.clone().open(range).await.map(Box::new).map(Source::Passthrough);
                }
                outcome => return outcome,
            }
        }
    }

    /// The size of a blob.
    pub async fn blob_size(&self, repository: &Repository, digest: &Digest) -> Result<u64, FetchError> {
        let inner = &self.0;
        if let Some(blob) = self.stored_blob(digest).await {
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
        let size = self.upstream_size(repository, digest).await;
        size.inspect_err(|error| inner.negative.note(&key, error, inner.config.negative))
    }

    async fn upstream_size(&self, repository: &Repository, digest: &Digest) -> Result<u64, FetchError> {
        let size = self.0.upstream.blob_head(repository, digest).await?;
        size.or_else(|| self.0.descriptors.get(digest).map(|descriptor| descriptor.size)).ok_or_else(|| {
            FetchError::NotNow {
                reason: "upstream did not say how large the blob is".into(),
                retry_after: None,
            }
        })
    }

    pub(crate) fn download(&self, digest: &Digest) -> Option<Arc<Download>> {
        self.0.downloads.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    /// Joins the download for a digest, or starts it.
    fn join(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: RangeHeader,
    ) -> (Arc<Download>, Subscriber, Found) {
        let rest = self.0.config.whole_on_range;
        let mut downloads = self.0.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(download) = downloads.get(digest)
            && let Some(subscriber) = download.subscribe(repository, range, rest)
        {
            return (download.clone(), subscriber, Found::joined);
        }
        let distrust = self.0.penalties.distrust(digest);
        let download = Download::new(*digest, self.0.descriptors.get(digest), distrust);
        let download = Arc::new(download.after(downloads.get(digest).map(Arc::as_ref)));
        let subscriber = download.subscribe(repository, range, rest).expect("a new download is open");
        downloads.insert(*digest, download.clone());
        drop(downloads);
        lifecycle::start(self.clone(), download.clone());
        (download, subscriber, Found::miss)
    }

    /// The download for a blob that another peer wants something of, which says that it has `size` bytes.
    pub(crate) fn carry(&self, digest: &Digest, repository: &Repository, size: u64) -> Option<Arc<Download>> {
        let mut downloads = self.0.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(download) = downloads.get(digest).filter(|download| !download.is_closed()) {
            return Some(download.clone());
        }
        if !self.0.upstream.may_relay(&repository.registry) {
            return None;
        }
        let distrust = self.0.penalties.distrust(digest);
        let described = self.0.descriptors.get(digest);
        let download = Download::for_peer(*digest, described, distrust, repository, size);
        let download = Arc::new(download.after(downloads.get(digest).map(Arc::as_ref)));
        downloads.insert(*digest, download.clone());
        drop(downloads);
        lifecycle::start(self.clone(), download.clone());
        Some(download)
    }

    /// A number that rises while bytes of a blob arrive at this node, or at the peer that is to send them; `None`
    /// without a download. A download that waits for its turn moves with those before it, as it does on a slow link.
    pub fn movement(&self, digest: &Digest) -> Option<u64> {
        let download = self.download(digest)?;
        let arrived = download.partial().map_or(0, |partial| partial.total());
        let before = download.queued_for().map_or(0, |registry| self.0.upstream.received(&registry));
        let before = before.wrapping_add(self.0.peers.arrived_if_slow().unwrap_or(0));
        Some(arrived.wrapping_add(download.peer_requests.moved()).wrapping_add(before))
    }

    /// Blobs under way.
    pub fn status(&self) -> Vec<TransferStatus> {
        let downloads = self.0.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = downloads.values().map(|download| download.status()).collect();
        all.sort_by(|a, b| a.digest.cmp(&b.digest));
        all
    }

    /// Takes an ended download out, unless another one has its place already.
    fn leave(&self, download: &Arc<Download>) {
        let mut downloads = self.0.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        if downloads.get(download.digest()).is_some_and(|current| Arc::ptr_eq(current, download)) {
            downloads.remove(download.digest());
        }
    }

    /// A tag list or the referrers of a digest, as upstream gives it.
    pub async fn listing(
        &self,
        repository: &Repository,
        path: &str,
        query: Option<&str>,
        kind: Kind,
    ) -> Result<Listing, FetchError> {
        Ok(self.0.upstream.listing(repository, path, query, kind).await?)
    }
}
