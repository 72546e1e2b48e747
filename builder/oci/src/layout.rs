//! Names within an OCI image layout (image specification 1.1, "Image Layout").

use crate::{Algorithm, Digest};

/// The document that marks a layout.
pub const MARK: &str = "oci-layout";

/// Its content.
pub const VERSION: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The document that lists the images.
pub const INDEX: &str = "index.json";

/// The annotation that names an image within a layout: a tag, or a whole name.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The blob of a path in a layout.
pub fn blob_of(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    let algorithm = Algorithm::ALL.into_iter().find(|one| one.as_str() == algorithm)?;
    Digest::from_parts(algorithm, hex)
}

/// The path of a blob in a layout.
pub fn path_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_named_by_their_digests() {
        let digest = Digest::of(b"m");
        assert_eq!(blob_of(&path_of(&digest)), Some(digest));
        for other in ["blobs/sha256/x", "blobs/md5/00", "x/sha256/00", "index.json"] {
            assert_eq!(blob_of(other), None);
        }
    }
}
