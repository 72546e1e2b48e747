//! One request to one endpoint of a registry: authentication, redirects, limits, and the reading of the status.

mod authorization;
mod lent;
mod reply;
mod token;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use oci::{
    challenge::{Challenge, challenge},
    retry::retry_after,
    token::may_have_credentials,
};
use parking_lot::Mutex;
use reqwest::Url;

use super::{
    Caller,
    ask::Ask,
    auth::{self, TokenCache, TokenKey},
    credentials::{Credentials, Login},
    error::UpstreamError,
    guard,
    headers::{AGENT_HEADER, text},
    lent::Lent,
    redirect, trust,
};
use authorization::{basic, bearer};
pub(super) use reply::Reply;
use reply::causes;

use crate::{
    metrics::{Kind, Metrics, UpstreamLabels},
    trace,
    types::{RegistryHost, RepoName},
};

/// Bytes of an error body that are read for its message.
const ERROR_BODY: usize = 4 * 1024;

/// What all endpoints share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) connect_limit: Duration,
    pub(super) header_limit: Duration,
    pub(super) blob_header_limit: Duration,
    pub(super) idle_limit: Duration,
    pub(super) credentials: Credentials,
    pub(super) tokens: TokenCache,
    pub(super) lent: Lent,
    pub(super) metrics: Metrics,
    /// Signalled when a registry has said something of its rate limit.
    pub(super) told: tokio::sync::Notify,
    pub(super) own_id: HeaderValue,
}

impl Shared {
    /// Longest wait for the header of an answer. What a pull cannot do without is waited for as a client would.
    pub(super) fn limit_for(&self, ask: &Ask) -> Duration {
        if ask.is_content() { self.blob_header_limit.max(self.header_limit) } else { self.header_limit }
    }
}

/// What the configuration allows a registry.
#[derive(Debug)]
pub(super) struct Policy {
    /// To see the agent's credentials.
    pub(super) credentials: bool,
    /// To see credentials that clients have lent.
    pub(super) lent: bool,
    /// To have credentials sent to these hosts.
    pub(super) realms: Vec<String>,
    /// To redirect to these hosts in nearer networks.
    pub(super) redirects: Vec<String>,
}

/// A base URL under which a registry can be read.
#[derive(Debug)]
pub(super) struct Endpoint {
    registry: RegistryHost,
    base: Url,
    /// Host and port, to tell endpoints apart.
    name: String,
    policy: Arc<Policy>,
    client: reqwest::Client,
    shared: Arc<Shared>,
    /// The last challenge seen, so that the next request can bring its token at once.
    challenge: Mutex<Option<Challenge>>,
}

/// Why a request has no answer that can be used.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: UpstreamError,
    pub(super) cause: Cause,
    /// Headers of the answer, where they may say what is left of a rate limit.
    pub(super) told: Option<Box<HeaderMap>>,
}

/// What a failure says of the endpoint, where it is "unavailable".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// There was no connection to it.
    Connection,
    /// What was asked for could not be had from it.
    Answer,
    /// It was not asked.
    NotSent,
}

impl From<UpstreamError> for Failure {
    fn from(error: UpstreamError) -> Self {
        Self { error, cause: Cause::Answer, told: None }
    }
}

