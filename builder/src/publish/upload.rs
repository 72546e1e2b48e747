//! Pushes images to a registry: what is missing, streamed from disk, tags last.
//!
//! Order: the blobs of all images, then every manifest under its digest, then the tags. A push that breaks off
//! leaves no tag that points to something incomplete, and of several images either none or nearly all get
//! their tag. Blobs that the repository has (`HEAD`) are skipped, and each digest is sent once however many
//! images have it.
//!
//! A blob is sent with one `POST` and one `PUT`. Where a proxy in front of the registry refuses that size (413,
//! often by cutting the connection before the answer can be read), it is sent in pieces of 4 MiB, the most that
//! GHCR takes. Time-outs, throttling and server faults are
//! tried again with the policy of [`crate::retry`]; a 401 in between means that the token has run out, and a
//! new one is fetched. A transfer that stands still is given up; a long one that moves is not.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Body, Client, Method, RequestBuilder, Response, StatusCode, Url, header};
use tokio::sync::Mutex;

use crate::{
    cache::{BUFFER, Cache, CacheError, Content, Shelf},
    digest::Digest,
    image::{Document, Image},
    progress::{Bar, Progress},
    registry::{Authorization, Registry, RegistryError, Repository, plain_http_hint},
    retry,
};

/// Requests under way at once: enough to fill a link, few enough for registries that count them.
const PARALLEL: usize = 4;

/// The largest piece that GHCR accepts.
const CHUNK: u64 = 4 << 20;

/// Error bodies are read up to this length.
const MESSAGE: usize = 2048;

/// Why a push failed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The registry cannot be reached.
    #[error("cannot push to `{repository}`{hint}")]
    Network {
        /// Where.
        repository: String,
        /// What to try.
        hint: String,
        /// The last failure.
        #[source]
        source: reqwest::Error,
    },
    /// A transfer stood still.
    #[error("cannot push to `{repository}`: nothing moved for {} seconds", retry::STALL_TIMEOUT.as_secs())]
    Stalled {
        /// Where.
        repository: String,
    },
    /// The registry refused.
    #[error("`{repository}` refuses {what}: {status}{message}")]
    Refused {
        /// Where.
        repository: String,
        /// What was sent.
        what: String,
        /// Its answer.
        status: StatusCode,
        /// What it says.
        message: String,
    },
    /// The registry does not speak the protocol.
    #[error("`{repository}` answers an upload without a usable `Location`")]
    Location {
        /// Where.
        repository: String,
    },
    /// No access.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A blob cannot be read.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// What became of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Which one.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
    /// Whether it was sent; otherwise the repository had it.
    pub uploaded: bool,
}

/// Pushes images to one repository.
#[derive(Debug)]
pub struct Pusher<'a> {
    /// Names and tokens.
    pub registry: &'a Registry,
    /// The HTTP client.
    pub client: &'a Client,
    /// Where the layers are.
    pub cache: &'a Cache,
    /// Where they go.
    pub repository: &'a Repository,
    /// Bars.
    pub progress: &'a Progress,
}

/// What is sent as one blob.
#[derive(Clone)]
enum Payload {
    File(Content),
    Memory(Bytes, Digest),
}

impl Payload {
    fn content(&self) -> Content {
        match self {
            Self::File(content) => *content,
            Self::Memory(bytes, digest) => Content { digest: *digest, size: bytes.len() as u64 },
        }
    }
}

impl Pusher<'_> {
    /// Pushes images under their tags and says what was sent.
    pub async fn push(&self, images: &[(String, &Image)]) -> Result<Vec<Sent>, PushError> {
        let session = Session { pusher: self, authorization: Mutex::new(None) };
        let payloads = payloads(images);
        let total = payloads.iter().map(|payload| payload.content().size).sum();
        let bar = self.progress.bytes(&format!("pushing to {}", self.repository), total);
        let sent: Vec<Sent> = stream::iter(payloads.into_iter().map(|payload| session.blob(payload, &bar)))
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        let mut manifests = BTreeSet::new();
        let mut documents: Vec<&Document> = images.iter().map(|(_, image)| &image.manifest).collect();
        documents.retain(|document| manifests.insert(document.descriptor.digest));
        for document in documents {
            session.manifest(document, &document.descriptor.digest.to_string()).await?;
        }
        for (tag, image) in images {
            session.manifest(&image.manifest, tag).await?;
        }
        Ok(sent)
    }
}

