//! The peer protocol, version 1: requests as values, and the headers of answers. HTTP/1.1 on the peer listener.
//!
//! ```text
//! GET /peer/v1/health                                          200 {"name":..,"zone":..}
//! GET /peer/v1/pieces/<digest>/<index>?registry&repository&size&role&member&zone&whole[&speed]
//!     200 the bytes of the piece; `hearth-piece-hash` is what they hash to, where the peer can say
//!     202 on its way; `hearth-activity` changes for as long as whoever brings it is alive: ask again
//!     404 takes no part, ask the next one         409 upstream knows no ranges: slot 0 reads everything
//!     503 busy or not able to                     400 not understood           403 registry not served here
//!     With `hearth-speed`, how fast the answering node is, in bytes a second, once it knows
//! GET /peer/v1/hashes/<digest>/<index>?registry&repository&size[&again]
//!     200 {"<index>":"sha256:..",..}: hashes of the pieces of the segment of piece <index>, as far as the peer has read
//!     them from the registry itself or has the verified blob. With `again` (`segment`, `piece`) a peer in the order of
//!     the segment's readers reads that once more first; 503 while it does: ask again
//! GET /peer/v1/manifests/<digest>?registry&repository[&known]  200 the manifest, `Content-Type` its media type
//! GET /peer/v1/tags/<tag>?registry&repository[&known]          200 {"digest":..,"mediaType":..,"size":..,"ageMs":..}
//!     404 upstream says that it does not exist    503 cannot say now
//! ```
//!
//! `role` is `parent`, `root` or `source` ([`super::plan::Role`]); `member` and `zone` say who asks, so that a request
//! that does not climb is refused; `whole` that upstream has no ranges; `speed` how fast the asker is, in bytes a second. With `known` only what is on the disk counts: upstream is not asked.
//!
//! An unknown path or version is 404 with an error body, a bad request 400: nothing here is fatal for anyone.

use reqwest::Url;

use super::plan::Role;
use crate::types::{Digest, NameError, Repository, Tag};

/// Version and prefix of all paths.
const PREFIX: &str = "/peer/v1/";

/// Longest name of a peer or zone that is taken.
const LONGEST: usize = 253;

/// Header of 202: changes while the peer is alive. What follows its last full stop changes only while bytes arrive.
pub const ACTIVITY: http::HeaderName = http::HeaderName::from_static("hearth-activity");

/// Header of 200: the hash of the piece; see [`PieceHash`].
pub const PIECE_HASH: http::HeaderName = http::HeaderName::from_static("hearth-piece-hash");

/// Header of every answer to a request for a piece: how fast the answering node's link is, in bytes a second. Absent before
/// the node knows. What it says in requests does not arrive where a link is full; answers do.
pub const SPEED: http::HeaderName = http::HeaderName::from_static("hearth-speed");

/// What a peer announces of a piece that it sends: `sha256:..`, and ` own` after it when it knows that by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceHash {
    /// SHA-256 of the piece.
    pub hash: Digest,
    /// The peer has read the piece from the registry, or has the verified blob. Otherwise another peer has told it.
    pub own: bool,
}

impl std::fmt::Display for PieceHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.hash, if self.own { " own" } else { "" })
    }
}

impl std::str::FromStr for PieceHash {
    type Err = crate::types::DigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (hash, own) = text.strip_suffix(" own").map_or((text, false), |hash| (hash, true));
        Ok(Self { hash: hash.parse()?, own })
    }
}

/// The value of [`ACTIVITY`].
pub fn activity(life: u64, moved: u64) -> String {
    format!("{life}.{moved}")
}

/// The part of [`ACTIVITY`] that changes while bytes arrive; an agent before 0.2 sends none.
pub fn movement(activity: &str) -> Option<&str> {
    activity.rsplit_once('.').map(|(_, moved)| moved)
}

/// A piece is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceAsk {
    /// Where upstream has the blob.
    pub repository: Repository,
    /// Which blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Which piece.
    pub piece: u64,
    /// As what the peer is asked.
    pub role: Role,
    /// Who asks.
    pub peer: String,
    /// The asker's zone.
    pub zone: String,
    /// The asker knows that upstream has no ranges: who reads it reads everything.
    pub whole: bool,
    /// How fast the asker is, in bytes a second; `None` before it knows.
    pub speed: Option<u64>,
}

/// The hashes of a segment's pieces are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashesAsk {
    /// Where upstream has the blob.
    pub repository: Repository,
    /// Which blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// A piece of the segment.
    pub piece: u64,
    /// Whether the peer is to read from the registry first.
    pub again: Again,
}

