//! The peer API (`/peer/v1`): one call into `download` or `swarm` for each request. What the requests mean: `peers::wire`.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;

use super::{
    body::{self, Body, Subject},
    cluster::ClusterView,
};
use crate::{
    access::{Access, Sharing},
    download::{FetchError, Fetcher},
    metrics::Metrics,
    peers::{
        HOLD, Peers,
        budget::{BudgetAnswer, BudgetAsk},
        wire::{ACTIVITY, HashesAsk, PIECE_HASH, PeerRequest, PieceAsk, SPEED, WireError, activity},
    },
    swarm::{Share, Swarm},
    trace,
    types::{Digest, Repository, Tag},
    upstream::{Class, Shows, Told, Upstream},
};

/// Shortest wait for a turn to send. What is left of [`HOLD`] is the longest: a request that waited for its piece first
/// must not wait so long again that the requesting peer counts this node as silent.
const TURN: Duration = Duration::from_millis(100);

/// Answers other peers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PeerApi(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fetcher: Fetcher,
    swarm: Swarm,
    upstream: Arc<Upstream>,
    access: Access,
    peers: Peers,
    metrics: Metrics,
    view: ClusterView,
}

impl PeerApi {
    /// Puts the parts together.
    pub fn new(
        fetcher: Fetcher,
        swarm: Swarm,
        upstream: Arc<Upstream>,
        access: Access,
        peers: Peers,
        metrics: Metrics,
        view: ClusterView,
    ) -> Self {
        Self(Arc::new(Inner { fetcher, swarm, upstream, access, peers, metrics, view }))
    }

    /// Whether a peer may have what this repository's registry gives: what credentials open, only a peer that has shown a
    /// certificate.
    fn serves(&self, repository: &Repository) -> bool {
        let registry = &repository.registry;
        self.0.fetcher.serves(repository)
            && (self.is_authenticated() || self.0.upstream.shows(registry) == Shows::Nothing)
    }

    async fn shares(&self, repository: &Repository, digest: &Digest) -> bool {
        self.0.access.may_share(repository, digest).await != Sharing::No
    }

    fn is_authenticated(&self) -> bool {
        self.0.peers.config().tls.is_some()
    }

    /// Whether a request is answered from the disk alone: when the peer asks for that, when the registry's budget is at its
    /// reserve, which is for clients and not for unauthenticated peers, and when no client of this node may read the
    /// repository.
    fn answers_from_disk(&self, repository: &Repository, known: bool) -> bool {
        let spent = || self.0.upstream.background_wait(&repository.registry, Class::Uncounted).is_some();
        known || !self.0.access.may_fetch(repository) || (!self.is_authenticated() && spent())
    }

