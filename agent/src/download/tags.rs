//! Tag resolution: the registry is requested once per freshness period, for any number of clients. When it cannot be
//! read, the record on disk answers, and without a record a quorum of peers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    error::FetchError,
    fetcher::Fetcher,
    tag_slot::{Failure, ManifestInfo, Named, Resolved, Sources, TagSlot, TagState, info, record_of},
};
use crate::{
    metrics::{Found, Kind},
    store::TagRecord,
    types::{Digest, MediaType, Reference, Repository, Tag, chain},
    upstream::{Manifest, ManifestHead, UpstreamError},
};

use crate::limits::download::tags::FAILURE_PAUSE;

/// What to do about a tag before any request. Pure.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Use,
    UseStale,
    Request,
}

/// `age` is the time since the registry confirmed the record, to this node or, when it is `unconfirmed`, to peers, or
/// since it was imported; `failed` is the time since the last failed request to the registry.
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
        _ => Step::Request,
    }
}

fn is_usable(age: Duration, max_stale: Option<Duration>) -> bool {
    max_stale.is_none_or(|limit| age <= limit)
}

impl Fetcher {
    fn tag_slot(&self, repository: &Repository, tag: &Tag) -> Arc<TagSlot> {
        self.0.tags.get_or_insert_with(&(repository.clone(), tag.clone()), Arc::default)
    }

    /// The digest that a tag resolves to now, or that was known last.
    pub(super) async fn resolve(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<ManifestInfo, FetchError> {
        Ok(self.resolve_by(repository, tag, Sources::All).await?.info)
    }

    /// The digest that a tag resolves to, for background work: without its manifest, which registries count.
    pub(super) async fn tag_digest(&self, repository: &Repository, tag: &Tag) -> Result<Digest, FetchError> {
        Ok(self.resolve_by(repository, tag, Sources::Registry).await?.info.digest)
    }

    /// The same, from the sources that `sources` allows.
    pub(super) async fn resolve_by(
        &self,
        repository: &Repository,
        tag: &Tag,
        sources: Sources,
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
            Step::Request => {}
        }
        // The request that this one waited for has failed. This one would fail too, and all that wait after it.
        let shared = state.failed.clone().filter(|failure| failure.at >= began);
        match shared {
            Some(failure) if failure.sources == Sources::All || sources == Sources::Registry => {
                Err(failure.error)
            }
            Some(failure) => self.settle(repository, tag, sources, &mut state, Err(failure.error)).await,
            None => {
                let asked = self.ask_registry(repository, tag, &state, sources).await;
                self.settle(repository, tag, sources, &mut state, asked).await
            }
        }
    }

    /// How old the last known digest may be; for a pinned or imported tag, any age.
    fn max_stale(&self, state: &TagState) -> Option<Duration> {
        let kept = state.record.as_ref().is_some_and(TagRecord::is_kept);
        if kept { None } else { self.0.config.max_stale }
    }

    /// Updates a tag with the registry's response or error.
    async fn settle(
        &self,
        repository: &Repository,
        tag: &Tag,
        sources: Sources,
        state: &mut TagState,
        asked: Result<Answered, FetchError>,
    ) -> Result<Resolved, FetchError> {
        let error = match asked {
            Ok(Answered::Named(named)) => {
                state.named = Some(named.clone());
                return Ok(named.into());
            }
            Ok(Answered::Here(record)) => {
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
                tracing::warn!(%repository, %tag, error = %error, "registry cannot confirm the tag: serving the last known digest");
                self.0.metrics.count_content(Kind::tag, Found::stale);
                state.failed = Some(Failure { at: Instant::now(), error, sources });
                state.answer(true)
            }
            error @ FetchError::NotNow { .. } => {
                if sources == Sources::All
                    && let Some((record, age)) = self.agreed_by_peers(repository, tag, &error).await
                {
                    self.replace(repository, tag, state, record, age).await;
                    state.failed = Some(Failure { at: Instant::now(), error, sources });
                    return state.answer(true);
                }
                state.failed = Some(Failure { at: Instant::now(), error: error.clone(), sources });
                Err(error)
            }
            error => Err(error),
        }
    }

