//! Pushes images to a registry: what is missing, streamed from disk, tags last.
//!
//! Order: the blobs of all images, then every manifest and index under its digest, then the tags. A push that breaks off
//! leaves no tag that points to something incomplete, and of several images either none or nearly all get
//! their tag. Blobs that the repository has (`HEAD`) are skipped, and each digest is sent once however many
//! images have it. Layers of a base in another repository of the same registry are mounted from there.
//!
//! A blob is sent with one `POST` and one `PUT`, also after a dropped connection: some registries answer chunks with 201
//! instead of 202, drop all but the first (ECR, aws/containers-roadmap#2831) or take none (GAR). Only where the registry or a
//! proxy in front of it refuses the size (413) is the blob sent in chunks: of 4 MiB, the most that GHCR takes, or of
//! `OCI-Chunk-Min-Length` if that is more. Some proxies cut the connection before their 413 can be read: after three dropped
//! connections in a row one attempt is made in chunks. A registry whose `Range` shows that it lost a chunk is not trusted
//! with the next.
//!
//! Time-outs, throttling and server faults are retried with the policy of [`crate::retry`]; a 401 in between means that the
//! token has run out, and a new one is fetched. A transfer that moves no byte for a minute is aborted; a long one that moves
//! is not. Before anything is built, [`Pusher::check`] opens an upload and cancels it: whether the user may push shows then.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Seek, SeekFrom},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Body, Method, Response, StatusCode, Url, header};

use super::{
    Publication,
    error::PushError,
    session::{Failed, Moved, Pusher, Session},
    transfer::{chunk_length, last_byte, pieces, with_digest},
};
use crate::{
    cache::{Content, Shelf},
    digest::Digest,
    image::Document,
    progress::Bar,
};

/// Requests under way at once: enough to fill a link, few enough for registries that count them.
const PARALLEL: usize = 4;

/// Dropped connections in a row after which the size may be the reason.
const CUT: u32 = 3;

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
    /// Fails when the user may not push here.
    pub async fn check(&self) -> Result<(), PushError> {
        let session = Session::new(self);
        session.retried("nothing, to see whether it is allowed,", async || session.probe().await).await
    }

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

/// How a blob is sent.
#[derive(Default)]
struct Way {
    /// The registry has refused its size.
    refused: bool,
    /// How often its connection was dropped.
    drops: u32,
}

