//! The other agents of the cluster: the membership, how a blob is divided between peers, their ranking for each
//! piece, and requests to a peer.
//!
//! `rank` gives every piece its own tree over all peers, which every node computes without a message; `layout`
//! divides blobs into pieces and segments; `plan` decides which piece to request next, from which peer, and how to
//! answer. All are pure, and `bench/sim` runs them on thousands of simulated nodes. `directory` provides the
//! membership, `wire` is the protocol, `client` sends requests, `quorum` decides when answers about a tag count,
//! `budget` is what peers tell the owner of a registry's budget, `state` is what a node reports about itself, `health`
//! tracks which peers to skip, `pace` which are slow, `speed` whether this node is, `uploads` limits what this node sends,
//! `tls` authenticates peers, and `enrol` requests this node's certificate. What happens to a piece is decided in `swarm`.

pub mod budget;
mod client;
pub mod directory;
mod dns;
mod enrol;
mod health;
mod kubernetes;
pub mod layout;
mod membership;
pub mod pace;
pub mod plan;
pub mod quorum;
pub mod rank;
pub mod speed;
pub mod state;
mod tls;
mod uploads;
pub mod wire;

use std::{
    collections::BTreeMap,
    hash::RandomState,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use budget::{BudgetAnswer, BudgetAsk};
use client::Client;
pub use client::{CONNECT, HEADER, HOLD, Identity, PeerError, PieceAnswer, PieceBody, Settled, TagAnswer};
use directory::{Directory as _, Fixed, Publisher};
use dns::Dns;
pub use enrol::Enrolment;
use health::Health;
use kubernetes::Slices;
pub use membership::{Membership, Peer};
use pace::Paces;
use speed::Speeds;
use state::NodeState;
pub use tls::{Files, Tls, TlsError};
pub use uploads::{Upload, Uploads, Waiting};
use wire::{HashesAsk, PeerRequest, PieceAsk};

use crate::{
    limits::peers::client::SLOW_SILENCE,
    metrics::{Metrics, PeerLabels, PeerOutcome, PeerWhat},
    types::{Digest, MediaType, PieceHash, Repository, Tag},
};

/// Where the list of peers comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// No peers: every agent uses the registry.
    Off,
    /// A list in the configuration.
    Static(Vec<Peer>),
    /// The addresses behind a DNS name, looked up regularly.
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
        /// URL of the API server; `None` means the cluster in which this process runs.
        api: Option<String>,
    },
}

/// How this node takes part in the cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its stable name.
    pub name: String,
    /// Its zone; empty for none.
    pub zone: String,
    /// Where the list of peers comes from.
    pub source: Source,
    /// Whether this node fetches pieces for peers of blobs that no client of this node needs.
    pub relay: bool,
    /// Most pieces sent at once.
    pub uploads: usize,
    /// Most bytes sent to peers per second.
    pub upload_rate: Option<u64>,
    /// How long nothing may arrive from peers before the registry is used instead.
    pub wait: Duration,
    /// How many peers must agree on a tag's digest while the registry cannot be read.
    pub tag_quorum: usize,
    /// Mutual TLS between peers. Without it, every client that reaches the listener counts as a peer.
    pub tls: Option<Arc<Tls>>,
    /// Where this node's certificate is requested, unless it comes in files.
    pub enrolment: Option<Enrolment>,
}

/// Why peers could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the client for peers")]
pub struct SetupError(#[from] reqwest::Error);

/// The cluster as one node sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peers(Arc<Inner>);

/// A piece that is arriving at this node; see [`Peers::receiving`].
#[derive(Debug)]
pub struct Receiving {
    peers: Peers,
    sender: String,
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.peers.speeds().end_piece(&self.sender);
    }
}

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
    /// Seed of the choice of peers whose answers about tags count; stays in this process.
    salt: RandomState,
    /// A source of peers is configured.
    on: bool,
}

impl Peers {
    /// This node at `address`, and the publisher through which a directory updates the membership.
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

    /// The identity of this node.
    pub fn identity(&self) -> Identity {
        Identity { name: self.0.config.name.clone(), zone: self.0.config.zone.clone() }
    }

    /// The current membership; `None` when there is no other peer.
    pub fn membership(&self) -> Option<Arc<Membership>> {
        let membership = self.0.membership.borrow().clone();
        (!membership.is_alone()).then_some(membership)
    }

    /// A receiver of changes to the membership.
    pub fn watch(&self) -> watch::Receiver<Arc<Membership>> {
        self.0.membership.clone()
    }

