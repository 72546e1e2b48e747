//! From "a client wants this" to content: the store, else one transfer per digest, else a clear reason.
//!
//! * [`Fetcher::blob`]: a whole blob of the store, or a blob that grows while it is read. One flight per digest,
//!   however many readers; a reader that leaves does not stop it.
//! * [`Fetcher::manifest`], [`Fetcher::manifest_head`]: complete and verified, or an error. Tags are asked upstream
//!   once per freshness period; when upstream cannot answer, the last known meaning is given, marked as such.
//! * [`Fetcher::keep`]: a blob that nobody reads, until it is in the store.
//! * [`Fetcher::listing`]: tag lists and referrers, passed on.
//!
//! Invariant: what is returned as complete hashed to its digest; "not found" is said only when upstream said it.

mod absent;
mod council;
mod cross_check;
mod desk;
mod drive;
mod error;
mod expected;
mod flight;
mod forest;
mod growth;
mod hashing;
mod keep;
mod keyed;
mod known;
mod lane;
mod liars;
mod manifests;
mod memory;
mod passing;
mod piece;
mod reader;
mod recheck;
mod room;
mod runtime;
mod schedule;
mod share;
mod sieve;
mod spoiled;
mod stillness;
mod stripes;
mod suspects;
mod tags;
mod vouched;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use absent::Absent;
use council::Ask;
pub use error::FetchError;
pub use flight::TransferStatus;
use flight::{Flight, Passenger};
use keyed::KeyedLocks;
use known::Known;
use liars::Liars;
use memory::Memory;
use passing::Way;
pub use reader::{Content, ContentReader};
use reader::{HELD_BACK, Source};
pub use room::MakeRoom;
use room::Room;
pub use share::Share;
use spoiled::SpoiledBlobs;
pub use stillness::{CHECK, Stillness};
use suspects::Suspects;
use tags::TagSlot;

use crate::{
    metrics::{Found, Kind, Metrics},
    peers::{Peers, wire::PieceAsk},
    store::{Blob, Store},
    task::Tasks,
    types::{ByteRange, Digest, MediaType, RangeHeader, Repository, Tag},
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
    flights: Mutex<HashMap<Digest, Arc<Flight>>>,
    manifests: KeyedLocks<(Repository, Digest)>,
    tags: Mutex<HashMap<(Repository, Tag), Arc<TagSlot>>>,
    known: Known,
    liars: Liars,
    spoiled: SpoiledBlobs,
    suspects: Suspects,
    vouched: vouched::Vouched,
    recheck: recheck::Recheck,
    absent: Absent<(Repository, Digest)>,
    room: Room,
    memory: Memory,
}

