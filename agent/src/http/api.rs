//! The part of the admin side that changes things: images of this node.
//!
//! ```text
//! GET    /api/v1/images                    what is in the store
//! POST   /api/v1/images[?name=..][&pin=true]   import the archive in the body
//! DELETE /api/v1/images?name=NAME          remove a name, and what only it needed
//! PUT    /api/v1/pins?name=NAME            keep an image from eviction
//! DELETE /api/v1/pins?name=NAME            let it go again
//! GET    /api/v1/archive?name=..[&name=..] export images as a tar of an OCI layout
//! GET    /api/v1/explain?name=NAME         why a pull of this image is as it is
//! ```
//!
//! Only over the Unix socket (`local`): these calls decide what the node's tags resolve to, and names of images may be
//! secrets.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::{
    admin::{document, text},
    body::Body,
    route::decode,
    transfer,
};
use crate::{
    explain::Explainer,
    images::{
        self, ImageError,
        archive::{self, ArchiveError, ImportOptions, Source},
    },
    store::{Store, StoreError},
    task::Tasks,
    types::{ImageName, chain},
    upstream::Upstream,
};

/// For how long the rest of a refused archive is read and dropped.
const LINGER: Duration = Duration::from_secs(2);

/// What a request wants. Parsed before anything is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    List,
    Import(Option<ImageName>, bool),
    Export(Vec<ImageName>),
    Remove(ImageName),
    Pin(ImageName, bool),
    Explain(ImageName),
}

/// A refusal: status and what to do about it.
#[derive(Debug, PartialEq, Eq)]
struct Refusal(StatusCode, String);

impl Refusal {
    fn bad(problem: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, problem.into())
    }
}

impl From<ImageError> for Refusal {
    fn from(error: ImageError) -> Self {
        let status = match &error {
            ImageError::NotHere(_) => StatusCode::NOT_FOUND,
            ImageError::Pinned { .. }
            | ImageError::Held { .. }
            | ImageError::Part { .. }
            | ImageError::Incomplete { .. } => StatusCode::CONFLICT,
            ImageError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, chain(&error))
    }
}

impl From<ArchiveError> for Refusal {
    fn from(error: ArchiveError) -> Self {
        let status = match &error {
            ArchiveError::Store(_) | ArchiveError::Write(_) | ArchiveError::NotEmpty(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            ArchiveError::Read(_)
            | ArchiveError::Truncated
            | ArchiveError::Damaged(_)
            | ArchiveError::Member { .. }
            | ArchiveError::TooLarge(_)
            | ArchiveError::Compression(_)
            | ArchiveError::Unknown
            | ArchiveError::Document { .. }
            | ArchiveError::Incomplete { .. }
            | ArchiveError::Name(_) => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self(status, chain(&error))
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        ImageError::from(error).into()
    }
}

/// Answers for one store. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Api {
    store: Store,
    upstream: Arc<Upstream>,
    explainer: Explainer,
    /// One call at a time: each looks at the whole store.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// One explanation at a time, beside the other calls: it waits for peers and for credential helpers.
    explaining: Arc<tokio::sync::Mutex<()>>,
    /// One archive at a time, beside the other calls.
    archives: Arc<tokio::sync::Semaphore>,
    tasks: Tasks,
    stop: CancellationToken,
}

impl Api {
    /// Archives under way end with `stop`.
    pub(super) fn new(
        store: Store,
        upstream: Arc<Upstream>,
        explainer: Explainer,
        tasks: Tasks,
        stop: CancellationToken,
    ) -> Self {
        let archives = Arc::new(tokio::sync::Semaphore::new(1));
        Self {
            store,
            upstream,
            explainer,
            turn: Arc::default(),
            explaining: Arc::default(),
            archives,
            tasks,
            stop,
        }
    }

