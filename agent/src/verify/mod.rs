//! Signatures of images, for registries with `verify`: an image is served only when a listed key signed it. Checked by this
//! node itself, wherever the bytes come from.
//!
//! A signature names a manifest. What the manifest refers to is covered by it: the manifests in an index, configurations
//! and layers. So a blob is served once this node has seen a signed manifest that names it. Which content is covered by
//! which key is kept on disk: an outage of the registry takes nothing away, and a key that is no longer listed covers
//! nothing.

mod coverage;
mod lookup;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use oci::signature::PublicKey;

use self::{
    coverage::{Coverage, Keys},
    lookup::{Found, Lookup, Place, Wanted},
};
use crate::{
    access::{Access, Client},
    download::{FetchError, Fetcher, KeyedMutex},
    store::Store,
    types::{Cache, Digest, ManifestLinks, Reference, RegistryHost, Repository, Role},
    upstream::Upstream,
};

/// Longest time to find and check the signatures of an image.
const PATIENCE: Duration = Duration::from_secs(20);

/// For so long an image counts as not signed before its signatures are looked up again.
const REFUSED: Duration = Duration::from_secs(10);

/// The same when the registry could not be asked: requests that waited for one answer share it.
const UNREACHABLE: Duration = Duration::from_secs(2);

/// Answers that are remembered.
const REMEMBERED: usize = 4_096;

/// Deepest nesting of indexes.
const MAX_DEPTH: u32 = 3;

/// An image, by the repository that is asked for its signatures.
type Image = (Repository, Digest);

/// Who waits for signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Urgency {
    /// A client.
    Now,
    /// No client, in a pre-pull: requests that registries count leave the reserve of the rate limit to clients.
    InTurn,
}

/// Decides whether images are signed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Verifier(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    upstream: Arc<Upstream>,
    fetcher: Fetcher,
    lookup: Lookup,
    coverage: Coverage,
    /// Manifests of which everything in them is covered.
    expanded: Cache<(Digest, Keys), ()>,
    refused: Cache<Image, FetchError>,
    unreachable: Cache<Image, FetchError>,
    /// Where a registry's signatures were found last.
    places: Cache<RegistryHost, Place>,
    /// Pre-pulls, which may wait for their turn, hold up no client.
    checks: KeyedMutex<(Image, Urgency)>,
}

impl Verifier {
    /// For the registries of the configuration.
    pub fn new(store: Store, fetcher: Fetcher, upstream: Arc<Upstream>, access: Access) -> Self {
        Self(Arc::new(Inner {
            lookup: Lookup::new(fetcher.clone(), access),
            coverage: Coverage::new(store, upstream.signature_keys()),
            upstream,
            fetcher,
            expanded: Cache::new(REMEMBERED),
            refused: Cache::ending(REMEMBERED, REFUSED),
            unreachable: Cache::ending(REMEMBERED, UNREACHABLE),
            places: Cache::new(REMEMBERED),
            checks: KeyedMutex::default(),
        }))
    }

    /// The keys that are listed for a registry; none: everything is served.
    fn listed(&self, repository: &Repository) -> &[PublicKey] {
        self.0.upstream.serves(&repository.registry).map_or(&[], |config| &config.verify)
    }

