//! The only file that uses every module. `build` opens and binds, `run` starts loops and serves, in this order:
//! store, upstream, download, listeners; and stops in the reverse order.
//!
//! Shutdown: no new connections (probes of a new process on the same ports reach that) -> open requests finish
//! within the grace period -> downloads stop and keep their partial blobs -> times of last use written -> index
//! closed.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::{
    access::Access,
    config::Config,
    controller::Controller,
    download::{Fetcher, MakeRoom},
    explain::Explainer,
    gc::Collector,
    http::{
        Admin, ClusterView, Detail, Handover, HeaderLimits, Inherited, Latch, Limits, LocalServer, Mirror,
        PeerApi, Probes, Readiness, Report, Section, Server, Shares, Token,
    },
    journal::Journal,
    metrics::{ControllerMetrics, Metrics},
    peers::{self, Peers, directory::Publisher, state::SetState},
    prepull::{self, Prepuller, cluster::Cluster},
    proof::Prover,
    scrub::Scrubber,
    store::{Store, StoreError},
    swarm::Swarm,
    task::Tasks,
    upstream::{SetupError, Upstream},
    verify::Verifier,
};

/// How often times of last use are written to the index.
const USAGE_FLUSH: Duration = Duration::from_secs(10);

/// Longest wait until a peer reads a byte. A slow peer gives its place to others long before that
/// ([`peers::Uploads`]).
const PEER_WRITE: Duration = Duration::from_secs(15);

/// How long the port of an agent that ends is waited for.
const PORT_WAIT: Duration = Duration::from_secs(10);

