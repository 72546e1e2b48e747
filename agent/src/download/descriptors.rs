//! A bounded cache of what manifests state about content: size and role, by repository and digest. A missing entry only
//! means that a size sent by the registry is not compared with the manifest's, or that a repository's manifests are read
//! again to find one that names the content.
//!
//! What one repository's manifest states holds for that repository alone: it may be wrong, and would make the content of
//! another unavailable.

use std::time::Duration;

use crate::{
    limits::download::descriptors::MOST,
    types::{Cache, Descriptor, Digest, ManifestLinks, Repository, Role},
};

/// After reading all manifests of a repository, they are not read again for so long: later ones are remembered as they come.
const READ_AGAIN: Duration = Duration::from_secs(10);

/// Repositories for which that is remembered.
const MOST_REPOSITORIES: usize = 1_024;

/// Manifests of one repository that are read at most.
pub(super) const MOST_MANIFESTS: usize = 1_024;

/// The repositories whose manifests were read.
pub(super) fn read_repositories() -> Cache<Repository, ()> {
    Cache::ending(MOST_REPOSITORIES, READ_AGAIN)
}

#[derive(Debug)]
pub(super) struct Descriptors(Cache<(Repository, Digest), Stated>);

/// What a manifest states, and which.
#[derive(Clone, Copy, Debug)]
struct Stated {
    descriptor: Descriptor,
    manifest: Digest,
}

impl Default for Descriptors {
    fn default() -> Self {
        Self(Cache::new(MOST))
    }
}

impl Descriptors {
    pub(super) fn remember(&self, repository: &Repository, manifest: &Digest, links: &ManifestLinks) {
        for descriptor in &links.descriptors {
            let stated = Stated { descriptor: *descriptor, manifest: *manifest };
            self.0.insert((repository.clone(), descriptor.digest), stated);
        }
    }

    pub(super) fn get(&self, repository: &Repository, digest: &Digest) -> Option<Descriptor> {
        self.0.get(&(repository.clone(), *digest)).map(|stated| stated.descriptor)
    }

    /// A manifest that names the content as its own. Registries check that a repository has what its manifests name, but
    /// for foreign layers.
    pub(super) fn manifest_of(&self, repository: &Repository, digest: &Digest) -> Option<Digest> {
        let stated = self.0.get(&(repository.clone(), *digest))?;
        (stated.descriptor.role != Role::Foreign).then_some(stated.manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_repository_are_kept_within_the_bound() {
        let known = Descriptors::default();
        let descriptor =
            |n: usize| Descriptor { digest: Digest::of(&n.to_be_bytes()), size: 1, role: Role::Layer };
        let repository =
            |name: &str| Repository { registry: "r.test".parse().unwrap(), name: name.parse().unwrap() };
        let (one, manifest) = (repository("one"), Digest::of(b"manifest"));
        for n in 0..MOST * 2 {
            known.remember(&one, &manifest, &ManifestLinks { descriptors: vec![descriptor(n)] });
        }
        let newest = descriptor(MOST * 2 - 1).digest;
        assert!(known.get(&one, &descriptor(0).digest).is_none());
        assert!(known.get(&one, &newest).is_some() && known.get(&repository("two"), &newest).is_none());
        assert!(known.0.len() <= MOST);
    }

    #[test]
    fn a_foreign_layer_is_not_the_repositorys_own() {
        let known = Descriptors::default();
        let repository = Repository { registry: "r.test".parse().unwrap(), name: "a".parse().unwrap() };
        let (manifest, digest) = (Digest::of(b"manifest"), Digest::of(b"layer"));
        for (role, own) in
            [(Role::Foreign, None), (Role::Layer, Some(manifest)), (Role::Config, Some(manifest))]
        {
            let links = ManifestLinks { descriptors: vec![Descriptor { digest, size: 1, role }] };
            known.remember(&repository, &manifest, &links);
            assert_eq!(known.manifest_of(&repository, &digest), own, "{role:?}");
        }
    }
}
