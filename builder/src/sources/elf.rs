//! What an ELF file says about itself: its processor, the loader it needs, and the version of a C library.
//!
//! Only the header, the program headers and, in C libraries, the version text are read: the System V ABI ("ELF
//! Header", "Program Header") for 64-bit little-endian files, which both platforms use. Everything else is `None`.

use std::{fmt, io::Read};

use serde::{Deserialize, Serialize};

use crate::platform::Platform;

/// Header, program headers and the name of the loader lie in the first page.
const HEAD: u64 = 64 << 10;

/// The C libraries of real distributions have 0.6 to 4 MiB, with debug information up to 15.
const LIBRARY: u64 = 32 << 20;

const X86_64: u16 = 62;
const AARCH64: u16 = 183;
/// `PT_INTERP`: the segment that names the loader.
const INTERPRETER: u32 = 3;

/// A C library with its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Libc {
    /// The GNU C library.
    Glibc(u32, u32),
    /// musl.
    Musl(u32, u32),
}

impl fmt::Display for Libc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Glibc(major, minor) => write!(f, "glibc {major}.{minor}"),
            Self::Musl(major, minor) => write!(f, "musl {major}.{minor}"),
        }
    }
}

/// An ELF file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binary {
    machine: u16,
    /// The loader that starts it, such as `/lib64/ld-linux-x86-64.so.2`; `None` for a library or a static program.
    pub loader: Option<String>,
    /// Its version when it is a C library.
    pub libc: Option<Libc>,
}

/// Which files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// A shell, a Java or a Python: the processor and the loader matter.
    Program,
    /// A C library: its version matters, too.
    Library,
}

impl Interest {
    /// Judges a path by its name.
    pub fn of(path: &str) -> Option<Self> {
        let name = path.rsplit('/').next().unwrap_or(path);
        let library = name == "libc.so.6"
            || name.strip_suffix(".so").is_some_and(|stem| stem.starts_with("libc-2."))
            || name.strip_suffix(".so.1").is_some_and(|stem| stem.starts_with("ld-musl-"));
        if library {
            return Some(Self::Library);
        }
        let program = matches!(name, "bash" | "java" | "busybox")
            || name.strip_prefix("python").is_some_and(|version| version.starts_with(['2', '3']));
        program.then_some(Self::Program)
    }

    /// Reads a file as far as needed; `None` when it is no ELF file.
    pub fn read(self, file: impl Read) -> std::io::Result<Option<Binary>> {
        let limit = if self == Self::Library { LIBRARY } else { HEAD };
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(Binary::parse(&bytes, self == Self::Library))
    }
}

impl Binary {
    fn parse(bytes: &[u8], library: bool) -> Option<Self> {
        // Class 2: 64 bit; data 1: little-endian.
        if bytes.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let machine = u16::from_le_bytes(bytes.get(18..20)?.try_into().ok()?);
        let libc = if library { version(bytes) } else { None };
        Some(Self { machine, loader: loader(bytes), libc })
    }

    /// The processor as image configurations spell it.
    pub fn architecture(&self) -> String {
        match self.machine {
            X86_64 => "amd64".to_owned(),
            AARCH64 => "arm64".to_owned(),
            other => format!("ELF machine {other}"),
        }
    }

    /// Whether it runs on a platform.
    pub fn is_for(&self, platform: Platform) -> bool {
        self.architecture() == platform.architecture()
    }
}

fn loader(bytes: &[u8]) -> Option<String> {
    let number = |at: usize| -> Option<usize> {
        usize::try_from(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?)).ok()
    };
    let short = |at: usize| Some(usize::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)));
    let (table, size, count) = (number(32)?, short(54)?, short(56)?);
    for at in 0..count {
        let header = table.checked_add(at.checked_mul(size)?)?;
        let kind = u32::from_le_bytes(bytes.get(header..header.checked_add(4)?)?.try_into().ok()?);
        if kind == INTERPRETER {
            let (offset, length) = (number(header.checked_add(8)?)?, number(header.checked_add(32)?)?);
            let name = bytes.get(offset..offset.checked_add(length)?)?;
            return Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
        }
    }
    None
}

