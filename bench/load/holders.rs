//! The rule "ask a peer that already has it, else upstream", as a program: what mirrors do that find whole blobs of
//! other nodes. The best case of it: everyone knows everyone, and nothing is looked up but who has the blob.
//!
//! Words: listen address, upstream's `host:port`, directory, and the other nodes' `host:port`.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{Request, Response, StatusCode, body::Frame, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc,
};

/// Marks a question to a peer: only what is whole on its disk counts.
const HERE: &str = "only-if-here";
const CONNECT: Duration = Duration::from_millis(300);
const CHUNK: usize = 256 << 10;

type Body = BoxBody<Bytes, std::io::Error>;

#[derive(Debug)]
struct Node {
    client: reqwest::Client,
    upstream: String,
    directory: PathBuf,
    peers: Vec<String>,
}

/// Serves until it is killed.
pub(crate) async fn run_alone(words: &[String]) -> Result<()> {
    let [listen, upstream, directory, peers @ ..] = words else {
        anyhow::bail!("a holder needs an address, an upstream and a directory")
    };
    let client = reqwest::Client::builder().no_proxy().http1_only().connect_timeout(CONNECT).build()?;
    let node = Arc::new(Node {
        client,
        upstream: upstream.clone(),
        directory: directory.into(),
        peers: peers.to_vec(),
    });
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let node = node.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let node = node.clone();
                async move { Ok::<_, Infallible>(node.answer(request).await) }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A client that goes away is its own business.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Node {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let file = self.directory.join(path.replace('/', "_"));
        if let Ok(whole) = tokio::fs::File::open(&file).await {
            return stored(whole).await.unwrap_or_else(|_| empty(StatusCode::INTERNAL_SERVER_ERROR));
        }
        if request.headers().contains_key(HERE) {
            return empty(StatusCode::NOT_FOUND);
        }
        let accept = request.headers().get(header::ACCEPT).cloned();
        self.fetch(&path, &file, accept).await.unwrap_or_else(|_| empty(StatusCode::BAD_GATEWAY))
    }

    async fn fetch(
        &self,
        path: &str,
        file: &Path,
        accept: Option<header::HeaderValue>,
    ) -> Result<Response<Body>> {
        let source = self.holder(path).await;
        let mut get =
            self.client.get(format!("http://{}{path}", source.as_deref().unwrap_or(&self.upstream)));
        if let Some(accept) = accept {
            get = get.header(header::ACCEPT, accept);
        }
        if source.is_some() {
            get = get.header(HERE, "1");
        }
        let response = get.send().await?.error_for_status()?;
        let length = response.content_length().context("the answer has no length")?;
        let (sender, receiver) = mpsc::channel(8);
        tokio::spawn(keep(response, file.to_owned(), sender));
        let chunks = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
        Ok(with_length(length, BodyExt::boxed(StreamBody::new(chunks.map_ok(Frame::data)))))
    }

    /// The first of the others that has it.
    async fn holder(&self, path: &str) -> Option<String> {
        let mut asked = tokio::task::JoinSet::new();
        for peer in self.peers.iter().cloned() {
            let request = self.client.head(format!("http://{peer}{path}")).header(HERE, "1").timeout(CONNECT);
            asked.spawn(async move {
                let found = request.send().await.is_ok_and(|answer| answer.status().is_success());
                found.then_some(peer)
            });
        }
        while let Some(answer) = asked.join_next().await {
            if let Ok(Some(peer)) = answer {
                return Some(peer);
            }
        }
        None
    }
}

/// To the client as it comes, and whole to the disk.
async fn keep(mut response: reqwest::Response, file: PathBuf, sender: mpsc::Sender<std::io::Result<Bytes>>) {
    let part = file.with_extension(format!("part{:?}", std::thread::current().id()));
    let kept = async {
        let mut out = tokio::fs::File::create(&part).await?;
        while let Some(bytes) = response.chunk().await.map_err(std::io::Error::other)? {
            out.write_all(&bytes).await?;
            // The blob is kept for others when the client has gone.
            let _ = sender.send(Ok(bytes)).await;
        }
        out.flush().await?;
        tokio::fs::rename(&part, &file).await
    };
    if let Err(error) = kept.await {
        let _ = sender.send(Err(error)).await;
    }
}

async fn stored(file: tokio::fs::File) -> std::io::Result<Response<Body>> {
    let length = file.metadata().await?.len();
    let chunks = stream::try_unfold(file, async |mut file| {
        let mut buffer = vec![0; CHUNK];
        let read = file.read(&mut buffer).await?;
        buffer.truncate(read);
        Ok((read > 0).then(|| (Frame::data(Bytes::from(buffer)), file)))
    });
    Ok(with_length(length, BodyExt::boxed(StreamBody::new(chunks))))
}

fn with_length(length: u64, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::default().map_err(|never: Infallible| match never {}).boxed());
    *response.status_mut() = status;
    response
}
