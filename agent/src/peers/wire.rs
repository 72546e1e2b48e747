//! The peer protocol, version 1: requests as values, and the headers of answers. HTTP/1.1 on the peer listener.
//!
//! ```text
//! GET /peer/v1/health                                          200 {"name":..,"zone":..}
//! GET /peer/v1/state                                           200 what it has: `NodeState`, without names of images
//! GET /peer/v1/pieces/<digest>/<index>?registry&repository&size&role&member&zone&whole[&speed]
//!     200 the bytes of the piece; `hearth-piece-hash` is their hash, if the peer has it
//!     202 arriving; `hearth-activity` changes while its source shows signs of life: retry
//!     404 takes no part, use the next peer        409 the registry has no ranges: slot 0 reads everything
//!     503 busy or not possible                    400 bad request              403 registry not served by this node
//!     With `hearth-speed`: the rate of the answering node's link, in bytes per second, once measured
//! GET /peer/v1/hashes/<digest>/<index>?registry&repository&size[&again]
//!     200 {"<index>":"blake3:..",..}: hashes of the pieces of the segment of piece <index>, if the peer has read
//!     them from the registry itself or has the verified blob. With `again` (`segment`, `piece`) a peer in the order of
//!     the segment's readers reads it again first; 503 meanwhile: retry
//! GET /peer/v1/manifests/<digest>?registry&repository[&known]  200 the manifest, `Content-Type` its media type
//! GET /peer/v1/tags/<tag>?registry&repository[&known]          200 {"digest":..,"mediaType":..,"size":..,"ageMs":..}
//!     404 the registry says that it does not exist    503 cannot answer now
//! GET /peer/v1/budget?registry[&subject][&source&limit&remaining&windowMs&ageMs][&member&granted]  200 {"waitMs":..}
//!     What the registry said of its rate limit to the requester, and how many requests it has granted itself; with `subject` (16 hexadecimal digits of a content's hash) a request
//!     of background work for it, granted when `waitMs` is 0        403 registry not served by this node
//! ```
//!
//! `role` is `parent`, `root` or `source` ([`super::plan::Role`]); `member` and `zone` identify the requester, so
//! that a request that does not climb is rejected; `whole` means that the registry has no ranges; `speed` is the rate
//! of the requester's link, in bytes per second. With `known`, only the content of the disk counts, and no registry
//! is requested.
//!
//! An unknown path or version is 404 with an error body, a bad request 400: neither breaks a client.

use reqwest::Url;

use super::{
    budget::{BudgetAsk, BudgetError},
    plan::Role,
};
use crate::{
    limits::peers::wire::LONGEST,
    types::{Digest, NameError, PieceHash, PieceHashError, Repository, Tag},
};

/// Version and prefix of all paths.
const PREFIX: &str = "/peer/v1/";

/// Header of 202: changes while the source of the piece shows signs of life. The part after the last full stop
/// changes only while bytes arrive.
pub const ACTIVITY: http::HeaderName = http::HeaderName::from_static("hearth-activity");

/// Header of 200: the hash of the piece; see [`PieceHash`].
pub const PIECE_HASH: http::HeaderName = http::HeaderName::from_static("hearth-piece-hash");

/// Header of every answer to a request for a piece: the rate of the answering node's link, in bytes per second.
/// Absent before it was measured. On a full link requests with this value may not arrive, answers do.
pub const SPEED: http::HeaderName = http::HeaderName::from_static("hearth-speed");

/// The hash of a piece that a peer sends: `blake3:..`, followed by ` own` when the peer has computed it from verified
/// bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnouncedHash {
    /// The hash of the piece.
    pub hash: PieceHash,
    /// The peer has read the piece from the registry, or has the verified blob. Otherwise it has the hash from
    /// another peer.
    pub own: bool,
}

impl std::fmt::Display for AnnouncedHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.hash, if self.own { " own" } else { "" })
    }
}

impl std::str::FromStr for AnnouncedHash {
    type Err = PieceHashError;

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

/// A request for a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceAsk {
    /// A repository that has the blob.
    pub repository: Repository,
    /// Digest of the blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Index of the piece.
    pub piece: u64,
    /// The role of the peer that receives the request.
    pub role: Role,
    /// Name of the requester.
    pub peer: String,
    /// Zone of the requester.
    pub zone: String,
    /// The requester has found that the registry has no ranges: the reader of the piece reads everything.
    pub whole: bool,
    /// Rate of the requester's link, in bytes per second; `None` before it was measured.
    pub speed: Option<u64>,
}