/// glibc prints `... release version 2.36.`, and musl `musl libc` with its version as a string of its own.
fn version(bytes: &[u8]) -> Option<Libc> {
    let find = |needle: &[u8]| bytes.windows(needle.len()).position(|window| window == needle);
    if find(b"GNU C Library").is_some() {
        let mark = b"release version ";
        let at = find(mark)? + mark.len();
        let (major, minor) = numbers(bytes.get(at..)?)?;
        return Some(Libc::Glibc(major, minor));
    }
    find(b"musl libc")?;
    let strings = bytes.split(|byte| *byte == 0).filter(|text| text.len() <= 16);
    let versions = strings.filter(|text| text.split(|byte| *byte == b'.').count() == 3);
    let (major, minor) = versions.filter_map(numbers).find(|(major, _)| *major == 1)?;
    Some(Libc::Musl(major, minor))
}

/// The first two numbers of `2.36.` or `1.2.5`.
fn numbers(bytes: &[u8]) -> Option<(u32, u32)> {
    let end = bytes.iter().position(|byte| !byte.is_ascii_digit() && *byte != b'.').unwrap_or(bytes.len());
    let mut parts = str::from_utf8(&bytes[..end]).ok()?.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

#[cfg(test)]
pub mod samples {
    //! ELF files that hold what is read and nothing else.

    use super::{AARCH64, INTERPRETER, X86_64};
    use crate::platform::Platform;

    /// A program with a loader and some text.
    pub fn program(platform: Platform, loader: &str, text: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let machine = if platform == Platform::Arm64 { AARCH64 } else { X86_64 };
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64..68].copy_from_slice(&INTERPRETER.to_le_bytes());
        bytes[72] = 120;
        bytes[96] = u8::try_from(loader.len() + 1).unwrap();
        bytes.extend_from_slice(loader.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(text);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{samples::program, *};

    #[test]
    fn programs_and_c_libraries_are_read() {
        let bash = program(Platform::Arm64, "/lib/ld-linux-aarch64.so.1", b"");
        let binary = Interest::Program.read(&bash[..]).unwrap().unwrap();
        assert_eq!(binary.loader.as_deref(), Some("/lib/ld-linux-aarch64.so.1"));
        assert!(binary.is_for(Platform::Arm64) && !binary.is_for(Platform::Amd64));
        for (text, expected) in [
            (
                &b"\0GNU C Library (Debian GLIBC 2.36-9+deb12u14) stable release version 2.36.\nCopyright"[..],
                Some(Libc::Glibc(2, 36)),
            ),
            (&b"musl libc (x86_64)\nVersion %s\n\x001.2.5\0 \0"[..], Some(Libc::Musl(1, 2))),
            (&b"nothing"[..], None),
        ] {
            let library = program(Platform::Amd64, "/x", text);
            assert_eq!(Interest::Library.read(&library[..]).unwrap().unwrap().libc, expected);
        }
    }

    #[test]
    fn what_is_no_elf_file_or_is_cut_short_says_nothing() {
        assert_eq!(Interest::Program.read(&b"#!/bin/sh\n"[..]).unwrap(), None);
        let whole = program(Platform::Amd64, "/lib64/ld-linux-x86-64.so.2", b"");
        for length in 0..whole.len() {
            let read = Interest::Library.read(&whole[..length]).unwrap();
            assert!(read.is_none_or(|binary| binary.loader.is_none()), "{length}");
        }
    }

    #[test]
    fn files_of_interest_are_known_by_name() {
        for (path, expected) in [
            ("usr/bin/bash", Some(Interest::Program)),
            ("usr/bin/python3.11", Some(Interest::Program)),
            ("usr/lib/x86_64-linux-gnu/libc.so.6", Some(Interest::Library)),
            ("lib64/libc-2.28.so", Some(Interest::Library)),
            ("lib/ld-musl-x86_64.so.1", Some(Interest::Library)),
            ("usr/bin/pythonic", None),
            ("usr/lib/libc.so", None),
        ] {
            assert_eq!(Interest::of(path), expected, "{path}");
        }
    }
}
