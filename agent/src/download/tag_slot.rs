//! What is remembered of one tag, and how old it is.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use moka::{policy::EvictionPolicy, sync::Cache};

use super::error::FetchError;
use crate::{
    limits::download::tags::MAX_SLOTS,
    store::TagRecord,
    types::{Digest, MediaType, Repository, Tag},
    upstream::Manifest,
};

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

pub(super) fn info(manifest: &Manifest, stale: bool) -> ManifestInfo {
    ManifestInfo {
        digest: manifest.digest,
        media_type: manifest.media_type.clone(),
        size: manifest.bytes.len() as u64,
        stale,
    }
}

/// Who may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Peers and the registry.
    Peers,
    /// The registry alone: a peer asks this node.
    Upstream,
}

/// The tags that were asked for last.
pub(super) fn tag_slots() -> Cache<(Repository, Tag), Arc<TagSlot>> {
    Cache::builder().max_capacity(MAX_SLOTS).eviction_policy(EvictionPolicy::lru()).build()
}

/// One tag: its lock is held by the request that asks the registry.
#[derive(Debug, Default)]
pub(super) struct TagSlot(pub(super) tokio::sync::Mutex<TagState>);

#[derive(Debug, Default)]
pub(super) struct TagState {
    pub(super) record: Option<TagRecord>,
    pub(super) confirmed: Option<Instant>,
    pub(super) failed: Option<Failure>,
    /// The registry said that it does not exist.
    pub(super) negative: Option<(Instant, String)>,
    /// The store's count of changes when the record was read.
    pub(super) changes: u64,
    /// The record could not be written: the disk does not know better.
    pub(super) unwritten: bool,
}

/// The registry could not be read.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) at: Instant,
    pub(super) error: FetchError,
    /// Who was asked.
    pub(super) ask: Ask,
}

/// What a tag resolves to, and since when that is known.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) info: ManifestInfo,
    /// Since the registry confirmed it.
    pub(super) age: Duration,
    /// Peers said so, not the registry.
    pub(super) unconfirmed: bool,
}

/// Within one process the monotonic clock counts; a record of an earlier process goes by the wall clock, and one from
/// the future (the clock was set back) is as old as can be.
pub(super) fn age(record: &TagRecord, confirmed: Option<Instant>) -> Duration {
    confirmed.map_or_else(
        || unix_now().checked_sub(record.confirmed).map_or(Duration::MAX, Duration::from_secs),
        |at| at.elapsed(),
    )
}

impl TagState {
    pub(super) fn age(&self) -> Option<Duration> {
        self.record.as_ref().map(|record| age(record, self.confirmed))
    }

    pub(super) fn is_unconfirmed(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.unconfirmed)
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
