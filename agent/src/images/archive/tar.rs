//! Reads untrusted tar streams, member by member, in one pass and with limits.
//!
//! Supported: ustar, GNU and pax names, sizes and links (`tar(5)`, POSIX.1-2001 "pax Interchange Format"). The `tar`
//! crate only parses headers here: its stream reader reads extended headers of any length into memory.
//!
//! Rejected: names and links that lead out of the archive, devices, sparse files, duplicate members, more members or
//! bytes than allowed, and a stream that ends before its end mark.

use std::{
    collections::HashSet,
    io::{self, Read},
};

use tar::{EntryType, Header, PaxExtensions};

use super::ArchiveError;

const BLOCK: usize = 512;

/// Longest extended header: names have 4,096 bytes at most, and few attributes matter.
const MAX_EXTENDED: u64 = 1024 * 1024;

/// Most members: an archive of a thousand images has some ten thousand.
const MAX_MEMBERS: usize = 200_000;

/// The type of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file of this many bytes.
    File(u64),
    /// Another name of a member: a symbolic or a hard link, its target from the archive's root.
    Link(String),
}

/// Reads a whole archive: calls `each` with name, kind and content of every file and link.
pub fn read<R: Read>(
    mut reader: R,
    mut each: impl FnMut(&str, Kind, &mut dyn Read) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut seen = HashSet::new();
    let mut extended = Extended::default();
    while let Some(header) = next_header(&mut reader)? {
        let size = match extended.size.take() {
            Some(size) => size,
            None => header
                .entry_size()
                .map_err(|_| ArchiveError::damaged("the size of a member is not a number"))?,
        };
        let kind = header.entry_type();
        if extended.read(kind, size, &mut reader)? {
            continue;
        }
        let (name, link) = extended.names(&header)?;
        let mut content = reader.by_ref().take(size);
        if let Some(name) = inside(&name, &name)? {
            let member = match kind {
                EntryType::Regular | EntryType::Continuous => Some(Kind::File(size)),
                EntryType::Symlink => Some(Kind::Link(symlink_target(&name, &link)?)),
                EntryType::Link => Some(Kind::Link(inside(&link, &name)?.unwrap_or_default())),
                EntryType::Directory => None,
                _ => {
                    return Err(ArchiveError::member(
                        &name,
                        "only files, directories and links are supported",
                    ));
                }
            };
            if let Some(member) = member {
                if !seen.insert(name.clone()) {
                    return Err(ArchiveError::member(&name, "it occurs twice"));
                }
                if seen.len() > MAX_MEMBERS {
                    return Err(ArchiveError::TooLarge(format!("it has more than {MAX_MEMBERS} members")));
                }
                each(&name, member, &mut content)?;
            }
        }
        finish(&mut content, size)?;
        skip(&mut reader, size.next_multiple_of(BLOCK as u64) - size)?;
    }
    Ok(())
}

/// Skips what `each` has not read.
fn finish(content: &mut io::Take<impl Read>, size: u64) -> Result<(), ArchiveError> {
    io::copy(content, &mut io::sink()).map_err(ArchiveError::Read)?;
    if content.limit() > 0 && size > 0 { Err(ArchiveError::Truncated) } else { Ok(()) }
}

fn skip(reader: &mut impl Read, count: u64) -> Result<(), ArchiveError> {
    let skipped = io::copy(&mut reader.take(count), &mut io::sink()).map_err(ArchiveError::Read)?;
    if skipped == count { Ok(()) } else { Err(ArchiveError::Truncated) }
}

/// `None` at the end mark, a block of zeros.
fn next_header(reader: &mut impl Read) -> Result<Option<Header>, ArchiveError> {
    let mut header = Header::new_old();
    reader.read_exact(header.as_mut_bytes()).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Truncated,
        _ => ArchiveError::Read(error),
    })?;
    if header.as_bytes().iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    // The sum of all bytes, with the checksum field counted as spaces.
    let bytes = header.as_bytes();
    let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|byte| u32::from(*byte)).sum();
    if header.cksum().ok() != Some(sum + 8 * u32::from(b' ')) {
        return Err(ArchiveError::damaged("it is not a tar archive, or a header is damaged"));
    }
    Ok(Some(header))
}

