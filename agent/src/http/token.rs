//! The token of the admin listener: a client that shows it sees names.

use std::{path::PathBuf, time::Duration};

use http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};

/// Shorter tokens can be guessed and are not accepted.
const SHORTEST: usize = 16;

/// Longest token, in bytes.
const LONGEST: usize = 4096;

/// Longest wait for the file.
const READ: Duration = Duration::from_secs(1);

/// Reads the file when a client shows a token, so that a new one counts at once. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Token(Option<PathBuf>);

impl Token {
    /// Of the file with the token; without one no client sees names.
    pub fn of(file: Option<PathBuf>) -> Self {
        Self(file)
    }

    /// Whether a request shows the token.
    pub(super) async fn is_shown(&self, headers: &HeaderMap) -> bool {
        let Some(path) = &self.0 else { return false };
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(shown) = shown.and_then(|value| value.strip_prefix("Bearer ")) else { return false };
        match tokio::time::timeout(READ, tokio::fs::read(path)).await {
            Ok(Ok(known)) => is_same(known.trim_ascii(), shown.trim().as_bytes()),
            Ok(Err(error)) => {
                tracing::warn!(%error, path = %path.display(), "cannot read the token of the admin listener: names stay hidden");
                false
            }
            Err(_) => false,
        }
    }
}

/// Takes the same time for every wrong token of a length: their hashes are compared. Pure.
fn is_same(known: &[u8], shown: &[u8]) -> bool {
    let fits = |token: &[u8]| (SHORTEST..=LONGEST).contains(&token.len());
    fits(known) && fits(shown) && Sha256::digest(known) == Sha256::digest(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_counts_and_a_short_one_never_does() {
        let token = b"0123456789abcdef".as_slice();
        for (known, shown, expected) in [
            (token, token, true),
            (token, b"0123456789abcdeF", false),
            (token, b"0123456789abcde", false),
            (b"", b"", false),
            (b"short", b"short", false),
        ] {
            assert_eq!(is_same(known, shown), expected, "{known:?} {shown:?}");
        }
    }
}
