//! The headers of archives that other programs wrote, and what a table of contents says about them.
//!
//! Clients parse every header again and refuse a layer whose table says something else, so this reads what Go's
//! `archive/tar` reads, as it does: ustar, PAX, the long names of GNU tar, numbers in base 256. What is rare and read
//! differently by different programs (sparse files, global PAX headers, times in GNU headers) gets no table:
//! [`Problem::Unsupported`]. Such a layer stays a zstd layer that every client reads.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use crate::{
    date::rfc3339,
    layer::{
        chunked::{self, Entry},
        header::BLOCK,
    },
};

/// The most bytes that a PAX header or a long name may have: container runtimes read no more (Go's `maxSpecialFileSize`).
const EXTENDED: u64 = 1 << 20;

/// The year 10000, which RFC 3339 cannot spell.
const LATEST: u64 = 253_402_300_800;

/// Why a header has no entry in a table.
#[derive(Debug)]
pub enum Problem {
    /// The archive cannot be read.
    Read(io::Error),
    /// The header is of a kind that tables do not have, or no header.
    Unsupported(String),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// Refuses a header.
fn unsupported<T>(what: impl Into<String>) -> Result<T, Problem> {
    Err(Problem::Unsupported(what.into()))
}

/// What the extended headers in front of a header say.
#[derive(Debug, Default)]
struct Extended {
    records: BTreeMap<String, Vec<u8>>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

/// Reads the next header with its extended headers; `None` at the end mark, or where the archive ends without one. Every
/// byte that was read is appended to `raw`, also of a header that is refused.
pub fn next(reader: &mut impl Read, raw: &mut Vec<u8>) -> Result<Option<Entry>, Problem> {
    let mut extended = Extended::default();
    loop {
        let Some(block) = block(reader, raw)? else { return Ok(None) };
        if block.iter().all(|byte| *byte == 0) {
            return match self::block(reader, raw)? {
                Some(second) if second.iter().any(|byte| *byte != 0) => unsupported("a single zero block"),
                _ => Ok(None),
            };
        }
        check_sum(&block)?;
        match block[156] {
            b'x' => {
                let data = data(reader, raw, &block)?;
                records(&data, &mut extended.records)?;
            }
            b'L' => extended.name = Some(until_zero(&data(reader, raw, &block)?).to_vec()),
            b'K' => extended.link = Some(until_zero(&data(reader, raw, &block)?).to_vec()),
            _ => return entry(&block, extended).map(Some),
        }
    }
}

fn block(reader: &mut impl Read, raw: &mut Vec<u8>) -> Result<Option<[u8; BLOCK]>, Problem> {
    let start = raw.len();
    reader.by_ref().take(BLOCK as u64).read_to_end(raw)?;
    match raw[start..].try_into() {
        Ok(block) => Ok(Some(block)),
        Err(_) if raw.len() == start => Ok(None),
        Err(_) => unsupported("a header that is cut short"),
    }
}

/// The content of an extended header.
fn data(reader: &mut impl Read, raw: &mut Vec<u8>, block: &[u8; BLOCK]) -> Result<Vec<u8>, Problem> {
    let size = number(&block[124..136])?;
    if size > EXTENDED {
        return unsupported("an extended header of more than 1 MiB");
    }
    let (start, padded) = (raw.len(), size.next_multiple_of(BLOCK as u64));
    reader.by_ref().take(padded).read_to_end(raw)?;
    if (raw.len() - start) as u64 != padded {
        return unsupported("an extended header that is cut short");
    }
    let size = usize::try_from(size).expect("at most 1 MiB");
    Ok(raw[start..start + size].to_vec())
}

/// The sum over a header, its own field as spaces. Old programs summed up signed bytes.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), Problem> {
    let with_spaces = || block[..148].iter().chain(&[b' '; 8]).chain(&block[156..]);
    let unsigned: i64 = with_spaces().map(|byte| i64::from(*byte)).sum();
    let signed: i64 = with_spaces().map(|byte| i64::from(byte.cast_signed())).sum();
    let found = i64::try_from(octal(&block[148..156])?).unwrap_or(-1);
    if found == unsigned || found == signed { Ok(()) } else { unsupported("a header with another checksum") }
}

fn entry(block: &[u8; BLOCK], extended: Extended) -> Result<Entry, Problem> {
    let gnu = &block[257..265] == b"ustar  \0";
    let ustar = &block[257..265] == b"ustar\x0000" && &block[508..512] != b"tar\0";
    if !gnu && !ustar && block[257..262] == *b"ustar" {
        return unsupported("a header of a format that is neither ustar nor that of GNU tar");
    }
    if gnu && (block[345] != 0 || block[357] != 0) {
        return unsupported("times of access in a header of GNU tar");
    }
    let mut name = until_zero(&block[..100]).to_vec();
    let prefix = if ustar { until_zero(&block[345..500]) } else { b"" };
    if !prefix.is_empty() {
        name = [prefix, b"/", &name].concat();
    }
    let mut found = Entry {
        mode: number(&block[100..108])?,
        uid: number(&block[108..116])?,
        gid: number(&block[116..124])?,
        size: number(&block[124..136])?,
        modified: Some(time(number(&block[136..148])?, "")?),
        ..Entry::default()
    };
    if gnu || ustar {
        (found.dev_major, found.dev_minor) = (number(&block[329..337])?, number(&block[337..345])?);
    }
    let mut link = until_zero(&block[157..257]).to_vec();
    for (key, value) in &extended.records {
        apply(key, value, &mut found, &mut name, &mut link)?;
    }
    name = extended.name.filter(|name| !name.is_empty()).unwrap_or(name);
    link = extended.link.filter(|link| !link.is_empty()).unwrap_or(link);
    found.name = text(name)?;
    found.link_name = text(link)?;
    found.kind = kind(block[156], &found.name)?.to_owned();
    if found.kind != "reg" && found.size > 0 {
        return unsupported(format!("content for the {} `{}`", found.kind, found.name));
    }
    Ok(found)
}

/// A record of a PAX header. An empty value leaves what the header says.
fn apply(
    key: &str,
    value: &[u8],
    found: &mut Entry,
    name: &mut Vec<u8>,
    link: &mut Vec<u8>,
) -> Result<(), Problem> {
    if let Some(attribute) = key.strip_prefix("SCHILY.xattr.") {
        found.xattrs.insert(attribute.to_owned(), chunked::xattr(value));
        return Ok(());
    }
    if key.starts_with("GNU.sparse.") {
        return unsupported("a sparse file");
    }
    if value.is_empty() {
        return Ok(());
    }
    let number = || match str::from_utf8(value).ok().and_then(|text| text.parse().ok()) {
        Some(number) if number <= i64::MAX.cast_unsigned() => Ok(number),
        _ => unsupported(format!("a record `{key}` that is no number")),
    };
    match key {
        "path" => *name = value.to_vec(),
        "linkpath" => *link = value.to_vec(),
        "size" => found.size = number()?,
        "uid" => found.uid = number()?,
        "gid" => found.gid = number()?,
        "mtime" => found.modified = Some(decimal_time(value)?),
        "atime" => found.accessed = Some(decimal_time(value)?),
        "ctime" => found.changed = Some(decimal_time(value)?),
        _ => {}
    }
    Ok(())
}

fn kind(flag: u8, name: &str) -> Result<&'static str, Problem> {
    Ok(match flag {
        0 if name.ends_with('/') => "dir",
        0 | b'0' => "reg",
        b'1' => "hardlink",
        b'2' => "symlink",
        b'3' => "char",
        b'4' => "block",
        b'5' => "dir",
        b'6' => "fifo",
        b'g' => return unsupported("a global PAX header"),
        b'S' => return unsupported("a sparse file"),
        other => return unsupported(format!("a header of the type {:?}", char::from(other))),
    })
}

