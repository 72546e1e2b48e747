//! Use times noted on the hit path: in memory, a short lock on one of sixteen shards, written to the index in
//! batches by someone else.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::types::Digest;

const SHARDS: usize = 16;

/// Digest -> second of its last use. Holds at most one entry per blob between two flushes.
#[derive(Debug, Default)]
pub(super) struct UsageLog([Mutex<HashMap<Digest, u64>>; SHARDS]);

impl UsageLog {
    pub(super) fn note(&self, digest: &Digest) {
        let shard = usize::from(digest.as_bytes()[0]) % SHARDS;
        self.0[shard].lock().unwrap_or_else(PoisonError::into_inner).insert(*digest, now());
    }

    pub(super) fn take(&self) -> Vec<(Digest, u64)> {
        let mut all = Vec::new();
        for shard in &self.0 {
            all.extend(shard.lock().unwrap_or_else(PoisonError::into_inner).drain());
        }
        all
    }
}

/// Seconds since 1970; zero when the clock stands before that.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
