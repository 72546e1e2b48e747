//! Who may have content that is cached. A registry to which credentials are shown gives what others may not read: such
//! content is recorded, and given out only under the policy that is in force now, through a repository that has it
//! (`decide`). So a change of `private`, the end of credentials and another repository's name do not open what is cached.
//!
//! Other content is for anyone, and costs one look for its record, remembered afterwards.

mod client;
mod decide;
mod open;
mod verdicts;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

pub use client::Client;
pub use decide::Sharing;
use decide::{Known, Step, share, step};
use open::{BeforeLook, OpenContents};
use verdicts::{Verdict, Verdicts};

use crate::{
    download::{FetchError, Fetcher},
    store::{GivenTo, Origins, Store},
    types::{Digest, Reference, Repository, Tag, chain},
    upstream::{Caller, Shows, Upstream, UpstreamError},
};

/// After so long a registry is asked again whether the agent may still read a repository.
const RECHECK: Duration = Duration::from_mins(15);

/// Longest wait for that: a registry that does not answer takes nothing from what it gave.
const PATIENCE: Duration = Duration::from_secs(1);

/// Repositories that are remembered.
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
    fetcher: Fetcher,
    verdicts: Verdicts,
    open: OpenContents,
    /// When a registry last allowed these.
    allowed: Mutex<HashMap<(Repository, Option<Digest>), Instant>>,
}

impl Access {
    /// Over this store.
    pub fn new(store: Store, upstream: Arc<Upstream>, fetcher: Fetcher) -> Self {
        Self(Arc::new(Inner {
            store,
            upstream,
            fetcher,
            verdicts: Verdicts::default(),
            open: OpenContents::default(),
            allowed: Mutex::default(),
        }))
    }

    fn shows(&self, repository: &Repository) -> Shows {
        self.0.upstream.shows(&repository.registry)
    }

