//! What tags mean: asked upstream once per freshness period, by one request however many clients ask; answered from
//! memory of the disk when upstream cannot answer.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{FetchError, Fetcher, ManifestInfo, council::Ask, error::chain, manifests::info};
use crate::{
    metrics::{Found, Kind},
    store::TagRecord,
    types::{MediaType, Reference, Repository, Tag},
    upstream::UpstreamError,
};

/// After upstream failed, the last known meaning is given without asking for this long.
const FAILURE_PAUSE: Duration = Duration::from_secs(10);

/// Tags remembered in memory before those that nobody is asking for are dropped; the disk has them.
const MAX_SLOTS: usize = 16_384;

/// One tag: its lock is held by whoever asks upstream.
#[derive(Debug, Default)]
pub(super) struct TagSlot(tokio::sync::Mutex<TagState>);

#[derive(Debug, Default)]
struct TagState {
    record: Option<TagRecord>,
    confirmed: Option<Instant>,
    failed: Option<Instant>,
    /// Upstream said that it does not exist.
    absent: Option<(Instant, String)>,
    /// The store's count of changes when the record was read.
    changes: u64,
    /// The record could not be written: the disk does not know better.
    unwritten: bool,
}

/// What a tag means, and since when that is known.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) info: ManifestInfo,
    /// Since upstream confirmed it.
    pub(super) age: Duration,
}

/// What to do about a tag before anyone is asked. Pure.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Use,
    UseStale,
    Ask,
}

/// `age` since upstream confirmed the record, `failed` since upstream last could not answer.
fn step(
    age: Option<Duration>,
    failed: Option<Duration>,
    freshness: Duration,
    max_stale: Option<Duration>,
) -> Step {
    match age {
        Some(age) if age < freshness => Step::Use,
        Some(age) if failed.is_some_and(|failed| failed < FAILURE_PAUSE) && usable(age, max_stale) => {
            Step::UseStale
        }
        _ => Step::Ask,
    }
}

fn usable(age: Duration, max_stale: Option<Duration>) -> bool {
    max_stale.is_none_or(|limit| age <= limit)
}

