//! Divides the blobs into shards: by the first byte of their digests, as in the directories and in the index's keys.

use std::{fs, io};

use super::{StoreError, paths::Paths};
use crate::types::{Algorithm, Digest};

/// Number of directories with the blobs of one algorithm, by the first byte of their digest.
const SHARDS: usize = 256;

pub(super) const ALL_SHARDS: usize = SHARDS * Algorithm::ALL.len();

/// The entry of a blob in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) size: u64,
    /// Second since 1970.
    pub(super) used: u64,
}

/// The blob files of a shard, with their modification time as the last use. Other names are skipped.
pub(super) fn list_shard(paths: &Paths, shard: usize) -> Result<Vec<(Digest, Entry)>, StoreError> {
    let algorithm = Algorithm::ALL[shard / SHARDS];
    let directory = paths.blobs(algorithm).join(format!("{:02x}", shard % SHARDS));
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io("list", &directory)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(StoreError::io("list", &directory))?;
        let digest = entry.file_name().to_str().and_then(|name| Digest::from_parts(algorithm, name));
        let (Some(digest), Ok(metadata)) = (digest, entry.metadata()) else { continue };
        let made = metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        found.push((digest, Entry { size: metadata.len(), used: made.map_or(0, |made| made.as_secs()) }));
    }
    Ok(found)
}

fn algorithm_at(algorithm: Algorithm) -> usize {
    Algorithm::ALL.iter().position(|one| *one == algorithm).expect("`ALL` holds every algorithm")
}

pub(super) fn shard_of(digest: &Digest) -> usize {
    algorithm_at(digest.algorithm()) * SHARDS + usize::from(digest.as_bytes()[0])
}

fn tag(algorithm: Algorithm) -> u8 {
    match algorithm {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    }
}

/// Beginning of the keys of a shard.
pub(super) fn prefix(shard: usize) -> [u8; 2] {
    let byte = u8::try_from(shard % SHARDS).expect("a remainder of 256 is a byte");
    [tag(Algorithm::ALL[shard / SHARDS]), byte]
}

pub(super) fn key(digest: &Digest) -> Vec<u8> {
    [&[tag(digest.algorithm())], digest.as_bytes()].concat()
}

pub(super) fn digest_of(key: &[u8]) -> Option<Digest> {
    match key.split_first()? {
        (1, raw) => raw.try_into().ok().map(Digest::Sha256),
        (2, raw) => raw.try_into().ok().map(Digest::Sha512),
        _ => None,
    }
}

pub(super) fn encode(entry: Entry) -> [u8; 16] {
    let mut value = [0; 16];
    value[..8].copy_from_slice(&entry.size.to_be_bytes());
    value[8..].copy_from_slice(&entry.used.to_be_bytes());
    value
}

pub(super) fn decode(value: &[u8]) -> Option<Entry> {
    let (size, used) = value.split_first_chunk::<8>()?;
    Some(Entry { size: u64::from_be_bytes(*size), used: u64::from_be_bytes(used.try_into().ok()?) })
}
