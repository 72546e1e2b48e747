//! Why a pull of an image is as it is: what this node has of it, what its registry last answered, which peers have it, what
//! happened to the last requests, and one sentence of advice (`advice`, pure).
//!
//! Asks no registry: only this node's state, and a bounded number of peers. Credentials are looked for and never shown.

mod advice;

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use crate::{
    download::{Fetcher, TransferStatus},
    images::{self, Listed},
    journal::{self, Journal},
    peers::{Peer, Peers, Settled},
    store::{Store, StoreError, TagRecord},
    types::{Digest, ImageName, Reference, Repository},
    upstream::{Policy, Upstream},
};

/// Peers that are asked whether they have an image.
const ASKED: usize = 16;

/// Peers that are asked at once.
const AT_ONCE: usize = 8;

/// Longest wait for the peers.
const PATIENCE: Duration = Duration::from_secs(3);

/// Entries of each kind from the journal.
const ENTRIES: usize = 10;

/// The answer, as JSON in `hearth-agent explain --output json`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The image that was asked about, with its tag or digest.
    pub image: String,
    /// One sentence: what to do.
    pub advice: String,
    /// What this node has.
    pub cached: Option<Cached>,
    /// What the configuration says of the registry; absent when it is not served.
    pub policy: Option<Policy>,
    /// The registry, as far as it was asked since the agent started.
    pub registry: Option<crate::upstream::RegistryStatus>,
    /// Downloads for the repository that are under way.
    pub downloads_under_way: Vec<TransferStatus>,
    /// What peers have.
    pub peers: PeersHave,
    /// The last manifests that were sent for this repository, newest first.
    pub last_pulls: Vec<journal::Pull>,
    /// The last downloads for this repository, newest first.
    pub last_downloads: Vec<journal::Download>,
    /// The last failed requests about this repository, newest first.
    pub last_failures: Vec<journal::Failure>,
}

/// What this node has of the image.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cached {
    /// Digest of the manifest or index.
    pub digest: String,
    /// Seconds since the registry last confirmed that the tag means this digest.
    pub confirmed_seconds_ago: Option<u64>,
    /// Peers agreed on the digest while the registry could not be asked.
    pub unconfirmed: bool,
    /// The stored image; absent when only the tag is known.
    pub image: Option<Listed>,
}

/// What peers have of the image.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeersHave {
    /// Other agents that this one knows.
    pub known: usize,
    /// Those of them that failed lately and are skipped.
    pub skipped: usize,
    /// How many were asked.
    pub asked: usize,
    /// The names of the peers that have the manifest.
    pub have: Vec<String>,
}

/// Explains. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Explainer {
    store: Store,
    fetcher: Fetcher,
    upstream: Arc<Upstream>,
    peers: Peers,
    journal: Journal,
}

impl Explainer {
    /// Puts the parts together.
    pub fn new(
        store: Store,
        fetcher: Fetcher,
        upstream: Arc<Upstream>,
        peers: Peers,
        journal: Journal,
    ) -> Self {
        Self { store, fetcher, upstream, peers, journal }
    }

    /// Everything about one image.
    pub async fn explain(&self, name: &ImageName) -> Result<Explanation, StoreError> {
        let (repository, reference) = (&name.repository, name.reference());
        let cached = self.cached(repository, &reference).await?;
        let digest = cached.as_ref().and_then(|cached| cached.digest.parse().ok());
        let prefix = repository.to_string();
        let about = |subject: &str| is_about(subject, &prefix);
        let mut explanation = Explanation {
            image: ImageName { repository: repository.clone(), reference: Some(reference) }.to_string(),
            advice: String::new(),
            cached,
            policy: self.upstream.policy(repository).await,
            registry: self
                .upstream
                .status()
                .into_iter()
                .find(|one| one.registry == repository.registry.as_str()),
            downloads_under_way: self.under_way(&prefix),
            peers: self.peers_have(repository, digest).await,
            last_pulls: self.journal.pulls(|pull| about(&pull.image)),
            last_downloads: self.journal.downloads(|one| one.repository.as_deref() == Some(prefix.as_str())),
            last_failures: self.journal.failures(|one| about(&one.subject)),
        };
        explanation.last_pulls.truncate(ENTRIES);
        explanation.last_downloads.truncate(ENTRIES);
        explanation.last_failures.truncate(ENTRIES);
        explanation.advice = advice::advice(&explanation, &repository.registry, journal::now());
        Ok(explanation)
    }

