//! Which content signed images consist of, by the keys that signed them: in memory for what was requested last, and on
//! disk.

use bytes::Bytes;
use oci::signature::PublicKey;

use crate::{
    store::Store,
    types::{Cache, Digest, MAX_MANIFEST_BYTES, chain},
};

/// Contents that are remembered.
const REMEMBERED: usize = 65_536;

/// A set of keys: one bit for each key of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Keys(u64);

impl Keys {
    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[derive(Debug)]
pub(super) struct Coverage {
    store: Store,
    /// Ids of all keys of the configuration. Its check allows no more than a set has bits.
    known: Vec<Digest>,
    covered: Cache<Digest, Keys>,
}

impl Coverage {
    pub(super) fn new(store: Store, known: Vec<Digest>) -> Self {
        Self { store, known, covered: Cache::new(REMEMBERED) }
    }

    /// The set of these keys.
    pub(super) fn keys(&self, keys: &[PublicKey]) -> Keys {
        self.set(keys.iter().map(|key| *key.id()))
    }

    fn set(&self, ids: impl IntoIterator<Item = Digest>) -> Keys {
        ids.into_iter().fold(Keys::default(), |set, id| {
            let bit = self.known.iter().take(64).position(|known| *known == id);
            set.or(Keys(bit.map_or(0, |bit| 1 << bit)))
        })
    }

    /// The keys that signed an image with this content.
    pub(super) async fn of(&self, digest: &Digest) -> Keys {
        if let Some(keys) = self.covered.get(digest) {
            return keys;
        }
        match self.store.verified(digest).await {
            Ok(ids) => {
                let keys = self.set(ids);
                if !keys.is_empty() {
                    self.covered.insert(*digest, keys);
                }
                keys
            }
            Err(error) => {
                tracing::warn!(digest = %digest.short(), error = %chain(&error), "cannot read which keys signed this: checking again");
                Keys::default()
            }
        }
    }

    /// Whether one of these keys signed an image with this content.
    pub(super) async fn covers(&self, digest: &Digest, keys: Keys) -> bool {
        !self.of(digest).await.and(keys).is_empty()
    }

    /// Covers contents by further keys.
    pub(super) async fn add(&self, digests: &[Digest], keys: Keys) {
        let mut new = Vec::new();
        for digest in digests {
            let before = self.of(digest).await;
            if before.or(keys) != before {
                self.covered.insert(*digest, before.or(keys));
                new.push(*digest);
            }
        }
        let ids: Vec<_> = (0..self.known.len().min(64))
            .filter(|bit| (keys.0 >> bit) & 1 == 1)
            .map(|bit| self.known[bit])
            .collect();
        let store = self.store.clone();
        let write = move || {
            new.iter().try_for_each(|digest| ids.iter().try_for_each(|id| store.note_verified(digest, id)))
        };
        // Where the disk takes no record, this process remembers.
        if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
            tracing::debug!(error = %chain(&error), "verified signature not recorded on disk");
        }
    }

    /// A manifest of the store.
    pub(super) async fn stored_manifest(&self, digest: &Digest) -> Option<Bytes> {
        let blob = self.store.blob(digest).await.ok()??;
        if blob.size() > MAX_MANIFEST_BYTES {
            return None;
        }
        blob.read_all().await.ok().filter(|bytes| digest.verify(bytes).is_ok())
    }
}