/// How often a directory that another agent has locked is tried again.
const OWN_PAUSE: Duration = Duration::from_millis(100);

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The store cannot be opened.
    #[error("cannot open the store")]
    Store(#[from] StoreError),
    /// The HTTPS client cannot be made.
    #[error(transparent)]
    Upstream(#[from] SetupError),
    /// The client for other agents cannot be made.
    #[error(transparent)]
    Peers(#[from] peers::SetupError),
    /// A listener cannot be bound.
    #[error("cannot listen on `{address}` (`{key}`)")]
    Listen {
        /// The configuration's key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The configuration names no cluster.
    #[error("`kubernetes.imageSets` is off: set it to `true`, the controller has nothing to do without it")]
    NoCluster,
    /// A background task was aborted.
    #[error("a start-up task did not finish")]
    Task(#[from] tokio::task::JoinError),
}

/// The addresses of the listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The mirror.
    pub mirror: SocketAddr,
    /// The peers' listener, if peers are configured.
    pub peer: Option<SocketAddr>,
    /// Probes and metrics.
    pub admin: SocketAddr,
}

/// An agent that has opened and bound everything, and has started nothing yet.
#[derive(Debug)]
pub struct App {
    config: Config,
    store: Store,
    fetcher: Fetcher,
    swarm: Swarm,
    collector: Collector,
    access: Access,
    verifier: Verifier,
    prepuller: Prepuller,
    upstream: Arc<Upstream>,
    peers: Peers,
    publisher: Publisher,
    metrics: Metrics,
    journal: Journal,
    prover: Prover,
    mirror: Server,
    peer: Option<Server>,
    admin: Server,
    /// Absent when the disk does not take it.
    local: Option<LocalServer>,
    handover: Option<Handover>,
    tasks: Tasks,
    readiness: Readiness,
    starting: Latch,
    /// Cancelled when downloads must stop.
    park: CancellationToken,
}

impl App {
    /// Opens the store and binds the listeners.
    pub async fn build(config: Config) -> Result<Self, AppError> {
        let store_config = config.store.clone();
        let store = tokio::task::spawn_blocking(move || Store::attach(&store_config)).await??;
        let (metrics, tasks, park) = (Metrics::default(), Tasks::default(), CancellationToken::new());
        let journal = Journal::default();
        let upstream = Arc::new(Upstream::new(config.upstream.clone(), metrics.clone())?);
        // An agent that has the directory runs beside this one until it is told to end.
        let beside = !store.is_owner();
        let path = config.admin_socket.clone();
        let inherited = if beside {
            tokio::task::spawn_blocking(move || Inherited::ask(&path)).await?
        } else {
            Inherited::default()
        };
        let mut bind = Bind { inherited, beside, until: Instant::now() + PORT_WAIT };
        let shares = Shares::take(config.limits.connections);
        let share = |connections| Limits { connections, ..config.limits };
        let client_write = config.limits.client_write.min(PEER_WRITE);
        let patience = Limits { client_write, ..share(shares.peer) };
        let on = config.peers.source != peers::Source::Off;
        let peer =
            if on { Some(bind.listen("peer.listen", config.peer_listen, patience).await?) } else { None };
        let address = peer.as_ref().map_or(config.peer_listen, Server::address);
        let (peers, publisher) = Peers::new(config.peers.clone(), address, metrics.clone())?;
        let collector = Collector::new(store.clone(), metrics.clone());
        let room = collector.clone();
        let fetcher = Fetcher::new(
            config.fetch.clone(),
            store.clone(),
            upstream.clone(),
            peers.clone(),
            metrics.clone(),
            journal.clone(),
            tasks.clone(),
            park.clone(),
            MakeRoom::new(move |need| room.make_room(need)),
        );
        let swarm = Swarm::new(
            fetcher.clone(),
            store.clone(),
            upstream.clone(),
            peers.clone(),
            metrics.clone(),
            tasks.clone(),
        );
        let access = Access::new(store.clone(), upstream.clone(), fetcher.clone());
        let verifier = Verifier::new(store.clone(), fetcher.clone(), upstream.clone(), access.clone());
        let prepuller = Prepuller::new(
            config.prepull.clone(),
            fetcher.clone(),
            upstream.clone(),
            access.clone(),
            verifier.clone(),
            config.runtime.clone(),
            store.clone(),
            metrics.clone(),
        );
        let prover = Prover::new(
            config.runtime.clone(),
            config.setup_report.clone(),
            config.upstream.registries.iter().map(|registry| registry.pattern.clone()).collect(),
            store.clone(),
            journal.clone(),
        );
        let mirror = bind.listen("mirror.listen", config.mirror_listen, share(shares.mirror)).await?;
        let admin = bind.listen("admin.listen", config.admin_listen, share(shares.admin)).await?;
        let handover = Handover::bind(&config.admin_socket, [&mirror, &admin].into_iter().chain(&peer))
            .inspect_err(|error| {
                tracing::warn!(%error, "hand-over socket not opened: an update of the agent interrupts requests");
            });
        let local = LocalServer::bind(&config.admin_socket).inspect_err(|error| {
            let path = config.admin_socket.display();
            tracing::error!(%error, %path, "Unix socket not opened: `hearth-agent` commands such as `ls` and `pin` do not work");
        });
        let (readiness, starting) = Readiness::new();
        Ok(Self {
            config,
            store,
            fetcher,
            swarm,
            collector,
            access,
            verifier,
            prepuller,
            upstream,
            peers,
            publisher,
            metrics,
            journal,
            prover,
            mirror,
            peer,
            admin,
            local: local.ok(),
            handover: handover.ok(),
            tasks,
            readiness,
            starting,
            park,
        })
    }

    /// The addresses of the listeners.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            mirror: self.mirror.address(),
            peer: self.peer.as_ref().map(Server::address),
            admin: self.admin.address(),
        }
    }

    /// Serves until `stop`, then drains.
    pub async fn run(self, stop: CancellationToken) -> Result<(), AppError> {
        let addresses = self.addresses();
        tracing::info!(mirror = %addresses.mirror, peer = addresses.peer.map(tracing::field::display), admin = %addresses.admin, "listening");
        let owning = self.tasks.spawn("store", own(self.store.clone(), self.config.lock_wait, stop.clone()));
        let connections = Tasks::default();
        let prepuller = self.prepuller;
        let reporter = prepuller.clone();
        let of_sets = prepuller.clone();
        let proof = self.config.kubernetes.as_ref().map(|_| self.prover.proof());
        let view = ClusterView::new(
            self.store.clone(),
            self.fetcher.clone(),
            self.peers.clone(),
            self.metrics.clone(),
            move || set_states(&of_sets.report()),
        );
        let report = Report::new(
            self.store.clone(),
            self.fetcher.clone(),
            self.upstream.clone(),
            self.peers.clone(),
            self.journal.clone(),
            self.metrics.clone(),
            vec![
                Section::new("prepull", move |detail| match detail {
                    Detail::Names => prepull::document(&reporter.report()),
                    Detail::Numbers => prepull::counts(&reporter.report()),
                }),
                Section::new("runtime", move |detail| {
                    // Looked for in a cluster only.
                    let proof = proof.as_ref().map(|proof| proof.borrow().clone());
                    proof.map_or(serde_json::Value::Null, |proof| proof.document(detail == Detail::Names))
                }),
            ],
        );
        let explainer = Explainer::new(
            self.store.clone(),
            self.fetcher.clone(),
            self.upstream.clone(),
            self.peers.clone(),
            self.journal.clone(),
        );
        let admin = Admin::new(
            self.readiness,
            self.metrics.clone(),
            self.store.clone(),
            self.upstream.clone(),
            report,
            view.clone(),
            explainer,
            self.journal.clone(),
            Token::of(self.config.admin_token.clone()),
            self.tasks.clone(),
            stop.clone(),
        );
        let handover_task =
            self.handover.map(|handover| self.tasks.spawn("handover", handover.serve(stop.clone())));
        let local_task = self.local.map(|local| {
            self.tasks.spawn("local", local.serve(admin.clone(), self.tasks.clone(), stop.clone()))
        });
        // Closed at once too: during an update a new process shares the port, and its probes must not reach this one.
        let admin_task =
            self.tasks.spawn("admin", self.admin.serve_admin(admin, connections.clone(), stop.clone()));
        let usage_task = self.tasks.spawn("usage", flush_usage(self.store.clone(), stop.clone()));
        let gc_task = self.tasks.spawn("gc", self.collector.run(stop.clone()));
        let scrubber = Scrubber::new(self.store.clone(), self.metrics.clone(), self.config.scrub_rate);
        let scrub_task = self.tasks.spawn("scrub", scrubber.run(stop.clone()));
        let cluster_task = self.config.kubernetes.clone().map(|config| {
            let cluster = Cluster::new(config, prepuller.clone(), self.store.clone(), self.prover.proof());
            self.tasks.spawn("proof", self.prover.run(stop.clone()));
            self.tasks.spawn("cluster", cluster.run(stop.clone()))
        });
        let prepull_task = self.tasks.spawn("prepull", prepuller.run(stop.clone()));
        let (peers, publisher, until) = (self.peers.clone(), self.publisher, stop.clone());
        let directory_task =
            self.tasks.spawn("directory", async move { Box::pin(peers.follow(publisher, until)).await });
        if self.peers.is_on() {
            self.tasks.spawn("rates", self.fetcher.clone().share_rates(stop.clone()));
        }
        let tls = self.peers.config().tls.clone();
        // Downloads use peers as long as this exists.
        let swarm = self.swarm;
        let api = PeerApi::new(
            self.fetcher.clone(),
            swarm.clone(),
            self.upstream.clone(),
            self.access.clone(),
            self.peers,
            self.metrics.clone(),
            view,
        );
        let peer_task = self.peer.map(|server| {
            self.tasks.spawn("peers", server.serve_peers(api, tls, connections.clone(), stop.clone()))
        });
        let mirror = Mirror::new(
            self.fetcher,
            self.upstream,
            self.access,
            self.verifier,
            self.metrics.clone(),
            self.journal,
            self.config.default_registry.clone(),
            HeaderLimits {
                first: self.config.fetch.first_header,
                body: self.config.upstream.header,
                blob: self.config.upstream.blob_header,
            },
        );
        drop(self.starting);
        self.mirror.serve_mirror(mirror, self.metrics.clone(), connections, stop).await;
        tracing::info!("draining");
        self.park.cancel();
        admin_task.await?;
        for task in [peer_task, local_task, handover_task].into_iter().flatten() {
            task.await?;
        }
        directory_task.await?;
        usage_task.await?;
        gc_task.await?;
        prepull_task.await?;
        if let Some(task) = cluster_task {
            task.await?;
        }
        scrub_task.await?;
        let owned = owning.await?;
        self.tasks.finished().await;
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || store.close()).await?;
        tracing::info!("stopped");
        Ok(owned?)
    }
}

