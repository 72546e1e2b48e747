//! Tracks the use of blobs: the last use, and whether one is open. In memory, with a short lock on one of sixteen
//! shards; the times are written to the index in batches elsewhere.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::{Mutex, MutexGuard};

use crate::types::Digest;

const SHARDS: usize = 16;

/// One entry for each blob that is open or was used since the last flush.
#[derive(Debug, Default)]
pub(super) struct UsageLog([Mutex<HashMap<Digest, Use>>; SHARDS]);

#[derive(Debug, Default)]
struct Use {
    open: u32,
    /// Second of a use that is not in the index yet.
    unwritten: Option<u64>,
}

/// A blob is open for as long as this lives.
#[derive(Debug)]
pub(super) struct Hold {
    log: Arc<UsageLog>,
    digest: Digest,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut shard = self.log.shard(&self.digest);
        if let Some(entry) = shard.get_mut(&self.digest) {
            entry.open = entry.open.saturating_sub(1);
        }
    }
}

impl UsageLog {
    fn shard(&self, digest: &Digest) -> MutexGuard<'_, HashMap<Digest, Use>> {
        let shard = usize::from(digest.as_bytes()[0]) % SHARDS;
        self.0[shard].lock()
    }

    /// Notes a use.
    pub(super) fn note(&self, digest: &Digest) {
        self.shard(digest).entry(*digest).or_default().unwritten = Some(now());
    }

    /// Notes a use that lasts until the hold is dropped.
    pub(super) fn hold(self: &Arc<Self>, digest: &Digest) -> Hold {
        let mut shard = self.shard(digest);
        let entry = shard.entry(*digest).or_default();
        entry.unwritten = Some(now());
        entry.open += 1;
        drop(shard);
        Hold { log: self.clone(), digest: *digest }
    }

    pub(super) fn is_open(&self, digest: &Digest) -> bool {
        self.shard(digest).get(digest).is_some_and(|entry| entry.open > 0)
    }

    /// Uses that are not in the index yet; removes entries of blobs that are not open.
    pub(super) fn take(&self) -> Vec<(Digest, u64)> {
        let mut all = Vec::new();
        for shard in &self.0 {
            let mut shard = shard.lock();
            all.extend(
                shard.iter_mut().filter_map(|(digest, entry)| Some((*digest, entry.unwritten.take()?))),
            );
            shard.retain(|_, entry| entry.open > 0);
        }
        all
    }
}

/// Seconds since 1970; zero when the clock is set before that.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_open_until_its_last_hold_is_gone() {
        let log = Arc::new(UsageLog::default());
        let digest = Digest::of(b"x");
        let (first, second) = (log.hold(&digest), log.hold(&digest));
        drop(first);
        assert!(log.is_open(&digest));
        assert_eq!(log.take().len(), 1);
        assert!(log.is_open(&digest), "flushing forgets no open blob");
        drop(second);
        assert!(!log.is_open(&digest));
        assert!(log.take().is_empty());
        log.note(&digest);
        assert!(!log.is_open(&digest));
        assert_eq!(log.take().len(), 1);
    }
}
