//! Checksums that others publish beside their files. What hearth itself names is a [`Digest`].

use std::fmt;

use oci::{Algorithm, Hasher};
use sha1::{Digest as _, Sha1};

use crate::digest::Digest;

/// What a file must come to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Checksum {
    /// SHA-256.
    Sha256(Digest),
    /// SHA-512, as Spark's release archives have it.
    Sha512(Digest),
    /// SHA-1, which is all that most Maven repositories have: good against damage, not against an attacker.
    Sha1([u8; 20]),
}

/// A text that is no checksum of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {kind} checksum: expected {digits} hex digits")]
pub struct ParseChecksumError {
    text: String,
    kind: &'static str,
    digits: usize,
}

impl Checksum {
    /// Reads hex digits of either case: publishers use both.
    pub fn sha256(text: &str) -> Result<Self, ParseChecksumError> {
        decode(text, "SHA-256").map(|bytes| Self::Sha256(Digest::Sha256(bytes)))
    }

    /// The same for SHA-512.
    pub fn sha512(text: &str) -> Result<Self, ParseChecksumError> {
        decode(text, "SHA-512").map(|bytes| Self::Sha512(Digest::Sha512(bytes)))
    }

    /// The same for SHA-1.
    pub fn sha1(text: &str) -> Result<Self, ParseChecksumError> {
        decode(text, "SHA-1").map(Self::Sha1)
    }

    /// The digest, when it is one of ours.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Sha256(digest) => Some(*digest),
            _ => None,
        }
    }

    /// Starts to check bytes against this.
    pub fn checker(self) -> Checker {
        let state = match self {
            Self::Sha256(_) => State::None,
            Self::Sha512(_) => State::Sha512(Algorithm::Sha512.hasher()),
            Self::Sha1(_) => State::Sha1(Sha1::default()),
        };
        Checker { wanted: self, state }
    }
}

fn decode<const N: usize>(text: &str, kind: &'static str) -> Result<[u8; N], ParseChecksumError> {
    let mut bytes = [0; N];
    match hex::decode_to_slice(text.trim(), &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(ParseChecksumError { text: text.to_owned(), kind, digits: N * 2 }),
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) | Self::Sha512(digest) => fmt::Display::fmt(digest, f),
            Self::Sha1(bytes) => write!(f, "sha1:{}", hex::encode(bytes)),
        }
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A running check. SHA-256 is computed by who stores the bytes anyway, and given at the end.
#[derive(Clone)]
pub struct Checker {
    wanted: Checksum,
    state: State,
}

#[derive(Clone)]
enum State {
    None,
    Sha512(Hasher),
    Sha1(Sha1),
}

impl Checker {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::None => {}
            State::Sha512(state) => state.update(bytes),
            State::Sha1(state) => state.update(bytes),
        }
    }

    /// What came instead, when it is something else; `digest` is the SHA-256 of the same bytes.
    pub fn finish(self, digest: Digest) -> Result<(), Checksum> {
        let found = match self.state {
            State::None => Checksum::Sha256(digest),
            State::Sha512(state) => Checksum::Sha512(state.finish()),
            State::Sha1(state) => Checksum::Sha1(state.finalize().into()),
        };
        if found == self.wanted { Ok(()) } else { Err(found) }
    }
}

impl fmt::Debug for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checker").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_checked() {
        let sha1 = Checksum::sha1("A9993E364706816ABA3E25717850C26C9CD0D89D").unwrap();
        let sha512 = Checksum::sha512(
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        )
        .unwrap();
        let sha256 = Checksum::Sha256(Digest::of(b"abc"));
        for checksum in [sha1, sha512, sha256] {
            for (bytes, fine) in [(b"abc", true), (b"abd", false)] {
                let mut checker = checksum.checker();
                checker.update(bytes);
                assert_eq!(checker.finish(Digest::of(bytes)).is_ok(), fine, "{checksum}");
            }
        }
        for text in ["", "12", "zz993e364706816aba3e25717850c26c9cd0d89d"] {
            assert!(Checksum::sha1(text).is_err() && Checksum::sha256(text).is_err(), "{text}");
        }
    }
}
