//! Talking to registries: endpoints in order, authentication, redirects, limits on every wait.
//!
//! One [`Upstream`] for the whole agent. An operation tries the registry's endpoints in order and stops at the first
//! answer that settles it: success, "does not exist", "not allowed". What another endpoint might do better
//! (unreachable, throttled, broken) is tried there; the last such error is returned.
//!
//! Invariants: no `Authorization` leaves for another origin than the one that asked for it; link-local and metadata
//! addresses are never dialled; every wait has a limit; bodies are never decoded, so that ranges and digests stay true.

mod auth;
mod credentials;
mod endpoint;
mod guard;
mod redirect;

use std::{collections::HashMap, ops::Range, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::Url;

pub use credentials::{CredentialsError, DockerConfig};
use endpoint::{Endpoint, Reply};

use crate::{
    metrics::{Kind, Metrics, RegistryLabels},
    types::{
        Digest, MANIFEST_ACCEPT, MAX_MANIFEST_BYTES, MediaType, Reference, RegistryHost, RegistryPattern,
        Repository,
    },
};

/// Sent with every request to a registry, so that an agent that reaches itself in a circle notices.
pub const AGENT_HEADER: http::HeaderName = http::HeaderName::from_static("hearth-agent");

/// Answers to tag lists and referrers that are larger than this are refused, in bytes.
const MAX_LISTING_BYTES: u64 = 16 * 1024 * 1024;

/// Why upstream could not give what was asked, by what the caller can do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The registry itself says that it does not exist.
    #[error("`{registry}` does not have it")]
    NotFound {
        /// Which registry.
        registry: RegistryHost,
    },
    /// The registry does not let these credentials read it.
    #[error("`{registry}` denies access: {reason}")]
    Denied {
        /// Which registry.
        registry: RegistryHost,
        /// What it said.
        reason: String,
    },
    /// Too many requests.
    #[error("`{registry}` is throttling")]
    Throttled {
        /// Which registry.
        registry: RegistryHost,
        /// For how long, when it said so.
        retry_after: Option<Duration>,
    },
    /// Unreachable, silent, broken, or answering nonsense.
    #[error("`{registry}` cannot be read now: {reason}")]
    Unavailable {
        /// Which registry.
        registry: RegistryHost,
        /// What happened, with its causes.
        reason: String,
    },
}

/// What the agent does with images that anonymous users cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Private {
    /// Not served: the container runtime goes upstream with the pod's own secret.
    Decline,
    /// The agent's own credentials decide for everyone on the node.
    Agent,
}

/// One entry of the configuration's `registries`.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// Which registries it speaks for.
    pub pattern: RegistryPattern,
    /// Base URLs in order; empty means `https://<host>`.
    pub endpoints: Vec<Url>,
    /// What to do with private images.
    pub private: Private,
}

/// Limits and credentials of the upstream side.
#[derive(Clone, Debug)]
pub struct Config {
    /// The registries that are served; all others are refused.
    pub registries: Vec<RegistryConfig>,
    /// Longest wait for a connection.
    pub connect: Duration,
    /// Longest wait for the header of an answer.
    pub header: Duration,
    /// Longest silence inside a body.
    pub idle: Duration,
    /// Credentials, if any.
    pub credentials: DockerConfig,
}

/// A manifest, complete and verified.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// What it hashes to.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// Its bytes.
    pub bytes: Bytes,
}

/// What upstream says of a manifest without sending it.
#[derive(Clone, Debug)]
pub struct ManifestHead {
    /// The digest, when the registry sends one.
    pub digest: Option<Digest>,
    /// Its media type, when usable.
    pub media_type: Option<MediaType>,
    /// Its size in bytes, when sent.
    pub size: Option<u64>,
}

/// A listing that is passed on as it is.
#[derive(Clone, Debug)]
pub struct Listing {
    /// `Content-Type`, `Link` and `OCI-Filters-Applied`, as far as present.
    pub headers: HeaderMap,
    /// The document.
    pub bytes: Bytes,
}

