//! The mirror API: one call into `download` for each request, answered as soon as `client` says that it must be.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;

use super::{
    answers::{
        blob_response, etag, is_known, json, listed, manifest_response, not_modified, set, unsatisfiable,
    },
    body::{self, Body, Subject},
    client::{self, HeaderLimits},
    error::Refusal,
    multipart::Parts,
    record::{self, Record, RequestId},
    route::{self, Route, RouteError},
};
use crate::{
    access::{Access, Client, Content},
    download::{CHECK, FetchError, Fetcher, Stillness},
    journal::Journal,
    metrics::{Kind, Metrics, RequestLabels},
    trace,
    types::{ByteRange, Digest, RangeHeader, Reference, RegistryHost, Repository},
    upstream::{AGENT_HEADER, Upstream},
    verify::{Urgency, Verifier},
};

/// Answers for one listener. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Mirror(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fetcher: Fetcher,
    upstream: Arc<Upstream>,
    access: Access,
    verifier: Verifier,
    metrics: Metrics,
    default_registry: Option<RegistryHost>,
    limits: HeaderLimits,
    record: Record,
}

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

impl Mirror {
    /// Puts the parts together.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part of its own, and one caller puts them together"
    )]
    pub fn new(
        fetcher: Fetcher,
        upstream: Arc<Upstream>,
        access: Access,
        verifier: Verifier,
        metrics: Metrics,
        journal: Journal,
        default_registry: Option<RegistryHost>,
        limits: HeaderLimits,
    ) -> Self {
        let record = Record::new(journal, metrics.clone(), upstream.own_id());
        Self(Arc::new(Inner {
            fetcher,
            upstream,
            access,
            verifier,
            metrics,
            default_registry,
            limits,
            record,
        }))
    }

    /// Answers one request.
    pub(super) async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        let id = self.0.record.begin();
        let span = tracing::info_span!(
            target: trace::TARGET, parent: None, "mirror request", otel.kind = "server", request = id.as_str(),
            method = %request.method(), path = request.uri().path(), status = tracing::field::Empty,
        );
        trace::continue_from(&span, request.headers());
        let response = trace::within(span.clone(), self.answer_with(request, &id)).await;
        span.record("status", response.status().as_u16());
        response
    }

    async fn answer_with(self, request: Request<Incoming>, id: &RequestId) -> Response<Body> {
        let client = user_agent(request.headers());
        let (kind, outcome) = match self.route(&request) {
            Ok(route) => {
                let (kind, subject) = (kind_of(&route), subject_of(&route));
                let outcome = self.dispatch_in_time(&request, route, id).await;
                (kind, outcome.map_err(|refusal| (refusal, subject)))
            }
            Err(error) => {
                let subject = format!("{} {}", request.method(), request.uri().path());
                (Kind::unknown, Err((Refusal::of_route(&error), subject)))
            }
        };
        let response = outcome.unwrap_or_else(|(refusal, subject)| {
            // Every pull of a private image begins with a challenge.
            if refusal.status() != StatusCode::UNAUTHORIZED {
                self.0.record.refused(id, &subject, client, &refusal);
            }
            refusal.for_client(client, kind).into_response()
        });
        let status = response.status().as_u16();
        tracing::debug!(request = id.as_str(), method = %request.method(), path = request.uri().path(), status, "answered");
        record::with_id(self.counted(kind, response), id)
    }

    /// The answer to a client above the connection limit.
    pub(super) fn refuse(&self, request: &Request<Incoming>, limit: usize) -> Response<Body> {
        let (id, client) = (self.0.record.begin(), user_agent(request.headers()));
        let kind = self.route(request).map_or(Kind::unknown, |route| kind_of(&route));
        let refusal = Refusal::busy(limit);
        self.0.record.refused(&id, request.uri().path(), client, &refusal);
        record::with_id(self.counted(kind, refusal.for_client(client, kind).into_response()), &id)
    }

    /// The same answer, as every one of the mirror's is.
    fn counted(&self, kind: Kind, mut response: Response<Body>) -> Response<Body> {
        response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        let labels = RequestLabels { route: kind, status: response.status().as_u16() };
        self.0.metrics.requests.get_or_create(&labels).inc();
        response
    }

    /// The request as a value, for a registry that is served.
    fn route(&self, request: &Request<Incoming>) -> Result<Route, RouteError> {
        let uri = request.uri();
        if request.headers().get(AGENT_HEADER).is_some_and(|id| self.0.upstream.is_own_id(id.as_bytes())) {
            return Err(RouteError::Loop);
        }
        let route =
            route::parse(request.method(), uri.path(), uri.query(), self.0.default_registry.as_ref())?;
        match repository_of(&route) {
            Some(repository) if self.0.upstream.serves(&repository.registry).is_none() => {
                Err(RouteError::NotServed(repository.registry.clone()))
            }
            _ => Ok(route),
        }
    }

    /// The answer, or a refusal when nothing of it arrives for longer than the client should wait.
    async fn dispatch_in_time(
        &self,
        request: &Request<Incoming>,
        route: Route,
        id: &RequestId,
    ) -> Result<Response<Body>, Refusal> {
        let patience = client::patience(user_agent(request.headers()), &route, self.0.limits);
        let digest = match &route {
            Route::Blob { digest, .. } => Some(*digest),
            _ => None,
        };
        let mut still = Stillness::new(Instant::now());
        let mut answer = std::pin::pin!(self.dispatch(request, route, id));
        loop {
            if let Ok(answer) = tokio::time::timeout(CHECK.min(patience), &mut answer).await {
                return answer;
            }
            let movement = digest.and_then(|digest| self.0.fetcher.movement(&digest));
            let patience = digest.map_or(patience, |_| self.0.fetcher.patience(patience));
            if still.is_over(movement, Instant::now(), patience) {
                return Err(Refusal::late(patience));
            }
        }
    }

    async fn dispatch(
        &self,
        request: &Request<Incoming>,
        route: Route,
        id: &RequestId,
    ) -> Result<Response<Body>, Refusal> {
        let head = request.method() == Method::HEAD;
        let kind = kind_of(&route);
        let headers = request.headers();
        let client = client_of(headers);
        let place = repository_of(&route).cloned();
        let answer = match route {
            Route::Base => Ok(json(Bytes::from_static(b"{}"))),
            Route::Manifest { repository, reference } => {
                self.manifest(request, &repository, &reference, &client, id).await
            }
            Route::Blob { repository, digest } if head => self.blob_head(&repository, &digest, &client).await,
            Route::Blob { repository, digest } => self.blob(headers, &repository, &digest, &client, id).await,
            Route::Tags { repository, addressing, query } => {
                let caller = self.0.access.caller(&repository, &client);
                let listing =
                    self.0.fetcher.listing(&repository, "tags/list", query.as_deref(), kind, caller);
                listing.await.map(|listing| listed(listing, &repository, addressing))
            }
            Route::Referrers { repository, digest, addressing, query } => {
                let caller = self.0.access.caller(&repository, &client);
                let path = format!("referrers/{digest}");
                let listing = self.0.fetcher.listing(&repository, &path, query.as_deref(), kind, caller);
                listing.await.map(|listing| listed(listing, &repository, addressing))
            }
        };
        answer.map_err(|error| match place {
            Some(place) => Refusal::of_fetch(&self.0.access.challenge(&place, &client, error), kind),
            None => Refusal::of_fetch(&error, kind),
        })
    }

    async fn manifest(
        &self,
        request: &Request<Incoming>,
        repository: &Repository,
        reference: &Reference,
        client: &Client,
        id: &RequestId,
    ) -> Result<Response<Body>, FetchError> {
        let headers = request.headers();
        match reference {
            Reference::Digest(digest) => {
                self.0.access.check(repository, digest, Content::Manifest, client).await?;
            }
            Reference::Tag(tag) => self.0.access.check_tag(repository, tag, client).await?,
        }
        let (info, bytes) = if request.method() == Method::HEAD {
            (self.0.fetcher.manifest_head(repository, reference).await?, None)
        } else {
            let (info, bytes) = self.0.fetcher.manifest(repository, reference).await?;
            (info, Some(bytes))
        };
        if matches!(reference, Reference::Tag(_)) {
            self.0.access.check(repository, &info.digest, Content::Manifest, client).await?;
        }
        self.0.verifier.manifest(repository, &info.digest, client, Urgency::Now).await?;
        if is_known(headers, &info.digest) {
            return Ok(not_modified(&info.digest));
        }
        if let Some(bytes) = &bytes {
            let length = bytes.len() as u64;
            self.0.metrics.served_bytes.inc_by(length);
            let image = image_of(repository, reference);
            self.0.record.sent(id, &image, &info.digest, length, user_agent(headers));
        }
        Ok(manifest_response(&info, bytes, repository))
    }

    async fn blob_head(
        &self,
        repository: &Repository,
        digest: &Digest,
        client: &Client,
    ) -> Result<Response<Body>, FetchError> {
        self.0.access.check(repository, digest, Content::Blob, client).await?;
        self.0.verifier.blob(repository, digest).await?;
        let size = self.0.fetcher.blob_size(repository, digest).await?;
        Ok(blob_response(StatusCode::OK, digest, size, repository, body::empty()))
    }

    async fn blob(
        &self,
        headers: &HeaderMap,
        repository: &Repository,
        digest: &Digest,
        client: &Client,
        id: &RequestId,
    ) -> Result<Response<Body>, FetchError> {
        let subject = || Subject {
            request: Some(id.as_str().to_owned()),
            what: image_of(repository, &Reference::Digest(*digest)),
        };
        let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
        let asked = RangeHeader::parse(range);
        // `If-Range` with anything but our strong entity tag: the client has other content (RFC 9110, 13.1.5).
        let same =
            headers.get(header::IF_RANGE).is_none_or(|value| value.as_bytes() == etag(digest).as_bytes());
        let asked = if same { asked } else { RangeHeader::Whole };
        let several = RangeHeader::parse_several(range).filter(|_| same);
        let begins = several.as_ref().and_then(|ranges| ranges.first()).copied();
        let begins = begins.map_or(asked, RangeHeader::One);
        self.0.access.check(repository, digest, Content::Blob, client).await?;
        self.0.verifier.blob(repository, digest).await?;
        self.0.fetcher.check_resume(digest, user_agent(headers).unwrap_or_default(), begins)?;
        let wanted = several.as_deref();
        if let Some(response) = self.parts(headers, repository, digest, wanted, &subject).await? {
            return Ok(response);
        }
        let content = self.0.fetcher.blob(repository, digest, asked).await?;
        self.0.record.ready(id, content.is_stored());
        if is_known(headers, digest) {
            return Ok(not_modified(digest));
        }
        let size = content.size();
        let (status, range) = match asked {
            RangeHeader::One(range) => match range.within(size) {
                Some(range) => (StatusCode::PARTIAL_CONTENT, range),
                None => return Ok(unsatisfiable(size)),
            },
            RangeHeader::Whole => (StatusCode::OK, 0..size),
        };
        let length = range.end - range.start;
        let content_range = format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1));
        let reader = content.read(range).with_patience(self.patience_inside(headers));
        let body = body::content(reader, self.0.metrics.served_bytes.clone(), None, subject());
        let mut response = blob_response(status, digest, length, repository, body);
        if status == StatusCode::PARTIAL_CONTENT {
            set(response.headers_mut(), header::CONTENT_RANGE, &content_range);
        }
        Ok(response)
    }

    fn patience_inside(&self, headers: &HeaderMap) -> Duration {
        client::patience_inside(user_agent(headers), self.0.limits)
    }

    /// The answer to several ranges; `None` when they are to be answered with the whole.
    async fn parts(
        &self,
        headers: &HeaderMap,
        repository: &Repository,
        digest: &Digest,
        asked: Option<&[ByteRange]>,
        subject: &impl Fn() -> Subject,
    ) -> Result<Option<Response<Body>>, FetchError> {
        let Some((asked, first)) = asked.and_then(|asked| Some((asked, asked.first()?))) else {
            return Ok(None);
        };
        let fetcher = &self.0.fetcher;
        let content = fetcher.blob(repository, digest, RangeHeader::One(*first)).await?;
        let Some(parts) = Parts::new(asked, content.size()) else { return Ok(None) };
        if is_known(headers, digest) {
            return Ok(Some(not_modified(digest)));
        }
        drop(content);
        let (length, media_type) = (parts.length(), parts.media_type());
        let (patience, sent) = (self.patience_inside(headers), self.0.metrics.served_bytes.clone());
        let body = parts.body(fetcher.clone(), repository.clone(), *digest, patience, sent, subject());
        let mut response = blob_response(StatusCode::PARTIAL_CONTENT, digest, length, repository, body);
        set(response.headers_mut(), header::CONTENT_TYPE, &media_type);
        Ok(Some(response))
    }
}

