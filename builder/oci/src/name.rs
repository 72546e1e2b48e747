//! Names of the distribution protocol: registry hosts, repositories, tags (OCI distribution specification 1.1,
//! "Pulling manifests").

use std::{fmt, str::FromStr};

use crate::{Digest, DigestError, ImageName};

/// Why a text is not a name of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a repository name.
    #[error(
        "`{0}` is not a repository name: lower-case letters, digits and single `.`, `_`, `__` or `-` between them, \
         parts separated by `/`, at most 255 characters"
    )]
    Repository(String),
    /// Not a tag.
    #[error(
        "`{0}` is not a tag: letters, digits, `_`, `.` and `-`, not starting with `.` or `-`, at most 128 characters"
    )]
    Tag(String),
    /// Not a registry host.
    #[error("`{0}` is not a registry host: expected a host name or address with an optional `:port`")]
    Registry(String),
    /// A repository was expected, and this names one of its images.
    #[error("`{0}` has a tag or digest, where only a repository is meant")]
    NotRepository(String),
    /// An invalid digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

fn shortened(text: &str) -> String {
    text.chars().take(160).collect()
}

/// A repository within one registry, for example `library/spark`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepoName(String);

impl RepoName {
    /// As in a request path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepoName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        // The specification's grammar, and its limit of 255 characters that clients rely on.
        if text.len() <= 255 && text.split('/').all(is_path_component) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Repository(shortened(text)))
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(part: &str) -> bool {
    let bytes = part.as_bytes();
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !is_word(*first) || !is_word(*last) {
        return false;
    }
    bytes
        .split(|b| is_word(*b))
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

/// A tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

impl Tag {
    /// As in a request path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let ok = text.len() <= 128
            && text.bytes().next().is_some_and(word)
            && text.bytes().all(|b| word(b) || b == b'.' || b == b'-');
        if ok { Ok(Self(text.to_owned())) } else { Err(NameError::Tag(shortened(text))) }
    }
}

/// How a manifest is requested.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// By tag, which can change.
    Tag(Tag),
    /// By digest, which cannot.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A registry as in image references: host in lower case, optional port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistryHost(String);

impl RegistryHost {
    /// `host` or `host:port`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the first part of a path is a host, by the traditional rule of image references: it contains a
    /// dot or a colon, or is `localhost`.
    pub fn looks_like_host(segment: &str) -> bool {
        segment == "localhost" || segment.contains(['.', ':'])
    }
}

impl FromStr for RegistryHost {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Registry(shortened(text));
        let (host, port) = split_port(text).ok_or_else(wrong)?;
        if let Some(port) = port {
            let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
            if !digits || port.parse::<u16>().map_or(true, |port| port == 0) {
                return Err(wrong());
            }
        }
        if is_host(host) { Ok(Self(text.to_ascii_lowercase())) } else { Err(wrong()) }
    }
}

/// Splits `host[:port]`, with IPv6 addresses in brackets.
fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(end) = text.starts_with('[').then(|| text.find(']')).flatten() {
        let (host, rest) = text.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(port))),
            None if rest.is_empty() => Some((host, None)),
            None => None,
        };
    }
    match text.split_once(':') {
        Some((host, port)) => Some((host, Some(port))),
        None => Some((text, None)),
    }
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    !host.is_empty()
        && host.len() <= 253
        && host.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

/// A repository of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// The registry, as in image references.
    pub registry: RegistryHost,
    /// The repository within it.
    pub name: RepoName,
}

impl FromStr for Repository {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let image: ImageName = text.parse()?;
        match image.reference {
            None => Ok(image.repository),
            Some(_) => Err(NameError::NotRepository(shortened(text))),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)
    }
}

macro_rules! display_as_text {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
display_as_text!(RepoName, Tag, RegistryHost);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_follow_the_grammar_of_the_specification() {
        for good in ["spark", "library/spark", "a/b/c/d", "a.b/c_d/e__f/g-h/i---j", "0/1"] {
            assert!(good.parse::<RepoName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a/B",
            "a..b",
            "a___b",
            ".a",
            "a.",
            "-a",
            "a-",
            "a_.b",
            "ä",
            "a b",
            "../etc",
            &"a".repeat(256),
        ] {
            assert!(bad.parse::<RepoName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tags_and_digests_are_told_apart() {
        assert!(matches!("v1.2-rc_3".parse(), Ok(Reference::Tag(_))));
        assert!(matches!(format!("sha256:{}", "0".repeat(64)).parse(), Ok(Reference::Digest(_))));
        for bad in ["", ".a", "-a", "a/b", "a b", "sha256:12", &"a".repeat(129)] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }

    #[test]
    fn registry_hosts_may_have_a_port() {
        for good in
            ["docker.io", "localhost", "localhost:5000", "127.0.0.1:1", "[::1]:5000", "REGISTRY.example.com"]
        {
            assert!(good.parse::<RegistryHost>().is_ok(), "{good}");
        }
        assert_eq!("A.b".parse::<RegistryHost>().unwrap().as_str(), "a.b");
        for bad in [
            "", "a b", "a/b", "a:", "a:0", "a:70000", "a:+1", "http://a", "a..b", "-a", "[::1", "[x]:1",
            "a@b",
        ] {
            assert!(bad.parse::<RegistryHost>().is_err(), "{bad}");
        }
    }

    #[test]
    fn repositories_are_names_without_a_tag_and_digest() {
        let repository = |text: &str| text.parse::<Repository>();
        let hub = repository("docker.io/library/spark").unwrap();
        assert_eq!((hub.registry.as_str(), hub.name.as_str()), ("docker.io", "library/spark"));
        assert_eq!(repository("127.0.0.1:5000/a/b").unwrap().to_string(), "127.0.0.1:5000/a/b");
        let digest = format!("registry.example.com/a@{}", Digest::of(b""));
        for text in ["a/b:tag", "a/b:latest", &digest] {
            assert!(matches!(repository(text), Err(NameError::NotRepository(_))), "{text}");
        }
        for text in ["", "UPPER/x", "a b"] {
            assert!(repository(text).is_err(), "{text}");
        }
    }
}