/// An upload that the registry has opened.
struct Upload {
    location: Url,
    /// Bytes of a chunk.
    chunk: u64,
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
        let mut way = Way::default();
        let what = format!("the blob {}", content.digest.short());
        let uploaded = self.retried(&what, async || self.attempt_blob(&payload, &mut way, bar).await).await?;
        Ok(Sent { digest: content.digest, size: content.size, uploaded })
    }

    async fn attempt_blob(&self, payload: &Payload, way: &mut Way, bar: &Bar) -> Result<bool, Failed> {
        let content = payload.content();
        let url = self.url(&format!("blobs/{}", content.digest));
        let head = self.send(Method::HEAD, &url, |request| request).await?;
        match head.status() {
            StatusCode::OK => {
                bar.advance(content.size);
                return Ok(false);
            }
            StatusCode::NOT_FOUND => {}
            _ => return Err(self.refused("to say whether it has a blob", head).await),
        }
        let cut = way.drops == CUT;
        if !(way.refused || cut || self.takes_chunks()) {
            match self.whole(payload, bar).await {
                Err(Failed::Final(PushError::Refused { status: StatusCode::PAYLOAD_TOO_LARGE, .. })) => {
                    way.refused = true;
                }
                Err(error @ Failed::Again(PushError::Network { .. }, _)) => {
                    way.drops += 1;
                    return Err(error);
                }
                sent => return sent,
            }
        }
        let sent = self.in_chunks(payload, bar).await;
        if !cut || way.refused {
            return sent.map(|()| true);
        }
        // A guess: when it was wrong, the next attempt is one request again.
        way.drops += 1;
        match sent {
            Ok(()) => self.keep_to_chunks(),
            Err(failed) => return Err(Failed::Again(failed.into_error(), None)),
        }
        Ok(true)
    }

    /// One `PUT` with the whole blob, unless it was mounted; says which.
    async fn whole(&self, payload: &Payload, bar: &Bar) -> Result<bool, Failed> {
        let content = payload.content();
        let Some(upload) = self.begin(Some(content.digest)).await? else {
            bar.advance(content.size);
            return Ok(false);
        };
        let moved = Arc::new(Moved::new(bar.counter()));
        let body = self.body(payload, 0, content.size, &moved)?;
        let request = self
            .authorized(Method::PUT, with_digest(upload.location, content.digest).as_str())
            .await?
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, content.size)
            .body(body);
        let answer = self.watched(request, &moved).await?;
        if answer.status() != StatusCode::CREATED {
            return Err(self.refused(&format!("the blob `{}`", content.digest), answer).await);
        }
        Ok(true)
    }

    async fn in_chunks(&self, payload: &Payload, bar: &Bar) -> Result<(), Failed> {
        let content = payload.content();
        let Some(Upload { mut location, chunk }) = self.begin(None).await? else { return Ok(()) };
        let mut start = 0;
        while start < content.size {
            let length = chunk.min(content.size - start);
            let moved = Arc::new(Moved::new(bar.counter()));
            let end = start + length - 1;
            let request = self
                .authorized(Method::PATCH, location.as_str())
                .await?
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(header::CONTENT_LENGTH, length)
                .header(header::CONTENT_RANGE, format!("{start}-{end}"))
                .body(self.body(payload, start, length, &moved)?);
            let answer = self.watched(request, &moved).await?;
            if !matches!(answer.status(), StatusCode::ACCEPTED | StatusCode::CREATED | StatusCode::NO_CONTENT)
            {
                return Err(self.refused(&format!("a chunk of the blob `{}`", content.digest), answer).await);
            }
            // Not every registry counts alike: what matters is that nothing of this chunk is there.
            if last_byte(&answer).is_some_and(|last| last < start) {
                let repository = self.pusher.repository.to_string();
                return Err(PushError::LostChunk { repository, digest: content.digest }.into());
            }
            location = self.location(&answer)?;
            start += length;
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
    async fn begin(&self, mount: Option<Digest>) -> Result<Option<Upload>, Failed> {
        let from = mount.and_then(|digest| Some((digest, self.pusher.mounts.get(&digest)?)));
        let url = match from {
            Some((digest, from)) => self.url(&format!("blobs/uploads/?mount={digest}&from={}", from.name)),
            None => self.url("blobs/uploads/"),
        };
        let answer =
            self.send(Method::POST, &url, |request| request.header(header::CONTENT_LENGTH, 0)).await?;
        match answer.status() {
            // Registries that cannot mount open an upload instead.
            StatusCode::ACCEPTED => {
                Ok(Some(Upload { location: self.location(&answer)?, chunk: chunk_length(&answer) }))
            }
            StatusCode::CREATED if from.is_some() => Ok(None),
            _ => Err(self.refused("an upload", answer).await),
        }
    }

    /// Opens an upload and cancels it.
    async fn probe(&self) -> Result<(), Failed> {
        if let Some(upload) = self.begin(None).await? {
            // Registries drop uploads that nothing comes to; not all of them can cancel one.
            let _ = self.send(Method::DELETE, upload.location.as_str(), |request| request).await;
        }
        Ok(())
    }

    fn location(&self, answer: &Response) -> Result<Url, Failed> {
        let text = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let url = text.and_then(|text| answer.url().join(text).ok());
        let missing = || PushError::Location { repository: self.pusher.repository.to_string() };
        Ok(url.ok_or_else(missing)?)
    }

    pub(super) async fn manifest(&self, document: &Document, name: &str) -> Result<bool, PushError> {
        let url = self.url(&format!("manifests/{name}"));
        let put = async || {
            let answer = self
                .send(Method::PUT, &url, |request| {
                    request
                        .header(header::CONTENT_TYPE, &document.descriptor.media_type)
                        .body(document.bytes.clone())
                })
                .await?;
            if answer.status() == StatusCode::CREATED {
                return Ok(answer.headers().contains_key("oci-subject"));
            }
            Err(self.refused(&format!("the manifest `{name}`"), answer).await)
        };
        self.retried(&format!("the manifest {name}"), put).await
    }

    fn body(&self, payload: &Payload, start: u64, length: u64, moved: &Arc<Moved>) -> Result<Body, Failed> {
        match payload {
            Payload::Memory(bytes, _) => {
                let rest = bytes.slice(usize::try_from(start).unwrap_or(usize::MAX)..);
                moved.advance(length);
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
