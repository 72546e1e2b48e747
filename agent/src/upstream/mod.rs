//! Requests to registries: endpoints in order, authentication, redirects, limits on every wait.
//!
//! One [`Upstream`] for the whole agent. An operation tries the registry's endpoints in order and stops at the
//! first final response: success, "not found", "denied". After other failures (unreachable, rate-limited,
//! broken) the next endpoint is tried; the last such error is returned.
//!
//! Invariants: `Authorization` is sent only to the origin that requested it; the agent never
//! connects to link-local and metadata addresses; every wait has a limit; bodies are never decoded, so that
//! ranges and digests stay valid.

mod answer;
mod ask;
mod auth;
mod config;
mod credentials;
mod endpoint;
mod error;
mod guard;
mod headers;
mod ledger;
mod lent;
mod limits;
mod redirect;
mod registry;
mod retry;
mod sharing;
mod trust;

use std::{collections::HashMap, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, header};
use parking_lot::Mutex;

pub use answer::{BlobBody, Listing, Manifest, ManifestHead, OriginPenalties};
pub use ask::Span;
use ask::{Ask, place_answer};
pub use config::{
    Caller, Config, CredentialsFound, DEFAULT_CONNECTIONS, Policy, Private, RegistryConfig, Shows,
};
pub use credentials::{
    Credentials, CredentialsError, DockerFile, KubeletError, KubeletProviders, Login, PullSecret,
};
use endpoint::Reply;
pub use error::UpstreamError;
pub use headers::AGENT_HEADER;
use headers::text;
use ledger::Ledgers;
pub use limits::{BudgetStatus, Class, Told};
use registry::Registry;
pub use registry::{EndpointStatus, RegistryStatus};
pub use retry::{Retries, RetryPolicy};
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    metrics::{Kind, Metrics, RegistryLabels},
    types::{Digest, MAX_MANIFEST_BYTES, MediaType, Reference, RegistryHost, Repository, Validator},
};

/// Registries with separate state; wildcard entries could match any number.
const MAX_REGISTRIES: usize = 1_024;

/// Largest accepted tag list or referrers response, in bytes.
const MAX_LISTING_BYTES: u64 = 16 * 1024 * 1024;

/// All registries that the agent serves.
#[derive(Debug)]
pub struct Upstream {
    registries: Vec<RegistryConfig>,
    shared: Arc<endpoint::Shared>,
    known: Mutex<HashMap<RegistryHost, Arc<Registry>>>,
    /// The budgets of all nodes together, of registries that this node is the owner of; one for each source that a registry
    /// distinguishes.
    ledgers: Mutex<Ledgers>,
}

