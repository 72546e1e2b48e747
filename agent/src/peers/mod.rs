//! Other agents of the cluster: who is here, how a blob is cut between them, who stands above whom for each piece, and
//! how to ask one of them.
//!
//! `rank` gives every piece its own tree over all peers, known to everyone without a message; `layout` cuts blobs
//! into pieces and segments; `plan` says what to ask for next, whom, and what to answer. All are pure, and
//! `bench/sim` runs them on thousands of simulated nodes. `directory` knows who is here, `wire` is the protocol,
//! `client` asks, `quorum` says when answers about a tag count, `health` remembers who is to be left alone, `pace` who is slow, `speed` whether this node is, `uploads` bounds what this
//! node gives, `tls` is how peers know each other. What is done with a piece is `download`'s business.

mod client;
pub mod directory;
mod dns;
mod health;
mod kubernetes;
pub mod layout;
mod membership;
pub mod pace;
pub mod plan;
pub mod quorum;
pub mod rank;
pub mod speed;
mod tls;
mod uploads;
pub mod wire;

use std::{
    collections::BTreeMap,
    hash::RandomState,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use client::Client;
pub use client::{CONNECT, HEADER, HOLD, Identity, PeerError, PieceAnswer, PieceBody, Settled, TagMeaning};
use directory::{Directory as _, Fixed, Publisher};
use dns::Dns;
use health::Health;
use kubernetes::Slices;
pub use membership::{Membership, Peer};
use pace::Paces;
use speed::Speeds;
pub use tls::{Files, Tls, TlsError};
pub use uploads::{Upload, Uploads, Waiting};
use wire::{HashesAsk, PeerRequest, PieceAsk};

use crate::{
    metrics::{Metrics, PeerLabels, PeerOutcome, PeerWhat},
    types::{Digest, MediaType, Repository, Tag},
};

/// Where the list of peers comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: every agent fetches for itself.
    Off,
    /// The configuration.
    Static(Vec<Peer>),
    /// The addresses behind a name, asked again and again.
    Dns {
        /// The name.
        host: String,
        /// The port of every peer listener.
        port: u16,
    },
    /// The `EndpointSlices` of a Kubernetes service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// URL of the API server; without one, that of the cluster that this process runs in.
        api: Option<String>,
    },
}

/// How this node takes part.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its stable name.
    pub name: String,
    /// Its zone; empty for none.
    pub zone: String,
    /// Who else is here.
    pub source: Source,
    /// Whether it fetches for others what nobody on this node wants.
    pub relay: bool,
    /// Pieces sent at once.
    pub uploads: usize,
    /// Most bytes a second sent to peers.
    pub upload_rate: Option<u64>,
    /// For how long nothing may come of peers before upstream is asked instead.
    pub wait: Duration,
    /// How many peers must agree on a tag's digest while the registry cannot be read.
    pub tag_quorum: usize,
    /// Mutual TLS between peers. Without it, every client that reaches the listener counts as a peer.
    pub tls: Option<Arc<Tls>>,
}

/// Why peers could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the client for peers")]
pub struct SetupError(#[from] reqwest::Error);

/// The cluster as one node sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    membership: watch::Receiver<Arc<Membership>>,
    client: Client,
    health: Health,
    paces: Mutex<Paces<String>>,
    speeds: Mutex<Speeds>,
    uploads: Uploads,
    metrics: Metrics,
    /// Decides whose answers about tags count; never leaves this process.
    salt: RandomState,
    /// A source of peers is configured.
    on: bool,
}

impl Peers {
    /// This node at `address`, and the publisher through which a directory tells who else is here.
    pub fn new(
        config: Config,
        address: SocketAddr,
        metrics: Metrics,
    ) -> Result<(Self, Publisher), SetupError> {
        let me = Peer { name: config.name.clone(), zone: config.zone.clone(), address };
        let (publisher, membership) = Publisher::new(me, metrics.clone());
        let inner = Inner {
            on: config.source != Source::Off,
            uploads: Uploads::new(config.uploads, config.upload_rate),
            client: Client::new(config.tls.as_deref())?,
            health: Health::default(),
            paces: Mutex::default(),
            speeds: Mutex::default(),
            config,
            membership,
            metrics,
            salt: RandomState::new(),
        };
        Ok((Self(Arc::new(inner)), publisher))
    }

