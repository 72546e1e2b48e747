//! From "a client wants this" to content: the store, else one transfer per digest, else a clear reason.
//!
//! * [`Fetcher::blob`]: a whole blob of the store, or a blob that grows while it is read. One flight per digest,
//!   however many readers; a reader that leaves does not stop it.
//! * [`Fetcher::manifest`], [`Fetcher::manifest_head`]: complete and verified, or an error. Tags are asked upstream
//!   once per freshness period; when upstream cannot answer, the last known meaning is given, marked as such.
//! * [`Fetcher::listing`]: tag lists and referrers, passed on.
//!
//! Invariant: what is returned as complete hashed to its digest; "not found" is said only when upstream said it.

mod absent;
mod council;
mod desk;
mod drive;
mod error;
mod flight;
mod forest;
mod growth;
mod hashing;
mod keyed;
mod known;
mod lane;
mod liars;
mod piece;
mod reader;
mod runtime;
mod schedule;
mod share;
mod stripes;
mod suspects;
mod tags;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use absent::Absent;
use council::Ask;
pub use error::FetchError;
pub use flight::TransferStatus;
use flight::{Flight, Passenger};
use keyed::KeyedLocks;
use known::Known;
use liars::Liars;
pub use reader::{Content, ContentReader};
pub use share::Share;
use suspects::Suspects;
use tags::TagSlot;

use crate::{
    metrics::{Found, Kind, Metrics},
    peers::{Peers, wire::PieceAsk},
    store::{ManifestRecord, Store},
    task::Tasks,
    types::{
        Digest, ManifestError, ManifestLinks, MediaType, RangeHeader, Reference, Repository, Tag,
        media_type_of,
    },
    upstream::{Listing, Manifest, Upstream, UpstreamError},
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
    /// The tag's meaning could not be confirmed upstream.
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
    suspects: Suspects,
    absent: Absent<(Repository, Digest)>,
    slots: tokio::sync::Semaphore,
    relays: tokio::sync::Semaphore,
}

/// Blobs fetched at once; further ones wait their turn.
const MAX_FLIGHTS: usize = 64;

/// Blobs fetched at once for other members' sake alone.
const MAX_RELAYS: usize = 64;