/// Why the client for registries could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the HTTPS client")]
pub struct SetupError(#[from] reqwest::Error);

impl Upstream {
    /// The id that this process adds to its own requests.
    pub fn own_id(&self) -> &str {
        self.shared.own_id.to_str().unwrap_or_default()
    }

    /// Whether a request carries the id that this process adds to its own requests.
    pub fn is_own_id(&self, id: &[u8]) -> bool {
        id == self.shared.own_id.as_bytes()
    }

    /// Creates clients; connects nowhere.
    pub fn new(config: Config, metrics: Metrics) -> Result<Self, SetupError> {
        let shared = endpoint::Shared {
            connect_limit: config.connect,
            header_limit: config.header,
            blob_header_limit: config.blob_header,
            idle_limit: config.idle,
            credentials: config.credentials,
            tokens: auth::TokenCache::default(),
            lent: lent::Lent::default(),
            metrics,
            told: tokio::sync::Notify::new(),
            own_id: own_id(),
        };
        Ok(Self {
            registries: config.registries,
            shared: Arc::new(shared),
            known: Mutex::default(),
            ledgers: Mutex::default(),
        })
    }

    /// The entry that applies to a registry; `None` when it is not served.
    pub fn serves(&self, registry: &RegistryHost) -> Option<&RegistryConfig> {
        closest(&self.registries, registry)
    }

    /// Ids of all keys with which images may be signed.
    pub fn signature_keys(&self) -> Vec<Digest> {
        let listed = self.registries.iter().flat_map(|registry| &registry.verify);
        let mut ids: Vec<_> = listed.map(|key| *key.id()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The registry's state, created at first use: wildcard entries match registries that are not known in
    /// advance.
    fn registry(&self, host: &RegistryHost) -> Result<Arc<Registry>, UpstreamError> {
        let mut known = self.known.lock();
        if let Some(registry) = known.get(host) {
            return Ok(registry.clone());
        }
        let denied = |reason: &str| UpstreamError::Denied { registry: host.clone(), reason: reason.into() };
        if known.len() >= MAX_REGISTRIES {
            return Err(denied("too many registries are in use at this agent"));
        }
        let config = self
            .serves(host)
            .ok_or_else(|| denied("the registry is not in `registries` of the configuration"))?;
        let registry = Registry::new(host, config, &self.shared).map_err(|reason| denied(&reason))?;
        known.insert(host.clone(), registry.clone());
        Ok(registry)
    }

    async fn send(&self, repository: &Repository, ask: &Ask) -> Result<Reply, UpstreamError> {
        self.registry(&repository.registry)?.send(&repository.name, ask, &OriginPenalties::default()).await
    }

    /// A permit for a transfer from a registry; waits until one is free.
    pub async fn transfer_permit(&self, registry: &RegistryHost) -> Option<OwnedSemaphorePermit> {
        self.registry(registry).ok()?.transfer_permit().await
    }

    /// A permit for a download from a registry, or for one for peers only; waits until one is free.
    pub async fn download_permit(
        &self,
        registry: &RegistryHost,
        for_peer: bool,
    ) -> Option<OwnedSemaphorePermit> {
        self.registry(registry).ok()?.download_permit(for_peer).await
    }

    /// Whether a download from a registry may start for a peer only.
    pub fn may_relay(&self, registry: &RegistryHost) -> bool {
        self.registry(registry).is_ok_and(|registry| registry.may_relay())
    }

    /// Bytes received from a registry so far.
    pub fn received(&self, registry: &RegistryHost) -> u64 {
        let labels = RegistryLabels { registry: registry.to_string() };
        self.shared.metrics.upstream_bytes.get_or_create(&labels).get()
    }

    /// Bytes received from all registries so far.
    pub fn received_in_all(&self) -> u64 {
        let known: Vec<_> = self.known.lock().keys().cloned().collect();
        known.iter().map(|registry| self.received(registry)).sum()
    }

    /// Whether a registry supports ranges, as far as known.
    pub fn has_ranges(&self, registry: &RegistryHost) -> bool {
        self.registry(registry).is_ok_and(|registry| registry.has_ranges())
    }

    /// Remembers that a registry ignored a range.
    pub fn note_no_ranges(&self, registry: &RegistryHost) {
        if let Ok(registry) = self.registry(registry) {
            registry.note_no_ranges();
        }
    }

    /// Replaces the cluster's secrets (`.dockerconfigjson`) among the agent's credentials, for registries with
    /// `private: agent`. Returns the errors of invalid ones.
    pub fn use_secrets(&self, secrets: Vec<PullSecret>) -> Vec<CredentialsError> {
        self.shared.credentials.use_secrets(secrets)
    }

    /// What the configuration says of a repository's registry, and whether there are credentials for it; `None` when the
    /// registry is not served.
    pub async fn policy(&self, repository: &Repository) -> Option<Policy> {
        let entry = self.serves(&repository.registry)?;
        let login = self.shared.credentials.login(&repository.registry, &repository.name, false);
        Some(Policy {
            entry: entry.pattern.to_string(),
            private: match entry.private {
                Private::Decline => "decline",
                Private::Agent => "agent",
                Private::Challenge => "challenge",
            },
            credentials: match entry.private {
                Private::Decline | Private::Challenge => CredentialsFound::NotUsed,
                Private::Agent => match login.await {
                    Ok(Some(_)) => CredentialsFound::Found,
                    Ok(None) => CredentialsFound::None,
                    Err(reason) => CredentialsFound::Failed(reason),
                },
            },
        })
    }

    /// The state of every registry that was requested so far.
    pub fn status(&self) -> Vec<RegistryStatus> {
        let known = self.known.lock();
        let mut all: Vec<_> = known.values().map(|registry| registry.status()).collect();
        all.sort_by(|a, b| a.registry.cmp(&b.registry));
        all
    }

    /// Resolves a reference, without the body.
    pub async fn manifest_head(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<ManifestHead, UpstreamError> {
        self.manifest_head_by(repository, reference, Caller::Agent).await
    }

    /// The same for a caller: whether it may read the manifest.
    pub async fn manifest_head_by(
        &self,
        repository: &Repository,
        reference: &Reference,
        caller: Caller,
    ) -> Result<ManifestHead, UpstreamError> {
        let reply = self.send(repository, &Ask::manifest(Method::HEAD, reference).by(caller)).await?;
        let headers = reply.headers();
        Ok(ManifestHead {
            digest: text(headers, "docker-content-digest").and_then(|value| value.parse().ok()),
            media_type: text(headers, header::CONTENT_TYPE.as_str())
                .and_then(MediaType::parse)
                .filter(is_manifest_type),
            size: reply.content_length(),
        })
    }

    /// Whether anyone may read a manifest: asked without the credentials of the agent.
    pub async fn check_public(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<(), UpstreamError> {
        if self.serves(&repository.registry).is_some_and(|config| config.identity.is_some()) {
            let reason =
                "the agent shows it a certificate of its own, so what it gives need not be public".into();
            return Err(UpstreamError::Denied { registry: repository.registry.clone(), reason });
        }
        self.manifest_head_by(repository, reference, Caller::Anyone).await.map(drop)
    }

    /// Fetches a complete manifest and verifies it, if it was requested by digest.
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
                if let Err(mismatch) = wanted.verify(&bytes) {
                    let found = mismatch.found;
                    self.count_mismatch(&repository.registry);
                    tracing::warn!(%repository, digest = %wanted.short(), origin, "manifest does not match its digest");
                    return Err(unavailable(
                        repository,
                        format!("`{origin}` sent a manifest with the digest `{found}` instead of `{wanted}`"),
                    ));
                }
                *wanted
            }
            Reference::Tag(_) => Digest::of(&bytes),
        };
        let media_type = usable_type(sent_type, &bytes).ok_or_else(|| {
            unavailable(repository, format!("`{origin}` sent something that is not a manifest"))
        })?;
        Ok(Manifest { digest, media_type, bytes })
    }

    /// The size of a blob, without the body; `None` when the registry does not send it.
    pub async fn blob_head(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        self.blob_head_by(repository, digest, Caller::Agent).await
    }

    /// The same for a caller: whether it may read the blob.
    pub async fn blob_head_by(
        &self,
        repository: &Repository,
        digest: &Digest,
        caller: Caller,
    ) -> Result<Option<u64>, UpstreamError> {
        match self.send(repository, &Ask::blob(Method::HEAD, digest, None, &[]).by(caller.clone())).await {
            Ok(reply) => Ok(reply.content_length()),
            // Presigned URLs are bound to the method: where HEAD is redirected to a URL for GET, a request for
            // the first byte returns the size.
            Err(UpstreamError::Unavailable { .. }) => {
                let first = Span { start: 0, end: Some(1) };
                let ask = Ask::blob(Method::GET, digest, Some(first), &[]).by(caller);
                let reply = self.send(repository, &ask).await?;
                let range = text(reply.headers(), "content-range");
                let placed = place_answer(reply.status(), range, reply.content_length(), first)
                    .map_err(|reason| unavailable(repository, format!("`{}`: {reason}", reply.origin())))?;
                Ok(placed.1)
            }
            Err(error) => Err(error),
        }
    }

    /// Opens a blob's body from `span.start` on, up to `span.end` if that is known and not the blob's end.
    ///
    /// A registry that ignores the range sends the blob from the beginning, as the body's `offset` shows.
    /// `known` are the versions of earlier responses: another version from the same host is a separate error.
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        span: Span,
        known: &[Validator],
        origin_penalties: &OriginPenalties,
    ) -> Result<BlobBody, UpstreamError> {
        let ask = Ask::blob(Method::GET, digest, Some(span), known);
        let reply =
            self.registry(&repository.registry)?.send(&repository.name, &ask, origin_penalties).await?;
        let origin = reply.origin().to_owned();
        let range = text(reply.headers(), "content-range");
        let placed = place_answer(reply.status(), range, reply.content_length(), span)
            .map_err(|reason| unavailable(repository, format!("`{origin}`: {reason}")))?;
        let validator =
            text(reply.headers(), header::ETAG.as_str()).and_then(|tag| Validator::of(&origin, tag));
        if let Some(now) = &validator
            && let Some(before) = known.iter().find(|before| before.origin == now.origin && *before != now)
        {
            let reason = format!("`{origin}` sent version {} before and {} now", before.etag, now.etag);
            return Err(UpstreamError::Changed { registry: repository.registry.clone(), reason });
        }
        Ok(BlobBody { offset: placed.0, size: placed.1, origin, validator, reply })
    }

    /// A tag list or the referrers of a digest, as the registry sends it to a caller.
    pub async fn listing(
        &self,
        repository: &Repository,
        path: &str,
        query: Option<&str>,
        kind: Kind,
        caller: Caller,
    ) -> Result<Listing, UpstreamError> {
        let ask = Ask {
            method: Method::GET,
            path: path.to_owned(),
            query: query.map(str::to_owned),
            kind,
            headers: HeaderMap::new(),
            conditions: Vec::new(),
            caller: Caller::Agent,
            fresh_token: false,
        };
        let reply = self.send(repository, &ask.by(caller)).await?;
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

/// An id that differs between processes: random state of the standard library, as hex.
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
    let too_large = || UpstreamError::TooLarge { registry: repository.registry.clone(), limit };
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

/// Registries that send no usable type (`text/plain`, `application/octet-stream`): the type in the document is
/// used.
fn usable_type(sent: Option<MediaType>, bytes: &[u8]) -> Option<MediaType> {
    let document = crate::types::media_type_of(bytes)?;
    Some(sent.filter(is_manifest_type).unwrap_or(document))
}

/// Types of manifests; not `text/html`, `application/json` and others.
fn is_manifest_type(media_type: &MediaType) -> bool {
    media_type.as_str().ends_with("json") && media_type.as_str() != "application/json"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_registry_entry_decides() {
        let entry = |pattern: &str, private| RegistryConfig::of(pattern.parse().unwrap(), private);
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