    /// Fails when a manifest must not be served to a client that may read it. To be called before its first byte is.
    pub async fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        client: &Client,
        urgency: Urgency,
    ) -> Result<(), FetchError> {
        let listed = self.listed(repository);
        if listed.is_empty() {
            return Ok(());
        }
        let keys = self.0.coverage.keys(listed);
        let image = (repository.clone(), *digest);
        if !self.0.coverage.covers(digest, keys).await {
            let checked =
                tokio::time::timeout(PATIENCE, self.check(&image, listed, keys, (client, urgency))).await;
            checked.unwrap_or_else(|_| {
                Err(unreachable(&image, &format!("no answer within {PATIENCE:?}"), None))
            })?;
        }
        let by = self.0.coverage.of(digest).await.and(keys);
        if self.0.expanded.contains(&(*digest, by)) {
            return Ok(());
        }
        let (_, bytes) = self.0.fetcher.manifest(repository, &Reference::Digest(*digest)).await?;
        self.expand(digest, bytes, by).await;
        Ok(())
    }

    /// Fails when a blob must not be served: it belongs to no signed image that this node knows.
    pub async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<(), FetchError> {
        let listed = self.listed(repository);
        if listed.is_empty() || self.0.coverage.covers(digest, self.0.coverage.keys(listed)).await {
            return Ok(());
        }
        let reason = format!(
            "`{repository}@{digest}` belongs to no signed image that this node has checked (`verify` of `{}`): request the \
             image's manifest first",
            repository.registry
        );
        tracing::warn!(%repository, digest = %digest.short(), "blob refused: no signed manifest names it");
        Err(FetchError::Unsigned(reason))
    }

    /// Looks up the signatures of an image, once for all that wait.
    async fn check(
        &self,
        image: &Image,
        listed: &[PublicKey],
        keys: Keys,
        (client, urgency): (&Client, Urgency),
    ) -> Result<(), FetchError> {
        let _only = self.0.checks.lock(&(image.clone(), urgency)).await;
        if self.0.coverage.covers(&image.1, keys).await {
            return Ok(());
        }
        if let Some(error) = self.0.refused.get(image).or_else(|| self.0.unreachable.get(image)) {
            return Err(error);
        }
        let (repository, digest) = image;
        let (_, manifest) = self.0.fetcher.manifest(repository, &Reference::Digest(*digest)).await?;
        let first = self.0.places.get(&repository.registry);
        let wanted = Wanted { repository, digest, manifest: &manifest, keys: listed, client, urgency };
        match self.0.lookup.signer(wanted, first).await {
            Found::Signed { key, place } => {
                tracing::info!(%repository, digest = %digest.short(), key = listed[key].name(), "image signature verified");
                self.0.places.insert(repository.registry.clone(), place);
                self.0.coverage.add(&[*digest], self.0.coverage.keys(&listed[key..=key])).await;
                Ok(())
            }
            Found::Reserved(error) => Err(error),
            Found::Unreachable { reason, retry_after } => {
                let error = unreachable(image, &reason, retry_after);
                self.0.unreachable.insert(image.clone(), error.clone());
                Err(error)
            }
            Found::Nothing { seen } => {
                let error = FetchError::Unsigned(refusal(image, listed, &seen));
                tracing::warn!(%repository, digest = %digest.short(), found = seen, "image refused: not signed by a listed key");
                self.0.refused.insert(image.clone(), error.clone());
                Err(error)
            }
        }
    }

    /// Covers what a manifest refers to, and what the manifests in it refer to as far as they are stored.
    async fn expand(&self, root: &Digest, bytes: Bytes, by: Keys) {
        let mut open = vec![(*root, bytes, MAX_DEPTH)];
        while let Some((digest, bytes, depth)) = open.pop() {
            let Ok(links) = ManifestLinks::parse(&bytes) else { continue };
            let parts: Vec<_> = links.descriptors.iter().map(|part| part.digest).collect();
            self.0.coverage.add(&parts, by).await;
            self.0.expanded.insert((digest, by), ());
            for child in links.descriptors {
                if child.role != Role::Manifest || depth == 0 {
                    continue;
                }
                if let Some(bytes) = self.0.coverage.stored_manifest(&child.digest).await {
                    open.push((child.digest, bytes, depth - 1));
                }
            }
        }
    }
}

fn unreachable((repository, digest): &Image, reason: &str, retry_after: Option<Duration>) -> FetchError {
    let reason = format!("the signatures of `{repository}@{digest}` cannot be checked: {reason}");
    FetchError::NotNow { reason, retry_after }
}

/// What was expected, what was found, what to do. Pure.
fn refusal((repository, digest): &Image, listed: &[PublicKey], seen: &str) -> String {
    let keys: Vec<_> = listed.iter().map(|key| format!("`{}` ({})", key.name(), key.id().short())).collect();
    format!(
        "`{repository}@{digest}` is not signed by a key that `verify` of `{}` lists: {}. Found: {seen}. Sign it (`cosign sign \
         --key`), or list the public key of its signer",
        repository.registry,
        keys.join(", ")
    )
}
