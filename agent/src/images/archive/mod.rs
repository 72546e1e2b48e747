//! Images in and out of the store as files, for networks without a registry.
//!
//! In: an OCI image layout (a directory, or a tar of one, also gzip or zstd) or what `docker save` writes; a tar is read
//! once, front to back. Out: an OCI image layout, as a directory or a tar.
//!
//! An import is checked as a whole before anything of it can be seen: contents are staged beside the store, hashed,
//! held against the manifests that name them, and only then published, blobs first and names last. It fails as a
//! whole too; a crash leaves at most blobs that nothing names. No path of an archive is ever used as a path here.
//!
//! | part | owns |
//! | --- | --- |
//! | `tar` | hostile tar streams |
//! | `intake` | staging of contents and documents |
//! | `oci`, `docker` | what the two formats say (pure) |
//! | `naming` | what imported images are called (pure) |
//! | `import`, `export` | the two directions |

#![expect(clippy::disallowed_methods, reason = "these are the user's files, not the store's")]

mod docker;
mod export;
mod import;
mod intake;
mod naming;
mod oci;
mod tar;

use std::io;

pub use export::{Export, Member, export, unpack};
pub use import::{ImportOptions, Imported, ImportedImage, Source, import};

use crate::{
    store::{StageError, StoreError},
    types::Digest,
};

/// Why an archive cannot be taken in or written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Reading it failed.
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    /// Writing failed.
    #[error("the archive cannot be written")]
    Write(#[source] io::Error),
    /// A directory that holds something.
    #[error("`{}` is not empty: name a new directory", .0.display())]
    NotEmpty(std::path::PathBuf),
    /// It ends before its end mark.
    #[error("the archive is cut short")]
    Truncated,
    /// It is no archive, or a broken one.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// A member that is not taken.
    #[error("the archive's member `{member}` is refused: {reason}")]
    Member {
        /// Its name.
        member: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More than is taken.
    #[error("the archive is refused: {0}")]
    TooLarge(String),
    /// Its compression is not known.
    #[error("the archive is compressed with {0}: unpack it first, or use gzip or zstd")]
    Compression(&'static str),
    /// It is neither of the two formats.
    #[error(
        "this is neither an OCI image layout (`oci-layout`, `index.json`) nor what `docker save` writes (`manifest.json`)"
    )]
    Unknown,
    /// A document that says what is in it.
    #[error("`{document}` of the archive is not usable: {reason}")]
    Document {
        /// Which.
        document: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What a manifest names is not there.
    #[error("image `{image}` is not complete in the archive: {} is missing{}", missing[0], others(missing.len() - 1))]
    Incomplete {
        /// Which.
        image: String,
        /// What is missing; at least one.
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
