//! One registry as the agent sees it: its endpoints in order, with a breaker and a budget each, and the number of
//! transfers it may have at once.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::Method;
use reqwest::Url;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Distrust, Private, RegistryConfig, UpstreamError,
    ask::Ask,
    breaker::Breaker,
    budget::{Budget, BudgetStatus, Class},
    endpoint::{Endpoint, Reply, Shared},
    guard,
    retry::backoff,
};
use crate::{
    metrics::{Kind, RegistryLabels},
    types::{RegistryHost, RepoName},
};

/// Attempts for one small request: over all endpoints each, with growing pauses, within the limit for a header.
const ATTEMPTS: u32 = 3;

/// For how long a registry is believed to know no ranges.
const NO_RANGES: Duration = Duration::from_hours(1);

#[derive(Debug)]
pub(super) struct Registry {
    host: RegistryHost,
    endpoints: Vec<Watched>,
    transfers: Arc<Semaphore>,
    no_ranges: Mutex<Option<Instant>>,
    shared: Arc<Shared>,
}

/// An endpoint and what is known of its health.
#[derive(Debug)]
struct Watched {
    endpoint: Endpoint,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    breaker: Breaker,
    budget: Budget,
}

/// How a registry stands.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryStatus {
    /// Which.
    pub registry: String,
    /// Its endpoints in order.
    pub endpoints: Vec<EndpointStatus>,
}

