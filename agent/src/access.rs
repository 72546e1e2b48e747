//! Who may have content that is cached. A registry to which the agent shows credentials gives what others may not read:
//! such content is recorded, and given out only through a registry that gave it under the policy that is in force now. So a
//! change of `private`, the end of credentials and another repository's name do not open what is cached.
//!
//! Other content is for anyone, and costs one look for its record, remembered afterwards.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    download::FetchError,
    store::{Origins, Store},
    types::{Digest, Reference, Repository, chain},
    upstream::{Upstream, UpstreamError},
};

/// After so long a registry is asked again whether the agent may still read a repository.
const RECHECK: Duration = Duration::from_mins(15);

/// Longest wait for that: a registry that does not answer takes nothing from what it gave.
const PATIENCE: Duration = Duration::from_secs(1);

/// Contents and repositories that are remembered.
const REMEMBERED: usize = 65_536;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A blob.
    Blob,
    /// A manifest, by its digest.
    Manifest,
}

/// Decides about cached content. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Access(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    upstream: Arc<Upstream>,
    /// Contents without a record, bounded.
    open: Mutex<HashSet<Digest>>,
    /// When a registry last allowed these.
    allowed: Mutex<HashMap<(Repository, Option<Digest>), Instant>>,
}

/// What to do about a content. Pure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is given out.
    Give,
    /// It is recorded first.
    Record,
    /// The registry may have withdrawn it.
    Recheck,
    /// The registry has to allow it.
    Ask,
}

fn step(origins: Option<&Origins>, repository: &Repository, credentials: bool) -> Step {
    match origins {
        None if credentials => Step::Record,
        Some(origins) if !origins.has(&repository.registry, credentials) => Step::Ask,
        Some(_) if credentials => Step::Recheck,
        None | Some(_) => Step::Give,
    }
}

impl Access {
    /// Over this store.
    pub fn new(store: Store, upstream: Arc<Upstream>) -> Self {
        Self(Arc::new(Inner { store, upstream, open: Mutex::default(), allowed: Mutex::default() }))
    }

    /// Fails when a content must not be given out through this repository.
    pub async fn check(
        &self,
        repository: &Repository,
        digest: &Digest,
        content: Content,
    ) -> Result<(), FetchError> {
        let credentials = self.0.upstream.shows_credentials(&repository.registry);
        if !credentials && self.0.open.lock().contains(digest) {
            return Ok(());
        }
        let origins = self.0.store.origins(digest).await?;
        match step(origins.as_ref(), repository, credentials) {
            Step::Give => {
                // Another process that writes here may still record it.
                if origins.is_none() && self.0.store.is_owner() {
                    let mut open = self.0.open.lock();
                    if open.len() >= REMEMBERED {
                        open.clear();
                    }
                    open.insert(*digest);
                }
                Ok(())
            }
            Step::Record => self.record(repository, digest, content).await,
            Step::Recheck => self.recheck(repository, digest, content).await,
            Step::Ask => self.ask(repository, digest, content, credentials).await,
        }
    }

    /// Whether a peer may have it: the registry's answer is not asked for on a peer's behalf.
    pub async fn may_share(&self, repository: &Repository, digest: &Digest) -> bool {
        let credentials = self.0.upstream.shows_credentials(&repository.registry);
        let Ok(origins) = self.0.store.origins(digest).await else { return false };
        match step(origins.as_ref(), repository, credentials) {
            Step::Give | Step::Recheck => true,
            Step::Record => self.record(repository, digest, Content::Blob).await.is_ok(),
            Step::Ask => false,
        }
    }

    /// Before the content comes. A blob that is here without a record came without credentials.
    async fn record(
        &self,
        repository: &Repository,
        digest: &Digest,
        content: Content,
    ) -> Result<(), FetchError> {
        if content == Content::Blob && matches!(self.0.store.blob(digest).await, Ok(Some(_))) {
            return Ok(());
        }
        self.note(repository, digest, true).await;
        Ok(())
    }

    /// Where the disk takes no record it takes no content either.
    async fn note(&self, repository: &Repository, digest: &Digest, credentials: bool) {
        self.0.open.lock().remove(digest);
        let (store, registry, digest) = (self.0.store.clone(), repository.registry.clone(), *digest);
        let noted =
            tokio::task::spawn_blocking(move || store.note_origin(&digest, &registry, credentials)).await;
        if let Ok(Err(error)) = noted {
            tracing::debug!(error = %chain(&error), "origin of content not recorded");
        }
    }

    async fn recheck(
        &self,
        repository: &Repository,
        digest: &Digest,
        content: Content,
    ) -> Result<(), FetchError> {
        let key = (repository.clone(), None);
        if self.is_allowed(&key) {
            return Ok(());
        }
        let asked = tokio::time::timeout(PATIENCE, self.head(repository, digest, content)).await;
        if let Ok(Err(error @ (UpstreamError::Denied { .. } | UpstreamError::NotFound { .. }))) = asked {
            tracing::warn!(%repository, digest = %digest.short(), %error, "cached content refused: registry does not give it any more");
            return Err(error.into());
        }
        self.allow(key);
        Ok(())
    }

    async fn ask(
        &self,
        repository: &Repository,
        digest: &Digest,
        content: Content,
        credentials: bool,
    ) -> Result<(), FetchError> {
        let key = (repository.clone(), Some(*digest));
        if self.is_allowed(&key) {
            return Ok(());
        }
        self.head(repository, digest, content).await?;
        self.note(repository, digest, credentials).await;
        self.allow(key);
        Ok(())
    }

    /// Bounded: forgetting costs one request more.
    fn allow(&self, key: (Repository, Option<Digest>)) {
        let mut allowed = self.0.allowed.lock();
        if allowed.len() >= REMEMBERED {
            allowed.clear();
        }
        allowed.insert(key, Instant::now());
    }

    fn is_allowed(&self, key: &(Repository, Option<Digest>)) -> bool {
        self.0.allowed.lock().get(key).is_some_and(|at| at.elapsed() < RECHECK)
    }

    async fn head(
        &self,
        repository: &Repository,
        digest: &Digest,
        content: Content,
    ) -> Result<(), UpstreamError> {
        match content {
            Content::Blob => self.0.upstream.blob_head(repository, digest).await.map(drop),
            Content::Manifest => {
                self.0.upstream.manifest_head(repository, &Reference::Digest(*digest)).await.map(drop)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_given_through_registries_that_gave_it_under_the_same_policy() {
        let of = |registry: &str| Repository {
            registry: registry.parse().unwrap(),
            name: "team/app".parse().unwrap(),
        };
        let document = |text: &str| serde_json::from_str::<Origins>(text).unwrap();
        let private = document(r#"{"registries":[{"registry":"r.test","credentials":true}]}"#);
        let both = document(
            r#"{"registries":[{"registry":"r.test","credentials":true},{"registry":"s.test","credentials":false}]}"#,
        );
        for (origins, registry, credentials, expected) in [
            (None, "r.test", false, Step::Give),
            (None, "r.test", true, Step::Record),
            (Some(&private), "r.test", true, Step::Recheck),
            (Some(&private), "r.test", false, Step::Ask),
            (Some(&private), "s.test", false, Step::Ask),
            (Some(&private), "s.test", true, Step::Ask),
            (Some(&both), "s.test", false, Step::Give),
            (Some(&both), "s.test", true, Step::Ask),
        ] {
            assert_eq!(
                step(origins, &of(registry), credentials),
                expected,
                "{origins:?} {registry} {credentials}"
            );
        }
    }
}
