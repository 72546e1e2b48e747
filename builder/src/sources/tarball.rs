//! Reading tar archives as streams: their compression, bounds on what they may make us read, their end mark.

use std::{
    cell::Cell,
    io::{self, BufReader, Read},
    path::PathBuf,
    rc::Rc,
};

use crate::{
    cache::{BUFFER, CacheError},
    tree::PathError,
};

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
    /// It stops without an end mark.
    #[error("the archive is cut short: its end mark is missing")]
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

/// Undoes the compression that the first bytes show.
pub fn decompressed<'a>(
    mut reader: impl Read + Send + 'a,
) -> Result<Box<dyn Read + Send + 'a>, ArchiveError> {
    let mut magic = Vec::new();
    reader.by_ref().take(6).read_to_end(&mut magic).map_err(ArchiveError::Read)?;
    let whole = BufReader::with_capacity(BUFFER, io::Cursor::new(magic.clone()).chain(reader));
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::Decoder::with_buffer(whole).map_err(ArchiveError::Read)?)
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => return Err(ArchiveError::Compression("xz")),
        [b'B', b'Z', b'h', ..] => return Err(ArchiveError::Compression("bzip2")),
        _ => Box::new(whole),
    })
}

/// Reads members one after the other, within bounds: the library reads the headers of a member into memory, however
/// large they are.
pub(super) fn for_each_member<R: Read>(
    reader: R,
    limits: Limits,
    mut each: impl FnMut(&mut tar::Entry<'_, Headers<R>>) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let left = Rc::new(Cell::new(None));
    let mut archive = tar::Archive::new(Headers { inner: reader, left: Rc::clone(&left) });
    let mut entries = archive.entries().map_err(ArchiveError::Read)?;
    let mut count = 0;
    loop {
        left.set(Some(limits.headers));
        let Some(member) = entries.next() else { return Ok(()) };
        let mut member = member.map_err(|error| {
            if left.get() == Some(0) {
                ArchiveError::TooLarge { limit: limits.headers, unit: "bytes of headers for one member" }
            } else {
                ArchiveError::Read(error)
            }
        })?;
        left.set(None);
        count += 1;
        if count > limits.members {
            return Err(ArchiveError::TooLarge { limit: limits.members, unit: "members" });
        }
        each(&mut member)?;
        // What nobody wanted of it is no header.
        io::copy(&mut member, &mut io::sink()).map_err(ArchiveError::Read)?;
    }
}

/// Ends with an error when more is read than is left; reads on for ever while nothing is said.
pub(super) struct Headers<R> {
    inner: R,
    left: Rc<Cell<Option<u64>>>,
}

impl<R: Read> Read for Headers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(left) = self.left.get() else { return self.inner.read(buffer) };
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::other("its headers are too large"));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.inner.read(&mut buffer[..most])?;
        self.left.set(Some(left - count as u64));
        Ok(count)
    }
}

/// Counts the zero bytes at the end of what was read: a tar archive ends with at least one zero block, and
/// the reader of the `tar` crate takes a file cut between two members for a whole one.
pub(super) struct Tail<R> {
    inner: R,
    /// How many there are.
    pub(super) zeros: u64,
}

impl<R> Tail<R> {
    /// Nothing was read yet.
    pub(super) fn new(inner: R) -> Self {
        Self { inner, zeros: 0 }
    }
}

impl<R: Read> Read for Tail<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let zeros = buffer[..count].iter().rev().take_while(|byte| **byte == 0).count();
        self.zeros = if zeros == count { self.zeros + zeros as u64 } else { zeros as u64 };
        Ok(count)
    }
}