/// Part of a blob on its way.
#[derive(Debug)]
pub struct BlobBody {
    /// Where its first byte belongs.
    pub offset: u64,
    /// The whole blob's size in bytes, when upstream says so.
    pub size: Option<u64>,
    /// The host that sends the bytes, for blame.
    pub origin: String,
    reply: Reply,
}

impl BlobBody {
    /// The next bytes; `None` at the end of the body. Cancel-safe.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        self.reply.chunk().await
    }
}

/// Every registry the agent may talk to.
#[derive(Debug)]
pub struct Upstream {
    registries: Vec<RegistryConfig>,
    shared: Arc<endpoint::Shared>,
    /// Endpoints by registry, made at first use; wildcard entries name registries that are not known beforehand.
    endpoints: std::sync::Mutex<HashMap<RegistryHost, Arc<Vec<Endpoint>>>>,
}

/// Why the upstream side could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the HTTPS client")]
pub struct SetupError(#[from] reqwest::Error);

impl Upstream {
    /// Whether a request carries the mark that this process puts on its own.
    pub fn is_own_id(&self, id: &[u8]) -> bool {
        id == self.shared.own_id.as_bytes()
    }

    /// Prepares clients; dials nobody.
    pub fn new(config: Config, metrics: Metrics) -> Result<Self, SetupError> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("hearth-agent/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(config.connect)
            .pool_idle_timeout(Duration::from_mins(1))
            .tcp_keepalive(Duration::from_secs(30))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .dns_resolver(Arc::new(guard::GuardedResolver))
            .build()?;
        let shared = endpoint::Shared {
            client,
            header_limit: config.header,
            idle_limit: config.idle,
            credentials: config.credentials,
            tokens: auth::TokenCache::default(),
            metrics,
            own_id: own_id(),
        };
        Ok(Self {
            registries: config.registries,
            shared: Arc::new(shared),
            endpoints: std::sync::Mutex::default(),
        })
    }

    /// The entry that speaks for a registry; `None` when it is not served.
    pub fn serves(&self, registry: &RegistryHost) -> Option<&RegistryConfig> {
        closest(&self.registries, registry)
    }

    fn endpoints(&self, registry: &RegistryHost) -> Result<Arc<Vec<Endpoint>>, UpstreamError> {
        let mut known = self.endpoints.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(endpoints) = known.get(registry) {
            return Ok(endpoints.clone());
        }
        let denied =
            |reason: &str| UpstreamError::Denied { registry: registry.clone(), reason: reason.into() };
        let config = self.serves(registry).ok_or_else(|| denied("this registry is not configured"))?;
        let urls = if config.endpoints.is_empty() {
            vec![default_endpoint(registry).ok_or_else(|| denied("its name is not usable as a host"))?]
        } else {
            config.endpoints.clone()
        };
        let use_credentials = config.private == Private::Agent;
        let endpoints: Vec<_> = urls
            .into_iter()
            .map(|url| Endpoint::new(registry.clone(), url, use_credentials, self.shared.clone()))
            .collect();
        let endpoints = Arc::new(endpoints);
        known.insert(registry.clone(), endpoints.clone());
        Ok(endpoints)
    }

    /// Sends one request to the registry's endpoints in order.
    async fn send(&self, repository: &Repository, ask: &Ask) -> Result<Reply, UpstreamError> {
        let endpoints = self.endpoints(&repository.registry)?;
        let mut last = None;
        for endpoint in endpoints.iter() {
            match endpoint.send(&repository.name, ask).await {
                Err(error @ (UpstreamError::Throttled { .. } | UpstreamError::Unavailable { .. })) => {
                    tracing::info!(endpoint = endpoint.name(), kind = ?ask.kind, error = %error, "upstream endpoint failed");
                    last = Some(error);
                }
                settled => return settled,
            }
        }
        Err(last.unwrap_or_else(|| UpstreamError::Unavailable {
            registry: repository.registry.clone(),
            reason: "no endpoint is configured".into(),
        }))
    }

    /// Asks what a reference means, without the body.
    pub async fn manifest_head(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<ManifestHead, UpstreamError> {
        let reply = self.send(repository, &Ask::manifest(Method::HEAD, reference)).await?;
        let headers = reply.headers();
        Ok(ManifestHead {
            digest: text(headers, "docker-content-digest").and_then(|value| value.parse().ok()),
            media_type: text(headers, header::CONTENT_TYPE.as_str()).and_then(MediaType::parse),
            size: reply.content_length(),
        })
    }

    /// Fetches a manifest whole and checks it against the digest asked for, if it was asked for by digest.
    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Manifest, UpstreamError> {
        let reply = self.send(repository, &Ask::manifest(Method::GET, reference)).await?;
        let origin = reply.origin().to_owned();
        let sent_type = text(reply.headers(), header::CONTENT_TYPE.as_str()).and_then(MediaType::parse);
        let bytes = read_whole(repository, reply, MAX_MANIFEST_BYTES).await?;
        let digest = match reference {
            Reference::Digest(wanted) => {
                let mut hasher = wanted.algorithm().hasher();
                hasher.update(&bytes);
                let found = hasher.finish();
                if found != *wanted {
                    self.count_mismatch(&repository.registry);
                    tracing::warn!(%repository, digest = %wanted.short(), origin, "manifest does not match its digest");
                    return Err(unavailable(
                        repository,
                        format!("`{origin}` sent a manifest that hashes to `{found}`, not to `{wanted}`"),
                    ));
                }
                found
            }
            Reference::Tag(_) => Digest::of(&bytes),
        };
        let media_type = usable_type(sent_type, &bytes).ok_or_else(|| {
            unavailable(repository, format!("`{origin}` sent something that is not a manifest"))
        })?;
        Ok(Manifest { digest, media_type, bytes })
    }

    /// The size of a blob, without the body; `None` when upstream does not say.
    pub async fn blob_head(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        let reply = self.send(repository, &Ask::blob(Method::HEAD, digest, None)).await?;
        Ok(reply.content_length())
    }

    /// Opens a blob's body from `span.start` on, up to `span.end` when that is known and not the blob's end.
    ///
    /// An upstream that ignores the range answers from the beginning; the body's `offset` says so.
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        span: Span,
    ) -> Result<BlobBody, UpstreamError> {
        let reply = self.send(repository, &Ask::blob(Method::GET, digest, Some(span))).await?;
        let origin = reply.origin().to_owned();
        let placed =
            place(&reply, span).map_err(|reason| unavailable(repository, format!("`{origin}`: {reason}")))?;
        Ok(BlobBody { offset: placed.0, size: placed.1, origin, reply })
    }

    /// A tag list or the referrers of a digest, as upstream gives it.
    pub async fn listing(
        &self,
        repository: &Repository,
        path: &str,
        query: Option<&str>,
        kind: Kind,
    ) -> Result<Listing, UpstreamError> {
        let ask = Ask {
            method: Method::GET,
            path: path.to_owned(),
            query: query.map(str::to_owned),
            kind,
            headers: HeaderMap::new(),
        };
        let reply = self.send(repository, &ask).await?;
        let mut headers = HeaderMap::new();
        for name in [header::CONTENT_TYPE, header::LINK, http::HeaderName::from_static("oci-filters-applied")]
        {
            if let Some(value) = reply.headers().get(&name) {
                headers.insert(name, value.clone());
            }
        }
        Ok(Listing { headers, bytes: read_whole(repository, reply, MAX_LISTING_BYTES).await? })
    }

    /// Counts bytes that did not match their digest.
    pub fn count_mismatch(&self, registry: &RegistryHost) {
        let labels = RegistryLabels { registry: registry.to_string() };
        self.shared.metrics.mismatches.get_or_create(&labels).inc();
    }
}

/// Tells this process from every other one: random state of the standard library, as hex.
fn own_id() -> HeaderValue {
    use std::hash::{BuildHasher as _, RandomState};
    let id = format!(
        "{:016x}{:016x}",
        RandomState::new().hash_one(std::process::id()),
        RandomState::new().hash_one("hearth")
    );
    HeaderValue::try_from(id).expect("hex digits are a valid header value")
}

/// The closest entry for a registry.
fn closest<'a>(registries: &'a [RegistryConfig], registry: &RegistryHost) -> Option<&'a RegistryConfig> {
    let close = registries.iter().filter_map(|config| Some((config.pattern.closeness(registry)?, config)));
    close.max_by_key(|(closeness, _)| *closeness).map(|(_, config)| config)
}