/// The records of a PAX header: `LENGTH KEY=VALUE\n`, the length with everything.
fn records(mut data: &[u8], found: &mut BTreeMap<String, Vec<u8>>) -> Result<(), Problem> {
    let broken = || Problem::Unsupported("a PAX header that cannot be read".to_owned());
    while !data.is_empty() {
        let space = data.iter().position(|byte| *byte == b' ').ok_or_else(broken)?;
        let length: usize =
            str::from_utf8(&data[..space]).ok().and_then(|text| text.parse().ok()).ok_or_else(broken)?;
        let record = data.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n"));
        let record = record.ok_or_else(broken)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(broken)?;
        let key = String::from_utf8(record[..equals].to_vec()).map_err(|_| broken())?;
        found.insert(key, record[equals + 1..].to_vec());
        data = &data[length..];
    }
    Ok(())
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Tables hold text; names may be any bytes.
fn text(bytes: Vec<u8>) -> Result<String, Problem> {
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => unsupported("a name that is not UTF-8"),
    }
}

/// A number in octal digits, or in base 256 where the first bit is set.
fn number(field: &[u8]) -> Result<u64, Problem> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    // The second bit is the sign.
    let digits = std::iter::once(field[0] & 0x7f).chain(field[1..].iter().copied());
    let value = digits
        .into_iter()
        .try_fold(0u64, |value, digit| value.checked_mul(256).map(|value| value + u64::from(digit)));
    match value {
        Some(value) if field[0] & 0x40 == 0 && value <= i64::MAX.cast_unsigned() => Ok(value),
        _ => unsupported("a negative or a huge number"),
    }
}

