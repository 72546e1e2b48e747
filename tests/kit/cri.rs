//! A container runtime's socket: the calls of CRI that the agent sends, with pulls that really go to a mirror.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::UnixListener, sync::watch, task::JoinHandle};

use crate::pull::Puller;

/// What it does when it is told to pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pulls {
    /// It pulls from the mirror at this URL.
    Through(String),
    /// It never asks a mirror, and no registry has the image.
    Past,
    /// It answers no call until it is told something else.
    Hang,
}

/// The runtime. Dropping it ends it.
#[derive(Debug)]
pub struct FakeCri {
    home: tempfile::TempDir,
    pulls: watch::Sender<Pulls>,
    task: JoinHandle<()>,
}

impl Drop for FakeCri {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Body = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

impl FakeCri {
    /// `containerd` in this version, on a socket of its own.
    pub fn start(version: &str, pulls: Pulls) -> Self {
        let home = tempfile::tempdir().expect("temporary folders are available");
        let listener = UnixListener::bind(home.path().join("cri.sock")).expect("the folder is new");
        let pulls = watch::Sender::new(pulls);
        let (version, told) = (Arc::new(version.to_owned()), pulls.subscribe());
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (version, told) = (version.clone(), told.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(request, version.clone(), told.clone()));
                    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service);
                    // A client that leaves ends its connection.
                    let _ = serving.await;
                });
            }
        });
        Self { home, pulls, task }
    }

    /// The path of its socket.
    pub fn socket(&self) -> PathBuf {
        Path::new(self.home.path()).join("cri.sock")
    }

    /// From now on it pulls like this.
    pub fn set(&self, pulls: Pulls) {
        self.pulls.send_replace(pulls);
    }
}

async fn answer(
    request: Request<Incoming>,
    version: Arc<String>,
    mut told: watch::Receiver<Pulls>,
) -> Result<Response<Body>, Infallible> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let message =
        request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let pulls = told.wait_for(|pulls| *pulls != Pulls::Hang).await.map(|pulls| pulls.clone());
    // An error is the end of the runtime.
    let Ok(pulls) = pulls else { return std::future::pending().await };
    let outcome = match method.as_str() {
        "Version" => Ok([text(2, "containerd"), text(3, &version)].concat()),
        "PullImage" => pull(&message, &pulls).await.map(|()| text(1, "id")),
        "RemoveImage" => Ok(Vec::new()),
        other => Err((12, format!("no such call: {other}"))),
    };
    let (code, problem, message) = match outcome {
        Ok(message) => (0, String::new(), message),
        Err((code, problem)) => (code, problem, Vec::new()),
    };
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).expect("messages are small"));
    body.put_slice(&message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code));
    trailers.insert("grpc-message", HeaderValue::from_str(&problem).expect("plain text"));
    let frames = vec![Ok(Frame::data(body.freeze())), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(stream::iter(frames)));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// A field with text, as protocol buffers have it.
fn text(field: u8, text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).ok().filter(|length| *length < 128).expect("texts here are short");
    [&[field << 3 | 2, length][..], text.as_bytes()].concat()
}

/// Pulls the image of a `PullImageRequest`: `{image: {image: "registry/repository:tag"}}`, both lengths below 128.
async fn pull(message: &[u8], pulls: &Pulls) -> Result<(), (u16, String)> {
    let image = message.get(5 + 4..).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default();
    let Pulls::Through(mirror) = pulls else { return Err((5, format!("{image}: not found"))) };
    let named = image.split_once('/').and_then(|(registry, rest)| Some((registry, rest.rsplit_once(':')?)));
    let Some((registry, (repository, tag))) = named else { return Err((3, format!("no image: {image}"))) };
    let pulled = Puller::new(mirror, Some(registry)).pull(repository, tag, |_| ()).await;
    pulled.map(drop).map_err(|error| (2, format!("{error:#}").replace('\n', " ")))
}