impl Fetcher {
    /// Puts the parts together. Flights run in `tasks` and park when `stop` is cancelled.
    pub fn new(
        config: Config,
        store: Store,
        upstream: Arc<Upstream>,
        peers: Peers,
        metrics: Metrics,
        tasks: Tasks,
        stop: CancellationToken,
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
            suspects: Suspects::default(),
            absent: Absent::default(),
            slots: tokio::sync::Semaphore::new(MAX_FLIGHTS),
            relays: tokio::sync::Semaphore::new(MAX_RELAYS),
        }))
    }

    /// Opens a blob for reading: whole, or growing while upstream sends it. `range` is what will be read; its bytes
    /// are fetched first.
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: RangeHeader,
    ) -> Result<Content, FetchError> {
        let inner = &self.0;
        if let Some(blob) = inner.store.blob(digest).await? {
            inner.metrics.count_content(Kind::blob, Found::hit);
            return Ok(Content::Whole(blob));
        }
        inner.absent.check(&(repository.clone(), *digest))?;
        // Once more when the bytes were wrong and nothing of them has left: the next transfer may be right.
        let mut again = true;
        loop {
            let (flight, passenger, found) = self.join(repository, digest, range);
            inner.metrics.count_content(Kind::blob, found);
            match flight.ready(passenger).await {
                Err(FetchError::Corrupt { .. } | FetchError::Changed(_) | FetchError::Parked) if again => {
                    again = false;
                }
                Err(error) => {
                    inner.absent.note(&(repository.clone(), *digest), &error, inner.config.negative);
                    return Err(error);
                }
                Ok(content) => return Ok(content),
            }
        }
    }

    /// The size of a blob.
    pub async fn blob_size(&self, repository: &Repository, digest: &Digest) -> Result<u64, FetchError> {
        let inner = &self.0;
        if let Some(blob) = inner.store.blob(digest).await? {
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
        let size = inner.upstream.blob_head(repository, digest).await.map_err(FetchError::from);
        let size = size.inspect_err(|error| inner.absent.note(&key, error, inner.config.negative))?;
        size.or_else(|| inner.known.get(digest).map(|descriptor| descriptor.size)).ok_or_else(|| {
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
        let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&ask.digest).filter(|flight| !flight.is_closed()) {
            return Some(flight.clone());
        }
        if self.0.relays.available_permits() == 0 {
            return None;
        }
        let distrust = self.0.liars.distrust(&ask.digest);
        let described = self.0.known.get(&ask.digest);
        let flight = Flight::for_member(ask.digest, described, distrust, &ask.repository, ask.size);
        let flight = Arc::new(flight);
        flights.insert(ask.digest, flight.clone());
        drop(flights);
        drive::start(self.clone(), flight.clone());
        Some(flight)
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

    /// What a manifest request by HEAD is answered with.
    pub async fn manifest_head(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<ManifestInfo, FetchError> {
        match reference {
            Reference::Tag(tag) => self.resolve(repository, tag).await,
            Reference::Digest(digest) => {
                self.manifest_by_digest(repository, digest).await.map(|manifest| info(&manifest, false))
            }
        }
    }

    /// A manifest, complete and verified.
    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<(ManifestInfo, Bytes), FetchError> {
        let (digest, stale) = match reference {
            Reference::Tag(tag) => {
                let resolved = self.resolve(repository, tag).await?;
                (resolved.digest, resolved.stale)
            }
            Reference::Digest(digest) => (*digest, false),
        };
        let manifest = self.manifest_by_digest(repository, &digest).await?;
        Ok((info(&manifest, stale), manifest.bytes))
    }

    async fn manifest_by_digest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Manifest, FetchError> {
        self.manifest_by(repository, digest, Ask::Members).await
    }

    async fn manifest_by(
        &self,
        repository: &Repository,
        digest: &Digest,
        ask: Ask,
    ) -> Result<Manifest, FetchError> {
        if let Some(manifest) = self.stored_manifest(repository, digest).await? {
            self.0.metrics.count_content(Kind::manifest, Found::hit);
            return Ok(manifest);
        }
        let key = (repository.clone(), *digest);
        let _only = self.0.manifests.lock(&key).await;
        if let Some(manifest) = self.stored_manifest(repository, digest).await? {
            self.0.metrics.count_content(Kind::manifest, Found::joined);
            return Ok(manifest);
        }
        self.0.absent.check(&key)?;
        self.0.metrics.count_content(Kind::manifest, Found::miss);
        let fetched = self.fetch_manifest(repository, digest, ask).await;
        fetched.inspect_err(|error| self.0.absent.note(&key, error, self.0.config.negative))
    }

    async fn fetch_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        ask: Ask,
    ) -> Result<Manifest, FetchError> {
        if let Some(manifest) = self.confirm_shared_manifest(repository, digest).await? {
            return Ok(manifest);
        }
        let members = ask == Ask::Members;
        let told = if members { self.manifest_of_members(repository, digest).await? } else { None };
        let manifest = match told {
            Some(manifest) => manifest,
            None => match self.0.upstream.manifest(repository, &Reference::Digest(*digest)).await {
                Err(error @ (UpstreamError::Throttled { .. } | UpstreamError::Unavailable { .. }))
                    if members =>
                {
                    self.manifest_of_anyone(repository, digest).await.ok_or(error)?
                }
                asked => asked?,
            },
        };
        self.keep_manifest(repository, &manifest).await?;
        Ok(manifest)
    }

    /// A manifest from this node's disk alone; the content is the proof that whoever asks knows its name.
    async fn known_manifest(&self, repository: &Repository, digest: &Digest) -> Result<Manifest, FetchError> {
        if let Some(manifest) = self.stored_manifest(repository, digest).await? {
            return Ok(manifest);
        }
        let bytes = self.stored_bytes(digest).await?;
        let known = bytes.and_then(|bytes| Some((media_type_of(&bytes)?, bytes)));
        let (media_type, bytes) = known.ok_or_else(|| FetchError::NotNow {
            reason: "it is not on this node".into(),
            retry_after: None,
        })?;
        Ok(Manifest { digest: *digest, media_type, bytes })
    }

    /// A manifest that this repository is known to have and that lies in the store.
    async fn stored_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Manifest>, FetchError> {
        let Some(record) = self.0.store.manifest(repository, digest).await? else { return Ok(None) };
        let Some(media_type) = MediaType::parse(&record.media_type) else { return Ok(None) };
        let Some(bytes) = self.stored_bytes(digest).await? else { return Ok(None) };
        Ok(Some(Manifest { digest: *digest, media_type, bytes }))
    }

    /// A manifest's bytes from the store, checked again: it is small, and a damaged one would fail the whole pull.
    async fn stored_bytes(&self, digest: &Digest) -> Result<Option<Bytes>, FetchError> {
        let Some(blob) = self.0.store.blob(digest).await? else { return Ok(None) };
        let bytes = blob.read_all().await.map_err(|error| FetchError::Disk(Arc::new(error)))?;
        if digest.verify(&bytes).is_err() {
            tracing::error!(digest = %digest.short(), "stored manifest is damaged: fetched again");
            return Ok(None);
        }
        if let Ok(links) = ManifestLinks::parse(&bytes) {
            self.0.known.remember(&links);
        }
        Ok(Some(bytes))
    }

    /// A manifest that another repository brought: a HEAD, which costs no quota, tells whether this one has it too.
    /// When upstream cannot say, the content itself is the proof that the name was known to the asker.
    async fn confirm_shared_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Manifest>, FetchError> {
        let Some(bytes) = self.stored_bytes(digest).await? else { return Ok(None) };
        let Some(media_type) = media_type_of(&bytes) else { return Ok(None) };
        match self.0.upstream.manifest_head(repository, &Reference::Digest(*digest)).await {
            Ok(head) => {
                let manifest =
                    Manifest { digest: *digest, media_type: head.media_type.unwrap_or(media_type), bytes };
                self.keep_manifest(repository, &manifest).await?;
                Ok(Some(manifest))
            }
            Err(UpstreamError::Throttled { .. } | UpstreamError::Unavailable { .. }) => {
                Ok(Some(Manifest { digest: *digest, media_type, bytes }))
            }
            Err(settled) => Err(settled.into()),
        }
    }

    /// Stores a verified manifest and remembers what it names.
    async fn keep_manifest(&self, repository: &Repository, manifest: &Manifest) -> Result<(), FetchError> {
        match ManifestLinks::parse(&manifest.bytes) {
            Ok(links) => self.0.known.remember(&links),
            Err(ManifestError::SchemaOne) => {
                return Err(FetchError::Unsupported { reason: ManifestError::SchemaOne.to_string() });
            }
            Err(ManifestError::Json(_)) => {}
        }
        let (store, repository, kept) = (self.0.store.clone(), repository.clone(), manifest.clone());
        let stored = tokio::task::spawn_blocking(move || {
            store.put(&kept.digest, &kept.bytes)?;
            let record = ManifestRecord::new(kept.media_type.as_str());
            store.set_manifest(&repository, &kept.digest, &record)
        })
        .await
        .unwrap_or_else(|error| Err(error.into()));
        if let Err(error) = stored {
            // The client gets its manifest all the same.
            tracing::error!(digest = %manifest.digest.short(), error = %error::chain(&error), "manifest not stored");
        }
        Ok(())
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

fn info(manifest: &Manifest, stale: bool) -> ManifestInfo {
    ManifestInfo {
        digest: manifest.digest,
        media_type: manifest.media_type.clone(),
        size: manifest.bytes.len() as u64,
        stale,
    }
}
