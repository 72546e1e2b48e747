//! Which content signed images consist of: by whose signature it may be served.
//!
//! ```text
//! <data>/verified-v1/<two digits>/<algorithm>-<hex>    ids of the keys that signed an image with this content
//! ```
//!
//! A record that is lost costs one look-up of the signature. So records are not synced, and those whose content has gone
//! are removed at a start, after a day: a download that was cut continues before that.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, facts, paths, paths::Paths, refs};
use crate::types::Digest;

/// For so long a record stays without its content.
const KEPT: Duration = Duration::from_hours(24);

/// Most keys of one record; the oldest gives way.
const MOST: usize = 64;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    keys: Vec<String>,
}

impl Store {
    /// The ids of the keys that signed an image with this content.
    pub async fn verified(&self, digest: &Digest) -> Result<Vec<Digest>, StoreError> {
        let path = self.0.paths.verified_of(digest);
        let record = tokio::task::spawn_blocking(move || refs::read::<Record>(&path)).await??;
        Ok(record.unwrap_or_default().keys.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Remembers that a key signed an image with this content. Blocking.
    pub fn note_verified(&self, digest: &Digest, key: &Digest) -> Result<(), StoreError> {
        self.owner()?;
        let _only = self.0.references.lock();
        let path = self.0.paths.verified_of(digest);
        let mut record = refs::read::<Record>(&path)?.unwrap_or_default();
        let id = key.to_string();
        if record.keys.contains(&id) {
            return Ok(());
        }
        record.keys.push(id);
        let surplus = record.keys.len().saturating_sub(MOST);
        record.keys.drain(..surplus);
        write(&self.0.paths, &path, &record)
    }
}

/// Replaces the file, without waiting for the disk.
fn write(paths: &Paths, path: &Path, record: &Record) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(record).expect("a list of texts is always valid JSON");
    let aside = paths.aside();
    let parent = path.parent().expect("every path of the store is below its root");
    paths::make_directory(parent)?;
    let written = fs::write(&aside, bytes).and_then(|()| fs::rename(&aside, path));
    written.map_err(|error| {
        // The caller gets the error; a leftover file is removed at the next start.
        let _ = fs::remove_file(&aside);
        StoreError::io("write", path)(error)
    })
}

/// Removes old records whose content is neither complete nor being downloaded.
pub(super) fn sweep(paths: &Paths) -> Result<(), StoreError> {
    for directory in facts::list(&paths.verified())? {
        for path in facts::list(&directory)? {
            let digest =
                facts::name_of(&path).and_then(|name| name.replacen('-', ":", 1).parse::<Digest>().ok());
            let kept = digest
                .is_some_and(|digest| paths.blob(&digest).exists() || paths.partial_data(&digest).exists());
            if !kept && !is_new(&path) {
                refs::remove(&path)?;
            }
        }
        // One that is not empty stays.
        let _ = fs::remove_dir(&directory);
    }
    Ok(())
}

fn is_new(path: &Path) -> bool {
    let changed = fs::metadata(path).and_then(|found| found.modified());
    changed.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < KEPT))
}

#[cfg(test)]
mod tests {
    use super::{super::Config, *};

    #[tokio::test]
    async fn a_record_without_content_goes_after_a_day() {
        let home = tempfile::tempdir().unwrap();
        let open = || Store::open(&Config::of(home.path())).unwrap();
        let (kept, new, old) = (Digest::of(b"kept"), Digest::of(b"new"), Digest::of(b"old"));
        let keys = [Digest::of(b"one key"), Digest::of(b"another")];
        {
            let store = open();
            let path = store.0.paths.blob(&kept);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"kept").unwrap();
            for digest in [&kept, &new, &old] {
                for key in [&keys[0], &keys[1], &keys[0]] {
                    store.note_verified(digest, key).unwrap();
                }
                assert_eq!(store.verified(digest).await.unwrap(), keys);
            }
            for digest in [&kept, &old] {
                let record = fs::File::options().write(true).open(store.0.paths.verified_of(digest)).unwrap();
                record.set_modified(SystemTime::now() - KEPT * 2).unwrap();
            }
            store.close();
        }
        let store = open();
        for (digest, count) in [(&kept, 2), (&new, 2), (&old, 0)] {
            assert_eq!(store.verified(digest).await.unwrap().len(), count, "{digest}");
        }
    }
}
