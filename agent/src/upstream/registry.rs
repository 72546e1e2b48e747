//! One registry: its endpoints in order, each with its own limits, and the number of concurrent transfers.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::Method;
use parking_lot::Mutex;
use reqwest::Url;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    OriginPenalties, Private, RegistryConfig, UpstreamError,
    ask::Ask,
    endpoint::{Cause, Endpoint, Failure, Policy, Reply, Shared},
    guard,
    limits::{Budget, BudgetStatus, Class, Limits, Outcome, Refusal, Told},
    retry::{self, Retries, RetryPolicy},
};
use crate::{
    metrics::{Kind, RegistryLabels},
    types::{RegistryHost, RepoName},
};

/// For how long a registry is assumed not to support ranges.
const NO_RANGES: Duration = Duration::from_hours(1);

/// Concurrent downloads of blobs for this node's clients, and the same number for peers only; further ones
/// wait. Counted by registry: downloads from a silent one do not block those from others.
const DOWNLOADS: usize = 64;

#[derive(Debug)]
pub(super) struct Registry {
    host: RegistryHost,
    endpoints: Vec<Watched>,
    transfers: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    relays: Arc<Semaphore>,
    no_ranges: Mutex<Option<Instant>>,
    shared: Arc<Shared>,
}

/// An endpoint and its limits.
#[derive(Debug)]
struct Watched {
    endpoint: Endpoint,
    limits: Mutex<Limits>,
    /// Seconds by which this node's clock is ahead of the endpoint's.
    clock_ahead: Mutex<Option<i64>>,
}

/// The order of endpoints. Pure.
#[derive(Debug)]
struct Turns {
    endpoints: usize,
    asked: usize,
}

/// Requests beyond the first round that are sent to silent endpoints: a request may have been lost on a dead
/// connection, or be older than the registry's recovery.
const REPEATED: usize = 2;

impl Turns {
    fn new(endpoints: usize) -> Self {
        Self { endpoints, asked: 0 }
    }

    /// The next endpoint that was not requested yet.
    fn next(&mut self) -> Option<usize> {
        (self.asked < self.endpoints).then(|| {
            self.asked += 1;
            self.asked - 1
        })
    }

    /// The same, and after the last one the first again: after silence.
    fn next_or_again(&mut self) -> Option<usize> {
        (self.asked < self.endpoints + REPEATED).then(|| {
            self.asked += 1;
            (self.asked - 1) % self.endpoints.max(1)
        })
    }

    /// How long silence lasts before the next endpoint is requested.
    fn patience(&self, limit: Duration) -> Duration {
        match self.asked {
            asked if asked <= self.endpoints => limit,
            asked if asked < self.endpoints + REPEATED => limit * 2,
            _ => Duration::MAX,
        }
    }
}

/// The state of a registry.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryStatus {
    /// The registry.
    pub registry: String,
    /// Its endpoints in order.
    pub endpoints: Vec<EndpointStatus>,
}

/// The state of an endpoint.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// Host and port.
    pub endpoint: String,
    /// Seconds for which its circuit is open after failures.
    pub circuit_open_for_seconds: Option<u64>,
    /// Its rate limit.
    pub rate: BudgetStatus,
    /// Why the last request that failed did, with causes.
    pub last_error: Option<String>,
    /// How long ago that was, in seconds.
    pub last_error_seconds_ago: Option<u64>,
    /// Seconds by which this node's clock is ahead of the endpoint's, according to its last `Date`.
    pub clock_ahead_seconds: Option<i64>,
}

impl Registry {
    pub(super) fn new(
        host: &RegistryHost,
        config: &RegistryConfig,
        shared: &Arc<Shared>,
    ) -> Result<Arc<Self>, String> {
        let urls = if config.endpoints.is_empty() {
            vec![default_endpoint(host).ok_or("its name is not a valid host")?]
        } else {
            config.endpoints.clone()
        };
        let client = client(config, shared.connect_limit)
            .map_err(|error| format!("cannot create an HTTPS client for it: {error}"))?;
        let policy = Arc::new(Policy {
            credentials: config.private == Private::Agent,
            lent: config.private == Private::Challenge,
            realms: config.realms.clone(),
            redirects: config.redirects.clone(),
        });
        let watch = |url| {
            let endpoint = Endpoint::new(host.clone(), url, policy.clone(), client.clone(), shared.clone());
            Watched { endpoint, limits: Mutex::default(), clock_ahead: Mutex::default() }
        };
        Ok(Arc::new(Self {
            host: host.clone(),
            endpoints: urls.into_iter().map(watch).collect(),
            transfers: Arc::new(Semaphore::new(config.connections)),
            downloads: Arc::new(Semaphore::new(DOWNLOADS)),
            relays: Arc::new(Semaphore::new(DOWNLOADS)),
            no_ranges: Mutex::default(),
            shared: shared.clone(),
        }))
    }

