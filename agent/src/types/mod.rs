//! Types for the terms of the protocol: strings of the network are parsed once, when they arrive, so that they
//! cannot be confused afterwards. Nothing here does I/O.

mod amount;
mod cache;
mod causes;
mod duration;
mod manifest;
mod pattern;
mod piece_hash;
mod platform;
mod range;
mod size;
mod validator;

pub use amount::{Amount, parse_percent, share};
pub use cache::Cache;
pub use causes::{chain, root_cause};
pub use duration::{DurationError, parse_duration};
pub use manifest::{
    Descriptor, MANIFEST_ACCEPT, MAX_MANIFEST_BYTES, ManifestError, ManifestLinks, MediaType, Role,
    media_type_of, named_media_type,
};
pub use oci::{
    Algorithm, Digest, DigestError, Hasher, ImageName, Mismatch, NameError, Reference, RegistryHost,
    RepoName, Repository, Tag,
};
pub use pattern::RegistryPattern;
pub use piece_hash::{PieceHash, PieceHashError, PieceHasher};
pub use platform::{Platform, PlatformError};
pub use range::{ByteRange, RangeHeader};
pub use size::{SizeError, format_size, parse_size};
pub use validator::Validator;
