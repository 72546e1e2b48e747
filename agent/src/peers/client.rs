//! Asking one peer: one request, one answer, every wait bounded. What an answer leads to is the asker's business.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{
    Peer,
    tls::Tls,
    wire::{self, HashesAsk, PeerRequest, PieceAsk, PieceHash},
};
use crate::types::{Digest, MAX_MANIFEST_BYTES, MediaType, media_type_of, root_cause};

pub use crate::limits::peers::client::{CONNECT, HEADER, HOLD, SLOW_CONNECT, SLOW_HEADER};
use crate::limits::peers::client::{IDLE, MAX_ANSWER_BYTES, RESOLVE};

/// Why a peer gave no answer that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("peer `{peer}` {problem}")]
pub struct PeerError {
    /// Who.
    pub peer: String,
    /// What it did instead.
    pub problem: String,
    /// Nothing came of it at all: its host is gone, or its link is full.
    pub silent: bool,
}

/// What a peer says to a request for a piece.
#[derive(Debug)]
pub enum PieceAnswer {
    /// Here it comes.
    Body(Box<PieceBody>),
    /// It is on its way; the text changes while there is progress.
    Held(String),
    /// Ask the next one.
    NoPart,
    /// Upstream knows no ranges: one fetcher reads everything.
    NoRanges,
    /// Busy, or not able to.
    Unable,
}

/// The bytes of a piece.
#[derive(Debug)]
pub struct PieceBody {
    response: reqwest::Response,
    peer: String,
    left: u64,
    hash: Option<PieceHash>,
}

impl PieceBody {
    /// What the peer says the piece hashes to.
    pub fn hash(&self) -> Option<PieceHash> {
        self.hash
    }

    /// Bytes that are yet to come.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The next bytes; `None` when all have come. More or fewer than were asked for is an error.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, PeerError> {
        let next = tokio::time::timeout(IDLE, self.response.chunk()).await;
        let next = next.map_err(|_| self.error(format!("sent nothing for {IDLE:?}")))?;
        let next = next.map_err(|error| self.error(format!("broke off: {}", root_cause(&error))))?;
        let Some(bytes) = next else {
            return if self.left == 0 { Ok(None) } else { Err(self.error("ended a piece early".into())) };
        };
        self.left = (self.left.checked_sub(bytes.len() as u64))
            .ok_or_else(|| self.error("sent more than was asked for".into()))?;
        Ok(Some(bytes))
    }

    fn error(&self, problem: String) -> PeerError {
        PeerError { peer: self.peer.clone(), problem, silent: false }
    }
}

/// Who a peer says it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its stable name.
    pub name: String,
    /// Its zone.
    #[serde(default)]
    pub zone: String,
}

/// What a peer says a tag resolves to: one vote, and no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TagMeaning {
    /// The manifest's digest, as text.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
    /// Milliseconds since upstream confirmed it.
    pub age_ms: u64,
    /// Upstream could not confirm it just now.
    pub stale: bool,
}

/// An answer to a question about a manifest or a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled<T> {
    /// This.
    Found(T),
    /// The peer says that upstream says that it does not exist: no reason to believe that.
    Absent,
    /// The peer is there and cannot say now.
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

/// Talks to peers. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Client {
    scheme: &'static str,
    /// Replaced when certificates change: pooled connections keep the certificates that they were made with.
    http: Arc<RwLock<Clients>>,
    /// This node's own link is slow.
    slow: Arc<AtomicBool>,
}

/// Two that differ in their limit for connections.
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

    /// Whether this node's own link is slow: then everything may take longer.
    pub(super) fn set_slow(&self, slow: bool) {
        self.slow.store(slow, Ordering::Relaxed);
    }

    /// Makes new connections with the certificates of now.
    pub(super) fn renew(&self, tls: &Tls) {
        match Clients::new(Some(tls)) {
            Ok(clients) => *self.http.write().unwrap_or_else(PoisonError::into_inner) = clients,
            Err(error) => {
                tracing::warn!(error = root_cause(&error), "certificates for peers are not used yet");
            }
        }
    }

    fn http(&self, slow: bool) -> reqwest::Client {
        let clients = self.http.read().unwrap_or_else(PoisonError::into_inner);
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
        let sent = tokio::time::timeout(limit, self.http(slow).get(url).send()).await;
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
    ) -> Result<Settled<BTreeMap<u64, Digest>>, PeerError> {
        let response = self.send(peer, &PeerRequest::Hashes(ask.clone()), HOLD + HEADER).await?;
        let answer = self.settle(peer, response, MAX_ANSWER_BYTES).await?;
        answer.map(|bytes| {
            let named: BTreeMap<u64, String> = read(peer, &bytes)?;
            Ok(named.into_iter().filter_map(|(piece, hash)| Some((piece, hash.parse().ok()?))).collect())
        })
    }

    /// The identity behind an address: what a list of bare addresses lacks.
    pub(super) async fn identity(&self, address: std::net::SocketAddr) -> Result<Identity, PeerError> {
        let peer = Peer { name: address.to_string(), zone: String::new(), address };
        let response = self.send(&peer, &PeerRequest::Health, HEADER).await?;
        match self.settle(&peer, response, MAX_ANSWER_BYTES).await?.map(|bytes| read(&peer, &bytes))? {
            Settled::Found(identity) => Ok(identity),
            Settled::Absent | Settled::NotNow => {
                Err(PeerError { peer: peer.name, problem: "speaks another version".into(), silent: false })
            }
        }
    }

    pub(super) async fn tag(
        &self,
        peer: &Peer,
        request: &PeerRequest,
    ) -> Result<Settled<TagMeaning>, PeerError> {
        let response = self.send(peer, request, RESOLVE).await?;
        self.settle(peer, response, MAX_ANSWER_BYTES).await?.map(|bytes| read(peer, &bytes))
    }

    /// A manifest, checked against its digest.
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
                media_type_of(&bytes).ok_or_else(|| error("sent something that is no manifest"))?;
            Ok((media_type, bytes))
        })
    }

    /// Reads a small answer whole.
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
            match next.map_err(|broken| error(format!("broke off: {}", root_cause(&broken))))? {
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
        .http1_only();
    match tls {
        None => builder,
        Some(tls) => builder.tls_backend_preconfigured(tls.client()),
    }
    .build()
}

fn read<T: serde::de::DeserializeOwned>(peer: &Peer, bytes: &[u8]) -> Result<T, PeerError> {
    let wrong = |error| PeerError {
        peer: peer.name.clone(),
        problem: format!("says nonsense: {error}"),
        silent: false,
    };
    serde_json::from_slice(bytes).map_err(wrong)
}
