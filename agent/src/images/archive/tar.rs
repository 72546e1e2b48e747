//! The members of untrusted tar streams that may be images: files and links within the archive.
//!
//! Rejected: names and links that lead out of the archive, devices, sparse files, duplicate members, more members or
//! bytes than allowed, and a stream that ends before its end mark.

use std::{collections::HashSet, io::Read};

use oci::archive::{self, Bounds, End, Unreadable};
use tar::{Entry, EntryType};

use super::ArchiveError;

/// An archive of a thousand images has some ten thousand members; names have 4,096 bytes at most, and few attributes matter.
const BOUNDS: Bounds = Bounds { members: 200_000, headers: 1024 * 1024 };

/// The type of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file of this many bytes.
    File(u64),
    /// Another name of a member: a symbolic or a hard link, its target from the archive's root.
    Link(String),
}

impl From<Unreadable> for ArchiveError {
    fn from(error: Unreadable) -> Self {
        match error {
            Unreadable::Read(source) => Self::Read(source),
            Unreadable::Header(_) => Self::Damaged(error.to_string()),
            Unreadable::Truncated => Self::Truncated,
            Unreadable::TooLarge { .. } => Self::TooLarge(error.to_string()),
            Unreadable::Compression(name) => Self::Compression(name),
        }
    }
}

/// Reads a whole archive: calls `each` with name, kind and content of every file and link.
pub fn read<R: Read>(
    reader: R,
    mut each: impl FnMut(&str, Kind, &mut dyn Read) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut seen = HashSet::new();
    let end = archive::for_each_member(reader, BOUNDS, ArchiveError::from, |member| {
        let Some((name, kind)) = accepted(member)? else { return Ok(()) };
        if !seen.insert(name.clone()) {
            return Err(ArchiveError::member(&name, "it occurs twice"));
        }
        each(&name, kind, member)
    })?;
    if end == End::Mark { Ok(()) } else { Err(ArchiveError::Truncated) }
}

/// The name and kind of a file or link; `None` for what is skipped.
fn accepted(member: &mut Entry<'_, impl Read>) -> Result<Option<(String, Kind)>, ArchiveError> {
    let (kind, size) = (member.header().entry_type(), member.size());
    if kind == EntryType::XGlobalHeader {
        return Ok(None);
    }
    check_extensions(member)?;
    let path = text(&member.path_bytes())?;
    let Some(name) = inside(&path, &path)? else { return Ok(None) };
    let link = member.link_name_bytes().unwrap_or_default();
    match kind {
        EntryType::Regular | EntryType::Continuous => Ok(Some((name, Kind::File(size)))),
        EntryType::Symlink => {
            let target = symlink_target(&name, &text(&link)?)?;
            Ok(Some((name, Kind::Link(target))))
        }
        EntryType::Link => {
            let target = inside(&text(&link)?, &name)?.unwrap_or_default();
            Ok(Some((name, Kind::Link(target))))
        }
        EntryType::Directory => Ok(None),
        _ => Err(ArchiveError::member(&name, "only files, directories and links are supported")),
    }
}

/// The `tar` crate applies names and sizes of pax headers, and takes what it cannot read for absent.
fn check_extensions(member: &mut Entry<'_, impl Read>) -> Result<(), ArchiveError> {
    for extension in member.pax_extensions().map_err(ArchiveError::Read)?.into_iter().flatten() {
        let extension = extension.map_err(ArchiveError::Read)?;
        match extension.key_bytes() {
            b"size" if !extension.value().is_ok_and(|size| size.parse::<u64>().is_ok()) => {
                return Err(ArchiveError::damaged("the size of a member is not a number"));
            }
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(ArchiveError::damaged("sparse members are not supported"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn text(bytes: &[u8]) -> Result<String, ArchiveError> {
    str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| ArchiveError::member(&String::from_utf8_lossy(bytes), "its name is not UTF-8"))
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
    use tar::Header;

    use super::*;

    const BLOCK: usize = 512;

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
            ("long header", header("x", T::XHeader, BOUNDS.headers + 1, "").as_bytes().to_vec()),
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
