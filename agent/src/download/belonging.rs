//! Whether a repository has a content, as far as this node knows without a request: by the records of the manifests that the
//! registry has given for the repository, and by what these name.

use super::{blocking::blocking, descriptors::MOST_MANIFESTS, fetcher::Fetcher};
use crate::{
    store::GivenTo,
    types::{Digest, Repository, chain},
    upstream::Shows,
};

impl Fetcher {
    /// A manifest of the repository that is this content, or that names it; `None` when this node has none.
    pub async fn manifest_with(&self, repository: &Repository, digest: &Digest) -> Option<Digest> {
        let named = || self.0.descriptors.manifest_of(repository, digest);
        if let Some(manifest) = named() {
            return Some(manifest);
        }
        let record = self.0.store.manifest(repository, digest).await.unwrap_or_else(|error| {
            tracing::warn!(%repository, error = %chain(&error), "cannot read the record of a manifest");
            None
        });
        if record.is_some() || self.0.memory.get(repository, digest).is_some() {
            return Some(*digest);
        }
        self.read_manifests(repository).await;
        named()
    }

    /// Remembers what the repository's stored manifests name.
    async fn read_manifests(&self, repository: &Repository) {
        if self.0.read.contains(repository) {
            return;
        }
        let (store, place) = (self.0.store.clone(), repository.clone());
        match blocking(move || store.manifests_of(&place)).await {
            Ok(manifests) => {
                for digest in manifests.iter().take(MOST_MANIFESTS) {
                    self.stored_manifest(repository, digest).await;
                }
            }
            Err(error) => {
                tracing::warn!(%repository, error = %chain(&error), "cannot list the manifests of a repository");
            }
        }
        self.0.read.insert(repository.clone(), ());
    }

    /// Who the registry gives what is downloaded from the repository now; `None` for anyone.
    pub(super) fn given_to(&self, repository: &Repository) -> Option<GivenTo> {
        match self.0.upstream.shows(&repository.registry) {
            Shows::Agents => Some(GivenTo::Agent),
            Shows::Clients if self.0.upstream.had_lent(repository) => Some(GivenTo::Client),
            Shows::Clients | Shows::Nothing => None,
        }
    }
}