    /// Whether agents work together at all.
    pub fn is_on(&self) -> bool {
        self.0.on
    }

    /// How this node takes part.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Who this node says it is.
    pub fn identity(&self) -> Identity {
        Identity { name: self.0.config.name.clone(), zone: self.0.config.zone.clone() }
    }

    /// Who is here now; `None` when there is nobody to share with.
    pub fn membership(&self) -> Option<Arc<Membership>> {
        let membership = self.0.membership.borrow().clone();
        (!membership.is_alone()).then_some(membership)
    }

    /// News of the membership.
    pub fn watch(&self) -> watch::Receiver<Arc<Membership>> {
        self.0.membership.clone()
    }

    /// Reads the configured source of peers, and the certificates for them, until `stop`.
    pub async fn follow(&self, publish: Publisher, stop: CancellationToken) {
        let certificates = async {
            if let Some(tls) = self.0.config.tls.clone() {
                let changed = || self.0.client.renew(&tls);
                tls.clone().follow(changed, &stop).await;
            }
        };
        tokio::join!(certificates, self.follow_membership(publish, stop.clone()));
    }

    async fn follow_membership(&self, publish: Publisher, stop: CancellationToken) {
        match self.0.config.source.clone() {
            Source::Off => {}
            Source::Static(membership) => Fixed(membership).run(publish, stop).await,
            Source::Dns { host, port } => {
                Dns { host, port, client: self.0.client.clone() }.run(publish, stop).await;
            }
            Source::Service { namespace, name, api } => {
                Slices { namespace, name, api }.run(publish, stop).await;
            }
        }
    }

    /// What this node may send to others.
    pub fn uploads(&self) -> &Uploads {
        &self.0.uploads
    }

    /// Whether a peer is to be asked at all now.
    pub fn is_usable(&self, peer: &Peer) -> bool {
        self.0.health.is_usable(&peer.name)
    }

    /// Whether a peer is to be asked for what only it is to read upstream: one failure does not keep from that.
    pub fn is_trusted(&self, peer: &Peer) -> bool {
        self.0.health.is_trusted(&peer.name)
    }

    /// Whether a parent is to be passed over now because it is much slower than others.
    pub fn passes_over(&self, peer: &Peer) -> bool {
        self.0.paces.lock().unwrap_or_else(PoisonError::into_inner).passes_over(&peer.name)
    }

    /// Whether a peer that has sent so many bytes in this time is much slower than others.
    pub fn is_slow_transfer(&self, bytes: u64, taken: Duration) -> bool {
        self.0.paces.lock().unwrap_or_else(PoisonError::into_inner).is_slow_transfer(bytes, taken)
    }

    /// Bytes of content have arrived at this node, from the registry or a peer.
    pub fn note_arrival(&self, bytes: u64) {
        let mut speeds = self.speeds();
        speeds.note_arrival(bytes, Instant::now());
        self.0.client.set_slow(speeds.is_slow());
    }

    /// A peer says how fast it is.
    pub fn note_speed(&self, peer: &str, rate: u64) {
        self.speeds().note_peer(peer, rate, Instant::now());
    }

    /// How fast this node is, in bytes a second; `None` before it knows.
    pub fn own_speed(&self) -> Option<u64> {
        self.speeds().own()
    }

    /// Whether this node is much slower than most others: then none is to wait for it.
    pub fn is_slow(&self) -> bool {
        self.speeds().is_slow()
    }

    /// Bytes of content that have arrived at this node so far, when it is slow: one blob waits for another there.
    pub fn arrived_if_slow(&self) -> Option<u64> {
        let speeds = self.speeds();
        speeds.is_slow().then(|| speeds.arrived())
    }

    /// For how long nothing has arrived at this node, from the registry or a peer.
    pub fn quiet_for(&self) -> Duration {
        self.speeds().quiet_for(Instant::now())
    }