/// What a peer is to read from the registry before it says what pieces hash to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Again {
    /// Nothing: it says what it knows.
    #[default]
    No,
    /// The segment.
    Segment,
    /// The piece.
    Piece,
}

impl Again {
    const ALL: [Self; 3] = [Self::No, Self::Segment, Self::Piece];

    fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Segment => "segment",
            Self::Piece => "piece",
        }
    }
}

/// A request of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerRequest {
    /// Who are you?
    Health,
    /// A piece.
    Piece(PieceAsk),
    /// Hashes of pieces.
    Hashes(HashesAsk),
    /// A manifest by digest.
    Manifest {
        /// Where upstream has it.
        repository: Repository,
        /// Which.
        digest: Digest,
        /// Only from the disk.
        known: bool,
    },
    /// What a tag means.
    Tag {
        /// Where.
        repository: Repository,
        /// Which.
        tag: Tag,
        /// Only what was known before.
        known: bool,
    },
}

/// Why a request is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Another path or version.
    #[error("unknown path: this agent speaks `/peer/v1/`")]
    Path,
    /// A parameter is missing or wrong.
    #[error("parameter `{0}` is missing or wrong")]
    Parameter(&'static str),
    /// A name is none.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl PeerRequest {
    /// Path and query.
    pub fn target(&self) -> String {
        match self {
            Self::Health => format!("{PREFIX}health"),
            Self::Piece(ask) => {
                let path = format!("{PREFIX}pieces/{}/{}", ask.digest, ask.piece);
                let (size, role) = (ask.size.to_string(), role_name(ask.role));
                let whole = if ask.whole { "1" } else { "0" };
                let speed = ask.speed.map(|speed| speed.to_string());
                let mut rest = vec![
                    ("size", size.as_str()),
                    ("role", role),
                    ("member", &ask.peer),
                    ("zone", &ask.zone),
                    ("whole", whole),
                ];
                rest.extend(speed.as_deref().map(|speed| ("speed", speed)));
                with_query(&path, &ask.repository, &rest)
            }
            Self::Hashes(ask) => {
                let path = format!("{PREFIX}hashes/{}/{}", ask.digest, ask.piece);
                let (size, again) = (ask.size.to_string(), ask.again.name());
                with_query(&path, &ask.repository, &[("size", &size), ("again", again)])
            }
            Self::Manifest { repository, digest, known } => {
                with_query(&format!("{PREFIX}manifests/{digest}"), repository, known_pair(*known))
            }
            Self::Tag { repository, tag, known } => {
                with_query(&format!("{PREFIX}tags/{tag}"), repository, known_pair(*known))
            }
        }
    }

    /// Reads path and query.
    pub fn parse(path: &str, query: Option<&str>) -> Result<Self, WireError> {
        let rest = path.strip_prefix(PREFIX).ok_or(WireError::Path)?;
        let mut parts = rest.split('/');
        let parts = (parts.next(), parts.next(), parts.next(), parts.next());
        let parameters = Parameters::parse(query);
        match parts {
            (Some("health"), None, ..) => Ok(Self::Health),
            (Some("pieces"), Some(digest), Some(piece), None) => Ok(Self::Piece(PieceAsk {
                repository: parameters.repository()?,
                digest: digest.parse().map_err(NameError::from)?,
                size: parameters.number("size")?,
                piece: piece.parse().map_err(|_| WireError::Path)?,
                role: role_of(parameters.get("role")).ok_or(WireError::Parameter("role"))?,
                peer: parameters.name("member")?,
                zone: parameters.name("zone")?,
                whole: parameters.get("whole") == Some("1"),
                speed: parameters.get("speed").and_then(|value| value.parse().ok()),
            })),
            (Some("hashes"), Some(digest), Some(piece), None) => Ok(Self::Hashes(HashesAsk {
                repository: parameters.repository()?,
                digest: digest.parse().map_err(NameError::from)?,
                size: parameters.number("size")?,
                piece: piece.parse().map_err(|_| WireError::Path)?,
                again: Again::ALL
                    .into_iter()
                    .find(|again| parameters.get("again").unwrap_or("no") == again.name())
                    .ok_or(WireError::Parameter("again"))?,
            })),
            (Some("manifests"), Some(digest), None, _) => Ok(Self::Manifest {
                repository: parameters.repository()?,
                digest: digest.parse().map_err(NameError::from)?,
                known: parameters.get("known").is_some(),
            }),
            (Some("tags"), Some(tag), None, _) => Ok(Self::Tag {
                repository: parameters.repository()?,
                tag: tag.parse()?,
                known: parameters.get("known").is_some(),
            }),
            _ => Err(WireError::Path),
        }
    }
}

