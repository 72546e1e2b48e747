//! The words of the format: annotations, the footer's numbers, entries of a table and lines of tar-split data.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Annotations of a layer's descriptor.
pub type Annotations = BTreeMap<String, String>;

/// How the names of all annotations of the format begin.
pub const PREFIX: &str = "io.github.containers.zstd-chunked.";

/// The annotation with the SHA-256 of the compressed table.
pub(super) const CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";

/// The annotation with the table's place: `offset:length:uncompressed length:1`.
pub(super) const POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";

/// The annotation with the place of the tar-split data: `offset:length:uncompressed length`.
pub(super) const TAR_SPLIT: &str = "io.github.containers.zstd-chunked.tarsplit-position";

/// The first bytes of a skippable frame.
pub(super) const SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];

/// The end of the footer.
pub(super) const MAGIC: &[u8; 8] = b"GNUlInUx";

/// The kind of table that the format has: that of CRFS.
pub(super) const KIND: u64 = 1;

/// Tables above this size are refused by clients (container-libs `maxTocSize`).
pub(super) const LARGEST: u64 = 150 << 20;

/// One entry of a table, as JSON spells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Entry {
    /// `reg`, `hardlink`, `char`, `block`, `dir`, `fifo`, `symlink`, or `chunk` for a further chunk of a file.
    #[serde(rename = "type")]
    pub kind: String,
    /// The name as the archive has it: that of a directory ends with a slash.
    pub name: String,
    /// The target of a link.
    #[serde(skip_serializing_if = "is_default")]
    pub link_name: String,
    /// The mode as the archive has it.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: u64,
    /// Bytes of the whole file.
    #[serde(skip_serializing_if = "is_default")]
    pub size: u64,
    /// The owner.
    #[serde(skip_serializing_if = "is_default")]
    pub uid: u64,
    /// The group.
    #[serde(skip_serializing_if = "is_default")]
    pub gid: u64,
    /// When it was modified, as RFC 3339.
    #[serde(rename = "modtime", skip_serializing_if = "is_default")]
    pub modified: Option<String>,
    /// When it was accessed, likewise.
    #[serde(rename = "accesstime", skip_serializing_if = "is_default")]
    pub accessed: Option<String>,
    /// When its attributes were changed, likewise.
    #[serde(rename = "changetime", skip_serializing_if = "is_default")]
    pub changed: Option<String>,
    /// Of a device.
    #[serde(skip_serializing_if = "is_default")]
    pub dev_major: u64,
    /// Of a device.
    #[serde(skip_serializing_if = "is_default")]
    pub dev_minor: u64,
    /// Extended attributes, values in base 64.
    #[serde(skip_serializing_if = "is_default")]
    pub xattrs: BTreeMap<String, String>,
    /// SHA-256 of the file, unless it is empty.
    #[serde(skip_serializing_if = "is_default")]
    pub digest: Option<Digest>,
    /// Where the frame of its first chunk begins in the layer.
    #[serde(skip_serializing_if = "is_default")]
    pub offset: u64,
    /// Where the frame of its last chunk ends.
    #[serde(skip_serializing_if = "is_default")]
    pub end_offset: u64,
    /// Bytes of the chunk, where a file has several.
    #[serde(skip_serializing_if = "is_default")]
    pub chunk_size: u64,
    /// Where the chunk begins in the file.
    #[serde(skip_serializing_if = "is_default")]
    pub chunk_offset: u64,
    /// SHA-256 of the chunk.
    #[serde(skip_serializing_if = "is_default")]
    pub chunk_digest: Option<Digest>,
    /// `zeros` for a run of zeros.
    #[serde(skip_serializing_if = "is_default")]
    pub chunk_type: String,
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The value of an extended attribute as tables spell it.
pub fn xattr(value: &[u8]) -> String {
    STANDARD.encode(value)
}

/// A line of tar-split data.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Line {
    /// 1 for a file, 2 for bytes of the archive.
    #[serde(rename = "type")]
    pub(super) kind: u8,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) size: u64,
    /// Bytes of the archive, or the CRC of the file, in base 64.
    pub(super) payload: Option<String>,
    pub(super) position: u64,
}