impl Fetcher {
    fn tag_slot(&self, repository: &Repository, tag: &Tag) -> Arc<TagSlot> {
        let mut tags = self.0.tags.lock().unwrap_or_else(PoisonError::into_inner);
        if tags.len() >= MAX_SLOTS {
            tags.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        tags.entry((repository.clone(), tag.clone())).or_default().clone()
    }

    /// What a tag means now, or last meant.
    pub(super) async fn resolve(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<ManifestInfo, FetchError> {
        Ok(self.resolve_by(repository, tag, Ask::Members).await?.info)
    }

    /// The same, with the age of the answer, from whom `ask` says.
    pub(super) async fn resolve_by(
        &self,
        repository: &Repository,
        tag: &Tag,
        ask: Ask,
    ) -> Result<Resolved, FetchError> {
        let slot = self.tag_slot(repository, tag);
        let waited = slot.0.try_lock().is_err();
        let mut state = slot.0.lock().await;
        self.read_again_after_changes(repository, tag, &mut state).await;
        if let Some((_, reason)) =
            state.absent.as_ref().filter(|(at, _)| at.elapsed() < self.0.config.negative)
        {
            return Err(FetchError::NotFound(reason.clone()));
        }
        if state.record.is_none() {
            state.record = self.stored_tag(repository, tag).await;
        }
        let age = state.record.as_ref().map(|record| age(record, state.confirmed));
        let kept = state.record.as_ref().is_some_and(TagRecord::is_kept);
        let max_stale = if kept { None } else { self.0.config.max_stale };
        let failed = state.failed.map(|at| at.elapsed());
        match step(age, failed, self.0.config.freshness, max_stale) {
            Step::Use => {
                self.note_use(state.record.as_ref());
                self.0.metrics.count_content(Kind::tag, if waited { Found::joined } else { Found::hit });
                return state.answer(false);
            }
            Step::UseStale => {
                self.note_use(state.record.as_ref());
                self.0.metrics.count_content(Kind::tag, Found::stale);
                return state.answer(true);
            }
            Step::Ask => {}
        }
        match self.ask_for_tag(repository, tag, state.record.is_some(), ask).await {
            Ok((record, age)) => {
                self.0.metrics.count_content(Kind::tag, Found::miss);
                let unwritten = !self.keep_tag(repository, tag, &record).await;
                let old = state.record.as_ref();
                let (pinned, held) = old.map_or((false, false), |old| (old.pinned, old.held));
                *state = TagState {
                    record: Some(TagRecord { pinned, held, ..record }),
                    confirmed: Instant::now().checked_sub(age),
                    changes: state.changes,
                    unwritten,
                    ..TagState::default()
                };
                state.answer(false)
            }
            Err(FetchError::NotFound(reason)) if !kept => {
                self.forget_tag(repository, tag).await;
                let absent = Some((Instant::now(), reason.clone()));
                *state = TagState { absent, changes: state.changes, ..TagState::default() };
                Err(FetchError::NotFound(reason))
            }
            Err(error)
                if stands_in(&error, state.record.as_ref())
                    && age.is_some_and(|age| usable(age, max_stale)) =>
            {
                tracing::warn!(%repository, %tag, error = %error, "upstream cannot confirm the tag: last known digest is served");
                self.0.metrics.count_content(Kind::tag, Found::stale);
                state.failed = Some(Instant::now());
                state.answer(true)
            }
            Err(error @ FetchError::NotNow { .. }) if ask == Ask::Members => {
                let Some(known) = self.tag_of_anyone(repository, tag).await else { return Err(error) };
                if !usable(known.age, self.0.config.max_stale) {
                    return Err(error);
                }
                tracing::warn!(%repository, %tag, error = %error, "upstream cannot confirm the tag: what another member last knew is served");
                self.0.metrics.count_content(Kind::tag, Found::stale);
                let record = record_of(&known.info, known.age);
                let unwritten = !self.keep_tag(repository, tag, &record).await;
                *state = TagState {
                    record: Some(record),
                    confirmed: Instant::now().checked_sub(known.age),
                    failed: Some(Instant::now()),
                    changes: state.changes,
                    unwritten,
                    ..TagState::default()
                };
                state.answer(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Someone pinned, removed or imported references: what was remembered of this one may be wrong.
    async fn read_again_after_changes(&self, repository: &Repository, tag: &Tag, state: &mut TagState) {
        let changes = self.0.store.reference_changes();
        if changes == state.changes || state.unwritten {
            return;
        }
        // What cannot be read now is not known to be different.
        let Ok(record) = self.0.store.tag(repository, tag).await else { return };
        let same =
            |old: &TagRecord, new: &TagRecord| old.digest == new.digest && old.imported == new.imported;
        match (&state.record, record) {
            (Some(old), Some(new)) if same(old, &new) => state.record = Some(new),
            (None, None) => {}
            (_, record) => *state = TagState { record, ..TagState::default() },
        }
        state.changes = changes;
    }

    /// An image that is asked for by its tag alone, because the runtime has the rest, is in use all the same.
    fn note_use(&self, record: Option<&TagRecord>) {
        if let Some(record) = record {
            self.0.store.note_use(&record.digest);
        }
    }

    /// What is known of a tag without asking anyone.
    pub(super) async fn known_tag(&self, repository: &Repository, tag: &Tag) -> Result<Resolved, FetchError> {
        let unknown =
            || FetchError::NotNow { reason: "nothing is known of the tag".into(), retry_after: None };
        let record = self.0.store.tag(repository, tag).await?.ok_or_else(unknown)?;
        TagState { record: Some(record), ..TagState::default() }.answer(true)
    }

    /// The member that resolves the tag for all, else upstream: a record and its age. With a last known meaning at hand,
    /// here or perhaps elsewhere, the wait is shorter than what the client is given, so that it still gets that.
    async fn ask_for_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        has_last: bool,
        ask: Ask,
    ) -> Result<(TagRecord, Duration), FetchError> {
        let whole = self.0.config.first_header;
        let limit = match (has_last, ask) {
            (true, _) => whole / 2,
            (false, Ask::Members) if self.0.peers.members().is_some() => whole * 7 / 10,
            (false, _) => whole,
        };
        let asked = tokio::time::timeout(limit, async {
            if ask == Ask::Members
                && let Some(told) = self.tag_of_members(repository, tag).await?
                && self.manifest_by_digest(repository, &told.info.digest).await.is_ok()
            {
                return Ok((record_of(&told.info, told.age), told.age));
            }
            let record = self.ask_upstream(repository, tag).await?;
            Ok::<_, FetchError>((record, Duration::ZERO))
        });
        asked.await.unwrap_or_else(|_| {
            let reason = format!("did not answer within {limit:?}");
            Err(UpstreamError::Unavailable { registry: repository.registry.clone(), reason }.into())
        })
    }

    /// HEAD, which costs no quota; GET only for a manifest that is not here yet, by the member that does that for all
    /// (it is another one, which asks nobody but upstream: no circle).
    async fn ask_upstream(&self, repository: &Repository, tag: &Tag) -> Result<TagRecord, FetchError> {
        let reference = Reference::Tag(tag.clone());
        let head = self.0.upstream.manifest_head(repository, &reference).await?;
        // The client's next request is for this manifest, and it comes back here only if it can be had: some
        // clients choose their mirror once, by this answer.
        if let Some(digest) = head.digest {
            match self.manifest_by_digest(repository, &digest).await {
                Err(FetchError::NotFound(_)) => {}
                manifest => return Ok(record_of(&info(&manifest?, false), Duration::ZERO)),
            }
        }
        let manifest = self.0.upstream.manifest(repository, &reference).await?;
        self.keep_manifest(repository, &manifest).await?;
        Ok(record_of(&info(&manifest, false), Duration::ZERO))
    }

    /// What the disk knows of a tag; nothing when it cannot be read.
    async fn stored_tag(&self, repository: &Repository, tag: &Tag) -> Option<TagRecord> {
        self.0.store.tag(repository, tag).await.unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "tag's record cannot be read");
            None
        })
    }

    /// Whether the record is on disk.
    async fn keep_tag(&self, repository: &Repository, tag: &Tag, record: &TagRecord) -> bool {
        let (store, repository, tag, record) =
            (self.0.store.clone(), repository.clone(), tag.clone(), record.clone());
        let written = self.write(move || store.set_tag(&repository, &tag, &record)).await;
        if let Err(error) = &written {
            tracing::warn!(error = %chain(error), "tag remembered in memory only");
        }
        written.is_ok()
    }

    async fn forget_tag(&self, repository: &Repository, tag: &Tag) {
        let (store, repository, tag) = (self.0.store.clone(), repository.clone(), tag.clone());
        let removed = tokio::task::spawn_blocking(move || store.remove_tag(&repository, &tag)).await;
        if let Err(error) = removed.unwrap_or_else(|error| Err(error.into())) {
            tracing::error!(error = %chain(&error), "deleted tag not forgotten on disk");
        }
    }
}

/// Whether the last known meaning may be given although upstream answered with this: always while it has no answer; of
/// a tag that is kept by hand also when it does not know it, and of one that was brought by hand even when the agent
/// may not ask for it: it did not come from there. Pure.
fn stands_in(error: &FetchError, record: Option<&TagRecord>) -> bool {
    match error {
        FetchError::NotNow { .. } => true,
        FetchError::NotFound(_) => record.is_some_and(TagRecord::is_kept),
        FetchError::Denied(_) => record.is_some_and(|record| record.imported),
        _ => false,
    }
}

/// Within one process the monotonic clock counts; a record of an earlier process goes by the wall clock, and one from
/// the future (the clock was set back) is as old as can be.
fn age(record: &TagRecord, confirmed: Option<Instant>) -> Duration {
    confirmed.map_or_else(
        || unix_now().checked_sub(record.confirmed).map_or(Duration::MAX, Duration::from_secs),
        |at| at.elapsed(),
    )
}

impl TagState {
    fn answer(&self, stale: bool) -> Result<Resolved, FetchError> {
        let usable =
            self.record.as_ref().and_then(|record| Some((record, MediaType::parse(&record.media_type)?)));
        let (record, media_type) = usable.ok_or_else(|| FetchError::NotNow {
            reason: "the tag's record is damaged".into(),
            retry_after: None,
        })?;
        let info = ManifestInfo { digest: record.digest, media_type, size: record.size, stale };
        Ok(Resolved { info, age: age(record, self.confirmed) })
    }
}

fn record_of(info: &ManifestInfo, age: Duration) -> TagRecord {
    TagRecord {
        digest: info.digest,
        media_type: info.media_type.as_str().to_owned(),
        size: info.size,
        confirmed: unix_now().saturating_sub(age.as_secs()),
        pinned: false,
        held: false,
        imported: false,
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_is_asked_when_the_record_is_old_and_left_alone_after_a_failure() {
        let seconds = Duration::from_secs;
        let table = [
            (None, None, Step::Ask),
            (Some(0), None, Step::Use),
            (Some(59), Some(1), Step::Use),
            (Some(60), None, Step::Ask),
            (Some(60), Some(1), Step::UseStale),
            (Some(60), Some(10), Step::Ask),
            (Some(601), Some(1), Step::Ask),
            (None, Some(1), Step::Ask),
        ];
        for (age, failed, expected) in table {
            let step = step(age.map(seconds), failed.map(seconds), seconds(60), Some(seconds(600)));
            assert_eq!(step, expected, "{age:?} {failed:?}");
        }
        assert_eq!(step(Some(seconds(u64::MAX)), Some(seconds(1)), seconds(60), None), Step::UseStale);
    }

    #[test]
    fn what_is_kept_by_hand_outlives_upstreams_no() {
        let record = |pinned, imported| TagRecord {
            digest: crate::types::Digest::of(b""),
            media_type: "a/b".into(),
            size: 0,
            confirmed: 0,
            pinned,
            held: false,
            imported,
        };
        let not_now = FetchError::NotNow { reason: String::new(), retry_after: None };
        let (not_found, denied) = (FetchError::NotFound(String::new()), FetchError::Denied(String::new()));
        for (pinned, imported, on_not_found, on_denied) in
            [(false, false, false, false), (true, false, true, false), (false, true, true, true)]
        {
            let record = record(pinned, imported);
            let stands = |error| stands_in(error, Some(&record));
            assert!(stands(&not_now));
            assert_eq!((stands(&not_found), stands(&denied)), (on_not_found, on_denied), "{record:?}");
        }
    }

    #[test]
    fn a_record_from_the_future_is_never_fresh() {
        let record = TagRecord {
            digest: crate::types::Digest::of(b""),
            media_type: "a/b".into(),
            size: 0,
            confirmed: unix_now() + 1_000,
            pinned: false,
            held: false,
            imported: false,
        };
        assert_eq!(age(&record, None), Duration::MAX);
    }
}