/// A request for the hashes of a segment's pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashesAsk {
    /// A repository that has the blob.
    pub repository: Repository,
    /// Digest of the blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// A piece of the segment.
    pub piece: u64,
    /// What the peer is to read from the registry first.
    pub again: Again,
}

/// What a peer is to read from the registry before it answers with the hashes of pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Again {
    /// Nothing: it answers with the hashes that it has.
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
    /// The identity of the peer.
    Health,
    /// What the peer has, for the view of the cluster.
    State,
    /// A grant of background work to a registry.
    Budget(BudgetAsk),
    /// A piece.
    Piece(PieceAsk),
    /// Hashes of pieces.
    Hashes(HashesAsk),
    /// A manifest by digest.
    Manifest {
        /// A repository that has the manifest.
        repository: Repository,
        /// Digest of the manifest.
        digest: Digest,
        /// Whether to use only the disk.
        known: bool,
    },
    /// The digest that a tag resolves to.
    Tag {
        /// Repository of the tag.
        repository: Repository,
        /// The tag.
        tag: Tag,
        /// Whether to use only the record on disk.
        known: bool,
    },
}

/// Why a request is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Another path or version.
    #[error("unknown path: this agent serves `/peer/v1/`")]
    Path,
    /// A parameter is missing or wrong.
    #[error("parameter `{0}` is missing or wrong")]
    Parameter(&'static str),
    /// A name is invalid.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl From<BudgetError> for WireError {
    fn from(error: BudgetError) -> Self {
        Self::Parameter(error.0)
    }
}

impl PeerRequest {
    /// Path and query.
    pub fn target(&self) -> String {
        match self {
            Self::Health => format!("{PREFIX}health"),
            Self::State => format!("{PREFIX}state"),
            Self::Budget(ask) => {
                let mut url = scratch();
                url.query_pairs_mut().extend_pairs(ask.pairs());
                format!("{PREFIX}budget?{}", url.query().unwrap_or_default())
            }
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
            (Some("state"), None, ..) => Ok(Self::State),
            (Some("budget"), None, ..) => Ok(Self::Budget(BudgetAsk::read(|name| parameters.get(name))?)),
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

/// A base URL to read and write queries with; never used for a request.
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

    use super::{
        super::budget::{Granted, Rate},
        *,
    };

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
            PeerRequest::State,
            PeerRequest::Budget(BudgetAsk {
                registry: repository().registry,
                subject: None,
                rate: None,
                granted: None,
            }),
            PeerRequest::Budget(BudgetAsk {
                registry: repository().registry,
                subject: Some(0x12),
                rate: Some(Rate { source: 9, limit: 100, remaining: 7, window: 21_600_000, age: 5 }),
                granted: Some(Granted { peer: "node-1".into(), count: 3 }),
            }),
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
    fn requests_outside_of_the_protocol_are_rejected_with_a_reason() {
        for (target, expected) in [
            ("/peer/v2/health", WireError::Path),
            ("/peer/v1/", WireError::Path),
            ("/peer/v1/health/more", WireError::Path),
            ("/v2/", WireError::Path),
            ("/peer/v1/tags/v1?repository=a", WireError::Parameter("registry")),
            ("/peer/v1/tags/v1?registry=a", WireError::Parameter("repository")),
            ("/peer/v1/budget?limit=1", WireError::Parameter("registry")),
            ("/peer/v1/budget?registry=a&subject=x", WireError::Parameter("subject")),
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
            let hash = AnnouncedHash { hash: PieceHash::of(b"x"), own };
            assert_eq!(hash.to_string().parse(), Ok(hash));
        }
        assert!("sha256:12 own".parse::<PieceHash>().is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(path in ".{0,60}", query in ".{0,60}") {
            let _ = PeerRequest::parse(&path, Some(&query));
            let _ = PeerRequest::parse(&format!("/peer/v1/{path}"), Some(&query));
        }
    }
}