fn known_pair(known: bool) -> &'static [(&'static str, &'static str)] {
    if known { &[("known", "1")] } else { &[] }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Parent => "parent",
        Role::Root => "root",
        Role::Source => "source",
    }
}

fn role_of(name: Option<&str>) -> Option<Role> {
    [Role::Parent, Role::Root, Role::Source].into_iter().find(|role| Some(role_name(*role)) == name)
}

/// A base to read and write queries with; no request ever goes there.
fn scratch() -> Url {
    Url::parse("http://peer/").expect("a fixed URL")
}

fn with_query(path: &str, repository: &Repository, more: &[(&str, &str)]) -> String {
    let mut url = scratch();
    url.query_pairs_mut()
        .append_pair("registry", repository.registry.as_str())
        .append_pair("repository", repository.name.as_str())
        .extend_pairs(more);
    format!("{path}?{}", url.query().unwrap_or_default())
}

struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn parse(query: Option<&str>) -> Self {
        let mut url = scratch();
        url.set_query(query);
        Self(url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect())
    }

    fn get(&self, wanted: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &'static str) -> Result<u64, WireError> {
        self.get(name).and_then(|value| value.parse().ok()).ok_or(WireError::Parameter(name))
    }

    fn name(&self, name: &'static str) -> Result<String, WireError> {
        let value = self.get(name).filter(|value| value.len() <= LONGEST);
        value.map(str::to_owned).ok_or(WireError::Parameter(name))
    }

    fn repository(&self) -> Result<Repository, WireError> {
        Ok(Repository {
            registry: self.get("registry").ok_or(WireError::Parameter("registry"))?.parse()?,
            name: self.get("repository").ok_or(WireError::Parameter("repository"))?.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn repository() -> Repository {
        Repository { registry: "r.test:5000".parse().unwrap(), name: "team/app".parse().unwrap() }
    }

    fn read(target: &str) -> Result<PeerRequest, WireError> {
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        PeerRequest::parse(path, query)
    }

    #[test]
    fn requests_read_back_as_they_were_written() {
        let piece = |role| {
            PeerRequest::Piece(PieceAsk {
                repository: repository(),
                digest: Digest::of(b"x"),
                size: 10,
                piece: 3,
                role,
                peer: "node & 1".into(),
                zone: String::new(),
                whole: role == Role::Source,
                speed: (role == Role::Root).then_some(12_500_000),
            })
        };
        let all = [
            PeerRequest::Health,
            piece(Role::Parent),
            piece(Role::Root),
            piece(Role::Source),
            PeerRequest::Hashes(HashesAsk {
                repository: repository(),
                digest: Digest::of(b"x"),
                size: 10,
                piece: 3,
                again: Again::Piece,
            }),
            PeerRequest::Manifest { repository: repository(), digest: Digest::of(b"m"), known: true },
            PeerRequest::Tag { repository: repository(), tag: "v1".parse().unwrap(), known: false },
        ];
        for request in all {
            assert_eq!(read(&request.target()), Ok(request.clone()), "{}", request.target());
        }
    }

    #[test]
    fn what_is_not_the_protocol_is_refused_with_a_reason() {
        for (target, expected) in [
            ("/peer/v2/health", WireError::Path),
            ("/peer/v1/", WireError::Path),
            ("/peer/v1/health/more", WireError::Path),
            ("/v2/", WireError::Path),
            ("/peer/v1/tags/v1?repository=a", WireError::Parameter("registry")),
            ("/peer/v1/tags/v1?registry=a", WireError::Parameter("repository")),
        ] {
            assert_eq!(read(target), Err(expected), "{target}");
        }
        let digest = Digest::of(b"x");
        let bad = format!("/peer/v1/pieces/{digest}/0?registry=a&repository=b&size=1&role=king&peer=m&zone=");
        assert_eq!(read(&bad), Err(WireError::Parameter("role")));
        let long = format!(
            "/peer/v1/pieces/{digest}/0?registry=a&repository=b&size=1&role=root&zone=&peer={}",
            "m".repeat(300)
        );
        assert_eq!(read(&long), Err(WireError::Parameter("member")));
    }

    #[test]
    fn a_piece_hash_reads_back_as_it_was_written() {
        for own in [false, true] {
            let hash = PieceHash { hash: Digest::of(b"x"), own };
            assert_eq!(hash.to_string().parse(), Ok(hash));
        }
        assert!("sha256:12 own".parse::<PieceHash>().is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_fall(path in ".{0,60}", query in ".{0,60}") {
            let _ = PeerRequest::parse(&path, Some(&query));
            let _ = PeerRequest::parse(&format!("/peer/v1/{path}"), Some(&query));
        }
    }
}
