//! Memory for content between the disk and a socket.
//!
//! A client that does not read its response holds its buffers until a timeout, and there may be thousands of such
//! clients. So large buffers, which make a fast stream cheap, are limited for the whole process; a slow reader, or
//! one that comes while all of them are in use, gets small ones. A connection holds at most one large buffer and
//! three small ones, because the HTTP side reads more only when little is left to send.
//!
//! Buffers return here when their bytes have been sent. A few of each kind are kept for reuse; the rest is freed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Size of a large buffer: a system call costs little compared with copying so many bytes.
const LARGE: usize = 256 * 1024;

/// Size of a small buffer.
const SMALL: usize = 32 * 1024;

/// Large buffers in use at once: 16 MiB.
const LARGE_IN_USE: usize = 64;

/// Large buffers kept for reuse: 4 MiB.
const LARGE_KEPT: usize = 16;

/// Small buffers kept for reuse: 2 MiB.
const SMALL_KEPT: usize = 64;

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
    large: Vec<Box<[u8]>>,
    small: Vec<Box<[u8]>>,
    large_in_use: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { large: Vec::new(), small: Vec::new(), large_in_use: 0 });

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// The size that a reader gets now, and a kept buffer of it if there is one.
    fn take(&mut self, size: ChunkSize, wanted: usize) -> (usize, Option<Box<[u8]>>) {
        if size == ChunkSize::Large && wanted > SMALL && self.large_in_use < LARGE_IN_USE {
            self.large_in_use += 1;
            return (LARGE, self.large.pop());
        }
        (SMALL, self.small.pop())
    }

    /// Keeps a buffer, or returns it to be freed.
    fn put_back(&mut self, bytes: Box<[u8]>) -> Option<Box<[u8]>> {
        let (kept, most) = if bytes.len() == LARGE {
            self.large_in_use = self.large_in_use.saturating_sub(1);
            (&mut self.large, LARGE_KEPT)
        } else {
            (&mut self.small, SMALL_KEPT)
        };
        if kept.len() >= most {
            return Some(bytes);
        }
        kept.push(bytes);
        None
    }
}

/// Memory for one read, passed to the HTTP side as [`Bytes`] and returned on drop.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    length: usize,
}

impl Buffer {
    /// Memory for at most `wanted` bytes.
    pub(super) fn take(size: ChunkSize, wanted: usize) -> Self {
        let (size, kept) = pool().take(size, wanted);
        let bytes = kept.unwrap_or_else(|| vec![0; size].into_boxed_slice());
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
        // If it is freed, then after the lock is released.
        let surplus = pool().put_back(std::mem::take(&mut self.bytes));
        drop(surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_are_few_and_what_is_kept_is_bounded() {
        let mut pool = Pool { large: Vec::new(), small: Vec::new(), large_in_use: 0 };
        assert_eq!(pool.take(ChunkSize::Large, SMALL).0, SMALL, "a large buffer would be mostly empty");
        assert_eq!(pool.take(ChunkSize::Small, LARGE).0, SMALL);
        let taken = (0..500).map(|_| pool.take(ChunkSize::Large, LARGE).0);
        let taken: Vec<_> = taken.collect();
        assert_eq!(taken.iter().filter(|size| **size == LARGE).count(), LARGE_IN_USE);
        for size in taken {
            pool.put_back(vec![0; size].into_boxed_slice());
        }
        assert_eq!((pool.large.len(), pool.small.len(), pool.large_in_use), (LARGE_KEPT, SMALL_KEPT, 0));
        assert_eq!(pool.take(ChunkSize::Large, LARGE).0, LARGE, "they are free again");
    }
}