    pub(super) async fn transfer_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.transfers.clone().acquire_owned().await.ok()
    }

    pub(super) async fn download_permit(&self, for_peer: bool) -> Option<OwnedSemaphorePermit> {
        let permits = if for_peer { &self.relays } else { &self.downloads };
        permits.clone().acquire_owned().await.ok()
    }

    pub(super) fn may_relay(&self) -> bool {
        self.relays.available_permits() > 0
    }

    pub(super) fn has_ranges(&self) -> bool {
        self.no_ranges.lock().is_none_or(|since| since.elapsed() > NO_RANGES)
    }

    pub(super) fn note_no_ranges(&self) {
        *self.no_ranges.lock() = Some(Instant::now());
    }

    /// Sends one request: endpoints in order, those that sent wrong bytes for this content last. Small requests
    /// are retried after a pause. Blobs are retried by the caller, from where they were interrupted.
    pub(super) async fn send(
        &self,
        name: &RepoName,
        ask: &Ask,
        origin_penalties: &OriginPenalties,
    ) -> Result<Reply, UpstreamError> {
        let deadline = Instant::now() + self.shared.limit_for(ask);
        let once = ask.kind == Kind::blob && ask.method == Method::GET;
        let mut retries = Retries::new(RetryPolicy::SMALL_REQUEST, 0);
        loop {
            let error = match self.try_endpoints(name, ask, origin_penalties).await {
                Err(error @ (UpstreamError::Throttled { .. } | UpstreamError::Unavailable { .. })) => error,
                settled => return settled,
            };
            match retries.pause(0, &error) {
                Some(pause) if !once && Instant::now() + pause < deadline => {
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
        origin_penalties: &OriginPenalties,
    ) -> Result<Reply, UpstreamError> {
        let named = |origins: &[String], watched: &Watched| {
            origins.iter().any(|origin| origin.split(' ').next() == Some(watched.endpoint.name()))
        };
        let asked = self.endpoints.iter().filter(|watched| !named(&origin_penalties.never, watched));
        let (last, first): (Vec<_>, Vec<_>) =
            asked.partition(|watched| named(&origin_penalties.last, watched));
        let order: Vec<_> = first.into_iter().chain(last).collect();
        let (mut turns, mut asked, mut failed) = (Turns::new(order.len()), FuturesUnordered::new(), None);
        let mut turn = turns.next();
        loop {
            if let Some(watched) = turn.and_then(|turn| order.get(turn)).copied() {
                asked.push(async move { (watched, self.try_endpoint(watched, name, ask).await) });
            }
            // A silent endpoint may still answer first: its request continues beside the next one.
            let patience = turns.patience(self.shared.header_limit);
            let Ok(outcome) = tokio::time::timeout(patience, asked.next()).await else {
                turn = turns.next_or_again();
                continue;
            };
            match outcome {
                Some((
                    watched,
                    Err(error @ (UpstreamError::Throttled { .. } | UpstreamError::Unavailable { .. })),
                )) => {
                    tracing::debug!(endpoint = watched.endpoint.name(), kind = ?ask.kind, error = %error, "upstream endpoint failed");
                    failed = Some(error);
                    turn = turns.next();
                    // A repeated request to the same endpoint would fail in the same way.
                    if turn.is_none() && order.len() == 1 {
                        asked.clear();
                    }
                }
                Some((_, settled)) => return settled,
                None => {
                    return Err(
                        failed.unwrap_or_else(|| UpstreamError::AllPenalized { registry: self.host.clone() })
                    );
                }
            }
        }
    }

    async fn try_endpoint(
        &self,
        watched: &Watched,
        name: &RepoName,
        ask: &Ask,
    ) -> Result<Reply, UpstreamError> {
        let subject = ask.subject(name);
        let began = Instant::now();
        self.admit(watched, &subject, began)?;
        if ask.kind == Kind::manifest && ask.method == Method::GET {
            watched.limits.lock().budget.spent(name);
        }
        let sent = watched.endpoint.send(name, ask).await;
        let now = Instant::now();
        let outcome = match &sent {
            Ok(reply) => Outcome::Settled(Some(reply.headers())),
            Err(Failure { error: UpstreamError::Throttled { retry_after, .. }, .. }) => {
                Outcome::Throttled(*retry_after)
            }
            Err(Failure { error: UpstreamError::Unavailable { .. }, cause, .. }) => match cause {
                Cause::Connection => Outcome::Unreachable,
                Cause::Answer => Outcome::Broken,
                Cause::NotSent => Outcome::NotSent,
            },
            Err(failure) => Outcome::Settled(failure.told.as_deref()),
        };
        let mut limits = watched.limits.lock();
        let wait = limits.settle(&subject, began, outcome, now);
        if let Err(failure) = &sent {
            limits.note_error(&failure.error, now);
        }
        if let Ok(reply) = &sent {
            self.export(&limits.budget, now);
            if let Some(ahead) = retry::clock_ahead(reply.headers(), SystemTime::now()) {
                *watched.clock_ahead.lock() = Some(ahead);
            }
        }
        drop(limits);
        sent.map_err(|failure| match (failure.error, wait) {
            (UpstreamError::Throttled { registry, .. }, Some(wait)) => {
                tracing::warn!(%registry, endpoint = watched.endpoint.name(), ?wait, "registry returned 429: no requests for a while");
                UpstreamError::Throttled { registry, retry_after: Some(wait) }
            }
            (error, _) => error,
        })
    }

    /// Rejects a request that the endpoint would reject or not answer.
    fn admit(&self, watched: &Watched, subject: &str, now: Instant) -> Result<(), UpstreamError> {
        let mut limits = watched.limits.lock();
        let name = watched.endpoint.name();
        let refusal = match limits.admit(subject, now) {
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        let last = limits.last_error(now).map_or_else(String::new, |(age, reason)| {
            format!("; the last error, {} s ago: {reason}", age.as_secs())
        });
        Err(match refusal {
            Refusal::Throttled(wait) => {
                UpstreamError::Throttled { registry: self.host.clone(), retry_after: Some(wait) }
            }
            Refusal::CircuitOpen(wait) => self.unavailable(format!(
                "circuit open for `{name}` ({wait:.0?}): several requests in a row failed{last}"
            )),
            Refusal::Penalty(wait) => self.unavailable(format!(
                "`{name}` failed several times in a row to answer `{subject}`, which is retried in {wait:.0?}{last}"
            )),
        })
    }

    /// The shortest wait until an endpoint takes a request of this class without spending its reserve.
    pub(super) fn background_wait(&self, class: Class) -> Option<Duration> {
        let now = Instant::now();
        let waits = self.endpoints.iter().map(|watched| {
            let waits = watched.limits.lock().budget.admit(class, now);
            waits.err().unwrap_or_default()
        });
        waits.min().filter(|wait| !wait.is_zero())
    }

    /// Exports the rate limit as metrics.
    fn export(&self, budget: &Budget, now: Instant) {
        let status = budget.status(now);
        let labels = RegistryLabels { registry: self.host.to_string() };
        let as_gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        if let Some(limit) = status.limit {
            self.shared.metrics.rate_limit.get_or_create(&labels).set(as_gauge(limit));
        }
        if let Some(remaining) = status.remaining {
            self.shared.metrics.rate_remaining.get_or_create(&labels).set(as_gauge(remaining));
            self.shared.told.notify_one();
        }
    }

    /// What an endpoint said last of its rate limit.
    pub(super) fn told(&self) -> Option<Told> {
        let now = Instant::now();
        let told = self.endpoints.iter().filter_map(|watched| watched.limits.lock().budget.told(now));
        told.min_by_key(|told| told.age)
    }

    pub(super) fn status(&self) -> RegistryStatus {
        let now = Instant::now();
        let endpoint = |watched: &Watched| {
            let limits = watched.limits.lock();
            let last = limits.last_error(now);
            EndpointStatus {
                endpoint: watched.endpoint.name().to_owned(),
                circuit_open_for_seconds: limits.open_for(now).map(|wait| wait.as_secs() + 1),
                rate: limits.budget.status(now),
                last_error: last.map(|(_, reason)| reason.to_owned()),
                last_error_seconds_ago: last.map(|(age, _)| age.as_secs()),
                clock_ahead_seconds: *watched.clock_ahead.lock(),
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

/// Each registry has a client of its own: trust, identity and connections are not shared.
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

/// `https://<host>`; the host in Docker Hub's references is not that of its registry.
fn default_endpoint(registry: &RegistryHost) -> Option<Url> {
    let host = match registry.as_str() {
        "docker.io" | "index.docker.io" => "registry-1.docker.io",
        other => other,
    };
    Url::parse(&format!("https://{host}/")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_requested_in_order_and_again_only_after_silence() {
        const LIMIT: Duration = Duration::from_secs(10);
        let mut turns = Turns::new(2);
        assert_eq!((turns.next(), turns.next(), turns.next()), (Some(0), Some(1), None), "after errors");
        let mut turns = Turns::new(2);
        let order: Vec<_> = std::iter::from_fn(|| {
            let turn = turns.next_or_again()?;
            Some((turn, turns.patience(LIMIT)))
        })
        .collect();
        assert_eq!(order, [(0, LIMIT), (1, LIMIT), (0, LIMIT * 2), (1, Duration::MAX)]);
        assert_eq!(Turns::new(0).next(), None);
    }
}
