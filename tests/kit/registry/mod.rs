//! An OCI registry inside the test process that speaks the real protocol and misbehaves on request.
//!
//! It pulls and pushes like a registry (streaming, blobs on disk, ranges, paging, referrers), authenticates, throttles
//! and redirects like the public ones, writes down every request, and applies a [`Fault`] to the requests a test names.
//!
//! ```no_run
//! # async fn example() {
//! use kit::registry::{Fault, FakeUpstream, On};
//!
//! let upstream = FakeUpstream::start().await;
//! let digest = upstream.blob("team/app", b"a layer").await;
//! upstream.fault(On::blob().get().reference(&digest), Fault::Cut(3)).times(1);
//! // … pull through the agent …
//! assert_eq!(upstream.log().blob_gets().len(), 2, "the cut one and its resumption");
//! # }
//! ```
//!
//! Three listeners, all on loopback: the registry itself, and two "object stores" that redirects lead to, one under
//! another host name and one under the same name with another port.

mod auth;
mod delivery;
mod fault;
mod image;
mod limit;
mod log;
mod path;
mod profile;
mod pull;
mod push;
mod serve;
mod silent;
mod storage;

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, task::JoinSet};

pub use self::{
    auth::{Access, Bearer, Tenants},
    fault::{Fault, FaultHandle, On, RedirectTo, Where},
    image::{INDEX, Image, Layer, MANIFEST, absent_digest, random_bytes},
    log::{Entry, Log},
    path::Kind,
    profile::Profile,
    silent::{BlackHole, Mute},
    storage::sha256,
};

/// Which of the three listeners a request came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Main,
    OtherPort,
    OtherHost,
}

/// State shared by all connections; survives [`FakeUpstream::stop`].
#[derive(Debug)]
struct Server {
    storage: storage::Storage,
    rules: fault::Rules,
    log: log::Recorder,
    gate: auth::Gate,
    throttle: limit::Throttle,
    profile: profile::Current,
    body_limit: AtomicU64,
    connections: AtomicU64,
    rate: AtomicU64,
    addresses: [SocketAddr; 3],
    started: Instant,
}

impl Server {
    fn base(&self, origin: Origin) -> String {
        format!("http://{}", self.addresses[origin as usize])
    }

    /// The pace of blob bodies, if one was set.
    fn rate(&self, kind: Kind) -> Option<u64> {
        let rate = self.rate.load(Ordering::Relaxed);
        (rate > 0 && matches!(kind, Kind::Blob | Kind::Cdn)).then_some(rate)
    }
}

/// The registry. Dropping it ends all connections.
#[derive(Debug)]
pub struct FakeUpstream {
    server: Arc<Server>,
    tasks: Mutex<JoinSet<()>>,
}

impl FakeUpstream {
    /// An empty registry on a free loopback port, with its blobs in a temporary folder.
    pub async fn start() -> Self {
        Self::start_in(None, 0).await.expect("loopback ports and temporary files are available")
    }

    /// An empty registry with its blobs in `dir` (temporary if `None`), on a given port (any if 0).
    pub async fn start_in(dir: Option<&Path>, port: u16) -> io::Result<Self> {
        Self::start_at(dir, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).await
    }