    /// The record of a digest that enough peers agree on, which the registry has not confirmed. Its manifest is on
    /// this node.
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
        tracing::warn!(%repository, %tag, digest = %agreed.digest, error = %error, "registry cannot confirm the tag: serving the digest that peers agree on, unconfirmed");
        self.0.metrics.count_content(Kind::tag, Found::stale);
        let record = TagRecord { unconfirmed: true, ..record_of(&info(&manifest, true), agreed.age) };
        Some((record, agreed.age))
    }

    /// Writes a new record, in memory and on disk.
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

    /// Reads the record again after references were pinned, removed or imported: the cached one may be wrong.
    async fn read_again_after_changes(&self, repository: &Repository, tag: &Tag, state: &mut TagState) {
        let changes = self.0.store.reference_changes();
        if changes == state.changes || state.unwritten {
            return;
        }
        // If the record cannot be read now, the cached one stays.
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

    /// Marks an image as used when only its tag is requested because the runtime has the rest.
    fn note_use(&self, record: Option<&TagRecord>) {
        if let Some(record) = record {
            self.0.store.note_use(&record.digest);
        }
    }

    /// The digest of a tag without any request.
    pub(super) async fn known_tag(&self, repository: &Repository, tag: &Tag) -> Result<Resolved, FetchError> {
        let unknown =
            || FetchError::NotNow { reason: "this node has no record of the tag".into(), retry_after: None };
        let record = self.0.store.tag(repository, tag).await?.ok_or_else(unknown)?;
        TagState { record: Some(record), ..TagState::default() }.answer(true)
    }

    /// The registry's own answer. When a last known digest is available, on this node or perhaps at peers, the wait
    /// is shorter than the client's, so that the client still gets that digest.
    async fn ask_registry(
        &self,
        repository: &Repository,
        tag: &Tag,
        state: &TagState,
        sources: Sources,
    ) -> Result<Answered, FetchError> {
        let whole = self.0.config.first_header;
        let limit = match (state.record.is_some(), sources) {
            (true, _) => whole / 2,
            (false, Sources::All) if self.0.peers.membership().is_some() => whole * 7 / 10,
            (false, _) => whole,
        };
        let named = state.named.clone().filter(|named| named.at.elapsed() < self.0.config.freshness);
        tokio::time::timeout(limit, self.ask_upstream(repository, tag, named, sources)).await.unwrap_or_else(
            |_| {
                let reason = format!("did not answer within {limit:?}");
                Err(UpstreamError::Unavailable { registry: repository.registry.clone(), reason }.into())
            },
        )
    }

    /// HEAD, which registries do not count, unless it was `named` a moment ago; GET only for a manifest that is not in the store, by
    /// the peer that ranks first for it.
    async fn ask_upstream(
        &self,
        repository: &Repository,
        tag: &Tag,
        named: Option<Named>,
        sources: Sources,
    ) -> Result<Answered, FetchError> {
        let reference = Reference::Tag(tag.clone());
        let named = match named {
            Some(named) => Some(named),
            None => named_by(self.0.upstream.manifest_head(repository, &reference).await?),
        };
        if sources == Sources::Registry {
            return self.answer_without_request(repository, named).await;
        }
        // The client's next request is for this manifest, and it uses this mirror again only if it is available: some
        // clients choose their mirror once, by this response.
        if let Some(Named { info: ManifestInfo { digest, .. }, .. }) = named {
            match self.manifest_by_digest(repository, &digest).await {
                Err(FetchError::NotFound(_)) => {}
                manifest => return Ok(here(&manifest?)),
            }
        }
        let manifest = self.0.upstream.manifest(repository, &reference).await?;
        self.keep_manifest(repository, &manifest).await?;
        Ok(here(&manifest))
    }

    /// The answer when the manifest must not be requested, because peers and background work ask for many tags.
    async fn answer_without_request(
        &self,
        repository: &Repository,
        named: Option<Named>,
    ) -> Result<Answered, FetchError> {
        let named = named.ok_or_else(|| FetchError::NotNow {
            reason: "the registry's answer to HEAD has no digest".into(),
            retry_after: None,
        })?;
        let stored = self.stored_manifest(repository, &named.info.digest).await;
        Ok(stored.map_or(Answered::Named(named), |manifest| here(&manifest)))
    }

    /// The record on disk; `None` when it cannot be read.
    async fn stored_tag(&self, repository: &Repository, tag: &Tag) -> Option<TagRecord> {
        self.0.store.tag(repository, tag).await.unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "cannot read the record of a tag");
            None
        })
    }

    /// Writes the record; returns whether it is on disk.
    async fn keep_tag(&self, repository: &Repository, tag: &Tag, record: &TagRecord) -> bool {
        let (store, repository, tag, record) =
            (self.0.store.clone(), repository.clone(), tag.clone(), record.clone());
        let written = self.write(move || store.set_tag(&repository, &tag, &record)).await;
        if let Err(error) = &written {
            tracing::warn!(error = %chain(error), "cannot write the record of a tag: kept in memory only");
        }
        written.is_ok()
    }

    async fn forget_tag(&self, repository: &Repository, tag: &Tag) {
        let (store, repository, tag) = (self.0.store.clone(), repository.clone(), tag.clone());
        let removed = tokio::task::spawn_blocking(move || store.remove_tag(&repository, &tag)).await;
        if let Err(error) = removed.unwrap_or_else(|error| Err(error.into())) {
            tracing::error!(error = %chain(&error), "cannot remove the record of a deleted tag");
        }
    }
}

/// What the registry answered for a tag.
enum Answered {
    /// The manifest is on this node.
    Here(TagRecord),
    /// It is not.
    Named(Named),
}

fn here(manifest: &Manifest) -> Answered {
    Answered::Here(record_of(&info(manifest, false), Duration::ZERO))
}

/// What a registry's answer to HEAD says. Its media type and size are hints: the digest protects the manifest.
fn named_by(head: ManifestHead) -> Option<Named> {
    let media_type =
        head.media_type.or_else(|| MediaType::parse("application/vnd.oci.image.manifest.v1+json"))?;
    let info = ManifestInfo { digest: head.digest?, media_type, size: head.size.unwrap_or(0), stale: false };
    Some(Named { info, at: Instant::now() })
}

/// Whether the last known digest may be served after this error of the registry: always when the registry gave no
/// answer; for a pinned tag also on "not found"; for an imported tag also on "denied", because it did not come from
/// the registry. Pure.
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
