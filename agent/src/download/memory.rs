//! Manifests that the store could not take: kept in memory, so that a full disk does not cost one registry request
//! per pull. Bounded in bytes; the oldest are removed first.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::{
    types::{Digest, Repository},
    upstream::Manifest,
};

use crate::limits::download::memory::MOST;

#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    manifests: VecDeque<(Repository, Manifest)>,
    bytes: usize,
}

impl Memory {
    pub(super) fn keep(&self, repository: &Repository, manifest: &Manifest) {
        let mut kept = self.0.lock();
        kept.forget(repository, &manifest.digest);
        kept.bytes += manifest.bytes.len();
        kept.manifests.push_back((repository.clone(), manifest.clone()));
        while kept.bytes > MOST
            && let Some((_, oldest)) = kept.manifests.pop_front()
        {
            kept.bytes -= oldest.bytes.len();
        }
    }

    pub(super) fn get(&self, repository: &Repository, digest: &Digest) -> Option<Manifest> {
        let kept = self.0.lock();
        let found =
            kept.manifests.iter().rev().find(|(place, one)| one.digest == *digest && place == repository);
        found.map(|(_, manifest)| manifest.clone())
    }

    /// Removes a manifest that the store has now.
    pub(super) fn forget(&self, repository: &Repository, digest: &Digest) {
        self.0.lock().forget(repository, digest);
    }
}

impl Kept {
    fn forget(&mut self, repository: &Repository, digest: &Digest) {
        let found =
            self.manifests.iter().position(|(place, one)| one.digest == *digest && place == repository);
        if let Some((_, gone)) = found.and_then(|at| self.manifests.remove(at)) {
            self.bytes -= gone.bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MediaType;

    #[test]
    fn the_newest_are_kept_within_the_bound_and_each_once() {
        let memory = Memory::default();
        let repository = Repository { registry: "r.test".parse().unwrap(), name: "a".parse().unwrap() };
        let manifest = |n: u8| {
            let bytes = vec![n; MOST / 4];
            Manifest {
                digest: Digest::of(&bytes),
                media_type: MediaType::parse("a/b").unwrap(),
                bytes: bytes.into(),
            }
        };
        for n in [0, 1, 1, 2, 3, 4] {
            memory.keep(&repository, &manifest(n));
        }
        let kept: Vec<_> =
            (0..5).filter(|n| memory.get(&repository, &manifest(*n).digest).is_some()).collect();
        assert_eq!(kept, [1, 2, 3, 4]);
        memory.forget(&repository, &manifest(4).digest);
        assert!(memory.get(&repository, &manifest(4).digest).is_none());
        let other = Repository { name: "b".parse().unwrap(), ..repository };
        assert!(memory.get(&other, &manifest(3).digest).is_none(), "of another repository");
    }
}
