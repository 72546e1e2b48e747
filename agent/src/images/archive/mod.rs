//! Imports and exports images as files, for networks without a registry.
//!
//! Import: an OCI image layout (a directory, or a tar, also gzip or zstd) or a `docker save` archive; a tar is read
//! once from start to end. Export: an OCI image layout, as a directory or a tar.
//!
//! An import is checked as a whole before any of it is visible: contents are staged beside the store, hashed,
//! compared with the manifests that refer to them, and only then published, blobs first and names last. It also fails
//! as a whole; a crash leaves at most unreferenced blobs. No path in an archive is used as a path on disk.
//!
//! | part | owns |
//! | --- | --- |
//! | `tar` | hostile tar streams |
//! | `intake` | staging of contents and documents |
//! | `layout`, `docker` | the two formats (pure) |
//! | `naming` | the names of imported images (pure) |
//! | `import`, `export` | the two directions |

#![expect(clippy::disallowed_methods, reason = "these are the user's files, not the store's")]

mod docker;
mod export;
mod import;
mod intake;
mod layout;
mod naming;
mod tar;

use std::io::{self, Read as _};

pub use export::{Export, Member, export, unpack};
pub use import::{ImportOptions, Imported, ImportedImage, Source, import};

/// Reads the members of an archive; for the fuzz target.
pub(crate) fn try_read(bytes: &[u8]) {
    if let Ok(reader) = oci::archive::decompressed(bytes) {
        let _ = tar::read(reader.take(1 << 20), |_, _, content| {
            io::copy(content, &mut io::sink()).map(drop).map_err(ArchiveError::Read)
        });
    }
}

use crate::{
    store::{StageError, StoreError},
    types::Digest,
};

/// Why an archive cannot be imported or written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Reading it failed.
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    /// Writing failed.
    #[error("the archive cannot be written")]
    Write(#[source] io::Error),
    /// The target directory is not empty.
    #[error("`{}` is not empty: use a new directory", .0.display())]
    NotEmpty(std::path::PathBuf),
    /// The archive ends before its end mark.
    #[error("the archive is cut short")]
    Truncated,
    /// It is not an archive, or a damaged one.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// A member that is not accepted.
    #[error("archive member `{member}` is not accepted: {reason}")]
    Member {
        /// Its name.
        member: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A limit is exceeded.
    #[error("the archive is not accepted: {0}")]
    TooLarge(String),
    /// The compression is not supported.
    #[error("the archive is compressed with {0}: unpack it first, or use gzip or zstd")]
    Compression(&'static str),
    /// The archive has neither of the two formats.
    #[error(
        "the archive is neither an OCI image layout (`oci-layout`, `index.json`) nor a `docker save` archive (`manifest.json`)"
    )]
    Unknown,
    /// A document that describes the archive is not usable.
    #[error("`{document}` in the archive is not usable: {reason}")]
    Document {
        /// Name of the document.
        document: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Content of a manifest is missing.
    #[error("image `{image}` is not complete in the archive: {} is missing{}", missing[0], others(missing.len() - 1))]
    Incomplete {
        /// Name of the image.
        image: String,
        /// The missing digests; at least one.
        missing: Vec<Digest>,
    },
    /// Images without usable names.
    #[error("{0}")]
    Name(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn others(count: usize) -> String {
    if count == 0 { String::new() } else { format!(", and {count} more") }
}

impl ArchiveError {
    fn damaged(reason: &str) -> Self {
        Self::Damaged(reason.to_owned())
    }

    fn member(member: &str, reason: &str) -> Self {
        Self::Member { member: member.chars().take(200).collect(), reason: reason.to_owned() }
    }

    fn document(document: &str, reason: impl Into<String>) -> Self {
        Self::Document { document: document.to_owned(), reason: reason.into() }
    }
}

impl From<StageError> for ArchiveError {
    fn from(error: StageError) -> Self {
        match error {
            StageError::Read(source) => Self::Read(source),
            StageError::Store(error) => Self::Store(error),
        }
    }
}