/// Digits between spaces and zero bytes; nothing is zero.
fn octal(field: &[u8]) -> Result<u64, Problem> {
    let outside = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !outside(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !outside(byte)).map_or(start, |at| at + 1);
    let digits = until_zero(&field[start..end]);
    if digits.is_empty() {
        return Ok(0);
    }
    let value = str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match value.and_then(|text| u64::from_str_radix(text, 8).ok()) {
        Some(value) => Ok(value),
        None => unsupported("a field that is no octal number"),
    }
}

/// Seconds since 1970 and what follows the decimal point.
fn time(seconds: u64, fraction: &str) -> Result<String, Problem> {
    if seconds >= LATEST {
        return unsupported("a time after the year 9999");
    }
    let whole = rfc3339(seconds);
    // Nanoseconds are what clients compare.
    let fraction = fraction.get(..9).unwrap_or(fraction).trim_end_matches('0');
    if fraction.is_empty() {
        return Ok(whole);
    }
    Ok(format!("{}.{fraction}Z", whole.trim_end_matches('Z')))
}

/// A time in a PAX record.
fn decimal_time(value: &[u8]) -> Result<String, Problem> {
    let parse = || {
        let text = str::from_utf8(value).ok()?;
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        (digits(seconds) && digits(fraction)).then_some(())?;
        Some((seconds.parse().ok()?, fraction))
    };
    match parse() {
        Some((seconds, fraction)) => time(seconds, fraction),
        None => unsupported("a time before 1970 or none"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with a checksum.
    fn header(kind: u8, name: &[u8], change: impl FnOnce(&mut [u8; BLOCK])) -> Vec<u8> {
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name);
        for (at, digits) in [(100, "0000644"), (108, "0000271"), (124, "00000000000"), (136, "00000000012")] {
            block[at..at + digits.len()].copy_from_slice(digits.as_bytes());
        }
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        change(&mut block);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block.to_vec()
    }

    fn extended(kind: u8, data: &[u8]) -> Vec<u8> {
        let mut bytes = header(kind, b"pax", |block| {
            block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        });
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Option<Entry>, Problem> {
        let (mut raw, mut rest) = (Vec::new(), bytes);
        let found = next(&mut rest, &mut raw);
        assert_eq!([&raw, rest].concat(), bytes, "nothing is lost");
        found
    }

    #[test]
    fn headers_of_every_program_say_the_same_in_a_table() {
        let plain = Entry {
            kind: "reg".to_owned(),
            name: "a".to_owned(),
            mode: 0o644,
            uid: 185,
            modified: Some("1970-01-01T00:00:10Z".to_owned()),
            ..Entry::default()
        };
        let named = |name: &str| Entry { name: name.to_owned(), ..plain.clone() };
        let gnu = |block: &mut [u8; BLOCK]| block[257..265].copy_from_slice(b"ustar  \0");
        let v7 = |block: &mut [u8; BLOCK]| block[257..265].fill(0);
        let prefix = |block: &mut [u8; BLOCK]| block[345..350].copy_from_slice(b"opt/x");
        let base_256 = |block: &mut [u8; BLOCK]| {
            block[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 185]);
        };
        let a = header(b'0', b"a", |_| ());
        let cases: Vec<(&str, Vec<u8>, Entry)> = vec![
            ("ustar", a.clone(), plain.clone()),
            ("GNU", header(b'0', b"a", gnu), plain.clone()),
            ("V7", header(0, b"a", v7), plain.clone()),
            ("V7 directory", header(0, b"a/", v7), Entry { kind: "dir".to_owned(), ..named("a/") }),
            ("prefix", header(b'0', b"a", prefix), named("opt/x/a")),
            ("base 256", header(b'0', b"a", base_256), plain.clone()),
            ("long name", [extended(b'L', b"long/name\0"), a.clone()].concat(), named("long/name")),
            (
                "PAX name",
                [extended(b'x', "13 path=\u{fa}/b\n".as_bytes()), a.clone()].concat(),
                named("\u{fa}/b"),
            ),
            (
                "PAX times",
                [extended(b'x', b"22 mtime=12.500000001\n11 atime=7\n8 size=\n"), a.clone()].concat(),
                Entry {
                    modified: Some("1970-01-01T00:00:12.500000001Z".to_owned()),
                    accessed: Some("1970-01-01T00:00:07Z".to_owned()),
                    ..plain.clone()
                },
            ),
            (
                "attribute",
                [extended(b'x', b"26 SCHILY.xattr.user.a=\0\xff\n"), a].concat(),
                Entry { xattrs: [("user.a".to_owned(), "AP8=".to_owned())].into(), ..plain.clone() },
            ),
        ];
        for (what, bytes, expected) in cases {
            assert_eq!(read(&bytes).unwrap(), Some(expected), "{what}");
        }
        assert_eq!(read(&[0; 3 * BLOCK]).unwrap(), None);
        assert_eq!(read(&[]).unwrap(), None, "an archive without an end mark");
    }

    #[test]
    fn what_programs_read_differently_has_no_entry() {
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("global PAX header", header(b'g', b"a", |_| ())),
            ("sparse", header(b'S', b"a", |_| ())),
            ("type 'V'", header(b'V', b"a", |_| ())),
            ("content", header(b'5', b"a/", |block| block[134] = b'7')),
            ("UTF-8", header(b'0', b"\xff", |_| ())),
            (
                "checksum",
                header(b'0', b"a", |_| ()).iter().map(|byte| byte ^ u8::from(*byte == b'a')).collect(),
            ),
            ("cut short", header(b'0', b"a", |_| ())[..100].to_vec()),
            ("octal", header(b'0', b"a", |block| block[101] = b'9')),
            ("negative", header(b'0', b"a", |block| block[136] = 0xff)),
            (
                "access",
                header(b'0', b"a", |block| {
                    block[257..265].copy_from_slice(b"ustar  \0");
                    block[345] = b'1';
                }),
            ),
            ("zero block", [vec![0; BLOCK], vec![1; BLOCK]].concat()),
            ("cannot be read", extended(b'x', b"99 path=a\n")),
            ("1970", [extended(b'x', b"13 mtime=-12\n"), header(b'0', b"a", |_| ())].concat()),
        ];
        for (what, bytes) in cases {
            match read(&bytes) {
                Err(Problem::Unsupported(reason)) => assert!(reason.contains(what), "{what}: {reason}"),
                other => panic!("{what}: {other:?}"),
            }
        }
    }
}
