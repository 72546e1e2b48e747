//! Memory for content between the disk and a socket.
//!
//! A client that does not read its response holds its buffers until a timeout, and there may be thousands of such
//! clients. So large buffers, which make a fast stream cheap, are limited for the whole process; a slow reader, or
//! one that comes while all of them are in use, gets small ones. A connection holds at most one large buffer and
//! three small ones, because the HTTP side reads more only when little is left to send.
//!
//! Buffers return here when their bytes have been sent. Large ones: a few are kept for reuse, the rest is freed. Small ones are
//! parts of one slab. An allocator keeps what many clients have freed in small parts (measured after 500 slow readers, with
//! glibc and with mimalloc); a slab this large is mapped alone, and unmapped as soon as none of its parts is in use.

use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};

/// Size of a large buffer: a system call costs little compared with copying so many bytes.
const LARGE: usize = 256 * 1024;

/// Size of a small buffer.
const SMALL: usize = 32 * 1024;

/// Large buffers in use at once: 16 MiB.
const LARGE_IN_USE: usize = 64;

/// Large buffers kept for reuse: 4 MiB.
const LARGE_KEPT: usize = 16;

/// Small buffers kept for reuse while none is in use: 2 MiB.
const SMALL_KEPT: usize = 64;

/// Small buffers in a slab: 40 MiB, of which only what is written to takes memory. Above 32 MiB glibc maps an allocation
/// alone, whatever was freed before (`M_MMAP_THRESHOLD`, mallopt(3)).
const SLAB: usize = 1_280;

/// The size of a reader's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkSize {
    /// For readers that are slow or have just started.
    Small,
    /// For fast readers; a small one while all large buffers are in use.
    Large,
}

#[derive(Debug)]
struct Pool {
    large: Vec<BytesMut>,
    large_in_use: usize,
    small: Small,
}

/// Small buffers.
#[derive(Debug)]
struct Small {
    /// Returned ones.
    free: Vec<BytesMut>,
    in_use: usize,
    /// What is left of the slab.
    slab: Option<BytesMut>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool::new());

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock()
}

impl Pool {
    const fn new() -> Self {
        let small = Small { free: Vec::new(), in_use: 0, slab: None };
        Self { large: Vec::new(), large_in_use: 0, small }
    }

    /// A buffer of the size that a reader gets now.
    fn take(&mut self, size: ChunkSize, wanted: usize) -> BytesMut {
        if size == ChunkSize::Large && wanted > SMALL && self.large_in_use < LARGE_IN_USE {
            self.large_in_use += 1;
            return self.large.pop().unwrap_or_else(|| BytesMut::zeroed(LARGE));
        }
        self.small.take()
    }

    /// Keeps a buffer, or returns what is to be freed.
    fn put_back(&mut self, bytes: BytesMut) -> Vec<BytesMut> {
        if bytes.len() != LARGE {
            return self.small.put_back(bytes);
        }
        self.large_in_use = self.large_in_use.saturating_sub(1);
        if self.large.len() >= LARGE_KEPT {
            return vec![bytes];
        }
        self.large.push(bytes);
        Vec::new()
    }
}

impl Small {
    fn take(&mut self) -> BytesMut {
        self.in_use += 1;
        if let Some(free) = self.free.pop() {
            return free;
        }
        let slab = self.slab.get_or_insert_with(|| BytesMut::zeroed(SLAB * SMALL));
        // More than a slab: one by one.
        if slab.is_empty() { BytesMut::zeroed(SMALL) } else { slab.split_to(SMALL) }
    }

    fn put_back(&mut self, bytes: BytesMut) -> Vec<BytesMut> {
        self.in_use = self.in_use.saturating_sub(1);
        self.free.push(bytes);
        if self.in_use > 0 {
            // Beyond a slab they came one by one, and leave so.
            return self.free.drain(SLAB.min(self.free.len())..).collect();
        }
        if self.free.len() <= SMALL_KEPT {
            return Vec::new();
        }
        // The burst is over. The slab is unmapped with its last part.
        self.slab = None;
        std::mem::take(&mut self.free)
    }
}

/// Memory for one read, passed to the HTTP side as [`Bytes`] and returned on drop.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: BytesMut,
    length: usize,
}

impl Buffer {
    /// Memory for at most `wanted` bytes.
    pub(super) fn take(size: ChunkSize, wanted: usize) -> Self {
        let bytes = pool().take(size, wanted);
        let length = wanted.min(bytes.len());
        Self { bytes, length }
    }

    /// The memory to read into.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }

    /// The first `length` bytes, which have been read.
    pub(super) fn filled(mut self, length: usize) -> Bytes {
        self.length = length;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // What is freed is freed after the lock is released.
        let surplus = pool().put_back(std::mem::take(&mut self.bytes));
        drop(surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_are_few_and_what_is_kept_is_bounded() {
        let mut pool = Pool::new();
        let few = pool.take(ChunkSize::Large, SMALL);
        assert_eq!(few.len(), SMALL, "a large buffer would be mostly empty");
        let slow = pool.take(ChunkSize::Small, LARGE);
        assert_eq!(slow.len(), SMALL);
        let taken: Vec<_> = (0..500).map(|_| pool.take(ChunkSize::Large, LARGE)).collect();
        assert_eq!(taken.iter().filter(|taken| taken.len() == LARGE).count(), LARGE_IN_USE);
        for bytes in taken {
            pool.put_back(bytes);
        }
        assert_eq!((pool.large.len(), pool.large_in_use), (LARGE_KEPT, 0));
        assert_eq!(pool.take(ChunkSize::Large, LARGE).len(), LARGE, "they are free again");
        pool.put_back(few);
        assert!(pool.small.slab.is_some(), "one is in use");
        pool.put_back(slow);
        assert!(pool.small.slab.is_none() && pool.small.free.is_empty(), "after a burst all are freed");
    }

    #[test]
    fn small_buffers_are_reused_and_there_are_more_than_a_slab() {
        let mut pool = Pool::new();
        let first = pool.take(ChunkSize::Small, SMALL);
        pool.put_back(first);
        assert_eq!(pool.small.free.len(), 1, "kept for the next reader");
        let many: Vec<_> = (0..SLAB + 3).map(|_| pool.take(ChunkSize::Small, SMALL)).collect();
        assert!(many.iter().all(|bytes| bytes.len() == SMALL));
        for bytes in many {
            pool.put_back(bytes);
        }
        assert_eq!((pool.small.in_use, pool.small.free.len()), (0, 0));
    }
}
