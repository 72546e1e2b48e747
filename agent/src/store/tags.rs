//! The records of tags as a whole: their number, and the removal of surplus ones.
//!
//! A record is a file of its own: an inode and a block. So their number is limited, whatever clients request: see
//! [`MOST_TAGS`]. The number is an estimate that is never too low: counted once after the start, and again when it
//! seems to exceed the limit; new records are added to it in between.

use std::sync::atomic::Ordering;

use super::{Store, StoreError, TagRecord, facts, refs};
use crate::types::{Digest, Repository, Tag};

/// Most records of tags, in addition to the kept ones: 64 MiB of disk with blocks of 4 KiB. Above it the least
/// recently confirmed are removed; see `gc`.
pub const MOST_TAGS: usize = 16_384;

/// The initial number of a process: above the limit, so that it counts.
pub(super) const UNCOUNTED: usize = MOST_TAGS + 1;

/// The record of a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagFact {
    /// The repository.
    pub repository: Repository,
    /// The tag.
    pub tag: Tag,
    /// The manifest that it resolves to.
    pub digest: Digest,
    /// Second since 1970 at which the registry last confirmed it.
    pub confirmed: u64,
    /// Pinned, kept for a set, or imported: never removed.
    pub kept: bool,
}

impl Store {
    /// Whether there may be more records of tags than [`MOST_TAGS`], in addition to the kept ones.
    pub fn may_have_too_many_tags(&self) -> bool {
        self.0.tags.load(Ordering::Relaxed) > MOST_TAGS
    }

    /// Counts a new record of a tag.
    pub(super) fn count_new_tag(&self) {
        self.0.tags.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the records that may be removed. There may be thousands: they are not held in memory.
    pub fn count_tags(&self) -> Result<usize, StoreError> {
        // Records that are written meanwhile are counted, some of them twice.
        self.0.tags.store(0, Ordering::Relaxed);
        let mut count = 0;
        let read = self.each_tag(&mut |fact| count += usize::from(!fact.kept));
        self.0.tags.fetch_add(if read.is_ok() { count } else { UNCOUNTED }, Ordering::Relaxed);
        read.map(|()| count)
    }

    /// Every record of a tag. Unreadable ones are left out and logged.
    pub fn tags(&self) -> Result<Vec<TagFact>, StoreError> {
        let mut found = Vec::new();
        self.each_tag(&mut |fact| found.push(fact))?;
        Ok(found)
    }

    fn each_tag(&self, look: &mut dyn FnMut(TagFact)) -> Result<(), StoreError> {
        facts::each_directory(&self.0.paths, &mut |directory, repository| {
            if !directory.ends_with("_tags") {
                return Ok(());
            }
            facts::each_in(directory, &mut |path| {
                let Some(tag) = facts::name_of(&path).and_then(|name| name.parse::<Tag>().ok()) else {
                    return Ok(());
                };
                match refs::read::<TagRecord>(&path) {
                    Ok(Some(record)) => look(TagFact {
                        repository: repository.clone(),
                        tag,
                        digest: record.digest,
                        confirmed: record.confirmed,
                        kept: record.is_kept(),
                    }),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(%error, "cannot read the record of a tag"),
                }
                Ok(())
            })
        })
    }

    /// Removes these records, and returns how many. A record that was changed or confirmed since it was read stays.
    /// Concurrent writers wait for one removal at most. Blocking.
    pub fn evict_tags(&self, tags: &[&TagFact]) -> Result<usize, StoreError> {
        self.owner()?;
        let mut removed = 0;
        for fact in tags {
            let path = self.0.paths.tag(&fact.repository, &fact.tag);
            let _only = self.0.references.lock();
            let same = |record: &TagRecord| {
                record.digest == fact.digest && record.confirmed == fact.confirmed && !record.is_kept()
            };
            if refs::read::<TagRecord>(&path)?.is_some_and(|record| same(&record)) {
                refs::remove(&path)?;
                facts::remove_empty_above(&self.0.paths, &path);
                removed += 1;
            }
        }
        // They are counted again when there seem to be too many.
        let _ = self
            .0
            .tags
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(count.saturating_sub(removed)));
        if removed > 0 {
            self.note_reference_change();
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Config;

    #[tokio::test]
    async fn records_that_were_pinned_or_confirmed_meanwhile_stay() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&Config::of(directory.path())).unwrap();
        let repository = Repository { registry: "r.test".parse().unwrap(), name: "a/b".parse().unwrap() };
        let record = |confirmed, pinned| TagRecord {
            digest: Digest::of(b"m"),
            media_type: "a/b".to_owned(),
            size: 1,
            confirmed,
            pinned,
            held: false,
            imported: false,
            unconfirmed: false,
        };
        let set = |tag: &str, record: &TagRecord| {
            store.set_tag(&repository, &tag.parse().unwrap(), record).unwrap();
        };
        assert!(store.may_have_too_many_tags(), "nothing has been counted yet");
        for tag in ["old", "pinned", "confirmed"] {
            set(tag, &record(1, false));
        }
        let tags = store.tags().unwrap();
        assert_eq!((tags.len(), store.count_tags().unwrap()), (3, 3));
        assert!(!store.may_have_too_many_tags());
        set("pinned", &record(1, true));
        set("confirmed", &record(2, false));
        let changes = store.reference_changes();
        assert_eq!(store.evict_tags(&tags.iter().collect::<Vec<_>>()).unwrap(), 1);
        assert!(store.reference_changes() > changes, "caches read the records again");
        let mut left: Vec<_> = store.tags().unwrap().into_iter().map(|fact| fact.tag.to_string()).collect();
        left.sort();
        assert_eq!(left, ["confirmed", "pinned"]);
    }
}
