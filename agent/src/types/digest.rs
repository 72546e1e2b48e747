//! Content digests: `<algorithm>:<lower-case hex>` (OCI image specification, descriptor, "Digests").

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256, Sha512};

/// Registered digest algorithms (OCI image specification, "Registered Algorithms").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// 32 bytes; what every registry uses.
    Sha256,
    /// 64 bytes; allowed, rare.
    Sha512,
}

impl Algorithm {
    /// All of them, in the order in which the store lists its directories.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// The name before the colon.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Starts a hash of this kind.
    pub fn hasher(self) -> Hasher {
        match self {
            Self::Sha256 => Hasher::Sha256(Box::default()),
            Self::Sha512 => Hasher::Sha512(Box::default()),
        }
    }
}

/// Names content by its hash. Sixty-five bytes and `Copy`: cheap to hand around, never allocated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// SHA-256.
    Sha256([u8; 32]),
    /// SHA-512.
    Sha512([u8; 64]),
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Another algorithm than the registered ones.
    #[error("digest algorithm of `{0}` is not supported: use sha256 or sha512")]
    Unsupported(String),
    /// Wrong length, upper case, or no hex at all.
    #[error("`{0}` is not a digest: expected `sha256:` and 64, or `sha512:` and 128, lower-case hex digits")]
    Malformed(String),
}

impl Digest {
    /// The digest of bytes that are already in memory (SHA-256).
    pub fn of(bytes: &[u8]) -> Self {
        Self::Sha256(Sha256::digest(bytes).into())
    }

    /// Its algorithm.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The raw hash.
    pub const fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }

    /// The part after the colon.
    pub fn hex(&self) -> String {
        hex::encode(self.as_bytes())
    }

    /// Algorithm and hex, as a file name of the store has them.
    pub fn from_parts(algorithm: Algorithm, hex_digits: &str) -> Option<Self> {
        if hex_digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        match algorithm {
            Algorithm::Sha256 => {
                let mut bytes = [0; 32];
                hex::decode_to_slice(hex_digits, &mut bytes).ok()?;
                Some(Self::Sha256(bytes))
            }
            Algorithm::Sha512 => {
                let mut bytes = [0; 64];
                hex::decode_to_slice(hex_digits, &mut bytes).ok()?;
                Some(Self::Sha512(bytes))
            }
        }
    }

    /// Verifies bytes in memory against this digest.
    pub fn verify(&self, bytes: &[u8]) -> Result<(), Box<Mismatch>> {
        let mut hasher = self.algorithm().hasher();
        hasher.update(bytes);
        match hasher.finish() {
            found if found == *self => Ok(()),
            found => Err(Box::new(Mismatch { expected: *self, found })),
        }
    }

    /// First twelve hex digits, for logs.
    pub fn short(&self) -> ShortDigest<'_> {
        ShortDigest(self)
    }
}

/// Displays a digest shortened; see [`Digest::short`].
pub struct ShortDigest<'a>(&'a Digest);

impl fmt::Display for ShortDigest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0.as_bytes()[..6]))
    }
}

impl fmt::Debug for ShortDigest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().as_str(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let malformed = || DigestError::Malformed(text.chars().take(160).collect());
        let (algorithm, digits) = text.split_once(':').ok_or_else(malformed)?;
        let algorithm = match algorithm {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            other if is_algorithm_name(other) => {
                return Err(DigestError::Unsupported(text.chars().take(160).collect()));
            }
            _ => return Err(malformed()),
        };
        Self::from_parts(algorithm, digits).ok_or_else(malformed)
    }
}

/// `algorithm ::= component (separator component)*` of the image specification.
fn is_algorithm_name(text: &str) -> bool {
    text.split(['+', '.', '_', '-'])
        .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
}

/// Bytes whose digest is not the expected one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("content has the digest `{found}`, expected `{expected}`")]
pub struct Mismatch {
    /// The requested digest.
    pub expected: Digest,
    /// The digest of the bytes.
    pub found: Digest,
}

/// A running hash.
#[derive(Clone, Debug)]
pub enum Hasher {
    /// SHA-256.
    Sha256(Box<Sha256>),
    /// SHA-512.
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Self::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digests_are_read_and_written_in_one_form_only() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
        let long = format!("sha512:{}", "0a".repeat(64));
        assert_eq!(long.parse::<Digest>().unwrap().to_string(), long);
        assert_eq!(Digest::of(b"").short().to_string(), "e3b0c44298fc");
        for wrong in [
            "",
            "sha256",
            "sha256:",
            "sha256:e3b0",
            &EMPTY.to_uppercase(),
            &EMPTY.replace("e3", "E3"),
            &format!("{EMPTY}0"),
            ":abc",
        ] {
            assert!(matches!(wrong.parse::<Digest>(), Err(DigestError::Malformed(_))), "{wrong}");
        }
        assert!(matches!("md5:abc".parse::<Digest>(), Err(DigestError::Unsupported(_))));
    }

    #[test]
    fn a_hash_in_parts_equals_the_hash_of_the_whole() {
        let mut hasher = Algorithm::Sha256.hasher();
        hasher.update(b"he");
        hasher.update(b"arth");
        assert_eq!(hasher.finish(), Digest::of(b"hearth"));
    }

    #[test]
    fn bytes_are_checked_with_the_algorithm_of_the_digest() {
        let mut hasher = Algorithm::Sha512.hasher();
        hasher.update(b"hearth");
        for digest in [Digest::of(b"hearth"), hasher.finish()] {
            assert!(digest.verify(b"hearth").is_ok());
            assert_eq!(digest.verify(b"heart").unwrap_err().expected, digest);
        }
    }
}
