//! A bounded cache of what manifests state about content: size and role by digest. A missing entry only means that a
//! size sent by the registry is not compared with the manifest's.

use moka::{policy::EvictionPolicy, sync::Cache};

use crate::{
    limits::download::descriptors::MOST,
    types::{Descriptor, Digest, ManifestLinks},
};

#[derive(Debug)]
pub(super) struct Descriptors(Cache<Digest, Descriptor>);

impl Default for Descriptors {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(MOST).eviction_policy(EvictionPolicy::lru()).build())
    }
}

impl Descriptors {
    pub(super) fn remember(&self, links: &ManifestLinks) {
        for descriptor in &links.descriptors {
            self.0.insert(descriptor.digest, *descriptor);
        }
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Descriptor> {
        self.0.get(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Role;

    #[test]
    fn the_memory_is_bounded_and_keeps_the_newest() {
        let known = Descriptors::default();
        let descriptor =
            |n: u64| Descriptor { digest: Digest::of(&n.to_be_bytes()), size: 1, role: Role::Layer };
        for n in 0..MOST * 2 {
            known.remember(&ManifestLinks { descriptors: vec![descriptor(n)] });
        }
        known.0.run_pending_tasks();
        assert!(known.get(&descriptor(0).digest).is_none());
        assert!(known.get(&descriptor(MOST * 2 - 1).digest).is_some());
        assert!(known.0.entry_count() <= MOST);
    }
}
