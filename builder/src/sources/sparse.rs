//! Sparse files in the three PAX formats of GNU tar. The `tar` crate reads the older GNU format and gives these as they are
//! stored: a map of the parts that are not zero, and those parts.
//!
//! ```text
//! 0.0   GNU.sparse.size; GNU.sparse.offset and GNU.sparse.numbytes in turn for each part
//! 0.1   GNU.sparse.size, GNU.sparse.name; GNU.sparse.map is "offset,length,offset,length"
//! 1.0   GNU.sparse.realsize, GNU.sparse.name; the content begins with the map, a number a line, in whole blocks
//! ```
//!
//! From 0.1 on the header has a made-up name, such as `./GNUSparseFile.1382/a.bin`. Source: "Storing Sparse Files" in the
//! manual of GNU tar.

use std::io::{self, Read};

const BLOCK: usize = 512;

/// Parts of one file; each takes memory.
const PARTS: usize = 1 << 20;

/// Digits of the largest number.
const DIGITS: usize = 20;

/// A part that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    offset: u64,
    length: u64,
}

/// What the headers of a sparse file say.
#[derive(Debug)]
pub(super) struct Sparse {
    /// Its name; `None` where the header has the right one.
    pub(super) name: Option<Vec<u8>>,
    /// The length of the file.
    pub(super) size: u64,
    /// `None`: the map is in the content.
    parts: Option<Vec<Part>>,
}

/// Reads the headers of a member; `None` when it is no sparse file in a PAX format.
pub(super) fn of(member: &mut tar::Entry<'_, impl Read>) -> io::Result<Option<Sparse>> {
    let Some(extensions) = member.pax_extensions()? else { return Ok(None) };
    let (mut name, mut size, mut version) = (None, None, [0, 0]);
    let (mut numbers, mut found) = (Vec::new(), false);
    for extension in extensions {
        let extension = extension?;
        let Some(key) = extension.key_bytes().strip_prefix(b"GNU.sparse.") else { continue };
        found = true;
        let value = extension.value_bytes();
        match key {
            b"name" => name = Some(value.to_vec()),
            b"size" | b"realsize" => size = Some(number(value)?),
            b"major" => version[0] = number(value)?,
            b"minor" => version[1] = number(value)?,
            b"offset" | b"numbytes" => numbers.push(number(value)?),
            b"map" => {
                let values = value.split(|byte| *byte == b',').filter(|value| !value.is_empty());
                numbers = values.map(number).collect::<io::Result<_>>()?;
            }
            _ => {}
        }
    }
    if !found {
        return Ok(None);
    }
    let size = size.ok_or_else(|| wrong("its headers do not say how long it is"))?;
    let parts = match version {
        [1, 0] => None,
        [0, _] => Some(parts(&numbers, size)?),
        [major, minor] => return Err(wrong(&format!("version {major}.{minor} of the format is unknown"))),
    };
    Ok(Some(Sparse { name, size, parts }))
}

impl Sparse {
    /// The content of the file, from what is stored of it.
    pub(super) fn content<R: Read>(self, mut stored: R) -> io::Result<Content<R>> {
        let parts = match self.parts {
            Some(parts) => parts,
            None => parts(&map(&mut stored)?, self.size)?,
        };
        Ok(Content { stored, parts: parts.into_iter(), part: None, at: 0, size: self.size })
    }
}

/// The map that is in front of the content: how many parts, then offset and length of each.
fn map(stored: &mut impl Read) -> io::Result<Vec<u64>> {
    let (mut numbers, mut digits) = (Vec::new(), Vec::new());
    let mut expected = 1;
    let mut block = [0; BLOCK];
    while numbers.len() < expected {
        stored.read_exact(&mut block)?;
        for byte in block {
            if byte != b'\n' {
                digits.push(byte);
                if digits.len() > DIGITS {
                    return Err(wrong("its map has something that is no number"));
                }
                continue;
            }
            numbers.push(number(&digits)?);
            digits.clear();
            if let [count] = numbers.as_slice() {
                let count = usize::try_from(*count).ok().filter(|count| *count <= PARTS);
                expected = 1 + 2 * count.ok_or_else(too_many)?;
            }
            // The rest of the block is padding.
            if numbers.len() == expected {
                break;
            }
        }
    }
    numbers.remove(0);
    Ok(numbers)
}

/// Parts in their order within the file.
fn parts(numbers: &[u64], size: u64) -> io::Result<Vec<Part>> {
    let (pairs, []) = numbers.as_chunks::<2>() else {
        return Err(wrong("its map has an offset without a length"));
    };
    if pairs.len() > PARTS {
        return Err(too_many());
    }
    let mut end = 0;
    let part = |[offset, length]: &[u64; 2]| {
        let (part, from) = (Part { offset: *offset, length: *length }, end);
        end = offset.checked_add(*length).filter(|end| *end <= size && *offset >= from)?;
        Some(part)
    };
    let parts: Option<Vec<Part>> = pairs.iter().map(part).collect();
    parts.ok_or_else(|| wrong("the parts of its map overlap or go beyond its end"))
}

fn number(text: &[u8]) -> io::Result<u64> {
    let text = str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    text.and_then(|text| text.parse().ok()).ok_or_else(|| wrong("its map has something that is no number"))
}

fn wrong(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a sparse file in the PAX format: {problem}"))
}

fn too_many() -> io::Error {
    wrong(&format!("it has more than {PARTS} parts"))
}

/// The content of a sparse file, with its zeros.
#[derive(Debug)]
pub(super) struct Content<R> {
    stored: R,
    parts: std::vec::IntoIter<Part>,
    /// The part that is being read, or that comes after the zeros.
    part: Option<Part>,
    at: u64,
    size: u64,
}

impl<R: Read> Read for Content<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.part.is_none_or(|part| part.offset + part.length <= self.at) {
            self.part = self.parts.next();
            if self.part.is_none() {
                break;
            }
        }
        let (until, zeros) = match self.part {
            Some(part) if part.offset <= self.at => (part.offset + part.length, false),
            Some(part) => (part.offset, true),
            None => (self.size, true),
        };
        let left = usize::try_from(until - self.at).unwrap_or(usize::MAX);
        let most = left.min(buffer.len());
        let count = if zeros {
            buffer[..most].fill(0);
            most
        } else {
            self.stored.read(&mut buffer[..most])?
        };
        if count == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
#[path = "sparse_tests.rs"]
mod tests;
