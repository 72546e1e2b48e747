//! The version of content that a server sent last, so that a later part can be requested with it as a
//! condition.

use serde::{Deserialize, Serialize};

/// A strong entity tag and the server that sent it: it is meaningless for any other server (RFC 9110, 8.8.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validator {
    /// The server, as in the origin of bodies.
    pub origin: String,
    /// The tag, with its quotes.
    pub etag: String,
}

impl Validator {
    /// Only strong tags are allowed in `If-Range` (RFC 9110, 13.1.5).
    pub fn of(origin: &str, etag: &str) -> Option<Self> {
        let strong = etag.len() >= 2 && etag.len() <= MAX_TAG && etag.starts_with('"') && etag.ends_with('"');
        strong.then(|| Self { origin: origin.to_owned(), etag: etag.to_owned() })
    }
}

/// Longer tags are ignored, in bytes.
const MAX_TAG: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_strong_tags_can_be_a_condition() {
        let table = [
            ("\"abc\"", true),
            ("\"\"", true),
            ("W/\"abc\"", false),
            ("abc", false),
            ("", false),
            ("\"", false),
        ];
        for (etag, strong) in table {
            assert_eq!(Validator::of("r.test", etag).is_some(), strong, "{etag}");
        }
        assert!(Validator::of("r.test", &format!("\"{}\"", "a".repeat(300))).is_none());
    }
}