    /// Answers a request below `/api/v1/`.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        self.call(request).await.unwrap_or_else(|Refusal(status, problem)| {
            let mut response = document(&serde_json::json!({ "error": problem }));
            *response.status_mut() = status;
            response
        })
    }

    async fn call(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let call = parse(request.method(), request.uri().path(), request.uri().query())?;
        match call {
            Call::Import(name, pin) => {
                let stop = self.stop.clone();
                self.import(request, ImportOptions { name, pin, stop }).await
            }
            Call::Export(names) => self.export(names).await,
            Call::Explain(name) => {
                let _turn = self.explaining.lock().await;
                Ok(document(&serde_json::json!(self.explainer.explain(&name).await?)))
            }
            Call::List => self.look(|store| Ok(images::list(store)?)).await,
            Call::Remove(name) => self.look(move |store| Ok(images::remove(store, &name)?)).await,
            Call::Pin(name, pinned) => self.look(move |store| Ok(images::pin(store, &name, pinned)?)).await,
        }
    }

    /// Work on the whole store, one after the other.
    async fn look<T: Serialize + Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<Response<Body>, Refusal> {
        let _turn = self.turn.lock().await;
        let store = self.store.clone();
        Ok(document(&serde_json::json!(blocking(move || work(&store)).await?)))
    }

    fn archive_turn(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let busy = |_| Refusal(StatusCode::CONFLICT, "another import or export is under way".to_owned());
        self.archives.clone().try_acquire_owned().map_err(busy)
    }

    async fn import(
        &self,
        request: Request<Incoming>,
        options: ImportOptions,
    ) -> Result<Response<Body>, Refusal> {
        let _turn = self.archive_turn()?;
        let (reader, pump) = transfer::incoming(request.into_body(), self.stop.clone());
        let store = self.store.clone();
        let work = blocking(move || Ok(archive::import(&store, Source::Tar(Box::new(reader)), &options)?));
        tokio::pin!(work, pump);
        let (outcome, sending) = tokio::select! {
            outcome = &mut work => (outcome, true),
            () = &mut pump => (work.await, false),
        };
        if outcome.is_err() && sending {
            // A client that is still sending is to see the answer, not a broken connection.
            let _ = tokio::time::timeout(LINGER, pump).await;
        }
        let mut imported = outcome?;
        imported.note_served(|registry| self.upstream.serves(registry).is_some());
        for image in &imported.images {
            tracing::info!(image = image.name, digest = image.digest, bytes = image.bytes, "image imported");
        }
        Ok(document(&serde_json::json!(imported)))
    }

    async fn export(&self, names: Vec<ImageName>) -> Result<Response<Body>, Refusal> {
        let turn = self.archive_turn()?;
        let store = self.store.clone();
        let export = blocking(move || Ok(archive::export(&store, &names)?)).await?;
        let (mut writer, body) = transfer::outgoing(self.stop.clone());
        let size = export.tar_size();
        self.tasks.spawn("export", async move {
            let written = tokio::task::spawn_blocking(move || {
                export.write_tar(&mut writer)?;
                std::io::Write::flush(&mut writer).map_err(ArchiveError::Write)
            });
            // The client sees a body that ends early.
            if let Ok(Err(error)) = written.await {
                tracing::warn!(error = %chain(&error), "export ended early");
            }
            drop(turn);
        });
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
        Ok(response)
    }
}

/// Runs work off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(StoreError::from)?
}