    /// The same where others reach it; the object stores stay on loopback.
    pub async fn start_at(dir: Option<&Path>, main: SocketAddr) -> io::Result<Self> {
        let storage = storage::Storage::open(dir)?;
        let stores = [1, 2].map(|last| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), 0));
        let mut listeners = Vec::new();
        for address in std::iter::once(main).chain(stores) {
            listeners.push(TcpListener::bind(address).await?);
        }
        let address = |index: usize| listeners[index].local_addr();
        let server = Server {
            storage,
            rules: fault::Rules::default(),
            log: log::Recorder::default(),
            gate: auth::Gate::default(),
            throttle: limit::Throttle::default(),
            profile: profile::Current::default(),
            body_limit: AtomicU64::new(u64::MAX),
            connections: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            addresses: [address(0)?, address(1)?, address(2)?],
            started: Instant::now(),
        };
        let upstream = Self { server: Arc::new(server), tasks: Mutex::default() };
        upstream.serve(listeners);
        Ok(upstream)
    }

    fn serve(&self, listeners: Vec<TcpListener>) {
        let mut tasks = self.tasks();
        for (listener, origin) in
            listeners.into_iter().zip([Origin::Main, Origin::OtherPort, Origin::OtherHost])
        {
            tasks.spawn(accept(Arc::clone(&self.server), listener, origin));
        }
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Switches it off: connections break, new ones are refused. What it holds stays.
    pub async fn stop(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks());
        tasks.shutdown().await;
    }

    /// Switches it on again on the same ports.
    pub async fn restart(&self) {
        self.stop().await;
        let mut listeners = Vec::new();
        for address in self.server.addresses {
            listeners.push(TcpListener::bind(address).await.expect("the port was ours a moment ago"));
        }
        self.serve(listeners);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.addresses[Origin::Main as usize]
    }

    /// `http://<address>`.
    pub fn url(&self) -> String {
        self.server.base(Origin::Main)
    }

    /// Programs a fault; it stays until cleared unless [`FaultHandle::times`] bounds it.
    pub fn fault(&self, on: On, fault: Fault) -> FaultHandle {
        self.server.rules.add(on, fault)
    }

    /// Forgets all faults.
    pub fn heal(&self) {
        self.server.rules.clear();
    }

    /// Every request so far.
    pub fn log(&self) -> Log {
        self.server.log.snapshot()
    }

    /// Sets who may pull and push.
    pub fn access(&self, access: Access) {
        self.server.gate.set(access);
    }

    /// Makes every token handed out so far invalid.
    pub fn expire_tokens(&self) {
        self.server.gate.expire_tokens();
    }

    /// Throttles manifest `GET`s: so many per window, 429 past it. `None` lifts the limit.
    pub fn throttle(&self, limit: Option<(u64, Duration)>) {
        self.server.throttle.set(limit);
    }

    /// Takes uploads like one of the public registries.
    pub fn profile(&self, profile: Profile) {
        self.server.profile.set(profile);
    }

    /// Refuses larger request bodies with 413, as a proxy in front of a registry does.
    pub fn limit_bodies(&self, bytes: u64) {
        self.server.body_limit.store(bytes, Ordering::Relaxed);
    }

    /// Limits every blob transfer to so many bytes a second per connection; 0 lifts the limit.
    pub fn rate_per_connection(&self, bytes_per_second: u64) {
        self.server.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Stores a blob and gives its digest.
    pub async fn blob(&self, repository: &str, bytes: &[u8]) -> String {
        let bytes = bytes.to_vec();
        self.write_blob(repository, move |out| out.write_all(&bytes)).await.0
    }

    /// Stores a blob that a function writes, and gives digest and size. Nothing is held in memory.
    pub async fn write_blob(
        &self,
        repository: &str,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> (String, u64) {
        let (server, repository) = (Arc::clone(&self.server), repository.to_owned());
        tokio::task::spawn_blocking(move || server.storage.write_blob(&repository, fill))
            .await
            .expect("the writer does not panic")
            .expect("the temporary folder is writable")
    }

    /// Stores a manifest under a tag (or under its digest only, when `tag` is empty) and gives its digest.
    pub fn manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        bytes: impl Into<bytes::Bytes>,
    ) -> String {
        let manifest = storage::Manifest { media_type: media_type.to_owned(), bytes: bytes.into() };
        let reference = if tag.is_empty() { sha256(&manifest.bytes) } else { tag.to_owned() };
        self.server.storage.put_manifest(repository, &reference, manifest)
    }

    /// Deletes a tag, or a manifest by digest.
    pub fn remove(&self, repository: &str, reference: &str) {
        self.server.storage.remove_manifest(repository, reference);
    }

    /// The digest a tag points at.
    pub fn resolve(&self, repository: &str, reference: &str) -> Option<String> {
        self.server.storage.manifest(repository, reference).map(|(digest, _)| digest)
    }

    /// Bytes of an image's config and layers, by the digest or tag of its manifest; 0 if it is not there.
    pub fn size_of(&self, repository: &str, reference: &str) -> u64 {
        let Some((_, manifest)) = self.server.storage.manifest(repository, reference) else { return 0 };
        let parsed: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap_or_default();
        let blobs = parsed["layers"].as_array().into_iter().flatten().chain(parsed.get("config"));
        blobs.filter_map(|descriptor| descriptor["size"].as_u64()).sum()
    }

    /// Where a blob's bytes lie, to compare with.
    pub fn blob_file(&self, digest: &str) -> Option<PathBuf> {
        self.server.storage.blob("", digest).map(|(path, _)| path)
    }
}

async fn accept(server: Arc<Server>, listener: TcpListener, origin: Origin) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                let _ = stream.set_nodelay(true);
                connections.spawn(serve::connection(Arc::clone(&server), stream, origin));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