/// How listeners are made.
struct Bind {
    inherited: Inherited,
    /// Another agent has the directory, and is going to end.
    beside: bool,
    until: Instant,
}

impl Bind {
    /// Waits a little for the port of an agent that is ending just now.
    async fn listen(
        &mut self,
        key: &'static str,
        address: SocketAddr,
        limits: Limits,
    ) -> Result<Server, AppError> {
        loop {
            match Server::inherit(address, limits, &mut self.inherited, self.beside) {
                Err(error)
                    if self.beside
                        && error.kind() == io::ErrorKind::AddrInUse
                        && Instant::now() < self.until =>
                {
                    tokio::time::sleep(OWN_PAUSE).await;
                }
                bound => return bound.map_err(|source| AppError::Listen { key, address, source }),
            }
        }
    }
}

/// The controller with its listener for probes and metrics.
#[derive(Debug)]
pub struct ControllerApp {
    server: Server,
    controller: Controller,
    metrics: ControllerMetrics,
}

impl ControllerApp {
    /// Binds the listener.
    pub fn build(config: Config) -> Result<Self, AppError> {
        let settings = config.controller.ok_or(AppError::NoCluster)?;
        let address = config.admin_listen;
        let server = Server::bind(address, config.limits).map_err(|source| AppError::Listen {
            key: "admin.listen",
            address,
            source,
        })?;
        let metrics = ControllerMetrics::default();
        Ok(Self { server, controller: Controller::new(settings, metrics.clone()), metrics })
    }