/// How an endpoint stands.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// Host and port.
    pub endpoint: String,
    /// Seconds for which it is left alone after failures.
    pub left_alone_for_seconds: Option<u64>,
    /// What it allows.
    pub rate: BudgetStatus,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    pub(super) fn new(
        host: &RegistryHost,
        config: &RegistryConfig,
        shared: &Arc<Shared>,
    ) -> Result<Arc<Self>, String> {
        let urls = if config.endpoints.is_empty() {
            vec![default_endpoint(host).ok_or("its name is not usable as a host")?]
        } else {
            config.endpoints.clone()
        };
        let client = client(config, shared.connect_limit)
            .map_err(|error| format!("no HTTPS client for it: {error}"))?;
        let use_credentials = config.private == Private::Agent;
        let watch = |url| {
            let endpoint = Endpoint::new(host.clone(), url, use_credentials, client.clone(), shared.clone());
            Watched { endpoint, health: Mutex::default() }
        };
        Ok(Arc::new(Self {
            host: host.clone(),
            endpoints: urls.into_iter().map(watch).collect(),
            transfers: Arc::new(Semaphore::new(config.connections)),
            no_ranges: Mutex::default(),
            shared: shared.clone(),
        }))
    }

    pub(super) async fn transfer_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.transfers.clone().acquire_owned().await.ok()
    }

    pub(super) fn has_ranges(&self) -> bool {
        guard(&self.no_ranges).is_none_or(|since| since.elapsed() > NO_RANGES)
    }

    pub(super) fn note_no_ranges(&self) {
        *guard(&self.no_ranges) = Some(Instant::now());
    }

    /// Sends one request: endpoints in order, those that lied about this content last; small requests again after a
    /// pause. Blobs are tried again by whoever fills them, from where they broke off.
    pub(super) async fn send(
        &self,
        name: &RepoName,
        ask: &Ask,
        distrust: &Distrust,
    ) -> Result<Reply, UpstreamError> {
        let deadline = Instant::now() + self.shared.header_limit;
        let attempts = if ask.kind == Kind::blob && ask.method == Method::GET { 1 } else { ATTEMPTS };
        let mut failures = 0;
        loop {
            let error = match self.try_endpoints(name, ask, distrust).await {
                Err(error @ (UpstreamError::Throttled { .. } | UpstreamError::Unavailable { .. })) => error,
                settled => return settled,
            };
            failures += 1;
            match backoff(failures, &error) {
                Some(pause) if failures < attempts && Instant::now() + pause < deadline => {
                    tokio::time::sleep(pause).await;
                }
                _ => return Err(error),
            }
        }
    }

    async fn try_endpoints(
        &self,
        name: &RepoName,
        ask: &Ask,
        distrust: &Distrust,
    ) -> Result<Reply, UpstreamError> {
        let named = |origins: &[String], watched: &Watched| {
            origins.iter().any(|origin| origin.split(' ').next() == Some(watched.endpoint.name()))
        };
        let asked = self.endpoints.iter().filter(|watched| !named(&distrust.never, watched));
        let (last, first): (Vec<_>, Vec<_>) = asked.partition(|watched| named(&distrust.last, watched));
        let mut failed = None;
        for watched in first.into_iter().chain(last) {
            match self.try_endpoint(watched, name, ask).await {
                Err(error @ (UpstreamError::Throttled { .. } | UpstreamError::Unavailable { .. })) => {
                    tracing::debug!(endpoint = watched.endpoint.name(), kind = ?ask.kind, error = %error, "upstream endpoint failed");
                    failed = Some(error);
                }
                settled => return settled,
            }
        }
        Err(failed.unwrap_or_else(|| UpstreamError::Distrusted { registry: self.host.clone() }))
    }

    async fn try_endpoint(
        &self,
        watched: &Watched,
        name: &RepoName,
        ask: &Ask,
    ) -> Result<Reply, UpstreamError> {
        self.admit(watched)?;
        if ask.kind == Kind::manifest && ask.method == Method::GET {
            guard(&watched.health).budget.spent(name);
        }
        let outcome = watched.endpoint.send(name, ask).await;
        let now = Instant::now();
        let mut health = guard(&watched.health);
        match outcome {
            Ok(reply) => {
                health.breaker.succeeded();
                health.budget.answered(reply.headers(), now);
                self.export(&health.budget, now);
                Ok(reply)
            }
            Err(UpstreamError::Throttled { registry, retry_after }) => {
                health.breaker.succeeded();
                let wait = health.budget.refused(retry_after, now);
                tracing::warn!(registry = %self.host, endpoint = watched.endpoint.name(), ?wait, "throttled");
                Err(UpstreamError::Throttled { registry, retry_after: Some(wait) })
            }
            Err(error @ UpstreamError::Unavailable { .. }) => {
                health.breaker.failed(now);
                Err(error)
            }
            Err(settled) => {
                health.breaker.succeeded();
                Err(settled)
            }
        }
    }

    /// Keeps a request back that the endpoint would refuse or not answer.
    fn admit(&self, watched: &Watched) -> Result<(), UpstreamError> {
        let now = Instant::now();
        let mut health = guard(&watched.health);
        if let Err(wait) = health.budget.admit(Class::Demand, now) {
            return Err(UpstreamError::Throttled { registry: self.host.clone(), retry_after: Some(wait) });
        }
        health.breaker.admit(now).map_err(|wait| {
            self.unavailable(format!(
                "`{}` failed several times and is left alone for {wait:.0?}",
                watched.endpoint.name()
            ))
        })
    }

    /// The shortest wait until one of the endpoints has more left than its reserve.
    pub(super) fn background_wait(&self) -> Option<Duration> {
        let now = Instant::now();
        let waits = self.endpoints.iter().map(|watched| {
            let waits = guard(&watched.health).budget.admit(Class::Background, now);
            waits.err().unwrap_or_default()
        });
        waits.min().filter(|wait| !wait.is_zero())
    }

    /// Shows the budget as metrics.
    fn export(&self, budget: &Budget, now: Instant) {
        let status = budget.status(now);
        let labels = RegistryLabels { registry: self.host.to_string() };
        let as_gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        if let Some(limit) = status.limit {
            self.shared.metrics.rate_limit.get_or_create(&labels).set(as_gauge(limit));
        }
        if let Some(remaining) = status.remaining {
            self.shared.metrics.rate_remaining.get_or_create(&labels).set(as_gauge(remaining));
        }
    }

    pub(super) fn status(&self) -> RegistryStatus {
        let now = Instant::now();
        let endpoint = |watched: &Watched| {
            let health = guard(&watched.health);
            EndpointStatus {
                endpoint: watched.endpoint.name().to_owned(),
                left_alone_for_seconds: health.breaker.open_for(now).map(|wait| wait.as_secs() + 1),
                rate: health.budget.status(now),
            }
        };
        RegistryStatus {
            registry: self.host.to_string(),
            endpoints: self.endpoints.iter().map(endpoint).collect(),
        }
    }

    fn unavailable(&self, reason: String) -> UpstreamError {
        UpstreamError::Unavailable { registry: self.host.clone(), reason }
    }
}

/// A client of its own for each registry: trust, identity and connections are not shared.
fn client(config: &RegistryConfig, connect_limit: Duration) -> Result<reqwest::Client, reqwest::Error> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("hearth-agent/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(connect_limit)
        .pool_idle_timeout(Duration::from_mins(1))
        .tcp_keepalive(Duration::from_secs(30))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .dns_resolver(Arc::new(guard::GuardedResolver));
    if !config.authorities.is_empty() {
        builder = builder.tls_certs_merge(config.authorities.iter().cloned());
    }
    if let Some(identity) = &config.identity {
        builder = builder.identity(identity.clone());
    }
    builder.build()
}

/// `https://<host>`; Docker Hub's references name a host that is not its registry.
fn default_endpoint(registry: &RegistryHost) -> Option<Url> {
    let host = match registry.as_str() {
        "docker.io" | "index.docker.io" => "registry-1.docker.io",
        other => other,
    };
    Url::parse(&format!("https://{host}/")).ok()
}
