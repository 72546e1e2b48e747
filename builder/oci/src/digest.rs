//! Content digests: `<algorithm>:<lower-case hex>` (OCI image specification, descriptor, "Digests").

use std::{fmt, io, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
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
            Self::Sha256 => Hasher::default(),
            Self::Sha512 => Hasher { state: State::Sha512(Box::default()), length: 0 },
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
    /// Another algorithm than the only one that can be used.
    #[error("`{0}` is not a digest that can be used: expected `sha256:` and 64 lower-case hex digits")]
    NotSha256(String),
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

    /// A SHA-256 by its hex digits alone, as file names and checksums have them.
    pub fn from_hex(hex_digits: &str) -> Option<Self> {
        Self::from_parts(Algorithm::Sha256, hex_digits)
    }

    /// Reads a digest where only SHA-256 can be used.
    pub fn parse_sha256(text: &str) -> Result<Self, DigestError> {
        match text.parse() {
            Ok(digest @ Self::Sha256(_)) => Ok(digest),
            _ => Err(DigestError::NotSha256(text.chars().take(160).collect())),
        }
    }

    /// Verifies bytes in memory against this digest.
    pub fn verify(&self, bytes: &[u8]) -> Result<(), Box<Mismatch>> {
        let mut hasher = self.algorithm().hasher();
        hasher.update(bytes);
        self.check(hasher.finish())
    }

    /// Whether the digest of some content is the expected one.
    pub fn check(&self, found: Self) -> Result<(), Box<Mismatch>> {
        if found == *self { Ok(()) } else { Err(Box::new(Mismatch { expected: *self, found })) }
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

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A running hash that also counts. The default is SHA-256.
#[derive(Clone)]
pub struct Hasher {
    state: State,
    length: u64,
}

#[derive(Clone)]
enum State {
    Sha256(Box<Sha256>),
    Sha512(Box<Sha512>),
}

impl Default for Hasher {
    fn default() -> Self {
        Self { state: State::Sha256(Box::default()), length: 0 }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").field("length", &self.length).finish_non_exhaustive()
    }
}

impl Hasher {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
        self.length += bytes.len() as u64;
    }

    /// Bytes added so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        match self.state {
            State::Sha256(state) => Digest::Sha256(state.finalize().into()),
            State::Sha512(state) => Digest::Sha512(state.finalize().into()),
        }
    }
}

/// Hashes what passes through it (SHA-256), for readers and writers alike.
#[derive(Debug)]
pub struct Hashing<T> {
    inner: T,
    hasher: Hasher,
}

impl<T> Hashing<T> {
    /// Wraps a reader or writer.
    pub fn new(inner: T) -> Self {
        Self { inner, hasher: Hasher::default() }
    }

    /// The wrapped value and the hash of what passed.
    pub fn into_parts(self) -> (T, Hasher) {
        (self.inner, self.hasher)
    }
}

impl<R: io::Read> io::Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

impl<W: io::Write> io::Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
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
        assert_eq!(Digest::parse_sha256(EMPTY), Ok(Digest::of(b"")));
        assert!(matches!(Digest::parse_sha256(&long), Err(DigestError::NotSha256(_))));
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
        assert_eq!(hasher.length(), 6);
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