    /// Fails when a client must not learn what a tag resolves to.
    pub async fn check_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        client: &Client,
    ) -> Result<(), FetchError> {
        if self.shows(repository) != Shows::Clients {
            return Ok(());
        }
        // A public image stays available while the registry is not.
        if !client.has_login()
            && let Some(record) = self.0.store.tag(repository, tag).await?
            && self.is_anyones(repository, &record.digest).await?
        {
            return Ok(());
        }
        let reference = Reference::Tag(tag.clone());
        self.judge(
            repository,
            self.0.upstream.manifest_head_by(repository, &reference, caller(client)),
            client,
        )
        .await
    }

    /// Fails when a client must not have a content through this repository.
    pub async fn check(
        &self,
        repository: &Repository,
        digest: &Digest,
        content: Content,
        client: &Client,
    ) -> Result<(), FetchError> {
        let shows = self.shows(repository);
        if shows == Shows::Nothing && self.0.open.has(digest) {
            return Ok(());
        }
        let before = self.0.open.before_look();
        let (origins, stored) = self.known(digest).await?;
        let known = Known { origins: origins.as_ref(), stored };
        if known.is_anyones(&repository.registry, shows) {
            if origins.is_none() {
                self.note_open(before, digest);
            }
            return Ok(());
        }
        let manifest = match shows {
            Shows::Nothing => None,
            Shows::Agents | Shows::Clients => self.0.fetcher.manifest_with(repository, digest).await,
        };
        let subject = Subject { repository, digest, content, manifest };
        match step(&known, &repository.registry, shows, content, manifest.is_some(), client.has_login()) {
            Step::Record => self.note(&subject, GivenTo::Agent).await,
            Step::Recheck => self.recheck(&subject).await,
            Step::Ask => self.ask(&subject, shows).await,
            Step::Judge => {
                self.judge(repository, self.read_manifest(&subject, client), client).await?;
                self.note_for(&subject, client, origins.is_some()).await
            }
            Step::JudgeContent => {
                let mut asked = false;
                let ask = async {
                    asked = true;
                    self.head(&subject, caller(client)).await
                };
                self.judge(repository, ask, client).await?;
                if !asked {
                    self.head(&subject, caller(client)).await?;
                }
                self.note_for(&subject, client, origins.is_some()).await
            }
            Step::Unnamed => Err(FetchError::Denied(format!(
                "no manifest of `{repository}` on this node names `{digest}`: pull the image by its manifest"
            ))),
        }
    }

    /// The error that a client gets. Without credentials it is requested to show some where these may help: with them the
    /// registry may give what it refused, or hid by "not found", and a verdict from before an outage may still hold.
    pub fn challenge(&self, repository: &Repository, client: &Client, error: FetchError) -> FetchError {
        if self.shows(repository) != Shows::Clients || client.has_login() {
            return error;
        }
        let public = || self.0.verdicts.known(repository, client) == Some(Verdict::Allowed);
        let helps = match &error {
            FetchError::Denied(_) | FetchError::NotNow { .. } => true,
            FetchError::NotFound(_) => !public(),
            _ => false,
        };
        if helps {
            return FetchError::Unauthorized(format!("show credentials for `{repository}`: {error}"));
        }
        error
    }

    /// Who a request of a client is forwarded to the registry for.
    pub fn caller(&self, repository: &Repository, client: &Client) -> Caller {
        match self.shows(repository) {
            Shows::Clients => caller(client),
            Shows::Agents | Shows::Nothing => Caller::Agent,
        }
    }

    /// Whether a peer may have it: the registry is not asked on a peer's behalf.
    pub async fn may_share(&self, repository: &Repository, digest: &Digest) -> Sharing {
        let shows = self.shows(repository);
        if shows == Shows::Nothing && self.0.open.has(digest) {
            return Sharing::Yes;
        }
        let before = self.0.open.before_look();
        let Ok((origins, stored)) = self.known(digest).await else { return Sharing::No };
        if shows == Shows::Nothing && origins.is_none() {
            self.note_open(before, digest);
        }
        let known = Known { origins: origins.as_ref(), stored };
        let sharing = share(&known, &repository.registry, shows, self.may_fetch(repository));
        let to = match shows {
            Shows::Agents => GivenTo::Agent,
            Shows::Clients if self.0.upstream.had_lent(repository) => GivenTo::Client,
            Shows::Clients | Shows::Nothing => return sharing,
        };
        if sharing == Sharing::Yes && origins.is_none() && !stored {
            let subject = Subject { repository, digest, content: Content::Blob, manifest: None };
            return if self.note(&subject, to).await.is_ok() { sharing } else { Sharing::NotHere };
        }
        sharing
    }

    /// Whether this node may read from a repository without a client's request: always, unless clients' credentials decide
    /// and none of them has shown any, and it is not known to be public.
    pub fn may_fetch(&self, repository: &Repository) -> bool {
        self.shows(repository) != Shows::Clients
            || self.0.upstream.has_lent(repository)
            || self.0.verdicts.known(repository, &Client::Anyone) == Some(Verdict::Allowed)
    }

    async fn known(&self, digest: &Digest) -> Result<(Option<Origins>, bool), FetchError> {
        let origins = self.0.store.origins(digest).await?;
        let stored = origins.is_none() && self.0.store.blob(digest).await?.is_some();
        Ok((origins, stored))
    }

    async fn is_anyones(&self, repository: &Repository, digest: &Digest) -> Result<bool, FetchError> {
        let (origins, stored) = self.known(digest).await?;
        let known = Known { origins: origins.as_ref(), stored };
        Ok(known.is_anyones(&repository.registry, self.shows(repository)))
    }

    fn note_open(&self, before: BeforeLook, digest: &Digest) {
        // Another process that writes here may still record it.
        if self.0.store.is_owner() {
            self.0.open.note(before, digest);
        }
    }

    /// The registry's word on a client: credentials that it accepts are lent to downloads from the repository.
    async fn judge<T>(
        &self,
        repository: &Repository,
        ask: impl Future<Output = Result<T, UpstreamError>>,
        client: &Client,
    ) -> Result<(), FetchError> {
        let verdict = self.0.verdicts.of(repository, client, ask).await?;
        match (verdict, client) {
            (Verdict::Allowed, Client::Login(login)) => {
                self.0.upstream.lend(repository, login);
                Ok(())
            }
            (Verdict::Allowed, Client::Anyone) => Ok(()),
            (Verdict::Refused, Client::Login(login)) => {
                self.0.upstream.withdraw(repository, login);
                let registry = &repository.registry;
                Err(FetchError::Denied(format!(
                    "`{registry}` does not let these credentials read `{repository}`: check the pod's pull secret"
                )))
            }
            (Verdict::Refused, Client::Anyone) => {
                let registry = &repository.registry;
                Err(FetchError::Denied(format!("`{registry}` does not let anyone read `{repository}`")))
            }
        }
    }

    /// Whether a client may read the manifest that is, or names, the content.
    async fn read_manifest(&self, subject: &Subject<'_>, client: &Client) -> Result<(), UpstreamError> {
        let Some(manifest) = subject.manifest else { return self.head(subject, caller(client)).await };
        let reference = Reference::Digest(manifest);
        self.0.upstream.manifest_head_by(subject.repository, &reference, caller(client)).await.map(drop)
    }

    /// Before content comes for a client: as a client's, unless the registry gives it to anyone.
    async fn note_for(
        &self,
        subject: &Subject<'_>,
        client: &Client,
        recorded: bool,
    ) -> Result<(), FetchError> {
        match client {
            Client::Login(_) => self.note(subject, GivenTo::Client).await,
            Client::Anyone if recorded => self.note(subject, GivenTo::Anyone).await,
            Client::Anyone => Ok(()),
        }
    }

    /// Where the disk takes no record it takes no content either. What clients' credentials open must not be stored without
    /// one, for it would be anyone's.
    async fn note(&self, subject: &Subject<'_>, to: GivenTo) -> Result<(), FetchError> {
        let (inner, registry, digest) =
            (self.0.clone(), subject.repository.registry.clone(), *subject.digest);
        // Both, also when the client goes away meanwhile.
        let noted = tokio::task::spawn_blocking(move || {
            let noted = inner.store.note_origin(&digest, &registry, to);
            inner.open.note_record(&digest);
            noted
        });
        let noted = noted.await;
        let Ok(Err(error)) = noted else { return Ok(()) };
        tracing::debug!(error = %chain(&error), "origin of content not recorded");
        if to == GivenTo::Client { Err(error.into()) } else { Ok(()) }
    }

    async fn recheck(&self, subject: &Subject<'_>) -> Result<(), FetchError> {
        let (repository, digest) = (subject.repository, subject.digest);
        let key = (repository.clone(), None);
        if self.is_allowed(&key) {
            return Ok(());
        }
        let asked = tokio::time::timeout(PATIENCE, self.head(subject, Caller::Agent)).await;
        if let Ok(Err(error @ (UpstreamError::Denied { .. } | UpstreamError::NotFound { .. }))) = asked {
            tracing::warn!(%repository, digest = %digest.short(), %error, "cached content refused: registry does not give it any more");
            return Err(error.into());
        }
        self.allow(key);
        Ok(())
    }

    async fn ask(&self, subject: &Subject<'_>, shows: Shows) -> Result<(), FetchError> {
        let key = (subject.repository.clone(), Some(*subject.digest));
        if self.is_allowed(&key) {
            return Ok(());
        }
        self.head(subject, Caller::Agent).await?;
        let to = if shows == Shows::Agents { GivenTo::Agent } else { GivenTo::Anyone };
        self.note(subject, to).await?;
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

    /// Whether the registry gives a caller the content from the repository.
    async fn head(&self, subject: &Subject<'_>, caller: Caller) -> Result<(), UpstreamError> {
        let (upstream, repository, digest) = (&self.0.upstream, subject.repository, subject.digest);
        match subject.content {
            Content::Blob => upstream.blob_head_by(repository, digest, caller).await.map(drop),
            Content::Manifest => {
                let reference = Reference::Digest(*digest);
                upstream.manifest_head_by(repository, &reference, caller).await.map(drop)
            }
        }
    }
}

/// A content in a repository, and a manifest of it that is, or names, the content.
#[derive(Debug)]
struct Subject<'a> {
    repository: &'a Repository,
    digest: &'a Digest,
    content: Content,
    manifest: Option<Digest>,
}

fn caller(client: &Client) -> Caller {
    match client {
        Client::Anyone => Caller::Anyone,
        Client::Login(login) => Caller::Client(login.clone()),
    }
}
