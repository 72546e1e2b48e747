//! The tar headers of layers, byte by byte.
//!
//! POSIX ustar, with a PAX header in front only where ustar cannot say it: paths that do not fit or are not
//! ASCII, long link targets, sizes and owners past the octal fields, extended attributes. No user or group
//! names, no access or change times, no padding that depends on anything but the entry. The format is
//! described in POSIX.1-2017, "pax", sections "ustar Interchange Format" and "pax Extended Header".

use super::chunked;
use crate::{
    date::rfc3339,
    tree::{Entry, ImagePath, Kind},
};

/// Tar works in blocks of this size.
pub const BLOCK: usize = 512;

/// The end mark of an archive: two zero blocks.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// The version of this writer: part of every layer's key in the cache, raised when bytes would change.
pub const VERSION: u32 = 1;

/// What a header says about an entry whose content may be that of another (hard links).
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// The name.
    pub path: &'a ImagePath,
    /// The attributes.
    pub entry: &'a Entry,
    /// The earlier name of the same file, when this is a hard link.
    pub same_as: Option<&'a ImagePath>,
}

impl Member<'_> {
    /// Bytes of content that follow the header.
    pub fn size(&self) -> u64 {
        match (&self.entry.kind, self.same_as) {
            (Kind::File { content, .. }, None) => content.size,
            _ => 0,
        }
    }

    /// Zero bytes after the content.
    pub fn padding(&self) -> usize {
        let over = usize::try_from(self.size() % BLOCK as u64).expect("less than a block");
        (BLOCK - over) % BLOCK
    }
}

/// Appends the header blocks of a member.
pub fn write(member: &Member<'_>, out: &mut Vec<u8>) {
    let entry = member.entry;
    let mut name = member.path.as_str().to_owned();
    if entry.kind == Kind::Directory {
        name.push('/');
    }
    let link = match (member.same_as, &entry.kind) {
        (Some(path), _) => path.as_str(),
        (None, Kind::Symlink(target)) => target,
        _ => "",
    };
    let mut extended = Vec::new();
    let split = split(&name).filter(|_| name.is_ascii());
    if split.is_none() {
        record(&mut extended, "path", name.as_bytes());
    }
    if link.len() > 100 || !link.is_ascii() {
        record(&mut extended, "linkpath", link.as_bytes());
    }
    for (key, value, width) in [("size", member.size(), 12), ("uid", entry.uid, 8), ("gid", entry.gid, 8)] {
        if !fits(value, width) {
            record(&mut extended, key, value.to_string().as_bytes());
        }
    }
    for (key, value) in &entry.xattrs {
        let value = hex::decode(value).unwrap_or_default();
        record(&mut extended, &format!("SCHILY.xattr.{key}"), &value);
    }
    if !extended.is_empty() {
        let mut header = Block::new(b'x', 0o644, entry.mtime);
        header.text(0, 100, "pax");
        header.octal(124, 12, extended.len() as u64);
        out.extend_from_slice(&header.finish());
        let padding = (BLOCK - extended.len() % BLOCK) % BLOCK;
        out.extend_from_slice(&extended);
        out.resize(out.len() + padding, 0);
    }
    out.extend_from_slice(&block(member, split, &name, link));
}

/// What a table of contents says about a member: the same as its header, as readers of archives understand that.
pub fn table_entry(member: &Member<'_>) -> chunked::Entry {
    let entry = member.entry;
    let mut name = member.path.as_str().to_owned();
    if entry.kind == Kind::Directory {
        name.push('/');
    }
    let (kind, link) = match (&entry.kind, member.same_as) {
        (_, Some(path)) => ("hardlink", path.as_str()),
        (Kind::File { .. }, None) => ("reg", ""),
        (Kind::Symlink(target), None) => ("symlink", target.as_str()),
        (Kind::Character { .. }, None) => ("char", ""),
        (Kind::Block { .. }, None) => ("block", ""),
        (Kind::Directory, None) => ("dir", ""),
        (Kind::Fifo, None) => ("fifo", ""),
    };
    let (major, minor) = match entry.kind {
        Kind::Character { major, minor } | Kind::Block { major, minor } => (major, minor),
        _ => (0, 0),
    };
    let xattr = |(name, value): (&String, &String)| {
        (name.clone(), chunked::xattr(&hex::decode(value).unwrap_or_default()))
    };
    chunked::Entry {
        kind: kind.to_owned(),
        name,
        link_name: link.to_owned(),
        mode: entry.mode.into(),
        size: member.size(),
        uid: entry.uid,
        gid: entry.gid,
        modified: Some(rfc3339(entry.mtime)),
        dev_major: major.into(),
        dev_minor: minor.into(),
        xattrs: entry.xattrs.iter().map(xattr).collect(),
        ..chunked::Entry::default()
    }
}

