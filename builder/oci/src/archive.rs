//! Untrusted tar streams, read member by member in one pass and within bounds.
//!
//! The `tar` crate reads the extended headers of a member into memory, however large they are, and takes a file that is cut
//! between two members for a whole one. Both are noticed here.

use std::{
    cell::Cell,
    io::{self, BufReader, Read},
    rc::Rc,
};

/// A record of a tar archive.
pub const BLOCK: u64 = 512;

/// Compressed bytes that are read at once.
const BUFFER: usize = 256 * 1024;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// Its bytes cannot be read or decompressed.
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    /// Something in it is no header of a member.
    #[error("it is not a tar archive, or a header is damaged ({0})")]
    Header(String),
    /// It ends within a member.
    #[error("the archive is cut short")]
    Truncated,
    /// It has more than the limit.
    #[error("it has more than {limit} {unit}")]
    TooLarge {
        /// The limit.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// The compression is not supported.
    #[error("it is compressed with {0}, which is not supported")]
    Compression(&'static str),
}

/// How much an archive may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Members.
    pub members: u64,
    /// Bytes between the contents of two members: headers with long names and attributes, which are read into memory.
    pub headers: u64,
}

/// Undoes the compression that the first bytes show.
pub fn decompressed<'a>(mut reader: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>, Unreadable> {
    let mut magic = Vec::new();
    reader.by_ref().take(6).read_to_end(&mut magic).map_err(Unreadable::Read)?;
    let whole = BufReader::with_capacity(BUFFER, io::Cursor::new(magic.clone()).chain(reader));
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::Decoder::with_buffer(whole).map_err(Unreadable::Read)?)
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => return Err(Unreadable::Compression("xz")),
        [b'B', b'Z', b'h', ..] => return Err(Unreadable::Compression("bzip2")),
        _ => Box::new(whole),
    })
}

/// How an archive ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With a block of zeros.
    Mark,
    /// Without one: it was cut between two members, or written so. Most readers do not notice.
    Bare,
}

/// Calls `each` with every member, one after the other.
/// `fail` makes the caller's error of what cannot be read.
pub fn for_each_member<R: Read, E>(
    reader: R,
    bounds: Bounds,
    fail: impl Fn(Unreadable) -> E,
    mut each: impl FnMut(&mut tar::Entry<'_, Headers<R>>) -> Result<(), E>,
) -> Result<End, E> {
    let state = Rc::new(State::default());
    let mut archive = tar::Archive::new(Headers { inner: reader, state: Rc::clone(&state) });
    let mut entries = archive.entries().map_err(|error| fail(Unreadable::Read(error)))?;
    let mut count = 0;
    loop {
        state.enter_headers(bounds.headers);
        let Some(member) = entries.next() else {
            return Ok(if state.zeros.get() >= BLOCK { End::Mark } else { End::Bare });
        };
        let mut member = member.map_err(|error| fail(state.unreadable(error, bounds)))?;
        state.left.set(None);
        count += 1;
        if count > bounds.members {
            return Err(fail(Unreadable::TooLarge { limit: bounds.members, unit: "members" }));
        }
        each(&mut member)?;
        // What is left of it is no header.
        io::copy(&mut member, &mut io::sink()).map_err(|error| fail(state.unreadable(error, bounds)))?;
    }
}

/// What the reader below the `tar` crate has seen.
#[derive(Default)]
struct State {
    /// Bytes of headers that may still come; `None` within a content.
    left: Cell<Option<u64>>,
    /// Zero bytes at the end of the headers so far: one zero block is the end mark.
    zeros: Cell<u64>,
    /// Whether the reader itself has failed, and not what it gave.
    failed: Cell<bool>,
    /// Whether it has come to its end.
    ended: Cell<bool>,
}

impl State {
    fn enter_headers(&self, limit: u64) {
        self.left.set(Some(limit));
        self.zeros.set(0);
    }

    fn unreadable(&self, error: io::Error, bounds: Bounds) -> Unreadable {
        if self.left.get() == Some(0) {
            Unreadable::TooLarge { limit: bounds.headers, unit: "bytes of headers for one member" }
        } else if self.failed.get() {
            Unreadable::Read(error)
        } else if self.ended.get() {
            Unreadable::Truncated
        } else {
            Unreadable::Header(error.to_string())
        }
    }
}

/// Ends with an error when more bytes of headers are read than may come.
#[expect(missing_debug_implementations, reason = "it is only named in the type of a member")]
pub struct Headers<R> {
    inner: R,
    state: Rc<State>,
}

impl<R: Read> Read for Headers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.state.left.get();
        if left == Some(0) && !buffer.is_empty() {
            return Err(io::Error::other("its headers are too large"));
        }
        let most = left.and_then(|left| usize::try_from(left).ok()).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(&mut buffer[..most]);
        let count = read.inspect_err(|_| self.state.failed.set(true))?;
        if count == 0 && !buffer.is_empty() {
            self.state.ended.set(true);
        }
        if let Some(left) = left {
            self.state.left.set(Some(left - count as u64));
            let zeros = buffer[..count].iter().rev().take_while(|byte| **byte == 0).count();
            let before = if zeros == count { self.state.zeros.get() } else { 0 };
            self.state.zeros.set(before + zeros as u64);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const BOUNDS: Bounds = Bounds { members: 10, headers: 2000 };

    fn archive(name: &str, content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content).unwrap();
        builder.into_inner().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<(usize, End), Unreadable> {
        let mut count = 0;
        let end = for_each_member(
            bytes,
            BOUNDS,
            |error| error,
            |_| {
                count += 1;
                Ok(())
            },
        )?;
        Ok((count, end))
    }

    #[test]
    fn an_archive_that_is_cut_is_noticed() {
        // Zeros at its end are no end mark.
        let whole = archive("a", &[0; 1024]);
        assert!(matches!(read(&whole), Ok((1, End::Mark))));
        assert!(matches!(read(&whole[..1536]), Ok((1, End::Bare))));
        assert!(matches!(read(&[]), Ok((0, End::Bare))));
        for length in [100, 600, 1535, 1600] {
            assert!(matches!(read(&whole[..length]), Err(Unreadable::Truncated)), "{length}");
        }
    }

    #[test]
    fn what_is_no_archive_or_too_large_is_told_apart() {
        assert!(matches!(read(&[b'x'; 2048]), Err(Unreadable::Header(_))));
        let long = archive(&"n".repeat(5000), b"");
        assert!(matches!(read(&long), Err(Unreadable::TooLarge { limit: 2000, .. })));
        let one = archive("a", b"x");
        let many: Vec<u8> = std::iter::repeat_n(&one[..1024], 11).flatten().copied().collect();
        assert!(matches!(read(&many), Err(Unreadable::TooLarge { limit: 10, .. })));
        let failing = Read::chain(&one[..512], Broken);
        let read = for_each_member(failing, BOUNDS, |error| error, |_| Ok(()));
        assert!(matches!(read, Err(Unreadable::Read(_))));
    }

    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }

    #[test]
    fn compressions_are_known_by_their_first_bytes() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"text").unwrap();
        let zstd = zstd::encode_all(&b"text"[..], 1).unwrap();
        for bytes in [&b"text"[..], &gzip.finish().unwrap(), &zstd] {
            let mut text = String::new();
            decompressed(bytes).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "text");
        }
        for (bytes, name) in [(&b"\xfd7zXZ\0"[..], "xz"), (b"BZh91A", "bzip2")] {
            assert!(matches!(decompressed(bytes), Err(Unreadable::Compression(found)) if found == name));
        }
    }
}
