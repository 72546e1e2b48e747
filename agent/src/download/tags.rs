//! What tags resolve to: asked of the registry once per freshness period, by one request however many clients ask;
//! answered from the disk when the registry cannot be read, and by a quorum of peers when the disk does not know either.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    error::FetchError,
    fetcher::Fetcher,
    tag_slot::{Ask, Failure, ManifestInfo, Resolved, TagSlot, TagState, info, record_of},
};
use crate::{
    metrics::{Found, Kind},
    store::TagRecord,
    types::{Reference, Repository, Tag, chain},
    upstream::UpstreamError,
};

use crate::limits::download::tags::FAILURE_PAUSE;

/// What to do about a tag before anyone is asked. Pure.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Use,
    UseStale,
    Ask,
}

/// `age` since the registry confirmed the record, to this node or, when it is `unconfirmed`, to peers; `failed` since the
/// registry last could not answer.
fn step(
    age: Option<Duration>,
    unconfirmed: bool,
    failed: Option<Duration>,
    freshness: Duration,
    max_stale: Option<Duration>,
) -> Step {
    match age {
        Some(age) if age < freshness && !unconfirmed => Step::Use,
        Some(age) if failed.is_some_and(|failed| failed < FAILURE_PAUSE) && is_usable(age, max_stale) => {
            Step::UseStale
        }
        _ => Step::Ask,
    }
}

fn is_usable(age: Duration, max_stale: Option<Duration>) -> bool {
    max_stale.is_none_or(|limit| age <= limit)
}

impl Fetcher {
    fn tag_slot(&self, repository: &Repository, tag: &Tag) -> Arc<TagSlot> {
        self.0.tags.get_with((repository.clone(), tag.clone()), Arc::default)
    }