impl Fetcher {
    /// Puts the parts together. Flights run in `tasks` and park when `stop` is cancelled.
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
            flights: Mutex::default(),
            manifests: KeyedLocks::default(),
            tags: Mutex::default(),
            known: Known::default(),
            liars: Liars::default(),
            spoiled: SpoiledBlobs::default(),
            suspects: Suspects::default(),
            vouched: vouched::Vouched::default(),
            recheck: recheck::Recheck::default(),
            absent: Absent::default(),
            room: Room::new(room),
            memory: Memory::default(),
        }))
    }

    /// Opens a blob for reading: whole, growing while upstream sends it, or passing through when the store cannot take
    /// it. `range` is what will be read; its bytes are fetched first.
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: RangeHeader,
    ) -> Result<Content, FetchError> {
        let way = Way { fetcher: self.clone(), repository: repository.clone(), digest: *digest };
        if let Some(blob) = self.stored_blob(digest).await {
            self.0.metrics.count_content(Kind::blob, Found::hit);
            return Ok(Content::new(Source::Whole(blob), way));
        }
        let key = (repository.clone(), *digest);
        self.0.absent.check(&key)?;
        let source = self.fetch_blob(&way, range).await;
        let source = source.inspect_err(|error| self.0.absent.note(&key, error, self.0.config.negative))?;
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
            tracing::warn!(digest = %digest.short(), error = %error::chain(&error), "stored blob cannot be opened");
            None
        })
    }

    async fn fetch_blob(&self, way: &Way, range: RangeHeader) -> Result<Source, FetchError> {
        let inner = &self.0;
        if inner.store.is_paused() && self.flight(&way.digest).is_none() {
            inner.metrics.count_content(Kind::blob, Found::miss);
            return way.clone().open(range).await.map(Box::new).map(Source::Passing);
        }
        // Once more when the bytes were wrong and nothing of them has left: the next transfer may be right.
        let mut again = true;
        loop {
            let (flight, passenger, found) = self.join(&way.repository, &way.digest, range);
            inner.metrics.count_content(Kind::blob, found);
            match flight.ready(passenger).await {
                Err(FetchError::Corrupt { .. } | FetchError::Changed(_) | FetchError::Parked) if again => {
                    again = false;
                }
                Err(FetchError::Store(_)) => {
                    return way.clone().open(range).await.map(Box::new).map(Source::Passing);
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
        let under_way = self.flight(digest).and_then(|flight| flight.size());
        if let Some(size) = under_way {
            inner.metrics.count_content(Kind::blob, Found::joined);
            return Ok(size);
        }
        let key = (repository.clone(), *digest);
        inner.absent.check(&key)?;
        inner.metrics.count_content(Kind::blob, Found::miss);
        let size = self.upstream_size(repository, digest).await;
        size.inspect_err(|error| inner.absent.note(&key, error, inner.config.negative))
    }

    async fn upstream_size(&self, repository: &Repository, digest: &Digest) -> Result<u64, FetchError> {
        let size = self.0.upstream.blob_head(repository, digest).await?;
        size.or_else(|| self.0.known.get(digest).map(|descriptor| descriptor.size)).ok_or_else(|| {
            FetchError::NotNow {
                reason: "upstream did not say how large the blob is".into(),
                retry_after: None,
            }
        })
    }

    fn flight(&self, digest: &Digest) -> Option<Arc<Flight>> {
        self.0.flights.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    /// Joins the flight for a digest, or starts it.
    fn join(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: RangeHeader,
    ) -> (Arc<Flight>, Passenger, Found) {
        let rest = self.0.config.whole_on_range;
        let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(digest)
            && let Some(passenger) = flight.board(repository, range, rest)
        {
            return (flight.clone(), passenger, Found::joined);
        }
        let distrust = self.0.liars.distrust(digest);
        let flight = Arc::new(Flight::new(*digest, self.0.known.get(digest), distrust));
        let passenger = flight.board(repository, range, rest).expect("a new flight is open");
        flights.insert(*digest, flight.clone());
        drop(flights);
        drive::start(self.clone(), flight.clone());
        (flight, passenger, Found::miss)
    }

    /// The flight for a blob of which another member wants a piece; `None` when as many as may began for others.
    fn relay(&self, ask: &PieceAsk) -> Option<Arc<Flight>> {
        self.carry(&ask.digest, &ask.repository, ask.size)
    }

    /// The flight for a blob that another member wants something of, which says that it has `size` bytes.
    fn carry(&self, digest: &Digest, repository: &Repository, size: u64) -> Option<Arc<Flight>> {
        let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(digest).filter(|flight| !flight.is_closed()) {
            return Some(flight.clone());
        }
        if !self.0.upstream.may_relay(&repository.registry) {
            return None;
        }
        let distrust = self.0.liars.distrust(digest);
        let described = self.0.known.get(digest);
        let flight = Arc::new(Flight::for_member(*digest, described, distrust, repository, size));
        flights.insert(*digest, flight.clone());
        drop(flights);
        drive::start(self.clone(), flight.clone());
        Some(flight)
    }

    /// A number that rises while bytes of a blob arrive at this node, or at the peer that is to send them; `None`
    /// without a download. A download that waits for its turn moves with those before it.
    pub fn movement(&self, digest: &Digest) -> Option<u64> {
        let flight = self.flight(digest)?;
        let arrived = flight.partial().map_or(0, |partial| partial.total());
        let before = flight.queued_for().map_or(0, |registry| self.0.upstream.received(&registry));
        Some(arrived.wrapping_add(flight.desk.moved()).wrapping_add(before))
    }

    /// Blobs under way.
    pub fn status(&self) -> Vec<TransferStatus> {
        let flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = flights.values().map(|flight| flight.status()).collect();
        all.sort_by(|a, b| a.digest.cmp(&b.digest));
        all
    }

    /// Takes an ended flight out, unless another one has its place already.
    fn leave(&self, flight: &Arc<Flight>) {
        let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if flights.get(flight.digest()).is_some_and(|current| Arc::ptr_eq(current, flight)) {
            flights.remove(flight.digest());
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
