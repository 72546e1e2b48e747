//! Pushes images to a registry: what is missing, streamed from disk, tags last.
//!
//! Order: the blobs of all images, then every manifest and index under its digest, then the tags. A push that breaks off
//! leaves no tag that points to something incomplete, and of several images either none or nearly all get
//! their tag. Blobs that the repository has (`HEAD`) are skipped, and each digest is sent once however many
//! images have it. Layers of a base in another repository of the same registry are mounted from there.
//!
//! A blob is sent with one `POST` and one `PUT`. Where a proxy in front of the registry refuses that size (413,
//! often by cutting the connection before the answer can be read), it is sent in pieces of 4 MiB, the most that
//! GHCR takes. Time-outs, throttling and server faults are
//! tried again with the policy of [`crate::retry`]; a 401 in between means that the token has run out, and a
//! new one is fetched. A transfer that stands still is given up; a long one that moves is not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Body, Client, Method, Response, StatusCode, Url, header};

use super::{
    Publication,
    session::{Failed, Session},
};
use crate::{
    cache::{BUFFER, Cache, CacheError, Content, Shelf},
    digest::Digest,
    image::Document,
    progress::{Bar, Progress},
    registry::{Registry, RegistryError, Repository},
    retry,
};

/// Requests under way at once: enough to fill a link, few enough for registries that count them.
const PARALLEL: usize = 4;

/// The largest piece that GHCR accepts.
const CHUNK: u64 = 4 << 20;

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
    /// Other repositories of the same registry that have a blob: it is taken from there instead of being sent.
    pub mounts: &'a BTreeMap<Digest, Repository>,
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
    pub async fn push(&self, publication: &Publication<'_>) -> Result<Vec<Sent>, PushError> {
        let session = Session::new(self);
        let payloads = payloads(publication);
        let total = payloads.iter().map(|payload| payload.content().size).sum();
        let bar = self.progress.bytes(&format!("pushing to {}", self.repository), total);
        let sent: Vec<Sent> = stream::iter(payloads.into_iter().map(|payload| session.blob(payload, &bar)))
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        for document in publication.documents() {
            let linked = session.manifest(document, &document.descriptor.digest.to_string()).await?;
            if let (false, Some(referrer)) = (linked, publication.referrer(document)) {
                session.link(referrer).await?;
            }
        }
        for tag in &publication.tags {
            session.manifest(&tag.document, &tag.name).await?;
        }
        Ok(sent)
    }
}

/// Every blob once, in the order of the images.
fn payloads(publication: &Publication<'_>) -> Vec<Payload> {
    let images = &publication.images;
    let layers = images.iter().flat_map(|image| &image.layers).map(|layer| Payload::File(layer.blob));
    let documents = publication.referrers.iter().flat_map(|referrer| &referrer.blobs);
    let documents = images
        .iter()
        .map(|image| &image.config)
        .chain(documents)
        .map(|document| Payload::Memory(document.bytes.clone().into(), document.descriptor.digest));
    let mut seen = BTreeSet::new();
    layers.chain(documents).filter(|payload| seen.insert(payload.content().digest)).collect()
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
                Ok(sent) => return Ok(sent),
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

    /// One `PUT` with the whole blob, unless it was mounted; says which.
    async fn whole(&self, payload: &Payload, bar: &Bar) -> Result<bool, Failed> {
        let content = payload.content();
        let Some(location) = self.begin(Some(content.digest)).await? else {
            bar.advance(content.size);
            return Ok(false);
        };
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
        Ok(true)
    }

    async fn in_chunks(&self, payload: &Payload, bar: &Bar) -> Result<(), Failed> {
        let content = payload.content();
        let Some(mut location) = self.begin(None).await? else { return Ok(()) };
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

    /// Opens an upload and says where it goes; `None` when the registry took the blob from another repository.
    async fn begin(&self, mount: Option<Digest>) -> Result<Option<Url>, Failed> {
        let from = mount.and_then(|digest| Some((digest, self.pusher.mounts.get(&digest)?)));
        let url = match from {
            Some((digest, from)) => self.url(&format!("blobs/uploads/?mount={digest}&from={}", from.path())),
            None => self.url("blobs/uploads/"),
        };
        let answer =
            self.send(Method::POST, &url, |request| request.header(header::CONTENT_LENGTH, 0)).await?;
        match answer.status() {
            // Registries that cannot mount open an upload instead.
            StatusCode::ACCEPTED => self.location(&answer).map(Some),
            StatusCode::CREATED if from.is_some() => Ok(None),
            _ => Err(self.refused("an upload", answer).await),
        }
    }

    fn location(&self, answer: &Response) -> Result<Url, Failed> {
        let text = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let url = text.and_then(|text| answer.url().join(text).ok());
        let missing = || PushError::Location { repository: self.pusher.repository.to_string() };
        Ok(url.ok_or_else(missing)?)
    }

    pub(super) async fn manifest(&self, document: &Document, name: &str) -> Result<bool, PushError> {
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
                Ok(answer) if answer.status() == StatusCode::CREATED => {
                    return Ok(answer.headers().contains_key("oci-subject"));
                }
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
            // What leaves is hashed once more: the last bytes of a damaged layer are not sent.
            Payload::File(content) if length == content.size => {
                let file = self.pusher.cache.open_content(Shelf::Blobs, content)?.always();
                Ok(Body::wrap_stream(pieces(file, length, moved.clone())))
            }
            Payload::File(content) => {
                let path = self.pusher.cache.verified(Shelf::Blobs, content)?;
                let fault = |source| self.pusher.cache.fault("read", &path, source);
                let mut file = File::open(&path).map_err(fault)?;
                file.seek(SeekFrom::Start(start)).map_err(fault)?;
                Ok(Body::wrap_stream(pieces(file, length, moved.clone())))
            }
        }
    }
}

fn with_digest(mut location: Url, digest: Digest) -> Url {
    location.query_pairs_mut().append_pair("digest", &digest.to_string());
    location
}

/// A part of a file as a stream. Reads block for a page-cache copy of a few hundred kilobytes.
fn pieces(
    file: impl Read + Send + 'static,
    length: u64,
    moved: Arc<AtomicU64>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold((file, length), move |(mut file, left)| {
        let moved = moved.clone();
        async move {
            if left == 0 {
                return Ok(None);
            }
            let mut buffer = vec![0; BUFFER.min(usize::try_from(left).unwrap_or(BUFFER))];
            file.read_exact(&mut buffer)?;
            let count = buffer.len() as u64;
            moved.fetch_add(count, Ordering::Relaxed);
            Ok(Some((Bytes::from(buffer), (file, left - count))))
        }
    })
}
