//! The list of classes that an archive of class data is made of.
//!
//! Java writes one for each process (`-XX:DumpLoadedClassList`). A list is merged from those of all processes and
//! sorted. Two runs of a job load some classes more or less, since threads race; so a lock has the list itself, compressed.

use std::{
    collections::BTreeSet,
    io::{self, Read},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};

/// A list of Spark's classes has about a megabyte.
const LARGEST: u64 = 64 << 20;

/// A lock is read by people and kept in version control: the smallest form counts.
const LEVEL: i32 = 19;

/// Why the list of a lock cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// It is not base64.
    #[error("its list of classes is not base64")]
    Encoding(#[from] base64::DecodeError),
    /// It cannot be unpacked.
    #[error("its list of classes cannot be unpacked")]
    Compression(#[source] io::Error),
}

/// The lines of all lists that an archive can have, each once, in order.
pub fn merge<'a>(lists: impl IntoIterator<Item = &'a str>) -> String {
    let lines: BTreeSet<&str> = lists.into_iter().flat_map(str::lines).filter_map(archivable).collect();
    lines.into_iter().flat_map(|line| [line, "\n"]).collect()
}

/// What a line names, unless no archive can have it: classes of other class loaders have a `source:`, and proxies and hidden
/// classes are numbered anew in each process.
fn archivable(line: &str) -> Option<&str> {
    if line.starts_with('#') || line.contains(" source: ") || line.contains("$Proxy") {
        return None;
    }
    if line.starts_with('@') {
        return Some(line.trim_end());
    }
    let name = line.split(' ').next().unwrap_or_default();
    (!name.is_empty() && !name.contains("+0x") && !name.contains("/0x")).then_some(name)
}

/// A list as a lock has it.
pub fn pack(list: &str) -> io::Result<String> {
    Ok(BASE64_STANDARD.encode(zstd::encode_all(list.as_bytes(), LEVEL)?))
}

/// The list of a lock.
pub fn unpack(packed: &str) -> Result<String, ListError> {
    let bytes = BASE64_STANDARD.decode(packed)?;
    let mut list = String::new();
    zstd::Decoder::new(bytes.as_slice())
        .and_then(|decoder| decoder.take(LARGEST).read_to_string(&mut list))
        .map_err(ListError::Compression)?;
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_merged_without_what_no_archive_can_have() {
        let driver = "# NOTE: do not modify\njava/lang/Object id: 0\norg/B id: 7 super: 1 source: x.jar\norg/A id: 3\n";
        let executor = "java/lang/Object id: 0\njdk/proxy2/$Proxy23 id: 9\norg/A$$Lambda$14/0x0000000800c1 id: 2\n\
                        @lambda-proxy org/A run ()V\n\n";
        let expected = "@lambda-proxy org/A run ()V\njava/lang/Object\norg/A\n";
        assert_eq!(merge([driver, executor]), expected);
        assert_eq!(merge([executor, driver]), expected);
    }

    #[test]
    fn a_list_comes_back_from_a_lock() {
        let list = "java/lang/Object\norg/A\n";
        assert_eq!(unpack(&pack(list).unwrap()).unwrap(), list);
        assert!(matches!(unpack("*"), Err(ListError::Encoding(_))));
        assert!(matches!(unpack("AAAA"), Err(ListError::Compression(_))));
    }
}