fn block(member: &Member<'_>, split: Option<(&str, &str)>, name: &str, link: &str) -> [u8; BLOCK] {
    let entry = member.entry;
    let (kind, device) = match (&entry.kind, member.same_as) {
        (_, Some(_)) => (b'1', None),
        (Kind::File { .. }, None) => (b'0', None),
        (Kind::Symlink(_), None) => (b'2', None),
        (Kind::Character { major, minor }, None) => (b'3', Some((*major, *minor))),
        (Kind::Block { major, minor }, None) => (b'4', Some((*major, *minor))),
        (Kind::Directory, None) => (b'5', None),
        (Kind::Fifo, None) => (b'6', None),
    };
    let mut block = Block::new(kind, entry.mode, entry.mtime);
    // With a PAX header the ustar name is only for programs that do not know PAX: any prefix will do.
    let (prefix, rest) = split.unwrap_or(("", name));
    block.text(345, 155, prefix);
    block.text(0, 100, rest);
    block.text(157, 100, link);
    block.octal(108, 8, entry.uid);
    block.octal(116, 8, entry.gid);
    block.octal(124, 12, member.size());
    let (major, minor) = device.unwrap_or((0, 0));
    block.octal(329, 8, u64::from(major));
    block.octal(337, 8, u64::from(minor));
    block.finish()
}

/// Splits a name into the prefix and name fields (155 and 100 bytes) at a slash; `None` when it cannot be.
fn split(name: &str) -> Option<(&str, &str)> {
    if name.len() <= 100 {
        return Some(("", name));
    }
    // The slash at the end of a directory's name is no place to split at: the rest would be empty.
    let body = name.strip_suffix('/').unwrap_or(name);
    let earliest = name.len().checked_sub(101)?;
    let at = body.bytes().enumerate().skip(earliest).find(|(_, byte)| *byte == b'/')?.0;
    (at <= 155).then(|| (&name[..at], &name[at + 1..]))
}

/// Whether a number fits the octal field of `width` bytes, the last of which is a zero byte.
fn fits(value: u64, width: u32) -> bool {
    value < 1 << (3 * (width - 1))
}

/// One record of a PAX header: its own length, in decimal, counts itself.
fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() != rest.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

struct Block([u8; BLOCK]);

impl Block {
    fn new(kind: u8, mode: u32, mtime: u64) -> Self {
        let mut block = Self([0; BLOCK]);
        block.octal(100, 8, u64::from(mode));
        block.octal(108, 8, 0);
        block.octal(116, 8, 0);
        block.octal(136, 12, mtime);
        block.0[156] = kind;
        block.0[257..265].copy_from_slice(b"ustar\x0000");
        block
    }

    /// Cuts at the field's width: longer texts are in the PAX header. Non-ASCII bytes become underscores.
    fn text(&mut self, at: usize, width: usize, text: &str) {
        for (slot, byte) in self.0[at..at + width].iter_mut().zip(text.bytes()) {
            *slot = if byte.is_ascii() { byte } else { b'_' };
        }
    }

    fn octal(&mut self, at: usize, width: usize, value: u64) {
        let width = u32::try_from(width).expect("fields are 8 or 12 bytes");
        let value = if fits(value, width) { value } else { 0 };
        let digits = format!("{value:0width$o}", width = width as usize - 1);
        self.0[at..at + digits.len()].copy_from_slice(digits.as_bytes());
    }

