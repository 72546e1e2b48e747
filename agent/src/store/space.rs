//! How much the store may hold. The decision is pure; the measurement is one `statvfs`.

use std::path::Path;

use super::StoreError;
use crate::types::{Amount, share};

/// The configured limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes in the store.
    pub limit: Amount,
    /// Space of the file system that stays free for others.
    pub min_free: Amount,
    /// Eviction starts above this share of the allowed size, in percent.
    pub high: u8,
    /// Eviction ends below this share.
    pub low: u8,
}

impl Default for Limits {
    /// Without limits.
    fn default() -> Self {
        Self { limit: Amount::Percent(100), min_free: Amount::Bytes(0), high: 95, low: 85 }
    }
}

/// A file system's size and free space, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Its size.
    pub total: u64,
    /// Bytes that can be written.
    pub available: u64,
}

/// The used and allowed size of the store, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Used: blobs and partial blobs.
    pub used: u64,
    /// Allowed now.
    pub allowed: u64,
}

/// Why space is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// This many bytes are about to be stored.
    Room(u64),
    /// The disk is full in spite of the limits: this many bytes must be freed.
    Freed(u64),
}

impl Limits {
    /// What a store that holds `used` bytes may hold: the limit, or less when the minimum of free space requires it.
    /// Pure.
    pub fn space(&self, file_system: FileSystem, used: u64) -> Space {
        let floor = self.min_free.of(file_system.total);
        let by_floor = (used.saturating_add(file_system.available)).saturating_sub(floor);
        let by_limit = self.limit.of(file_system.total);
        Space { used, allowed: by_floor.min(by_limit) }
    }

    /// What to evict for a need: the minimum, and the amount that is worthwhile once anything is evicted. Pure.
    pub fn demand(&self, space: Space, need: Need) -> (u64, u64) {
        match need {
            Need::Freed(bytes) => (bytes, bytes),
            Need::Room(bytes) => {
                let after = space.used.saturating_add(bytes);
                let least = after.saturating_sub(space.allowed);
                (least, if least == 0 { 0 } else { after - share(space.allowed, self.low).min(after) })
            }
        }
    }

    /// Bytes to evict: none up to the high watermark, else down to the low one. Pure.
    pub fn excess(&self, space: Space) -> u64 {
        if space.used <= share(space.allowed, self.high) {
            return 0;
        }
        space.used - share(space.allowed, self.low).min(space.used)
    }
}

pub(super) fn file_system(path: &Path) -> Result<FileSystem, StoreError> {
    let stat = rustix::fs::statvfs(path).map_err(|errno| StoreError::io("measure", path)(errno.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(FileSystem { total: bytes(stat.f_blocks), available: bytes(stat.f_bavail) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn limits(limit: Amount, min_free: Amount) -> Limits {
        Limits { limit, min_free, high: 95, low: 85 }
    }

    #[test]
    fn the_smaller_of_limit_and_free_space_counts() {
        let disk = FileSystem { total: 100 * GIB, available: 30 * GIB };
        for (limit, min_free, used, allowed) in [
            (Amount::Percent(100), Amount::Bytes(0), 10 * GIB, 40 * GIB),
            (Amount::Percent(100), Amount::Percent(20), 10 * GIB, 20 * GIB),
            (Amount::Percent(15), Amount::Percent(20), 10 * GIB, 15 * GIB),
            (Amount::Bytes(GIB), Amount::Bytes(0), 10 * GIB, GIB),
            // Others have filled the disk: even the stored content is too much.
            (Amount::Percent(100), Amount::Percent(35), 10 * GIB, 5 * GIB),
            (Amount::Percent(100), Amount::Percent(90), 10 * GIB, 0),
        ] {
            let space = limits(limit, min_free).space(disk, used);
            assert_eq!(space, Space { used, allowed }, "{limit:?} {min_free:?}");
        }
    }

    #[test]
    fn space_is_freed_down_to_the_low_watermark_and_only_when_needed() {
        let limits = limits(Amount::Percent(100), Amount::Bytes(0));
        let space = Space { used: 90, allowed: 100 };
        for (need, demand) in [
            (Need::Room(10), (0, 0)),
            (Need::Room(11), (1, 16)),
            (Need::Room(200), (190, 205)),
            (Need::Freed(30), (30, 30)),
        ] {
            assert_eq!(limits.demand(space, need), demand, "{need:?}");
        }
    }

    #[test]
    fn eviction_starts_above_the_high_watermark_and_ends_at_the_low_one() {
        let limits = limits(Amount::Percent(100), Amount::Bytes(0));
        for (used, excess) in [(0, 0), (95, 0), (96, 11), (200, 115)] {
            assert_eq!(limits.excess(Space { used, allowed: 100 }), excess, "{used}");
        }
        assert_eq!(limits.excess(Space { used: 7, allowed: 0 }), 7, "never more than there is");
    }
}
