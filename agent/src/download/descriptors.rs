//! A bounded cache of what manifests state about content: size and role, by repository and digest. A missing entry only
//! means that a size sent by the registry is not compared with the manifest's.
//!
//! What one repository's manifest states holds for that repository alone: it may be wrong, and would make the content of
//! another unavailable.

use moka::{policy::EvictionPolicy, sync::Cache};

use crate::{
    limits::download::descriptors::MOST,
    types::{Descriptor, Digest, ManifestLinks, Repository},
};

#[derive(Debug)]
pub(super) struct Descriptors(Cache<(Repository, Digest), Descriptor>);

impl Default for Descriptors {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(MOST).eviction_policy(EvictionPolicy::lru()).build())
    }
}

impl Descriptors {
    pub(super) fn remember(&self, repository: &Repository, links: &ManifestLinks) {
        for descriptor in &links.descriptors {
            self.0.insert((repository.clone(), descriptor.digest), *descriptor);
        }
    }

    pub(super) fn get(&self, repository: &Repository, digest: &Digest) -> Option<Descriptor> {
        self.0.get(&(repository.clone(), *digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Role;

    #[test]
    fn the_newest_of_each_repository_are_kept_within_the_bound() {
        let known = Descriptors::default();
        let descriptor =
            |n: u64| Descriptor { digest: Digest::of(&n.to_be_bytes()), size: 1, role: Role::Layer };
        let repository =
            |name: &str| Repository { registry: "r.test".parse().unwrap(), name: name.parse().unwrap() };
        let one = repository("one");
        for n in 0..MOST * 2 {
            known.remember(&one, &ManifestLinks { descriptors: vec![descriptor(n)] });
        }
        known.0.run_pending_tasks();
        let newest = descriptor(MOST * 2 - 1).digest;
        assert!(known.get(&one, &descriptor(0).digest).is_none());
        assert!(known.get(&one, &newest).is_some() && known.get(&repository("two"), &newest).is_none());
        assert!(known.0.entry_count() <= MOST);
    }
}