    fn under_way(&self, repository: &str) -> Vec<TransferStatus> {
        let mut all = self.fetcher.status();
        all.retain(|one| one.repository.as_deref() == Some(repository));
        all
    }

    async fn cached(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Option<Cached>, StoreError> {
        let tag = match reference {
            Reference::Tag(tag) => self.store.tag(repository, tag).await?,
            Reference::Digest(_) => None,
        };
        let digest = match (reference, &tag) {
            (Reference::Digest(digest), _) => *digest,
            (Reference::Tag(_), Some(record)) => record.digest,
            (Reference::Tag(_), None) => return Ok(None),
        };
        let store = self.store.clone();
        let listed = tokio::task::spawn_blocking(move || images::list(&store)).await??;
        let text = digest.to_string();
        let image = listed.into_iter().find(|image| image.digest == text);
        if image.is_none() && tag.is_none() {
            return Ok(None);
        }
        Ok(Some(Cached {
            digest: text,
            confirmed_seconds_ago: tag.as_ref().and_then(confirmed),
            unconfirmed: tag.is_some_and(|record| record.unconfirmed),
            image,
        }))
    }

    /// Asks peers that answer from their disks alone.
    async fn peers_have(&self, repository: &Repository, digest: Option<Digest>) -> PeersHave {
        let Some(membership) = self.peers.membership() else { return PeersHave::default() };
        let (usable, skipped): (Vec<_>, Vec<_>) =
            membership.others().cloned().partition(|peer| self.peers.is_usable(peer));
        let mut answer =
            PeersHave { known: usable.len() + skipped.len(), skipped: skipped.len(), ..PeersHave::default() };
        let Some(digest) = digest else { return answer };
        let asked: Vec<Peer> = usable.into_iter().take(ASKED).collect();
        answer.asked = asked.len();
        let ask = |peer: Peer| async move {
            let asked = self.peers.manifest(&peer, repository, &digest, true);
            let outcome = tokio::time::timeout(PATIENCE, asked).await;
            matches!(outcome, Ok(Some(Settled::Found(_)))).then_some(peer.name)
        };
        let have = stream::iter(asked).map(ask).buffered(AT_ONCE).filter_map(std::future::ready);
        answer.have = have.collect().await;
        answer
    }
}

/// The time since the registry confirmed a tag.
fn confirmed(record: &TagRecord) -> Option<u64> {
    (record.confirmed > 0).then(|| journal::now().saturating_sub(record.confirmed))
}

/// Whether the subject of a request belongs to a repository. Pure.
fn is_about(subject: &str, repository: &str) -> bool {
    let subject =
        subject.strip_prefix("tags of ").or(subject.strip_prefix("referrers of ")).unwrap_or(subject);
    let rest = subject.strip_prefix(repository);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':') || rest.starts_with('@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_belong_to_their_repository_and_no_other() {
        for (subject, expected) in [
            ("r.test/a/b:1", true),
            ("r.test/a/b@sha256:00", true),
            ("r.test/a/b", true),
            ("tags of r.test/a/b", true),
            ("referrers of r.test/a/b@sha256:00", true),
            ("r.test/a/bc:1", false),
            ("r.test/a/b/c:1", false),
            ("GET /v2/x", false),
        ] {
            assert_eq!(is_about(subject, "r.test/a/b"), expected, "{subject}");
        }
    }
}