    /// Where probes and metrics are served.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), AppError> {
        tracing::info!(admin = %self.address(), "listening");
        let (tasks, contact, metrics) = (Tasks::default(), self.controller.contact(), self.metrics);
        let not_ready = move || (!contact.is_recent()).then_some("the API server has not answered lately");
        let probes = Probes::new(not_ready, move || metrics.open_metrics(), stop.clone());
        let controlling = tasks.spawn("controller", self.controller.run(stop.clone()));
        self.server.serve_probes(probes, tasks.clone(), stop).await;
        controlling.await?;
        tasks.finished().await;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Locks the store for this process, then counts its blobs. During a rolling update the old agent holds the lock until
/// it has drained. When the lock is not released, the directory belongs to another agent, and this agent stops.
async fn own(store: Store, wait: Duration, stop: CancellationToken) -> Result<(), StoreError> {
    let deadline = Instant::now() + wait;
    let taken = || StoreError::Locked(store.directory().to_owned());
    loop {
        let candidate = store.clone();
        match tokio::task::spawn_blocking(move || candidate.take_over()).await? {
            Ok(true) => break,
            Ok(false) if Instant::now() < deadline => store.note_trouble(&taken()),
            outcome => {
                stop.cancel();
                return outcome.and(Err(taken()));
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(OWN_PAUSE)).await.is_none() {
            return Ok(());
        }
    }
    if let Err(error) = tokio::task::spawn_blocking(move || store.rebuild_index_if_needed()).await? {
        tracing::warn!(error = %anyhow::Error::from(error), "cannot count the stored blobs: retrying");
    }
    Ok(())
}

async fn flush_usage(store: Store, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(USAGE_FLUSH)).await.is_some() {
        let store = store.clone();
        if tokio::task::spawn_blocking(move || store.flush_usage()).await.is_err() {
            return;
        }
    }
}

/// How far this node is with each image set, by name.
fn set_states(sets: &[prepull::SetReport]) -> BTreeMap<String, SetState> {
    let state = |set: &prepull::SetReport| {
        let (here, failed) = set.progress();
        SetState { images: set.images.len() as u64, here: here as u64, failed: failed as u64 }
    };
    sets.iter().map(|set| (set.name.to_string(), state(set))).collect()
}
