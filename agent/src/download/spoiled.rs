//! Blobs of which clients were sent bytes that turned out to be wrong.
//!
//! The end of such a blob was held back, so the client next requests the rest. A right end after a wrong beginning
//! would make a complete but wrong blob: requests for the rest are rejected until the client has started from the
//! beginning.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use parking_lot::Mutex;

use crate::types::Digest;

use crate::limits::download::spoiled::{BLOBS, CLIENTS, LIFETIME};

#[derive(Debug)]
struct Spoiled {
    since: Instant,
    /// Clients that have started from the beginning since then.
    begun: HashSet<String>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct SpoiledBlobs(Mutex<HashMap<Digest, Spoiled>>);

impl SpoiledBlobs {
    /// Notes that wrong bytes of a blob were sent.
    pub(super) fn note(&self, digest: &Digest) {
        let mut all = self.0.lock();
        all.retain(|_, spoiled| spoiled.since.elapsed() < LIFETIME);
        if all.len() >= BLOBS
            && let Some(oldest) =
                all.iter().min_by_key(|(_, spoiled)| spoiled.since).map(|(digest, _)| *digest)
        {
            all.remove(&oldest);
        }
        all.insert(*digest, Spoiled { since: Instant::now(), begun: HashSet::new() });
    }

    /// Whether `client` may be sent bytes from `first` on.
    pub(super) fn allows(&self, digest: &Digest, client: &str, first: u64) -> bool {
        let mut all = self.0.lock();
        let Some(spoiled) = all.get_mut(digest) else { return true };
        if spoiled.since.elapsed() >= LIFETIME {
            all.remove(digest);
            return true;
        }
        if first == 0 && spoiled.begun.len() < CLIENTS {
            spoiled.begun.insert(client.to_owned());
        }
        first == 0 || spoiled.begun.contains(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_spoiled_blob_is_for_clients_that_began_anew() {
        let (spoiled, digest, other) = (SpoiledBlobs::default(), Digest::of(b"a"), Digest::of(b"b"));
        assert!(spoiled.allows(&digest, "containerd", 5), "no wrong bytes were sent");
        spoiled.note(&digest);
        assert!(!spoiled.allows(&digest, "containerd", 5));
        assert!(spoiled.allows(&other, "containerd", 5));
        assert!(spoiled.allows(&digest, "containerd", 0));
        assert!(spoiled.allows(&digest, "containerd", 5));
        assert!(!spoiled.allows(&digest, "podman", 5));
        spoiled.note(&digest);
        assert!(!spoiled.allows(&digest, "containerd", 5), "wrong again");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let spoiled = SpoiledBlobs::default();
        for number in 0..BLOBS + 3 {
            spoiled.note(&Digest::of(&number.to_le_bytes()));
        }
        assert_eq!(spoiled.0.lock().len(), BLOBS);
    }
}
