//! A proxy in front of a registry that notes every exchange, and can slow the bodies down.
//!
//! It changes nothing else: requests and answers pass as they are, bodies are streamed.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// One request and what became of its answer.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The method.
    pub method: Method,
    /// The path without the query.
    pub path: String,
    /// The `Range` that was asked for.
    pub range: Option<String>,
    /// The status of the answer.
    pub status: StatusCode,
    /// How many bytes of the answer's body have left.
    pub bytes: u64,
    /// When the whole body had left; nothing while it is on its way or when the client went away.
    pub done: Option<Instant>,
}

/// The running proxy; it ends when dropped.
#[derive(Debug)]
pub struct CountingProxy {
    address: SocketAddr,
    exchanges: Arc<Mutex<Vec<Exchange>>>,
    _running: DropGuard,
}

/// What a connection's task needs.
#[derive(Clone)]
struct Shared {
    target: SocketAddr,
    client: reqwest::Client,
    bytes_per_second: Option<u64>,
    exchanges: Arc<Mutex<Vec<Exchange>>>,
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

impl CountingProxy {
    /// Starts one in front of `target`, each body at most `bytes_per_second` fast.
    pub async fn start(target: SocketAddr, bytes_per_second: Option<u64>) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let exchanges = Arc::new(Mutex::new(Vec::new()));
        let client =
            reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build()?;
        let shared = Shared { target, client, bytes_per_second, exchanges: exchanges.clone() };
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, shared, stop.clone())));
        Ok(Self { address, exchanges, _running: stop.drop_guard() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every exchange so far, in the order in which they were asked for.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.exchanges.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The exchanges that fetched bytes of blobs.
    pub fn blob_gets(&self) -> Vec<Exchange> {
        let mut exchanges = self.exchanges();
        exchanges.retain(|exchange| exchange.method == Method::GET && exchange.path.contains("/blobs/"));
        exchanges
    }

    /// Forgets what has been exchanged so far.
    pub fn clear(&self) {
        self.exchanges.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

async fn accept(listener: TcpListener, shared: Shared, stop: CancellationToken) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        let service = hyper::service::service_fn(move |request| {
            let shared = shared.clone();
            async move { Ok::<_, Infallible>(forward(&shared, request).await) }
        });
        let connection =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        // A client that goes away is not an error of the proxy's.
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move { drop(connection.await) }));
    }
}

async fn forward(shared: &Shared, request: Request<Incoming>) -> Response<Body> {
    let exchange = Exchange {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        range: request.headers().get(header::RANGE).and_then(|range| range.to_str().ok()).map(str::to_owned),
        status: StatusCode::BAD_GATEWAY,
        bytes: 0,
        done: None,
    };
    let note = Note::new(shared.exchanges.clone(), exchange);
    match ask(shared, request).await {
        Ok(response) => {
            note.update(|exchange| exchange.status = response.status());
            answer(response, note, shared.bytes_per_second)
        }
        Err(error) => {
            let body = Full::new(Bytes::from(format!("{error:#}"))).map_err(|never| match never {});
            let mut response = Response::new(body.boxed_unsync());
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }
    }
}

async fn ask(shared: &Shared, request: Request<Incoming>) -> Result<reqwest::Response> {
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let url = format!("http://{}{path}", shared.target);
    let mut outgoing = shared.client.request(head.method, url).headers(end_to_end(&head.headers));
    if head.headers.contains_key(header::CONTENT_LENGTH)
        || head.headers.contains_key(header::TRANSFER_ENCODING)
    {
        outgoing = outgoing.body(reqwest::Body::wrap(body));
    }
    Ok(outgoing.send().await?)
}

fn answer(response: reqwest::Response, note: Note, bytes_per_second: Option<u64>) -> Response<Body> {
    let status = response.status();
    let headers = end_to_end(response.headers());
    let pace = Pace { started: Instant::now(), sent: 0, length: response.content_length(), bytes_per_second };
    let frames = stream::unfold((response, note, pace), async |(mut response, note, mut pace)| {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                pace.wait(chunk.len()).await;
                note.update(|exchange| {
                    exchange.bytes += chunk.len() as u64;
                    // A body of known length is not asked for its end.
                    exchange.done = (Some(exchange.bytes) == pace.length).then(Instant::now);
                });
                Some((Ok(Frame::data(chunk)), (response, note, pace)))
            }
            Ok(None) => {
                note.update(|exchange| exchange.done = Some(Instant::now()));
                None
            }
            Err(error) => Some((Err(std::io::Error::other(error)), (response, note, pace))),
        }
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Without what concerns one connection only.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        kept.remove(name);
    }
    kept
}

/// The place of one exchange in the list.
struct Note {
    exchanges: Arc<Mutex<Vec<Exchange>>>,
    index: usize,
}

impl Note {
    fn new(exchanges: Arc<Mutex<Vec<Exchange>>>, exchange: Exchange) -> Self {
        let index = {
            let mut list = exchanges.lock().unwrap_or_else(PoisonError::into_inner);
            list.push(exchange);
            list.len() - 1
        };
        Self { exchanges, index }
    }

    fn update(&self, change: impl FnOnce(&mut Exchange)) {
        // Nothing there: the list was cleared while this one was under way.
        if let Some(exchange) =
            self.exchanges.lock().unwrap_or_else(PoisonError::into_inner).get_mut(self.index)
        {
            change(exchange);
        }
    }
}

/// Holds a body back to its pace.
struct Pace {
    started: Instant,
    sent: u64,
    length: Option<u64>,
    bytes_per_second: Option<u64>,
}

impl Pace {
    async fn wait(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        if let Some(rate) = self.bytes_per_second {
            let due = self.started + Duration::from_millis(self.sent * 1000 / rate.max(1));
            tokio::time::sleep_until(due.into()).await;
        }
    }
}