fn user_agent(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::USER_AGENT)?.to_str().ok()
}

/// What the client shows. Of other schemes than Basic, of which the agent's challenge is, nothing is known.
fn client_of(headers: &HeaderMap) -> Client {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| Client::of_basic(value.to_str().ok()?))
        .unwrap_or_default()
}

fn kind_of(route: &Route) -> Kind {
    match route {
        Route::Base => Kind::base,
        Route::Manifest { .. } => Kind::manifest,
        Route::Blob { .. } => Kind::blob,
        Route::Tags { .. } => Kind::tags,
        Route::Referrers { .. } => Kind::referrers,
    }
}

fn repository_of(route: &Route) -> Option<&Repository> {
    match route {
        Route::Base => None,
        Route::Manifest { repository, .. }
        | Route::Blob { repository, .. }
        | Route::Tags { repository, .. }
        | Route::Referrers { repository, .. } => Some(repository),
    }
}

/// What a request is about, for people. Pure.
fn subject_of(route: &Route) -> String {
    match route {
        Route::Base => "/v2/".to_owned(),
        Route::Manifest { repository, reference } => image_of(repository, reference),
        Route::Blob { repository, digest } => image_of(repository, &Reference::Digest(*digest)),
        Route::Tags { repository, .. } => format!("tags of {repository}"),
        Route::Referrers { repository, digest, .. } => {
            format!("referrers of {}", image_of(repository, &Reference::Digest(*digest)))
        }
    }
}

fn image_of(repository: &Repository, reference: &Reference) -> String {
    match reference {
        Reference::Tag(tag) => format!("{repository}:{tag}"),
        Reference::Digest(digest) => format!("{repository}@{digest}"),
    }
}
