//! What manifests have said about content: size and role by digest. A memory with a bound; forgetting costs at most
//! a check of an upstream's stated size.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::types::{Descriptor, Digest, ManifestLinks};

use crate::limits::download::descriptors::GENERATION;

#[derive(Debug, Default)]
pub(super) struct Descriptors(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Digest, Descriptor>,
    old: HashMap<Digest, Descriptor>,
}

impl Descriptors {
    pub(super) fn remember(&self, links: &ManifestLinks) {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for descriptor in &links.descriptors {
            if generations.young.len() >= GENERATION {
                generations.old = std::mem::take(&mut generations.young);
            }
            generations.young.insert(descriptor.digest, *descriptor);
        }
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Descriptor> {
        let generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        generations.young.get(digest).or_else(|| generations.old.get(digest)).copied()
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
            |n: u32| Descriptor { digest: Digest::of(&n.to_be_bytes()), size: 1, role: Role::Layer };
        let many = u32::try_from(GENERATION * 3).unwrap();
        known.remember(&ManifestLinks { descriptors: (0..many).map(descriptor).collect() });
        assert!(known.get(&descriptor(0).digest).is_none());
        assert!(known.get(&descriptor(many - 1).digest).is_some());
        let generations = known.0.lock().unwrap();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION);
    }
}
