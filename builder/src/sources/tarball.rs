//! How much an archive may hold, and why one cannot be used.

use std::{io, path::PathBuf};

use oci::archive::{Bounds, Unreadable};

use crate::{cache::CacheError, tree::PathError};

/// Why an archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be opened.
    #[error("cannot open the archive `{}`", path.display())]
    Open {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Reading it failed.
    #[error("the archive cannot be read: it is damaged or cut short")]
    Read(#[source] io::Error),
    /// It stops within a member or without an end mark.
    #[error("the archive is cut short")]
    Truncated,
    /// A name leads out of the tree.
    #[error("the archive has a member that is not allowed")]
    Path(#[source] PathError),
    /// A member would do harm or cannot be kept.
    #[error("the archive member `{member}` is refused: {reason}")]
    Member {
        /// The member's name.
        member: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It unpacks to more than the limit.
    #[error("the archive unpacks to more than {limit} {unit}: refused")]
    TooLarge {
        /// The limit.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// The compression is not known.
    #[error("the archive is compressed with {0}, which is not supported: use plain tar, gzip or zstd")]
    Compression(&'static str),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl From<Unreadable> for ArchiveError {
    fn from(error: Unreadable) -> Self {
        match error {
            Unreadable::Read(source) => Self::Read(source),
            Unreadable::Header(reason) => Self::Read(io::Error::new(io::ErrorKind::InvalidData, reason)),
            Unreadable::Truncated => Self::Truncated,
            Unreadable::TooLarge { limit, unit } => Self::TooLarge { limit, unit },
            Unreadable::Compression(name) => Self::Compression(name),
        }
    }
}

/// How much an archive may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Members.
    pub members: u64,
    /// Bytes between the contents of two members: headers with long names and attributes, which are read into memory.
    pub headers: u64,
}

impl Default for Limits {
    /// Far above any real Spark distribution or base (0.5 GB, 15,000 files), far below a full disk.
    fn default() -> Self {
        Self { bytes: 32 << 30, members: 2_000_000, headers: 4 << 20 }
    }
}

impl Limits {
    /// The limits on the number of tar members and on the bytes of their headers.
    pub(crate) fn bounds(self) -> Bounds {
        Bounds { members: self.members, headers: self.headers }
    }
}