async fn read_whole(repository: &Repository, mut reply: Reply, limit: u64) -> Result<Bytes, UpstreamError> {
    let too_large = || unavailable(repository, format!("the answer is larger than {limit} bytes"));
    if reply.content_length().is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut all = BytesMut::new();
    while let Some(chunk) = reply.chunk().await? {
        if (all.len() + chunk.len()) as u64 > limit {
            return Err(too_large());
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

fn unavailable(repository: &Repository, reason: String) -> UpstreamError {
    UpstreamError::Unavailable { registry: repository.registry.clone(), reason }
}

/// `https://<host>`; Docker Hub's references name a host that is not its registry.
fn default_endpoint(registry: &RegistryHost) -> Option<Url> {
    let host = match registry.as_str() {
        "docker.io" | "index.docker.io" => "registry-1.docker.io",
        other => other,
    };
    Url::parse(&format!("https://{host}/")).ok()
}

/// Registries that send no usable type (`text/plain`, `application/octet-stream`) are corrected by the document.
fn usable_type(sent: Option<MediaType>, bytes: &[u8]) -> Option<MediaType> {
    let document = crate::types::media_type_of(bytes)?;
    match sent {
        Some(sent) if sent.as_str().ends_with("json") && sent.as_str() != "application/json" => Some(sent),
        _ => Some(document),
    }
}

/// Which bytes of a blob are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// One past the last byte; `None` means to the end.
    pub end: Option<u64>,
}

impl Span {
    /// Everything.
    pub const WHOLE: Self = Self { start: 0, end: None };
}

impl From<Range<u64>> for Span {
    fn from(range: Range<u64>) -> Self {
        Self { start: range.start, end: Some(range.end) }
    }
}

/// Where a body's bytes belong and how large the blob is, or why the answer cannot be used. The rules are those of
/// RFC 9110, 14.4 and 15.3.7.
fn place(reply: &Reply, span: Span) -> Result<(u64, Option<u64>), String> {
    place_answer(reply.status(), text(reply.headers(), "content-range"), reply.content_length(), span)
}

fn place_answer(
    status: StatusCode,
    content_range: Option<&str>,
    length: Option<u64>,
    span: Span,
) -> Result<(u64, Option<u64>), String> {
    if status != StatusCode::PARTIAL_CONTENT {
        return Ok((0, length));
    }
    if span == Span::WHOLE {
        return Err("a part was sent although everything was asked for".into());
    }
    let parsed = content_range.and_then(parse_content_range);
    let Some((first, last, size)) = parsed else {
        return Err("a part was sent without a usable Content-Range".into());
    };
    if first != span.start || span.end.is_some_and(|end| last >= end) {
        return Err(format!("bytes {first}-{last} were sent instead of those asked for"));
    }
    Ok((first, size))
}

/// `bytes first-last/size`, where the size may be `*`.
fn parse_content_range(value: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, size) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let size: Option<u64> = if size.trim() == "*" { None } else { Some(size.trim().parse().ok()?) };
    (first <= last && size.is_none_or(|size| last < size)).then_some((first, last, size))
}

/// One request, without its endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    method: Method,
    /// Below `/v2/<name>/`.
    path: String,
    query: Option<String>,
    kind: Kind,
    headers: HeaderMap,
}

