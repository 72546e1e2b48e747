//! Requests to one peer: one request, one answer, every wait bounded. The caller decides what to do with the answer.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use super::{
    Peer,
    budget::{BudgetAnswer, BudgetAsk},
    state::NodeState,
    tls::Tls,
    wire::{self, AnnouncedHash, HashesAsk, PeerRequest, PieceAsk},
};
use crate::{
    trace,
    types::{Digest, MAX_MANIFEST_BYTES, MediaType, PieceHash, media_type_of, root_cause},
};

pub use crate::limits::peers::client::{CONNECT, HEADER, HOLD, SLOW_CONNECT, SLOW_HEADER};
use crate::limits::peers::client::{IDLE, MAX_ANSWER_BYTES, RESOLVE};

/// Why a peer gave no usable answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("peer `{peer}` {problem}")]
pub struct PeerError {
    /// Name of the peer.
    pub peer: String,
    /// What went wrong.
    pub problem: String,
    /// Nothing arrived from the peer: its host is gone, or the link is full.
    pub silent: bool,
}

/// A peer's answer to a request for a piece.
#[derive(Debug)]
pub enum PieceAnswer {
    /// The bytes follow.
    Body(Box<PieceBody>),
    /// The piece is arriving at the peer; the text changes while there is progress.
    Held(String),
    /// The peer takes no part: use the next one.
    NoPart,
    /// The registry has no ranges: one node reads everything.
    NoRanges,
    /// The peer is busy, or cannot get the piece.
    Unable,
}

/// The bytes of a piece.
#[derive(Debug)]
pub struct PieceBody {
    response: reqwest::Response,
    peer: String,
    left: u64,
    hash: Option<AnnouncedHash>,
}

impl PieceBody {
    /// The hash of the piece according to the peer.
    pub fn hash(&self) -> Option<AnnouncedHash> {
        self.hash
    }

    /// Bytes that have not arrived yet.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The next bytes; `None` when all have arrived. More or fewer than requested is an error.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, PeerError> {
        let next = tokio::time::timeout(IDLE, self.response.chunk()).await;
        let next = next.map_err(|_| self.error(format!("sent nothing for {IDLE:?}")))?;
        let next =
            next.map_err(|error| self.error(format!("closed the connection early: {}", root_cause(&error))))?;
        let Some(bytes) = next else {
            return if self.left == 0 { Ok(None) } else { Err(self.error("ended a piece early".into())) };
        };
        self.left = (self.left.checked_sub(bytes.len() as u64))
            .ok_or_else(|| self.error("sent more than was requested".into()))?;
        Ok(Some(bytes))
    }

    fn error(&self, problem: String) -> PeerError {
        PeerError { peer: self.peer.clone(), problem, silent: false }
    }
}

/// The identity of a peer, as the peer states it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its stable name.
    pub name: String,
    /// Its zone.
    #[serde(default)]
    pub zone: String,
}

/// The digest that a tag resolves to according to one peer: a single vote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TagAnswer {
    /// The manifest's digest, as text.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
    /// Milliseconds since the registry confirmed it.
    pub age_ms: u64,
    /// The registry could not confirm it now.
    pub stale: bool,
}

/// An answer to a request for a manifest or a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled<T> {
    /// The requested value.
    Found(T),
    /// The peer says that the registry answered "not found", which must not be trusted.
    Absent,
    /// The peer is running and cannot answer now.
    NotNow,
}

impl<T> Settled<T> {
    fn map<U>(self, change: impl FnOnce(T) -> Result<U, PeerError>) -> Result<Settled<U>, PeerError> {
        match self {
            Self::Found(found) => change(found).map(Settled::Found),
            Self::Absent => Ok(Settled::Absent),
            Self::NotNow => Ok(Settled::NotNow),
        }
    }
}

/// Sends requests to peers. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Client {
    scheme: &'static str,
    /// Replaced when certificates change: pooled connections keep the certificates that they were made with.
    http: Arc<RwLock<Clients>>,
    /// This node's own link is slow.
    slow: Arc<AtomicBool>,
}

/// Two clients that differ in the time limit for connections.
#[derive(Clone, Debug)]
struct Clients {
    usual: reqwest::Client,
    slow: reqwest::Client,
}

impl Clients {
    fn new(tls: Option<&Tls>) -> Result<Self, reqwest::Error> {
        Ok(Self { usual: http_client(tls, CONNECT)?, slow: http_client(tls, SLOW_CONNECT)? })
    }
}