    /// Reads the configured source of peers, and the certificates for them, until `stop`.
    pub async fn follow(&self, publish: Publisher, stop: CancellationToken) {
        let Some(tls) = self.0.config.tls.clone() else { return self.follow_membership(publish, stop).await };
        // No request is sent to a peer before there is a certificate, and the client has it.
        let usable = watch::Sender::new(tls.is_usable());
        let changed = || {
            self.0.client.renew(&tls);
            usable.send_replace(true);
        };
        let certificates = async {
            match &self.0.config.enrolment {
                Some(enrolment) => {
                    stop.run_until_cancelled(enrolment.run(&tls, changed)).await;
                }
                None => tls.clone().follow(changed, &stop).await,
            }
        };
        let membership = async {
            let mut certified = usable.subscribe();
            let waiting = async { certified.wait_for(|usable| *usable).await.is_ok() };
            if stop.run_until_cancelled(waiting).await == Some(true) {
                self.follow_membership(publish, stop.clone()).await;
            }
        };
        let nodes = async {
            let mut membership = self.watch();
            loop {
                tls.expect(&membership.borrow_and_update().clone());
                let changed = stop.run_until_cancelled(membership.changed()).await;
                if !matches!(changed, Some(Ok(()))) {
                    break;
                }
            }
        };
        tokio::join!(certificates, membership, nodes);
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

    /// The limits on what this node sends to peers.
    pub fn uploads(&self) -> &Uploads {
        &self.0.uploads
    }

    /// Whether to send requests to a peer now.
    pub fn is_usable(&self, peer: &Peer) -> bool {
        self.0.health.is_usable(&peer.name)
    }

    /// Whether to request segments that the peer is to read from the registry: one failure is ignored here.
    pub fn is_trusted(&self, peer: &Peer) -> bool {
        self.0.health.is_trusted(&peer.name)
    }

    /// Whether to skip a parent now because it is much slower than others.
    pub fn skips(&self, peer: &Peer) -> bool {
        self.0.paces.lock().skips(&peer.name)
    }

    /// Whether a peer that has sent this many bytes in this time is much slower than others.
    pub fn is_slow_transfer(&self, bytes: u64, taken: Duration) -> bool {
        self.0.paces.lock().is_slow_transfer(bytes, taken)
    }

    /// Bytes of content have arrived at this node, from the registry or a peer.
    pub fn note_arrival(&self, bytes: u64) {
        let mut speeds = self.speeds();
        speeds.note_arrival(bytes, Instant::now());
        self.0.client.set_slow(speeds.is_slow());
    }

    /// A peer begins to send a piece to this node, until the value is dropped.
    pub fn receiving(&self, peer: &Peer) -> Receiving {
        self.speeds().begin_piece(&peer.name);
        Receiving { peers: self.clone(), sender: peer.name.clone() }
    }

    /// A peer reported its speed, in bytes per second.
    pub fn note_speed(&self, peer: &str, rate: u64) {
        self.speeds().note_peer(peer, rate, Instant::now());
    }

    /// The speed of this node, in bytes per second; `None` before it was measured.
    pub fn own_speed(&self) -> Option<u64> {
        self.speeds().own()
    }

    /// Whether this node is much slower than most others: then no peer should wait for it.
    pub fn is_slow(&self) -> bool {
        self.speeds().is_slow()
    }

    /// How much longer than usual nothing may arrive before a wait ends: not zero on a slow node.
    pub fn extra_silence(&self) -> Duration {
        if self.is_slow() { SLOW_SILENCE } else { Duration::ZERO }
    }

    /// Number of content bytes that have arrived at this node, when it is slow: there, one blob waits for another.
    pub fn arrived_if_slow(&self) -> Option<u64> {
        let speeds = self.speeds();
        speeds.is_slow().then(|| speeds.arrived())
    }

    /// For how long nothing has arrived at this node, from the registry or a peer.
    pub fn quiet_for(&self) -> Duration {
        self.speeds().quiet_for(Instant::now())
    }

    fn speeds(&self) -> MutexGuard<'_, Speeds> {
        self.0.speeds.lock()
    }

    /// The peers whose answers about tags count for this node.
    pub fn voters(&self, membership: &Membership) -> Vec<Peer> {
        let usable = membership.others().filter(|peer| self.is_usable(peer));
        quorum::chosen(usable, &self.0.salt, self.0.config.tag_quorum)
    }

    /// A peer sent this many bytes of a piece in this time.
    pub fn note_pace(&self, peer: &Peer, bytes: u64, taken: Duration) {
        let mut paces = self.0.paces.lock();
        paces.note(peer.name.clone(), bytes, taken);
    }

    /// A peer sent wrong bytes: it is quarantined.
    pub fn blame(&self, peer: &str) {
        self.0.health.sent_wrong_bytes(peer);
    }

    /// A request to a peer failed.
    pub fn note_failure(&self, error: &PeerError) {
        tracing::debug!(peer = error.peer, problem = error.problem, "request to a peer failed");
        self.0.health.failed(&error.peer);
    }

    /// Requests a piece of `length` bytes. The caller notes a failure, or retries.
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

    /// Whether a peer answers.
    pub async fn probe(&self, peer: &Peer) -> Result<(), PeerError> {
        self.0.client.identity(peer.address).await.map(|_| ())
    }

    /// What a peer reports about itself.
    pub async fn state(&self, peer: &Peer) -> Result<NodeState, PeerError> {
        self.0.client.state(peer).await.map(NodeState::bounded)
    }

    /// Requests the hashes of a segment's pieces.
    pub async fn hashes(&self, peer: &Peer, ask: &HashesAsk) -> Option<Settled<BTreeMap<u64, PieceHash>>> {
        self.settled(PeerWhat::hashes, self.0.client.hashes(peer, ask).await)
    }

    /// Requests a manifest by digest and verifies it. With `known`, no registry is requested.
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

    /// Requests the digest that a tag resolves to. With `known`, no registry is requested.
    pub async fn tag(
        &self,
        peer: &Peer,
        repository: &Repository,
        tag: &Tag,
        known: bool,
    ) -> Option<Settled<TagAnswer>> {
        let request = PeerRequest::Tag { repository: repository.clone(), tag: tag.clone(), known };
        self.settled(PeerWhat::tag, self.0.client.tag(peer, &request).await)
    }

    /// Reports a registry's rate limit to the owner of its budget, and asks for a grant of background work.
    pub async fn budget(&self, peer: &Peer, ask: &BudgetAsk) -> Option<Settled<BudgetAnswer>> {
        self.settled(PeerWhat::budget, self.0.client.budget(peer, ask).await)
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