impl Ask {
    fn manifest(method: Method, reference: &Reference) -> Self {
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(MANIFEST_ACCEPT))]);
        Self { method, path: format!("manifests/{reference}"), query: None, kind: Kind::manifest, headers }
    }

    fn blob(method: Method, digest: &Digest, span: Option<Span>) -> Self {
        let mut headers = HeaderMap::new();
        if let Some(span) = span.filter(|span| *span != Span::WHOLE) {
            let last = span.end.map_or(String::new(), |end| end.saturating_sub(1).to_string());
            let value = format!("bytes={}-{last}", span.start);
            headers.insert(
                header::RANGE,
                HeaderValue::try_from(value).expect("digits are a valid header value"),
            );
        }
        Self { method, path: format!("blobs/{digest}"), query: None, kind: Kind::blob, headers }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_a_range_is_placed_or_refused() {
        let ok = StatusCode::OK;
        let part = StatusCode::PARTIAL_CONTENT;
        let from = |start| Span { start, end: None };
        let table = [
            (ok, None, Some(10), Span::WHOLE, Some((0, Some(10)))),
            (ok, None, None, Span::WHOLE, Some((0, None))),
            // A registry that ignores ranges starts again from the beginning.
            (ok, None, Some(10), from(4), Some((0, Some(10)))),
            (part, Some("bytes 4-9/10"), Some(6), from(4), Some((4, Some(10)))),
            (part, Some("bytes 4-9/*"), Some(6), from(4), Some((4, None))),
            (part, Some("bytes 4-5/10"), Some(2), Span { start: 4, end: Some(6) }, Some((4, Some(10)))),
            (part, Some("bytes 0-9/10"), Some(10), Span::WHOLE, None),
            (part, Some("bytes 3-9/10"), Some(7), from(4), None),
            (part, Some("bytes 4-9/10"), Some(6), Span { start: 4, end: Some(6) }, None),
            (part, Some("bytes 9-4/10"), Some(6), from(9), None),
            (part, Some("bytes 4-10/10"), Some(6), from(4), None),
            (part, None, Some(6), from(4), None),
            (part, Some("rubbish"), Some(6), from(4), None),
        ];
        for (status, range, length, span, expected) in table {
            assert_eq!(
                place_answer(status, range, length, span).ok(),
                expected,
                "{status} {range:?} {span:?}"
            );
        }
    }

    #[test]
    fn the_closest_registry_entry_decides() {
        let entry = |pattern: &str, private| RegistryConfig {
            pattern: pattern.parse().unwrap(),
            endpoints: Vec::new(),
            private,
        };
        let registries = [entry("*", Private::Decline), entry("*.example.com", Private::Agent)];
        let private = |host: &str| closest(&registries, &host.parse().unwrap()).map(|config| config.private);
        assert_eq!(private("r.example.com"), Some(Private::Agent));
        assert_eq!(private("other.test"), Some(Private::Decline));
        assert!(closest(&registries[1..], &"other.test".parse().unwrap()).is_none());
    }

    #[test]
    fn an_unusable_content_type_is_corrected_by_the_document() {
        let index = br#"{"schemaVersion":2,"manifests":[]}"#;
        let sent = |value| usable_type(MediaType::parse(value), index).unwrap();
        assert_eq!(sent("text/plain").as_str(), "application/vnd.oci.image.index.v1+json");
        assert_eq!(sent("application/json").as_str(), "application/vnd.oci.image.index.v1+json");
        let docker = "application/vnd.docker.distribution.manifest.list.v2+json";
        assert_eq!(sent(docker).as_str(), docker);
        assert!(usable_type(MediaType::parse(docker), b"<html>").is_none());
    }
}