/// Reads a request line. Pure.
fn parse(method: &Method, path: &str, query: Option<&str>) -> Result<Call, Refusal> {
    let name = || -> Result<ImageName, Refusal> {
        let [name] = names(query)?.try_into().map_err(|_| Refusal::bad("`name` must be given once"))?;
        Ok(name)
    };
    let wrong_method = || Refusal(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not for `{path}`"));
    match (path, method) {
        ("/api/v1/images", &Method::GET | &Method::HEAD) => Ok(Call::List),
        ("/api/v1/images", &Method::POST) => Ok(Call::Import(optional_name(query)?, flag(query, "pin")?)),
        ("/api/v1/archive", &Method::GET) => match names(query)? {
            names if names.is_empty() => Err(Refusal::bad("`name` must be given at least once")),
            names => Ok(Call::Export(names)),
        },
        ("/api/v1/images", &Method::DELETE) => Ok(Call::Remove(name()?)),
        ("/api/v1/pins", &Method::PUT) => Ok(Call::Pin(name()?, true)),
        ("/api/v1/pins", &Method::DELETE) => Ok(Call::Pin(name()?, false)),
        ("/api/v1/explain", &Method::GET) => Ok(Call::Explain(name()?)),
        ("/api/v1/images" | "/api/v1/pins" | "/api/v1/archive" | "/api/v1/explain", _) => Err(wrong_method()),
        _ => Err(Refusal(
            StatusCode::NOT_FOUND,
            "served here: /api/v1/status, cluster, explain, images, peers, pins and archive".to_owned(),
        )),
    }
}

fn optional_name(query: Option<&str>) -> Result<Option<ImageName>, Refusal> {
    let mut names = names(query)?;
    let name = names.pop();
    if names.is_empty() { Ok(name) } else { Err(Refusal::bad("`name` must be given once")) }
}

fn flag(query: Option<&str>, key: &str) -> Result<bool, Refusal> {
    let mut pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    match pairs.find(|(name, _)| *name == key) {
        None | Some((_, "false")) => Ok(false),
        Some((_, "true")) => Ok(true),
        Some(_) => Err(Refusal::bad(format!("`{key}` must be `true` or `false`"))),
    }
}

fn names(query: Option<&str>) -> Result<Vec<ImageName>, Refusal> {
    let values = query.unwrap_or_default().split('&').filter_map(|pair| pair.strip_prefix("name="));
    values
        .map(|value| {
            let text = decode(value).ok_or_else(|| Refusal::bad("`name` is not percent-encoded text"))?;
            text.parse().map_err(|error: crate::types::NameError| Refusal::bad(error.to_string()))
        })
        .collect()
}

/// The answer of the TCP listener to calls of this module.
pub(super) fn only_local() -> Response<Body> {
    let problem =
        "only over the agent's Unix socket: run `hearth-agent` on this node, as root or as the agent's user";
    let mut response = document(&serde_json::json!({ "error": problem }));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response
}

/// A 405 for everything else that is not read.
pub(super) fn read_only() -> Response<Body> {
    text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are served here\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_become_calls() {
        let name = || "r.test:5000/a:v1".parse().unwrap();
        for (method, target, expected) in [
            ("GET", "/api/v1/images", Ok(Call::List)),
            ("DELETE", "/api/v1/images?name=r.test%3A5000%2Fa%3Av1", Ok(Call::Remove(name()))),
            ("PUT", "/api/v1/pins?name=r.test:5000/a:v1", Ok(Call::Pin(name(), true))),
            ("DELETE", "/api/v1/pins?name=r.test:5000/a:v1", Ok(Call::Pin(name(), false))),
            ("DELETE", "/api/v1/images", Err(400)),
            ("DELETE", "/api/v1/images?name=a&name=b", Err(400)),
            ("DELETE", "/api/v1/images?name=%2", Err(400)),
            ("DELETE", "/api/v1/images?name=..%2Fa", Err(400)),
            ("POST", "/api/v1/images", Ok(Call::Import(None, false))),
            ("POST", "/api/v1/images?pin=true&name=r.test:5000/a:v1", Ok(Call::Import(Some(name()), true))),
            ("POST", "/api/v1/images?pin=yes", Err(400)),
            ("POST", "/api/v1/images?name=a&name=b", Err(400)),
            ("GET", "/api/v1/archive?name=r.test:5000/a:v1", Ok(Call::Export(vec![name()]))),
            ("GET", "/api/v1/archive", Err(400)),
            ("GET", "/api/v1/explain?name=r.test:5000/a:v1", Ok(Call::Explain(name()))),
            ("GET", "/api/v1/explain", Err(400)),
            ("POST", "/api/v1/explain?name=r.test:5000/a:v1", Err(405)),
            ("PATCH", "/api/v1/images", Err(405)),
            ("GET", "/api/v1/pins", Err(405)),
            ("GET", "/api/v1/other", Err(404)),
        ] {
            let (path, query) =
                target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
            let call = parse(&method.parse().unwrap(), path, query).map_err(|refusal| refusal.0.as_u16());
            assert_eq!(call, expected, "{method} {target}");
        }
    }
}