/// The values of extended headers for the next member.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Extended {
    /// Reads an extended header; `false` when the member is not one.
    fn read(&mut self, kind: EntryType, size: u64, reader: &mut impl Read) -> Result<bool, ArchiveError> {
        let known = matches!(
            kind,
            EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
        );
        if !known {
            return Ok(false);
        }
        if size > MAX_EXTENDED {
            return Err(ArchiveError::TooLarge(format!("an extended header has {size} bytes")));
        }
        let mut bytes = Vec::new();
        reader.take(size).read_to_end(&mut bytes).map_err(ArchiveError::Read)?;
        if bytes.len() as u64 != size {
            return Err(ArchiveError::Truncated);
        }
        skip(reader, size.next_multiple_of(BLOCK as u64) - size)?;
        match kind {
            EntryType::GNULongName => self.path = Some(until_zero(bytes)),
            EntryType::GNULongLink => self.link = Some(until_zero(bytes)),
            EntryType::XHeader => self.pax(&bytes)?,
            _ => {}
        }
        Ok(true)
    }

    fn pax(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        for extension in PaxExtensions::new(bytes) {
            let extension = extension.map_err(ArchiveError::Read)?;
            let value = extension.value_bytes();
            match extension.key_bytes() {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => {
                    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    let number = number
                        .ok_or_else(|| ArchiveError::damaged("the size of a member is not a number"))?;
                    self.size = Some(number);
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(ArchiveError::damaged("sparse members are not supported"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn names(&mut self, header: &Header) -> Result<(String, String), ArchiveError> {
        let path = self.path.take().unwrap_or_else(|| header.path_bytes().into_owned());
        let link = self.link.take().or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        Ok((text(path)?, text(link.unwrap_or_default())?))
    }
}

fn until_zero(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

fn text(bytes: Vec<u8>) -> Result<String, ArchiveError> {
    String::from_utf8(bytes).map_err(|error| {
        ArchiveError::member(&String::from_utf8_lossy(error.as_bytes()), "its name is not UTF-8")
    })
}

/// A path from the archive's root, without `.` parts; `None` for the root itself.
fn inside(path: &str, member: &str) -> Result<Option<String>, ArchiveError> {
    if path.starts_with('/') {
        return Err(ArchiveError::member(member, "an absolute path is not allowed"));
    }
    let parts: Vec<_> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") || path.contains('\0') {
        return Err(ArchiveError::member(member, "a path with `..` is not allowed"));
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

/// The target of a symbolic link, if it is inside of the archive.
fn symlink_target(name: &str, target: &str) -> Result<String, ArchiveError> {
    let refuse = || ArchiveError::member(name, "it is a link that leads out of the archive");
    if target.starts_with('/') || target.is_empty() {
        return Err(refuse());
    }
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => parts.pop().map(drop).ok_or_else(refuse)?,
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, kind: EntryType, size: u64, link: &str) -> Header {
        let mut header = Header::new_gnu();
        // Not `set_path`, which rejects names of hostile archives.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        header
    }

    fn archive(members: &[(&str, EntryType, &[u8], &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, kind, content, link) in members {
            out.extend_from_slice(header(name, *kind, content.len() as u64, link).as_bytes());
            out.extend_from_slice(content);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        out.resize(out.len() + 2 * BLOCK, 0);
        out
    }

    fn members(bytes: &[u8]) -> Result<Vec<(String, Kind, Vec<u8>)>, ArchiveError> {
        let mut found = Vec::new();
        read(bytes, |name, kind, content| {
            let mut all = Vec::new();
            content.read_to_end(&mut all).map_err(ArchiveError::Read)?;
            found.push((name.to_owned(), kind, all));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn members_have_their_names_and_contents_in_every_tar_format() {
        let long = format!("{}/x", "d".repeat(200));
        let mut built = tar::Builder::new(Vec::new());
        let mut gnu = Header::new_gnu();
        gnu.set_size(3);
        gnu.set_cksum();
        built.append_data(&mut gnu.clone(), &long, &b"abc"[..]).unwrap();
        let mut pax = built.into_inner().unwrap();
        let record = "19 path=from/pax.x\n12 size=513\n";
        let content = [7; 513];
        pax.truncate(pax.len() - 2 * BLOCK);
        pax.extend(archive(&[("PaxHeaders/x", EntryType::XHeader, record.as_bytes(), "")]));
        pax.truncate(pax.len() - 2 * BLOCK);
        let mut file = archive(&[("short", EntryType::Regular, &content, "")]);
        // The size in the header itself must be ignored.
        let mut zero = header("short", EntryType::Regular, 0, "");
        zero.set_cksum();
        file[..BLOCK].copy_from_slice(zero.as_bytes());
        pax.extend(file);
        let found = members(&pax).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].0.as_str(), found[0].2.as_slice()), (long.as_str(), &b"abc"[..]));
        assert_eq!((found[1].0.as_str(), found[1].2.as_slice()), ("from/pax.x", &content[..]));
    }

    #[test]
    fn links_are_followed_inside_only_and_directories_skipped() {
        let found = members(&archive(&[
            ("./", EntryType::Directory, b"", ""),
            ("a/", EntryType::Directory, b"", ""),
            ("a/", EntryType::Directory, b"", ""),
            ("./a/file", EntryType::Regular, b"x", ""),
            ("b/layer.tar", EntryType::Symlink, b"", "../a/./file"),
            ("c", EntryType::Link, b"", "a/file"),
        ]))
        .unwrap();
        let kinds: Vec<_> = found.iter().map(|(name, kind, _)| (name.as_str(), kind.clone())).collect();
        let link = || Kind::Link("a/file".to_owned());
        assert_eq!(kinds, [("a/file", Kind::File(1)), ("b/layer.tar", link()), ("c", link())]);
    }

    #[test]
    fn hostile_and_broken_archives_are_refused() {
        use EntryType as T;
        let regular = |name| [(name, T::Regular, &b"x"[..], "")];
        for (name, archive) in [
            ("..", archive(&regular("../x"))),
            ("inner ..", archive(&regular("a/../../x"))),
            ("absolute", archive(&regular("/etc/x"))),
            ("symlink out", archive(&[("a", T::Symlink, b"", "../x")])),
            ("absolute symlink", archive(&[("a", T::Symlink, b"", "/x")])),
            ("hard link out", archive(&[("a", T::Link, b"", "../x")])),
            ("device", archive(&[("a", T::Char, b"", "")])),
            ("fifo", archive(&[("a", T::Fifo, b"", "")])),
            ("sparse", archive(&[("a", T::GNUSparse, b"x", "")])),
            ("twice", archive(&[("a", T::Regular, b"x", ""), ("./a", T::Regular, b"x", "")])),
            ("long header", header("x", T::XHeader, MAX_EXTENDED + 1, "").as_bytes().to_vec()),
            ("cut in a member", archive(&regular("a"))[..BLOCK].to_vec()),
            ("cut before the end mark", archive(&regular("a"))[..2 * BLOCK].to_vec()),
            ("cut in a header", archive(&regular("a"))[..100].to_vec()),
            ("nothing", Vec::new()),
            ("no archive", vec![b'x'; 4 * BLOCK]),
            ("sparse by pax", archive(&[("x", T::XHeader, b"22 GNU.sparse.major=1\n", "")])),
        ] {
            assert!(members(&archive).is_err(), "{name}");
        }
    }
}