impl Client {
    pub(super) fn new(tls: Option<&Tls>) -> Result<Self, reqwest::Error> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        Ok(Self { scheme, http: Arc::new(RwLock::new(Clients::new(tls)?)), slow: Arc::default() })
    }

    /// Sets whether this node's own link is slow: then the time limits are longer.
    pub(super) fn set_slow(&self, slow: bool) {
        self.slow.store(slow, Ordering::Relaxed);
    }

    /// Uses the current certificates for new connections.
    pub(super) fn renew(&self, tls: &Tls) {
        match Clients::new(Some(tls)) {
            Ok(clients) => *self.http.write() = clients,
            Err(error) => {
                tracing::warn!(error = root_cause(&error), "cannot use the changed certificates for peers");
            }
        }
    }

    fn http(&self, slow: bool) -> reqwest::Client {
        let clients = self.http.read();
        if slow { clients.slow.clone() } else { clients.usual.clone() }
    }

    async fn send(
        &self,
        peer: &Peer,
        request: &PeerRequest,
        limit: Duration,
    ) -> Result<reqwest::Response, PeerError> {
        let slow = self.slow.load(Ordering::Relaxed);
        let limit = limit + if slow { SLOW_HEADER } else { Duration::ZERO };
        let error = |problem, silent| PeerError { peer: peer.name.clone(), problem, silent };
        let url = format!("{}://{}{}", self.scheme, peer.address, request.target());
        let span = tracing::info_span!(
            target: trace::TARGET, parent: trace::current(), "peer request", otel.kind = "client", peer = peer.name, path = request.target().split('?').next(),
        );
        let sending =
            trace::within(span.clone(), self.http(slow).get(url).headers(trace::headers(&span)).send());
        let sent = tokio::time::timeout(limit, sending).await;
        let sent = sent.map_err(|_| error(format!("did not answer within {limit:?}"), true))?;
        sent.map_err(|failed| {
            error(format!("cannot be reached: {}", root_cause(&failed)), failed.is_timeout())
        })
    }

    pub(super) async fn piece(
        &self,
        peer: &Peer,
        ask: &PieceAsk,
        length: u64,
    ) -> Result<(PieceAnswer, Option<u64>), PeerError> {
        let response = self.send(peer, &PeerRequest::Piece(ask.clone()), HOLD + HEADER).await?;
        let speed = response.headers().get(wire::SPEED).and_then(|value| value.to_str().ok());
        let speed = speed.and_then(|value| value.parse().ok());
        Ok((Self::piece_answer(peer, response, length)?, speed))
    }

    fn piece_answer(peer: &Peer, response: reqwest::Response, length: u64) -> Result<PieceAnswer, PeerError> {
        match response.status() {
            StatusCode::OK if response.content_length() == Some(length) => {
                let hash = response.headers().get(wire::PIECE_HASH).and_then(|value| value.to_str().ok());
                let hash = hash.and_then(|value| value.parse().ok());
                let body = PieceBody { response, peer: peer.name.clone(), left: length, hash };
                Ok(PieceAnswer::Body(Box::new(body)))
            }
            StatusCode::ACCEPTED => {
                let activity = response.headers().get(wire::ACTIVITY).and_then(|value| value.to_str().ok());
                Ok(PieceAnswer::Held(activity.unwrap_or_default().to_owned()))
            }
            StatusCode::NOT_FOUND => Ok(PieceAnswer::NoPart),
            StatusCode::CONFLICT => Ok(PieceAnswer::NoRanges),
            StatusCode::SERVICE_UNAVAILABLE => Ok(PieceAnswer::Unable),
            status => Err(PeerError {
                peer: peer.name.clone(),
                problem: format!(
                    "answered {status} with {:?} bytes to a request for {length}",
                    response.content_length()
                ),
                silent: false,
            }),
        }
    }

    /// Hashes of pieces of a segment.
    pub(super) async fn hashes(
        &self,
        peer: &Peer,
        ask: &HashesAsk,
    ) -> Result<Settled<BTreeMap<u64, PieceHash>>, PeerError> {
        let response = self.send(peer, &PeerRequest::Hashes(ask.clone()), HOLD + HEADER).await?;
        let answer = self.settle(peer, response, MAX_ANSWER_BYTES).await?;
        answer.map(|bytes| {
            let named: BTreeMap<u64, String> = read(peer, &bytes)?;
            Ok(named.into_iter().filter_map(|(piece, hash)| Some((piece, hash.parse().ok()?))).collect())
        })
    }

    /// The identity behind an address, which a list of addresses does not contain.
    pub(super) async fn identity(&self, address: std::net::SocketAddr) -> Result<Identity, PeerError> {
        let peer = Peer { name: address.to_string(), zone: String::new(), address };
        self.small(&peer, &PeerRequest::Health).await
    }

    /// What a peer reports about itself.
    pub(super) async fn state(&self, peer: &Peer) -> Result<NodeState, PeerError> {
        self.small(peer, &PeerRequest::State).await
    }

    /// A report about a registry's rate limit, and a request for a grant. An older peer has no answer.
    pub(super) async fn budget(
        &self,
        peer: &Peer,
        ask: &BudgetAsk,
    ) -> Result<Settled<BudgetAnswer>, PeerError> {
        let response = self.send(peer, &PeerRequest::Budget(ask.clone()), HEADER).await?;
        self.settle(peer, response, MAX_ANSWER_BYTES).await?.map(|bytes| read(peer, &bytes))
    }

    /// A small answer that every peer of this version has.
    async fn small<T: serde::de::DeserializeOwned>(
        &self,
        peer: &Peer,
        request: &PeerRequest,
    ) -> Result<T, PeerError> {
        let response = self.send(peer, request, HEADER).await?;
        match self.settle(peer, response, MAX_ANSWER_BYTES).await?.map(|bytes| read(peer, &bytes))? {
            Settled::Found(answer) => Ok(answer),
            Settled::Absent | Settled::NotNow => Err(PeerError {
                peer: peer.name.clone(),
                problem: "uses another version of the protocol".into(),
                silent: false,
            }),
        }
    }

    pub(super) async fn tag(
        &self,
        peer: &Peer,
        request: &PeerRequest,
    ) -> Result<Settled<TagAnswer>, PeerError> {
        let response = self.send(peer, request, RESOLVE).await?;
        self.settle(peer, response, MAX_ANSWER_BYTES).await?.map(|bytes| read(peer, &bytes))
    }

    /// A manifest, verified against its digest.
    pub(super) async fn manifest(
        &self,
        peer: &Peer,
        request: &PeerRequest,
        digest: &Digest,
    ) -> Result<Settled<(MediaType, Bytes)>, PeerError> {
        let error =
            |problem: &str| PeerError { peer: peer.name.clone(), problem: problem.into(), silent: false };
        let response = self.send(peer, request, RESOLVE).await?;
        let most = usize::try_from(MAX_MANIFEST_BYTES).unwrap_or(usize::MAX);
        self.settle(peer, response, most).await?.map(|bytes| {
            digest.verify(&bytes).map_err(|_| error("sent a manifest with another digest"))?;
            // The digest protects the document, not the header.
            let media_type =
                media_type_of(&bytes).ok_or_else(|| error("sent something that is not a manifest"))?;
            Ok((media_type, bytes))
        })
    }

    /// Reads a small answer completely.
    async fn settle(
        &self,
        peer: &Peer,
        mut response: reqwest::Response,
        most: usize,
    ) -> Result<Settled<Bytes>, PeerError> {
        let error = |problem: String| PeerError { peer: peer.name.clone(), problem, silent: false };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(Settled::Absent),
            StatusCode::SERVICE_UNAVAILABLE => return Ok(Settled::NotNow),
            other => return Err(error(format!("answered {other}"))),
        }
        let mut bytes = BytesMut::new();
        loop {
            let next = tokio::time::timeout(IDLE, response.chunk()).await;
            let next = next.map_err(|_| error(format!("sent nothing for {IDLE:?}")))?;
            match next
                .map_err(|broken| error(format!("closed the connection early: {}", root_cause(&broken))))?
            {
                None => return Ok(Settled::Found(bytes.freeze())),
                Some(chunk) if bytes.len() + chunk.len() <= most => bytes.extend_from_slice(&chunk),
                Some(_) => return Err(error(format!("sent more than {most} bytes"))),
            }
        }
    }
}

fn http_client(tls: Option<&Tls>, connect: Duration) -> Result<reqwest::Client, reqwest::Error> {
    let builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(connect)
        .tcp_nodelay(true)
        .pool_idle_timeout(Duration::from_secs(30))
        .http1_only()
        // No public authority speaks for a peer, and reading them takes time at each start.
        .tls_certs_only([]);
    // Without a certificate no peer is known yet, and nothing is sent.
    match tls.and_then(Tls::client) {
        None => builder,
        Some(tls) => builder.tls_backend_preconfigured(tls),
    }
    .build()
}

fn read<T: serde::de::DeserializeOwned>(peer: &Peer, bytes: &[u8]) -> Result<T, PeerError> {
    let wrong = |error| PeerError {
        peer: peer.name.clone(),
        problem: format!("sent an answer that cannot be parsed: {error}"),
        silent: false,
    };
    serde_json::from_slice(bytes).map_err(wrong)
}
