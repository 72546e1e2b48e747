//! `hearth-agent verify`: checks every stored blob now, as fast as the disk allows.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{CHUNK, chain};
use crate::store::{Damage, SHARDS, Store, StoreError};

/// How often progress is reported.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Blobs that were read completely.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that did not match their digests; they were quarantined.
    pub bad: Vec<Bad>,
}

/// A damaged blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bad {
    /// Its digest.
    pub digest: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Checks every blob and quarantines damaged ones. `tell` receives the progress: the result so far, and the checked
/// share of the store in percent. Blocking.
pub fn verify(store: &Store, mut tell: impl FnMut(&Verdict, usize)) -> Result<Verdict, StoreError> {
    let mut verdict = Verdict::default();
    let mut told = Instant::now();
    for shard in 0..SHARDS {
        for digest in store.shard(shard)? {
            let looked = read_through(store, &digest, |read| {
                verdict.bytes += read;
                if told.elapsed() >= TELL_EVERY {
                    told = Instant::now();
                    tell(&verdict, shard * 100 / SHARDS);
                }
            });
            if let Err(damage) = looked {
                if damage.is_lasting() {
                    store.quarantine(&digest)?;
                }
                verdict.bad.push(Bad { digest: digest.to_string(), problem: chain(&damage) });
            }
            verdict.blobs += 1;
        }
    }
    Ok(verdict)
}

fn read_through(
    store: &Store,
    digest: &crate::types::Digest,
    mut seen: impl FnMut(u64),
) -> Result<(), Damage> {
    let Some(mut look) = store.look(digest)? else { return Ok(()) };
    loop {
        match look.advance(CHUNK)? {
            0 => return Ok(()),
            read => seen(read),
        }
    }
}