    /// What a tag resolves to now, or last did.
    pub(super) async fn resolve(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<ManifestInfo, FetchError> {
        Ok(self.resolve_by(repository, tag, Ask::Peers).await?.info)
    }

    /// The same, with the age of the answer, from whom `ask` says.
    pub(super) async fn resolve_by(
        &self,
        repository: &Repository,
        tag: &Tag,
        ask: Ask,
    ) -> Result<Resolved, FetchError> {
        let slot = self.tag_slot(repository, tag);
        let (waited, began) = (slot.0.try_lock().is_err(), Instant::now());
        let mut state = slot.0.lock().await;
        self.read_again_after_changes(repository, tag, &mut state).await;
        if let Some((_, reason)) =
            state.negative.as_ref().filter(|(at, _)| at.elapsed() < self.0.config.negative)
        {
            return Err(FetchError::NotFound(reason.clone()));
        }
        if state.record.is_none() {
            state.record = self.stored_tag(repository, tag).await;
        }
        let failed = state.failed.as_ref().map(|failure| failure.at.elapsed());
        match step(
            state.age(),
            state.is_unconfirmed(),
            failed,
            self.0.config.freshness,
            self.max_stale(&state),
        ) {
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
        // The request that this one waited for has failed: so would this one, and after it all that wait as well.
        let shared = state.failed.clone().filter(|failure| failure.at >= began);
        match shared {
            Some(failure) if failure.ask == Ask::Peers || ask == Ask::Upstream => Err(failure.error),
            Some(failure) => self.settle(repository, tag, ask, &mut state, Err(failure.error)).await,
            None => {
                let asked = self.ask_registry(repository, tag, state.record.is_some(), ask).await;
                self.settle(repository, tag, ask, &mut state, asked).await
            }
        }
    }

    /// How old the last known digest may be; one that is kept by hand may be of any age.
    fn max_stale(&self, state: &TagState) -> Option<Duration> {
        let kept = state.record.as_ref().is_some_and(TagRecord::is_kept);
        if kept { None } else { self.0.config.max_stale }
    }

    /// What the registry's answer, or its failure, makes of a tag.
    async fn settle(
        &self,
        repository: &Repository,
        tag: &Tag,
        ask: Ask,
        state: &mut TagState,
        asked: Result<TagRecord, FetchError>,
    ) -> Result<Resolved, FetchError> {
        let error = match asked {
            Ok(record) => {
                self.0.metrics.count_content(Kind::tag, Found::miss);
                self.replace(repository, tag, state, record, Duration::ZERO).await;
                return state.answer(false);
            }
            Err(error) => error,
        };
        let usable = state.age().is_some_and(|age| is_usable(age, self.max_stale(state)));
        match error {
            FetchError::NotFound(reason) if !state.record.as_ref().is_some_and(TagRecord::is_kept) => {
                self.forget_tag(repository, tag).await;
                let negative = Some((Instant::now(), reason.clone()));
                *state = TagState { negative, changes: state.changes, ..TagState::default() };
                Err(FetchError::NotFound(reason))
            }
            error if usable && stands_in(&error, state.record.as_ref()) => {
                tracing::warn!(%repository, %tag, error = %error, "registry cannot confirm the tag: last known digest is served");
                self.0.metrics.count_content(Kind::tag, Found::stale);
                state.failed = Some(Failure { at: Instant::now(), error, ask });
                state.answer(true)
            }
            error @ FetchError::NotNow { .. } => {
                if ask == Ask::Peers
                    && let Some((record, age)) = self.agreed_by_peers(repository, tag, &error).await
                {
                    self.replace(repository, tag, state, record, age).await;
                    state.failed = Some(Failure { at: Instant::now(), error, ask });
                    return state.answer(true);
                }
                state.failed = Some(Failure { at: Instant::now(), error: error.clone(), ask });
                Err(error)
            }
            error => Err(error),
        }
    }

    /// The record of a digest that enough peers agree on, which the registry has not confirmed. Its manifest is here.
    async fn agreed_by_peers(
        &self,
        repository: &Repository,
        tag: &Tag,
        error: &FetchError,
    ) -> Option<(TagRecord, Duration)> {
        let agreed = self.tag_of_peers(repository, tag).await?;
        if !is_usable(agreed.age, self.0.config.max_stale) {
            return None;
        }
        let manifest = self.manifest_by_digest(repository, &agreed.digest).await.ok()?;
        tracing::warn!(%repository, %tag, digest = %agreed.digest, error = %error, "registry cannot confirm the tag: digest that peers agree on is served, unconfirmed");
        self.0.metrics.count_content(Kind::tag, Found::stale);
        let record = TagRecord { unconfirmed: true, ..record_of(&info(&manifest, true), agreed.age) };
        Some((record, agreed.age))
    }

    /// A new record, in memory and on disk.
    async fn replace(
        &self,
        repository: &Repository,
        tag: &Tag,
        state: &mut TagState,
        record: TagRecord,
        age: Duration,
    ) {
        let unwritten = !self.keep_tag(repository, tag, &record).await;
        let (pinned, held) = state.record.as_ref().map_or((false, false), |old| (old.pinned, old.held));
        *state = TagState {
            record: Some(TagRecord { pinned, held, ..record }),
            confirmed: Instant::now().checked_sub(age),
            changes: state.changes,
            unwritten,
            ..TagState::default()
        };
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

    /// The registry's own answer. With a last known digest at hand, here or perhaps at peers, the wait is shorter than what
    /// the client is given, so that it still gets that.
    async fn ask_registry(
        &self,
        repository: &Repository,
        tag: &Tag,
        has_last: bool,
        ask: Ask,
    ) -> Result<TagRecord, FetchError> {
        let whole = self.0.config.first_header;
        let limit = match (has_last, ask) {
            (true, _) => whole / 2,
            (false, Ask::Peers) if self.0.peers.membership().is_some() => whole * 7 / 10,
            (false, _) => whole,
        };
        tokio::time::timeout(limit, self.ask_upstream(repository, tag)).await.unwrap_or_else(|_| {
            let reason = format!("did not answer within {limit:?}");
            Err(UpstreamError::Unavailable { registry: repository.registry.clone(), reason }.into())
        })
    }

    /// HEAD, which costs no quota; GET only for a manifest that is not here yet, by the peer that does that for all.
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

#[cfg(test)]
mod tests;