    fn finish(mut self) -> [u8; BLOCK] {
        // The checksum is computed with its own field full of spaces.
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::{cache::Content, digest::Digest};

    fn archive(path: &str, entry: &Entry, same_as: Option<&ImagePath>) -> Vec<u8> {
        let mut out = Vec::new();
        write(&Member { path: &ImagePath::new(path).unwrap(), entry, same_as }, &mut out);
        out.extend_from_slice(&END);
        out
    }

    fn empty_file() -> Entry {
        Entry::file(Content { digest: Digest::of(b""), size: 0 }, 0o755)
    }

    #[test]
    fn names_of_every_length_read_back() {
        let deep = |count: usize| vec!["directory-name"; count].join("/");
        // The name, and whether a file and a directory (one slash longer) need an extended header for it.
        let cases = [
            ("a".to_owned(), [false, false]),
            ("n".repeat(100), [false, true]),
            ("n".repeat(101), [true, true]),
            (format!("{}/{}", "p".repeat(155), "n".repeat(99)), [false, false]),
            (format!("{}/{}", "p".repeat(155), "n".repeat(100)), [false, true]),
            (format!("{}/{}", "p".repeat(156), "n".repeat(10)), [true, true]),
            (deep(12), [false, false]),
            (deep(40), [true, true]),
            ("F\u{151}tan\u{fa}s\u{ed}tv\u{e1}ny.crt".to_owned(), [true, true]),
        ];
        for (name, expected) in cases {
            for (entry, extended) in [empty_file(), Entry::directory(0o755)].iter().zip(expected) {
                let bytes = archive(&name, entry, None);
                let mut archive = tar::Archive::new(&bytes[..]);
                let member = archive.entries().unwrap().next().unwrap().unwrap();
                let read = String::from_utf8(member.path_bytes().into_owned()).unwrap();
                assert_eq!(read.trim_end_matches('/'), name);
                assert_eq!(bytes.len() > END.len() + BLOCK, extended, "{name} as {:?}", entry.kind);
            }
        }
    }

    #[test]
    fn attributes_links_and_devices_read_back() {
        let mut entry = Entry::symlink(&"t".repeat(150));
        entry.uid = 1_311_767_953; // larger than the octal field: docker-stacks#591
        entry.gid = 185;
        entry.xattrs.insert("security.capability".to_owned(), "0100ff".to_owned());
        let bytes = archive("bin/x", &entry, None);
        let mut archive_reader = tar::Archive::new(&bytes[..]);
        let mut member = archive_reader.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(member.link_name_bytes().unwrap().len(), 150);
        assert_eq!(member.header().gid().unwrap(), 185);
        assert_eq!(member.header().mtime().unwrap(), crate::tree::FIXED_TIME);
        let found: Vec<(String, Vec<u8>)> = member
            .pax_extensions()
            .unwrap()
            .unwrap()
            .map(|extension| extension.unwrap())
            .map(|extension| (extension.key().unwrap().to_owned(), extension.value_bytes().to_vec()))
            .collect();
        assert!(found.contains(&("uid".to_owned(), b"1311767953".to_vec())));
        assert!(found.contains(&("SCHILY.xattr.security.capability".to_owned(), vec![1, 0, 0xff])));

        let device = Entry { kind: Kind::Character { major: 1, minor: 3 }, ..Entry::directory(0o666) };
        let bytes = archive("dev/null", &device, None);
        let mut archive_reader = tar::Archive::new(&bytes[..]);
        let member = archive_reader.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(member.header().device_minor().unwrap(), Some(3));
        assert_eq!(member.header().entry_type(), tar::EntryType::Char);

        let target = ImagePath::known("usr/bin/perl");
        let bytes = archive("usr/bin/perl5", &empty_file(), Some(&target));
        let mut archive_reader = tar::Archive::new(&bytes[..]);
        let member = archive_reader.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(member.header().entry_type(), tar::EntryType::Link);
        assert_eq!(&*member.link_name_bytes().unwrap(), b"usr/bin/perl");
    }

    #[test]
    fn sizes_past_eight_gibibytes_go_into_the_extended_header() {
        let entry = Entry::file(Content { digest: Digest::of(b""), size: 9 << 30 }, 0o644);
        let mut bytes = Vec::new();
        write(&Member { path: &ImagePath::known("big"), entry: &entry, same_as: None }, &mut bytes);
        let mut archive = tar::Archive::new((&bytes[..]).chain(std::io::repeat(0)));
        let member = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(member.size(), 9 << 30);
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for (value, expected) in [(1, 9), (88, 97), (90, 99), (91, 101), (92, 102), (989, 999), (990, 1001)] {
            let mut out = Vec::new();
            record(&mut out, "path", &vec![b'v'; value]);
            let text = String::from_utf8(out.clone()).unwrap();
            let said: usize = text.split_once(' ').unwrap().0.parse().unwrap();
            assert_eq!((said, out.len()), (expected, expected), "value of {value}");
        }
    }
}