impl Endpoint {
    pub(super) fn new(
        registry: RegistryHost,
        base: Url,
        policy: Arc<Policy>,
        client: reqwest::Client,
        shared: Arc<Shared>,
    ) -> Self {
        let name = authority(&base);
        Self { registry, base, name, policy, client, shared, challenge: Mutex::new(None) }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Sends a request and settles its status. A 401 is answered once, with a fresh token.
    ///
    /// When credentials cannot be had now, what is public is still read without; a "no" is then not the registry's word.
    async fn send_as(&self, name: &RepoName, ask: &Ask) -> Result<Reply, Failure> {
        let mut no_login = None;
        let sent = self.send_once(name, ask, &mut no_login).await;
        match (sent, no_login) {
            (
                Err(Failure { error: UpstreamError::Denied { .. } | UpstreamError::NotFound { .. }, .. }),
                Some(reason),
            ) => Err(Failure { cause: Cause::NotSent, ..self.unavailable(reason) }),
            (sent, _) => sent,
        }
    }

    async fn send_once(
        &self,
        name: &RepoName,
        ask: &Ask,
        no_login: &mut Option<String>,
    ) -> Result<Reply, Failure> {
        let url = self.url(name, ask)?;
        let authorization = match self.known_challenge() {
            Some(challenge) => self.authorize(&challenge, name, ask, None, no_login).await?,
            None => None,
        };
        let reply = self.follow(url.clone(), ask, authorization.as_ref()).await?;
        if reply.status() != StatusCode::UNAUTHORIZED {
            return self.settle_or_get(reply, url, ask, authorization.as_ref()).await;
        }
        let headers = reply.headers().get_all(header::WWW_AUTHENTICATE);
        let Some(challenge) = challenge(headers.iter().filter_map(|value| value.to_str().ok())) else {
            return self.settle(reply).await;
        };
        drop(reply);
        self.remember(&challenge);
        match self.authorize(&challenge, name, ask, authorization.as_ref(), no_login).await? {
            Some(again) if Some(&again) != authorization.as_ref() => {
                let reply = self.follow(url.clone(), ask, Some(&again)).await?;
                self.settle_or_get(reply, url, ask, Some(&again)).await
            }
            _ => Err(self.denied("it wants credentials, and the agent has none that it takes")),
        }
    }

    /// A registry that has no HEAD for manifests (405) is asked by GET, as container runtimes do: its headers say the
    /// same.
    async fn settle_or_get(
        &self,
        reply: Reply,
        url: Url,
        ask: &Ask,
        authorization: Option<&HeaderValue>,
    ) -> Result<Reply, Failure> {
        let head = ask.kind == Kind::manifest && ask.method == Method::HEAD;
        if !head || reply.status() != StatusCode::METHOD_NOT_ALLOWED {
            return self.settle(reply).await;
        }
        let get = Ask { method: Method::GET, ..ask.clone() };
        let reply = self.follow(url, &get, authorization).await?;
        self.settle(reply).await
    }

    fn url(&self, name: &RepoName, ask: &Ask) -> Result<Url, Failure> {
        let base = self.base.as_str().trim_end_matches('/');
        let mut url = Url::parse(&format!("{base}/v2/{name}/{}", ask.path))
            .map_err(|error| self.unavailable(format!("bad URL: {error}")))?;
        url.set_query(ask.query.as_deref());
        Ok(url)
    }

    /// Sends, and follows redirects. The first hop alone carries the authorization, and hops of the same origin.
    async fn follow(
        &self,
        mut url: Url,
        ask: &Ask,
        authorization: Option<&HeaderValue>,
    ) -> Result<Reply, Failure> {
        let first = url.clone();
        for _ in 0..=redirect::MAX_HOPS {
            let at_registry = redirect::same_origin(&first, &url);
            let reply = self.execute(&url, ask, authorization.filter(|_| at_registry), at_registry).await?;
            if !redirect::is_redirect(reply.status()) {
                return self.check_hop(&first, &url, reply);
            }
            url = redirect::next(&url, reply.headers()).map_err(|reason| self.unavailable(reason))?;
            self.check_reach(&url).await?;
        }
        Err(self.unavailable(format!("more than {} redirects", redirect::MAX_HOPS)))
    }

    /// Without TLS anyone on the path writes the redirects: they must not lead to what only this node, or only its network,
    /// can reach.
    async fn check_reach(&self, to: &Url) -> Result<(), Failure> {
        let host = trust::bare_host(to);
        if self.base.scheme() != "http" || self.policy.redirects.iter().any(|known| known == host) {
            return Ok(());
        }
        // A name without an address is no one's, and fails by itself.
        let (Some(own), Some(there)) = (trust::reach_of(&self.base).await, trust::reach_of(to).await) else {
            return Ok(());
        };
        if there <= own {
            return Ok(());
        }
        Err(self.unavailable(format!(
            "redirected to `{host}` in a network that is nearer to this node than the registry, which has no TLS: name \
             the host in `redirects` of this registry if that is right"
        )))
    }

    /// What a storage host says is not the registry's word: its 401, 403 and 404 mean "not now" (an expired
    /// signature, an object not yet replicated).
    fn check_hop(&self, first: &Url, last: &Url, reply: Reply) -> Result<Reply, Failure> {
        if redirect::same_origin(first, last) || reply.status().is_success() {
            return Ok(reply);
        }
        Err(self.unavailable(format!(
            "redirected to `{}`, which answered {}",
            reply.origin(),
            reply.status()
        )))
    }

    async fn execute(
        &self,
        url: &Url,
        ask: &Ask,
        authorization: Option<&HeaderValue>,
        at_registry: bool,
    ) -> Result<Reply, Failure> {
        let mut headers = ask.headers.clone();
        if at_registry {
            headers.insert(AGENT_HEADER, self.shared.own_id.clone());
        }
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.clone());
        }
        // The endpoint first: it answers for what it redirects to.
        let origin =
            if at_registry { self.name.clone() } else { format!("{} through {}", self.name, authority(url)) };
        let condition = ask.conditions.iter().find(|known| known.origin == origin);
        if let Some(value) = condition.and_then(|known| HeaderValue::from_str(&known.etag).ok()) {
            headers.insert(header::IF_RANGE, value);
        }
        let limit = self.shared.limit_for(ask);
        let response = self.request(&ask.method, url, headers, ask.kind, None, limit).await?;
        if let Some(encoding) = text(response.headers(), header::CONTENT_ENCODING.as_str())
            && !encoding.eq_ignore_ascii_case("identity")
            && response.status().is_success()
        {
            return Err(self.unavailable(format!(
                "`{origin}` sent content encoding `{encoding}`, which was not asked for"
            )));
        }
        Ok(Reply {
            response,
            registry: self.registry.clone(),
            origin,
            idle_limit: self.shared.idle_limit,
            metrics: self.shared.metrics.clone(),
        })
    }

    /// One exchange up to the header, counted.
    async fn request(
        &self,
        method: &Method,
        url: &Url,
        headers: HeaderMap,
        kind: Kind,
        body: Option<String>,
        limit: Duration,
    ) -> Result<reqwest::Response, Failure> {
        if guard::names_forbidden(url) {
            return Err(self.unavailable(format!(
                "`{}` is a link-local or metadata address, which is never dialled",
                url.host_str().unwrap_or_default()
            )));
        }
        let mut request = self.client.request(method.clone(), url.clone()).headers(headers);
        if let Some(body) = body {
            request = request.body(body);
        }
        let span = trace::registry_request(method, url);
        let outcome = trace::within(span, tokio::time::timeout(limit, request.send())).await;
        let status = match &outcome {
            Ok(Ok(response)) => response.status().as_str().to_owned(),
            _ => "error".to_owned(),
        };
        let labels = UpstreamLabels { registry: self.registry.to_string(), kind, status };
        self.shared.metrics.upstream_requests.get_or_create(&labels).inc();
        let host = url.host_str().unwrap_or_default();
        match outcome {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let failure = self.unavailable(format!("`{host}`: {}", causes(&error)));
                // A host that the registry redirects to, or its token endpoint, is not the registry.
                let own = error.is_connect() && redirect::same_origin(&self.base, url);
                Err(Failure { cause: if own { Cause::Connection } else { Cause::Answer }, ..failure })
            }
            Err(_) => Err(self.unavailable(format!("`{host}` did not answer within {limit:?}"))),
        }
    }

    /// Turns the status into what the caller can do.
    async fn settle(&self, reply: Reply) -> Result<Reply, Failure> {
        let status = reply.status();
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(reply),
            StatusCode::NOT_FOUND => {
                let told = Some(Box::new(reply.headers().clone()));
                let error = UpstreamError::NotFound { registry: self.registry.clone() };
                Err(Failure { told, ..error.into() })
            }
            StatusCode::RANGE_NOT_SATISFIABLE => Err(UpstreamError::Changed {
                registry: self.registry.clone(),
                reason: "it ends before the bytes that were asked for".to_owned(),
            }
            .into()),
            StatusCode::TOO_MANY_REQUESTS => {
                let header = text(reply.headers(), header::RETRY_AFTER.as_str()).map(str::to_owned);
                let said = message(reply).await;
                let retry_after = retry_after(header.as_deref(), &said, SystemTime::now());
                Err(UpstreamError::Throttled { registry: self.registry.clone(), retry_after }.into())
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let said = message(reply).await;
                Err(self.denied(&format!("{status}{said}")))
            }
            _ => {
                let said = message(reply).await;
                Err(self.unavailable(format!("it answered {status}{said}")))
            }
        }
    }

    fn known_challenge(&self) -> Option<Challenge> {
        self.challenge.lock().clone()
    }

    fn remember(&self, challenge: &Challenge) {
        *self.challenge.lock() = Some(challenge.clone());
    }

    async fn login(&self, name: &RepoName, fresh: bool) -> Result<Option<Login>, String> {
        if self.policy.credentials {
            self.shared.credentials.login(&self.registry, name, fresh).await
        } else {
            Ok(None)
        }
    }

    /// The header that answers a challenge; `None` when there is nothing to answer with. `no_login` says why there might be
    /// and is not.
    async fn authorize(
        &self,
        challenge: &Challenge,
        name: &RepoName,
        ask: &Ask,
        refused: Option<&HeaderValue>,
        no_login: &mut Option<String>,
    ) -> Result<Option<HeaderValue>, Failure> {
        let login = match &ask.caller {
            Caller::Agent => self.login(name, refused.is_some()).await,
            Caller::Anyone => Ok(None),
            Caller::Client(login) => Ok(Some(login.clone())),
        };
        *no_login = login.as_ref().err().cloned();
        let mut login = login.unwrap_or_default();
        if let (Challenge::Bearer { realm, .. }, Some(Login::Password { .. } | Login::IdentityToken(_))) =
            (challenge, &login)
            && let Err(reason) = self.check_realm(realm)
        {
            // What is public can still be read with a token for anyone.
            (login, *no_login) = (None, Some(reason));
        }
        let (realm, service) = match (challenge, &login) {
            (_, Some(Login::RegistryToken(token))) => return Ok(bearer(token)),
            (Challenge::Basic, login) => return Ok(login.as_ref().and_then(basic)),
            (Challenge::Bearer { realm, service, .. }, _) => (realm.clone(), service.clone()),
        };
        // The scope of this request, not of the one that met the challenge.
        let key = TokenKey { realm, service, scope: format!("repository:{name}:pull"), login };
        let slot = self.shared.tokens.slot(&key);
        let mut token = slot.lock().await;
        let refused =
            refused.and_then(|value| value.to_str().ok()).and_then(|value| value.strip_prefix("Bearer "));
        let cached = token.as_ref().filter(|_| !ask.fresh_token);
        if let Some(value) = auth::usable(cached, refused, Instant::now()) {
            return bearer(&value)
                .map(Some)
                .ok_or_else(|| self.unavailable("its token is not usable as a header".into()));
        }
        let fetched = self.fetch_token(&key).await?;
        let header = bearer(&fetched.value)
            .ok_or_else(|| self.unavailable("its token is not usable as a header".into()))?;
        *token = Some(fetched);
        Ok(Some(header))
    }

    /// Whether credentials may be sent where a challenge says: neither a registry that was taken over nor an attacker on
    /// the path to one without TLS chooses that.
    fn check_realm(&self, realm: &str) -> Result<(), String> {
        let Ok(url) = Url::parse(realm) else { return Ok(()) };
        let host = trust::bare_host(&url);
        let registry = self.registry.as_str();
        let registry = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        if may_have_credentials(host, &[trust::bare_host(&self.base), registry], &self.policy.realms) {
            return Ok(());
        }
        Err(format!(
            "its token endpoint is at `{host}`, which is not of the registry's domain, so no credentials are sent there: \
             name the host in `realms` of this registry if that is right"
        ))
    }

    fn denied(&self, reason: &str) -> Failure {
        UpstreamError::Denied { registry: self.registry.clone(), reason: reason.to_owned() }.into()
    }

    fn unavailable(&self, reason: String) -> Failure {
        UpstreamError::Unavailable { registry: self.registry.clone(), reason }.into()
    }
}

/// Host, and port when it is not the scheme's.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Reads a small body, or nothing when it is larger, broken or slow.
async fn bounded_body(mut response: reqwest::Response, limit: usize, idle: Duration) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(chunk) = tokio::time::timeout(idle, response.chunk()).await.ok()?.ok()? {
        if all.len() + chunk.len() > limit {
            return None;
        }
        all.extend_from_slice(&chunk);
    }
    Some(all)
}

/// The registry's own words: `errors[0].message` of the specification, or nothing. Waits a moment at most.
async fn message(reply: Reply) -> String {
    let limit = reply.idle_limit.min(Duration::from_secs(1));
    let Some(bytes) = bounded_body(reply.response, ERROR_BODY, limit).await else { return String::new() };
    let document: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    let said = document.as_ref().and_then(|document| {
        document
            .pointer("/errors/0/message")
            .or_else(|| document.pointer("/message"))
            .and_then(|said| said.as_str())
    });
    said.map_or(String::new(), |said| {
        format!(": {}", said.chars().filter(|c| !c.is_control()).take(200).collect::<String>())
    })
}
