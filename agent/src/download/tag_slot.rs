//! The cached state of one tag, and its age.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::error::FetchError;
use crate::{
    limits::download::tags::MAX_SLOTS,
    store::TagRecord,
    types::{Cache, Digest, MediaType, Repository, Tag},
    upstream::Manifest,
};

/// What answers a HEAD request for a manifest.
#[derive(Clone, Debug)]
pub struct ManifestInfo {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// Its size in bytes.
    pub size: u64,
    /// The registry could not confirm the digest that the tag resolves to.
    pub stale: bool,
}

pub(super) fn info(manifest: &Manifest, stale: bool) -> ManifestInfo {
    ManifestInfo {
        digest: manifest.digest,
        media_type: manifest.media_type.clone(),
        size: manifest.bytes.len() as u64,
        stale,
    }
}

/// Where a manifest or a tag may be requested from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sources {
    /// Peers and the registry.
    All,
    /// The registry only, because the request comes from a peer or from background work. For a tag this is a `HEAD` request, which
    /// registries do not count.
    Registry,
}

/// The tags that were requested last.
pub(super) fn tag_slots() -> Cache<(Repository, Tag), Arc<TagSlot>> {
    Cache::new(MAX_SLOTS)
}

/// One tag. Its lock is held while the registry is requested.
#[derive(Debug, Default)]
pub(super) struct TagSlot(pub(super) tokio::sync::Mutex<TagState>);

#[derive(Debug, Default)]
pub(super) struct TagState {
    pub(super) record: Option<TagRecord>,
    pub(super) confirmed: Option<Instant>,
    pub(super) failed: Option<Failure>,
    /// The registry answered "not found": when this expires, and the reason.
    pub(super) negative: Option<(Instant, String)>,
    /// What the registry answered last for a manifest that is not on this node.
    pub(super) named: Option<Named>,
    /// The store's change counter when the record was read.
    pub(super) changes: u64,
    /// The record could not be written, so the one on disk may be older.
    pub(super) unwritten: bool,
}

/// A failed request to the registry.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) at: Instant,
    pub(super) error: FetchError,
    /// Where the request was allowed to go.
    pub(super) sources: Sources,
}

/// The registry's answer to a `HEAD` request, without the manifest: no record is written before that is here.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) info: ManifestInfo,
    pub(super) at: Instant,
}

/// The digest that a tag resolves to, and its age.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) info: ManifestInfo,
    /// Time since the registry confirmed it.
    pub(super) age: Duration,
    /// Confirmed by peers only, not by the registry.
    pub(super) unconfirmed: bool,
}

/// Age of a record. Within one process the monotonic clock is used. A record of an earlier process uses the wall
/// clock; a record from the future (the clock was set back) has the greatest possible age.
pub(super) fn age(record: &TagRecord, confirmed: Option<Instant>) -> Duration {
    confirmed.map_or_else(
        || unix_now().checked_sub(record.confirmed).map_or(Duration::MAX, Duration::from_secs),
        |at| at.elapsed(),
    )
}

impl From<Named> for Resolved {
    fn from(named: Named) -> Self {
        Self { info: named.info, age: named.at.elapsed(), unconfirmed: false }
    }
}

impl TagState {
    pub(super) fn age(&self) -> Option<Duration> {
        self.record.as_ref().map(|record| age(record, self.confirmed))
    }

    pub(super) fn is_unconfirmed(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.unconfirmed || record.imported)
    }

    pub(super) fn answer(&self, stale: bool) -> Result<Resolved, FetchError> {
        let usable =
            self.record.as_ref().and_then(|record| Some((record, MediaType::parse(&record.media_type)?)));
        let (record, media_type) = usable.ok_or_else(|| FetchError::NotNow {
            reason: "the tag's record is damaged".into(),
            retry_after: None,
        })?;
        let info = ManifestInfo { digest: record.digest, media_type, size: record.size, stale };
        Ok(Resolved { info, age: age(record, self.confirmed), unconfirmed: record.unconfirmed })
    }
}

pub(super) fn record_of(info: &ManifestInfo, age: Duration) -> TagRecord {
    TagRecord {
        digest: info.digest,
        media_type: info.media_type.as_str().to_owned(),
        size: info.size,
        confirmed: unix_now().saturating_sub(age.as_secs()),
        pinned: false,
        held: false,
        imported: false,
        unconfirmed: false,
    }
}

pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