    /// Answers one request.
    pub(super) async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        let span = tracing::info_span!(
            target: trace::TARGET, parent: None, "answer to peer", otel.kind = "server", path = request.uri().path(),
            status = tracing::field::Empty,
        );
        trace::continue_from(&span, request.headers());
        let response = trace::within(span.clone(), self.answer_with(request)).await;
        span.record("status", response.status().as_u16());
        response
    }

    async fn answer_with(self, request: Request<Incoming>) -> Response<Body> {
        if *request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n");
        }
        match PeerRequest::parse(request.uri().path(), request.uri().query()) {
            Err(error @ WireError::Path) => text(StatusCode::NOT_FOUND, format!("{error}\n")),
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
            Ok(PeerRequest::Health) => self.health(),
            Ok(PeerRequest::State) => json(&self.0.view.own()),
            Ok(PeerRequest::Budget(ask)) => self.budget(&ask),
            Ok(PeerRequest::Piece(ask)) => self.piece(&ask).await,
            Ok(PeerRequest::Hashes(ask)) => self.hashes(&ask).await,
            Ok(PeerRequest::Manifest { repository, digest, known }) => {
                self.manifest(&repository, &digest, known).await
            }
            Ok(PeerRequest::Tag { repository, tag, known }) => self.tag(&repository, &tag, known).await,
        }
    }

    async fn hashes(&self, ask: &HashesAsk) -> Response<Body> {
        if !self.serves(&ask.repository) || !self.shares(&ask.repository, &ask.digest).await {
            return not_served();
        }
        let Some(hashes) = self.0.swarm.piece_hashes(ask).await else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "it is being read: ask again\n");
        };
        let named: BTreeMap<u64, String> =
            hashes.into_iter().map(|(piece, hash)| (piece, hash.to_string())).collect();
        json(&named)
    }

    async fn manifest(&self, repository: &Repository, digest: &Digest, known: bool) -> Response<Body> {
        if !self.serves(repository) || !self.shares(repository, digest).await {
            return not_served();
        }
        match self
            .0
            .fetcher
            .manifest_for_peer(repository, digest, self.answers_from_disk(repository, known))
            .await
        {
            Ok(manifest) => match HeaderValue::from_str(manifest.media_type.as_str()) {
                Ok(media_type) => typed(StatusCode::OK, media_type, manifest.bytes),
                Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the media type is none\n"),
            },
            Err(error) => failed(&error),
        }
    }

    async fn tag(&self, repository: &Repository, tag: &Tag, known: bool) -> Response<Body> {
        if !self.serves(repository) {
            return not_served();
        }
        match self.0.fetcher.tag_for_peer(repository, tag, self.answers_from_disk(repository, known)).await {
            Ok(meaning) => json(&meaning),
            Err(error) => failed(&error),
        }
    }

    fn health(&self) -> Response<Body> {
        json(&self.0.peers.identity())
    }

    /// As the owner of a registry's budget.
    fn budget(&self, ask: &BudgetAsk) -> Response<Body> {
        if self.0.upstream.serves(&ask.registry).is_none() {
            return not_served();
        }
        let told = ask.rate.map(|rate| Told {
            source: rate.source,
            limit: rate.limit,
            remaining: rate.remaining,
            window: Duration::from_millis(rate.window),
            age: Duration::from_millis(rate.age),
        });
        let elsewhere = ask.granted.as_ref().map(|granted| (granted.peer.as_str(), granted.count));
        let granted = self.0.upstream.grant(&ask.registry, told, elsewhere, ask.subject);
        // A wait below a millisecond is none.
        let wait = granted.err().map_or(0, |wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1));
        json(&BudgetAnswer { wait_ms: wait })
    }

    async fn piece(&self, ask: &PieceAsk) -> Response<Body> {
        let mut response = self.answer_piece(ask).await;
        if let Some(speed) = self.0.peers.own_speed() {
            response.headers_mut().insert(SPEED, speed.into());
        }
        response
    }

    async fn answer_piece(&self, ask: &PieceAsk) -> Response<Body> {
        if !self.serves(&ask.repository) {
            return not_served();
        }
        match self.0.access.may_share(&ask.repository, &ask.digest).await {
            Sharing::Yes => {}
            Sharing::NotHere => return text(StatusCode::NOT_FOUND, "takes no part\n"),
            Sharing::No => return not_served(),
        }
        let began = Instant::now();
        match self.0.swarm.share(ask).await {
            Share::Here(reader, length, hash) => {
                let turn = HOLD.saturating_sub(began.elapsed()).max(TURN);
                let Some(upload) = self.0.peers.uploads().acquire(turn).await else {
                    let sent = self.0.metrics.peer_sent_bytes.get();
                    return held(sent, sent);
                };
                let subject =
                    Subject { request: None, what: format!("a piece of {} for a peer", ask.digest) };
                let body =
                    body::content(*reader, self.0.metrics.peer_sent_bytes.clone(), Some(upload), subject);
                let mut response = Response::new(body);
                response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
                if let Some(hash) = hash.and_then(|hash| HeaderValue::try_from(hash.to_string()).ok()) {
                    response.headers_mut().insert(PIECE_HASH, hash);
                }
                response
            }
            Share::Held { life, moved } => held(life, moved),
            Share::NoPart => text(StatusCode::NOT_FOUND, "takes no part\n"),
            Share::NoRanges => text(StatusCode::CONFLICT, "upstream has no ranges\n"),
            Share::Unable => text(StatusCode::SERVICE_UNAVAILABLE, "busy, or it cannot be had\n"),
            Share::NotServed => not_served(),
        }
    }
}

fn held(life: u64, moved: u64) -> Response<Body> {
    let mut response = text(StatusCode::ACCEPTED, "arriving: retry\n");
    let activity = HeaderValue::try_from(activity(life, moved)).expect("digits are a valid header value");
    response.headers_mut().insert(ACTIVITY, activity);
    response
}

/// Only the registry's "not found" is passed on; after any other error the requesting peer uses another source.
fn failed(error: &FetchError) -> Response<Body> {
    let status = match error {
        FetchError::NotFound(_) => StatusCode::NOT_FOUND,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    text(status, format!("{error}\n"))
}

fn not_served() -> Response<Body> {
    text(StatusCode::FORBIDDEN, "this registry is not served here\n")
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    let bytes = serde_json::to_vec(value).expect("text and numbers are always valid JSON");
    typed(StatusCode::OK, HeaderValue::from_static("application/json"), bytes)
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    typed(status, HeaderValue::from_static("text/plain; charset=utf-8"), text)
}

fn typed(status: StatusCode, media_type: HeaderValue, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}