    fn speeds(&self) -> MutexGuard<'_, Speeds> {
        self.0.speeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peers whose answers about tags count for this node.
    pub fn voters(&self, membership: &Membership) -> Vec<Peer> {
        let usable = membership.others().filter(|peer| self.is_usable(peer));
        quorum::chosen(usable, &self.0.salt, self.0.config.tag_quorum)
    }

    /// It sent so many bytes of a piece in this time.
    pub fn note_pace(&self, peer: &Peer, bytes: u64, taken: Duration) {
        let mut paces = self.0.paces.lock().unwrap_or_else(PoisonError::into_inner);
        paces.note(peer.name.clone(), bytes, taken);
    }

    /// It sent wrong bytes: it is left out for a while.
    pub fn blame(&self, peer: &str) {
        self.0.health.lied(peer);
    }

    /// It did not keep what it promised.
    pub fn note_failure(&self, error: &PeerError) {
        tracing::debug!(peer = error.peer, problem = error.problem, "peer failed");
        self.0.health.failed(&error.peer);
    }

    /// Asks for a piece of `length` bytes. Whoever asks notes a failure, or tries once more.
    pub async fn piece(&self, peer: &Peer, ask: &PieceAsk, length: u64) -> Result<PieceAnswer, PeerError> {
        let answer = self.0.client.piece(peer, ask, length).await.map(|(answer, speed)| {
            if let Some(speed) = speed {
                self.note_speed(&peer.name, speed);
            }
            answer
        });
        let outcome = match &answer {
            Ok(PieceAnswer::Body(_)) => PeerOutcome::found,
            Ok(PieceAnswer::Held(_)) => PeerOutcome::held,
            Ok(PieceAnswer::NoPart | PieceAnswer::NoRanges) => PeerOutcome::declined,
            Ok(PieceAnswer::Unable) => PeerOutcome::busy,
            Err(_) => PeerOutcome::failed,
        };
        self.count(PeerWhat::piece, outcome);
        match &answer {
            Ok(PieceAnswer::Unable) => self.0.health.busy(&peer.name),
            Ok(_) => self.0.health.succeeded(&peer.name),
            Err(error) if error.silent => self.speeds().note_silent(&peer.name, Instant::now()),
            Err(_) => {}
        }
        answer
    }

    /// Requests the hashes of a segment's pieces.
    pub async fn hashes(&self, peer: &Peer, ask: &HashesAsk) -> Option<Settled<BTreeMap<u64, Digest>>> {
        self.settled(PeerWhat::hashes, self.0.client.hashes(peer, ask).await)
    }

    /// Asks for a manifest by digest; it is checked. With `known` upstream is not asked by anyone.
    pub async fn manifest(
        &self,
        peer: &Peer,
        repository: &Repository,
        digest: &Digest,
        known: bool,
    ) -> Option<Settled<(MediaType, Bytes)>> {
        let request = PeerRequest::Manifest { repository: repository.clone(), digest: *digest, known };
        self.settled(PeerWhat::manifest, self.0.client.manifest(peer, &request, digest).await)
    }

    /// Asks what a tag resolves to. With `known` upstream is not asked by anyone.
    pub async fn tag(
        &self,
        peer: &Peer,
        repository: &Repository,
        tag: &Tag,
        known: bool,
    ) -> Option<Settled<TagMeaning>> {
        let request = PeerRequest::Tag { repository: repository.clone(), tag: tag.clone(), known };
        self.settled(PeerWhat::tag, self.0.client.tag(peer, &request).await)
    }

    fn settled<T>(&self, what: PeerWhat, answer: Result<Settled<T>, PeerError>) -> Option<Settled<T>> {
        let outcome = match &answer {
            Ok(Settled::Found(_)) => PeerOutcome::found,
            Ok(Settled::Absent) => PeerOutcome::declined,
            Ok(Settled::NotNow) => PeerOutcome::busy,
            Err(_) => PeerOutcome::failed,
        };
        self.count(what, outcome);
        answer.inspect_err(|error| self.note_failure(error)).ok()
    }

    fn count(&self, what: PeerWhat, outcome: PeerOutcome) {
        self.0.metrics.peer_requests.get_or_create(&PeerLabels { what, outcome }).inc();
    }
}