/// Every blob once, in the order of the images.
fn payloads(images: &[(String, &Image)]) -> Vec<Payload> {
    let layers = images.iter().flat_map(|(_, image)| &image.layers).map(|layer| Payload::File(layer.blob));
    let configs = images.iter().map(|(_, image)| &image.config);
    let configs =
        configs.map(|config| Payload::Memory(config.bytes.clone().into(), config.descriptor.digest));
    let mut seen = BTreeSet::new();
    layers.chain(configs).filter(|payload| seen.insert(payload.content().digest)).collect()
}

struct Session<'a> {
    pusher: &'a Pusher<'a>,
    /// Held while a token is fetched, so that requests that start together fetch one.
    authorization: Mutex<Option<Authorization>>,
}

/// How an attempt failed.
enum Failed {
    Final(PushError),
    Again(PushError, Option<Duration>),
}

impl<T: Into<PushError>> From<T> for Failed {
    fn from(error: T) -> Self {
        Self::Final(error.into())
    }
}

impl Session<'_> {
    async fn blob(&self, payload: Payload, bar: &Bar) -> Result<Sent, PushError> {
        let content = payload.content();
        let mut chunked = false;
        let mut denied = false;
        let mut attempt = 1;
        let uploaded = loop {
            match self.attempt_blob(&payload, &mut chunked, bar).await {
                Ok(uploaded) => break uploaded,
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Again(error, asked)) => {
                    // One more time with a new token; whom that does not help may not push here.
                    if matches!(error, PushError::Refused { status: StatusCode::UNAUTHORIZED, .. }) {
                        if denied {
                            return Err(error);
                        }
                        denied = true;
                    }
                    tracing::warn!(attempt, digest = content.digest.short(), error = %error, "pushing again");
                    if !retry::pause(attempt, asked).await {
                        return Err(error);
                    }
                    attempt += 1;
                }
            }
        };
        Ok(Sent { digest: content.digest, size: content.size, uploaded })
    }

    async fn attempt_blob(&self, payload: &Payload, chunked: &mut bool, bar: &Bar) -> Result<bool, Failed> {
        let content = payload.content();
        let url = self.url(&format!("blobs/{}", content.digest));
        let head = self.send(Method::HEAD, &url, |request| request).await?;
        match head.status() {
            StatusCode::OK => {
                bar.advance(content.size);
                return Ok(false);
            }
            StatusCode::NOT_FOUND => {}
            _ => return Err(self.refused("a question for a blob", head).await),
        }
        if !*chunked {
            match self.whole(payload, bar).await {
                Ok(()) => return Ok(true),
                Err(Failed::Final(PushError::Refused { status: StatusCode::PAYLOAD_TOO_LARGE, .. })) => {
                    *chunked = true;
                }
                Err(error @ Failed::Again(PushError::Network { .. }, _)) => {
                    *chunked = true;
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        self.in_chunks(payload, bar).await?;
        Ok(true)
    }

    /// One `PUT` with the whole blob.
    async fn whole(&self, payload: &Payload, bar: &Bar) -> Result<(), Failed> {
        let content = payload.content();
        let location = self.begin().await?;
        let moved = Arc::new(AtomicU64::new(0));
        let body = self.body(payload, 0, content.size, &moved)?;
        let request = self
            .authorized(Method::PUT, with_digest(location, content.digest).as_str())
            .await?
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, content.size)
            .body(body);
        let answer = self.watched(request, &moved).await?;
        if answer.status() != StatusCode::CREATED {
            return Err(self.refused(&format!("the blob `{}`", content.digest), answer).await);
        }
        bar.advance(content.size);
        Ok(())
    }

    async fn in_chunks(&self, payload: &Payload, bar: &Bar) -> Result<(), Failed> {
        let content = payload.content();
        let mut location = self.begin().await?;
        let mut start = 0;
        while start < content.size {
            let length = CHUNK.min(content.size - start);
            let moved = Arc::new(AtomicU64::new(0));
            let request = self
                .authorized(Method::PATCH, location.as_str())
                .await?
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(header::CONTENT_LENGTH, length)
                .header(header::CONTENT_RANGE, format!("{start}-{}", start + length - 1))
                .body(self.body(payload, start, length, &moved)?);
            let answer = self.watched(request, &moved).await?;
            if answer.status() != StatusCode::ACCEPTED {
                return Err(self.refused(&format!("a piece of the blob `{}`", content.digest), answer).await);
            }
            location = self.location(&answer)?;
            start += length;
            bar.advance(length);
        }
        let url = with_digest(location, content.digest);
        let answer =
            self.send(Method::PUT, url.as_str(), |request| request.header(header::CONTENT_LENGTH, 0)).await?;
        if answer.status() == StatusCode::CREATED {
            return Ok(());
        }
        Err(self.refused(&format!("the blob `{}`", content.digest), answer).await)
    }

    /// Opens an upload and says where it goes.
    async fn begin(&self) -> Result<Url, Failed> {
        let url = self.url("blobs/uploads/");
        let answer =
            self.send(Method::POST, &url, |request| request.header(header::CONTENT_LENGTH, 0)).await?;
        if answer.status() != StatusCode::ACCEPTED {
            return Err(self.refused("an upload", answer).await);
        }
        self.location(&answer)
    }

    fn location(&self, answer: &Response) -> Result<Url, Failed> {
        let text = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let url = text.and_then(|text| answer.url().join(text).ok());
        let missing = || PushError::Location { repository: self.pusher.repository.to_string() };
        Ok(url.ok_or_else(missing)?)
    }

    async fn manifest(&self, document: &Document, name: &str) -> Result<(), PushError> {
        let url = self.url(&format!("manifests/{name}"));
        let mut attempt = 1;
        loop {
            let put = self
                .send(Method::PUT, &url, |request| {
                    request
                        .header(header::CONTENT_TYPE, &document.descriptor.media_type)
                        .body(document.bytes.clone())
                })
                .await;
            let failed = match put {
                Ok(answer) if answer.status() == StatusCode::CREATED => return Ok(()),
                Ok(answer) => self.refused(&format!("the manifest `{name}`"), answer).await,
                Err(failed) => failed,
            };
            match failed {
                Failed::Final(error) => return Err(error),
                Failed::Again(error, asked) => {
                    if !retry::pause(attempt, asked).await {
                        return Err(error);
                    }
                    attempt += 1;
                }
            }
        }
    }

    /// Sends a small request. A 401 is answered once with a fresh token.
    async fn send(
        &self,
        method: Method,
        url: &str,
        add: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, Failed> {
        for fresh in [false, true] {
            let request = add(self.authorized(method.clone(), url).await?).timeout(retry::STALL_TIMEOUT);
            let answer = request.send().await.map_err(|error| self.network(error))?;
            if answer.status() != StatusCode::UNAUTHORIZED || fresh {
                return Ok(answer);
            }
            self.forget().await;
        }
        unreachable!("the second round returns")
    }

    async fn authorized(&self, method: Method, url: &str) -> Result<RequestBuilder, Failed> {
        let mut known = self.authorization.lock().await;
        let authorization = if let Some(authorization) = &*known {
            authorization.clone()
        } else {
            let fresh = self.pusher.registry.authorize_push(self.pusher.repository).await?;
            known.insert(fresh).clone()
        };
        drop(known);
        let request = self.pusher.client.request(method, url);
        // An upload may be redirected to a store that is not the registry: the credentials are not for it.
        let ours = Url::parse(url).ok().map(|url| url.origin())
            == Url::parse(&self.url("")).ok().map(|url| url.origin());
        Ok(match authorization {
            Authorization::Basic(user, password) if ours => request.basic_auth(user, Some(password)),
            Authorization::Bearer(token) if ours => request.bearer_auth(token),
            _ => request,
        })
    }

    async fn forget(&self) {
        *self.authorization.lock().await = None;
    }

    /// Waits for the answer to a large request as long as its bytes move.
    async fn watched(&self, request: RequestBuilder, moved: &AtomicU64) -> Result<Response, Failed> {
        let sending = request.send();
        tokio::pin!(sending);
        let mut before = u64::MAX;
        loop {
            if let Ok(answer) = tokio::time::timeout(retry::STALL_TIMEOUT, &mut sending).await {
                return answer.map_err(|error| self.network(error));
            }
            let now = moved.load(Ordering::Relaxed);
            if now == before {
                let repository = self.pusher.repository.to_string();
                return Err(Failed::Again(PushError::Stalled { repository }, None));
            }
            before = now;
        }
    }

    fn body(
        &self,
        payload: &Payload,
        start: u64,
        length: u64,
        moved: &Arc<AtomicU64>,
    ) -> Result<Body, Failed> {
        match payload {
            Payload::Memory(bytes, _) => {
                let range = usize::try_from(start).unwrap_or(usize::MAX)..;
                let rest = bytes.slice(range);
                Ok(rest.slice(..usize::try_from(length).unwrap_or(usize::MAX)).into())
            }
            Payload::File(content) => {
                let file = self.pusher.cache.open_content(Shelf::Blobs, content)?;
                Ok(Body::wrap_stream(pieces(file, start, length, moved.clone())))
            }
        }
    }

    fn url(&self, rest: &str) -> String {
        self.pusher.registry.url(self.pusher.repository, rest)
    }

    fn network(&self, source: reqwest::Error) -> Failed {
        let repository = self.pusher.repository.to_string();
        let connect = source.is_connect() && !source.is_timeout();
        let hint = if connect { plain_http_hint(self.pusher.repository.host()) } else { String::new() };
        let error = PushError::Network { repository, hint, source: source.without_url() };
        if connect { Failed::Final(error) } else { Failed::Again(error, None) }
    }

    async fn refused(&self, what: &str, answer: Response) -> Failed {
        let status = answer.status();
        let asked = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let asked = asked.and_then(|value| retry::retry_after(value, SystemTime::now()));
        let error = PushError::Refused {
            repository: self.pusher.repository.to_string(),
            what: what.to_owned(),
            status,
            message: message(answer).await,
        };
        // A token that has run out during a long upload: the next attempt fetches a new one.
        // Another request may have noticed first and forgotten it already.
        let token = matches!(*self.authorization.lock().await, None | Some(Authorization::Bearer(_)));
        if status == StatusCode::UNAUTHORIZED && token {
            self.forget().await;
            return Failed::Again(error, None);
        }
        if retry::worth_retrying(status.as_u16()) {
            Failed::Again(error, asked)
        } else {
            Failed::Final(error)
        }
    }
}

/// What the registry says about a refusal, as far as it is text of reasonable length.
async fn message(mut answer: Response) -> String {
    let mut bytes = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = answer.chunk().await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MESSAGE {
                break;
            }
        }
    };
    if tokio::time::timeout(retry::CONNECT_TIMEOUT, read).await.is_err() {
        return String::new();
    }
    bytes.truncate(MESSAGE);
    let text: String = String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() { text } else { format!(": {text}") }
}

fn with_digest(mut location: Url, digest: Digest) -> Url {
    location.query_pairs_mut().append_pair("digest", &digest.to_string());
    location
}

/// A part of a file as a stream. Reads block for a page-cache copy of a few hundred kilobytes.
fn pieces(
    file: File,
    start: u64,
    length: u64,
    moved: Arc<AtomicU64>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold((file, start, length), move |(mut file, at, left)| {
        let moved = moved.clone();
        async move {
            if left == 0 {
                return Ok(None);
            }
            let mut buffer = vec![0; BUFFER.min(usize::try_from(left).unwrap_or(BUFFER))];
            file.seek(SeekFrom::Start(at))?;
            file.read_exact(&mut buffer)?;
            let count = buffer.len() as u64;
            moved.fetch_add(count, Ordering::Relaxed);
            Ok(Some((Bytes::from(buffer), (file, at + count, left - count))))
        }
    })
}

#[cfg(test)]
#[path = "upload_tests.rs"]
mod tests;
