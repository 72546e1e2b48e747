//! Accepting connections and serving HTTP/1.1 on them, inside of TLS where peers are asked who they are, until told to
//! stop.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderValue, Request, Response, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{
    Admin, Mirror, PeerApi, Probes,
    admission::{Admission, Admitted, Place, REFUSAL},
    body::{self, Body, Open},
    connection::{self, ClientStream},
    error::Refusal,
    handover::{Inherited, Shared},
    head::{HEAD, Head},
    listener::{self, accept, close},
};
use crate::{metrics::Metrics, peers::Tls, task::Tasks};

/// Pause after a failed accept (too many open files, as a rule), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// For how long the mirror's idle connections stay open after the stop signal, or after their last answer: a request that is on its
/// way is answered, and told that the connection ends. Closed at once, it would meet a closed socket, and not every
/// client repeats it.
const QUIET: Duration = Duration::from_millis(500);

/// How often it is looked whether a connection is idle.
const QUIET_STEP: Duration = Duration::from_millis(50);

/// Longest time for a peer to show who it is.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Most bytes of a connection that wait to be sent before more of a body is read, and most of a request's head.
const BUFFERED: usize = 64 * 1024;

/// Limits of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at once; further clients are refused.
    pub connections: usize,
    /// Longest wait for a client to take bytes.
    pub client_write: Duration,
    /// For how long open requests may go on after the stop signal.
    pub grace: Duration,
}

/// A bound listener.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    limits: Limits,
    /// Another process accepts from the same socket.
    shared: Shared,
}

impl Server {
    /// Binds. Port 0 takes a free one.
    pub fn bind(address: SocketAddr, limits: Limits) -> io::Result<Self> {
        Self::of(listener::bind(address, false)?, limits)
    }

    /// Takes the listener at this address from an agent that runs, or binds; with `beside`, an agent of an earlier version may
    /// listen there too.
    pub fn inherit(
        address: SocketAddr,
        limits: Limits,
        inherited: &mut Inherited,
        beside: bool,
    ) -> io::Result<Self> {
        match inherited.take(address) {
            Some(socket) => {
                socket.set_nonblocking(true)?;
                Self::of(TcpListener::from_std(socket)?, limits)
            }
            None => Self::of(listener::bind(address, beside)?, limits),
        }
    }

    fn of(listener: TcpListener, limits: Limits) -> io::Result<Self> {
        let address = listener.local_addr()?;
        Ok(Self { listener, address, limits, shared: Shared::default() })
    }

    /// The socket for another process, and the mark that it has it.
    pub(super) fn share(&self) -> io::Result<(OwnedFd, Shared)> {
        Ok((self.listener.as_fd().try_clone_to_owned()?, self.shared.clone()))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves the mirror until `stop`, then lets open requests finish within the grace period.
    pub async fn serve_mirror(self, mirror: Mirror, metrics: Metrics, tasks: Tasks, stop: CancellationToken) {
        let (refusing, limit) = (mirror.clone(), self.limits.connections);
        let service = Service {
            tls: None,
            quiet: QUIET,
            metrics: Some(metrics),
            answer: move |request: Request<Incoming>| mirror.clone().answer(request),
            refuse: move |request: &Request<Incoming>| refusing.refuse(request, limit),
        };
        self.serve(service, tasks, stop).await;
    }

    /// Serves other agents until `stop`. With `tls`, a connection must present a peer's certificate.
    pub async fn serve_peers(
        self,
        peers: PeerApi,
        tls: Option<Arc<Tls>>,
        tasks: Tasks,
        stop: CancellationToken,
    ) {
        let answer = move |request: Request<Incoming>| peers.clone().answer(request);
        self.serve_without_metrics(tls, answer, tasks, stop).await;
    }

    /// Serves the admin side until `stop`.
    pub async fn serve_admin(self, admin: Admin, tasks: Tasks, stop: CancellationToken) {
        let answer = move |request: Request<Incoming>| admin.clone().answer(request);
        self.serve_without_metrics(None, answer, tasks, stop).await;
    }

    /// Serves probes and metrics until `stop`.
    pub async fn serve_probes(self, probes: Probes, tasks: Tasks, stop: CancellationToken) {
        let answer = move |request: Request<Incoming>| std::future::ready(probes.answer(&request));
        self.serve_without_metrics(None, answer, tasks, stop).await;
    }

    async fn serve_without_metrics<A, F>(
        self,
        tls: Option<Arc<Tls>>,
        answer: A,
        tasks: Tasks,
        stop: CancellationToken,
    ) where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let limit = self.limits.connections;
        let refuse = move |_: &Request<Incoming>| Refusal::busy(limit).into_response();
        self.serve(Service { tls, quiet: Duration::ZERO, metrics: None, answer, refuse }, tasks, stop).await;
    }

    async fn serve<A, F, R>(self, service: Service<A, R>, tasks: Tasks, stop: CancellationToken)
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
        R: Fn(&Request<Incoming>) -> Response<Body> + Clone + Send + Sync + 'static,
    {
        let admission = Admission::new(self.limits.connections);
        let mut http = http1::Builder::new();
        // Between two requests; a head that has begun has less time (`head`).
        http.timer(TokioTimer::new()).header_read_timeout(Duration::from_mins(1)).half_close(true);
        http.max_buf_size(BUFFERED);
        // Nothing is sent: closed when the last connection has been served.
        let (serving, mut all_served) = mpsc::channel::<()>(1);
        let begin = |socket: TcpStream| {
            let connection = Connection {
                http: http.clone(),
                service: service.clone(),
                limits: self.limits,
                stop: stop.clone(),
            };
            let serving = serving.clone();
            let ip =
                |address: io::Result<SocketAddr>| address.ok().map(|address| address.ip().to_canonical());
            match admission.admit(ip(socket.peer_addr()), ip(socket.local_addr())) {
                Admitted::Served(permit) => {
                    tasks.spawn("connection", connection.run(socket, permit, serving));
                }
                refused => {
                    if let Some(metrics) = &service.metrics {
                        metrics.connections_refused.inc();
                    }
                    if let (Admitted::Refused(permit), None) = (refused, &service.tls) {
                        tasks.spawn("refusal", connection.refuse(socket, permit));
                    }
                }
            }
        };
        while let Some(accepted) = stop.run_until_cancelled(accept(&self.listener)).await {
            match accepted {
                Ok(socket) => begin(socket),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // Clients that wait at a shared socket are the other process's.
        if self.shared.is() {
            drop(self.listener);
        } else {
            close(self.listener, begin).await;
        }
        drop(serving);
        if tokio::time::timeout(self.limits.grace, all_served.recv()).await.is_err() {
            tracing::warn!(address = %self.address, "open requests did not finish within the grace period");
        }
    }
}

/// What a listener serves.
#[derive(Clone)]
struct Service<A, R> {
    tls: Option<Arc<Tls>>,
    quiet: Duration,
    /// Where connections are counted.
    metrics: Option<Metrics>,
    answer: A,
    /// The answer to clients above the limit.
    refuse: R,
}

/// What it takes to serve one connection.
struct Connection<A, R> {
    http: http1::Builder,
    service: Service<A, R>,
    limits: Limits,
    stop: CancellationToken,
}

impl<A, F, R> Connection<A, R>
where
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>>,
    R: Fn(&Request<Incoming>) -> Response<Body>,
{
    /// From the handshake to the end.
    async fn run(self, socket: TcpStream, _place: Place, serving: mpsc::Sender<()>) {
        let (metrics, socket) = (self.service.metrics.clone(), Arc::new(socket));
        if let Some(metrics) = &metrics {
            metrics.connections.inc();
        }
        let open = Open::default();
        let head = Head::new(&open);
        let stream = ClientStream::new(socket.clone(), self.limits.client_write).watched(head.clone());
        match self.service.tls.as_ref().map(|tls| tls.server()) {
            None => self.serve(stream, &socket, &open, &head).await,
            Some(None) => tracing::debug!("connection refused: this node has no certificate yet"),
            Some(Some(tls)) => match shake_hands(&TlsAcceptor::from(tls), stream).await {
                Ok(stream) => {
                    head.complete();
                    head.received();
                    self.serve(stream, &socket, &open, &head).await;
                }
                Err(error) => {
                    let peer = socket.peer_addr().ok();
                    tracing::debug!(%error, ?peer, "connection refused: no peer's certificate");
                }
            },
        }
        drop(serving);
        connection::end(&socket).await;
        if let Some(metrics) = &metrics {
            metrics.connections.dec();
        }
    }

    /// Answers the first request with a refusal.
    async fn refuse(mut self, socket: TcpStream, _permit: OwnedSemaphorePermit) {
        let socket = Arc::new(socket);
        let stream = ClientStream::new(socket.clone(), REFUSAL);
        let service = service_fn(|request: Request<Incoming>| {
            let response = (self.service.refuse)(&request);
            async { Ok::<_, std::convert::Infallible>(response) }
        });
        let connection = self.http.keep_alive(false).serve_connection(TokioIo::new(stream), service);
        if !matches!(tokio::time::timeout(REFUSAL, connection).await, Ok(Ok(()))) {
            tracing::debug!("a refused client did not take its answer");
        }
        connection::end(&socket).await;
    }

    /// Until the client leaves, or has been quiet for a while after the stop signal.
    async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        socket: &TcpStream,
        open: &Open,
        head: &Head,
    ) {
        let service = service_fn(|request: Request<Incoming>| {
            head.complete();
            // In a box of its own: the connection keeps room for what is returned here as long as it is open, and an answer is
            // made in a moment.
            let (open, answered) = (open.clone(), Box::pin((self.service.answer)(request)));
            async {
                let mut response = answered.await;
                if self.stop.is_cancelled() {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, std::convert::Infallible>(response.map(|body| body::counted(body, open)))
            }
        });
        let mut connection = pin!(self.http.serve_connection(TokioIo::new(stream), service));
        let served = tokio::select! {
            biased;
            served = connection.as_mut() => served,
            () = head.late() => {
                tracing::debug!(client = ?socket.peer_addr().ok(), "connection ended: no whole request within {HEAD:?}");
                return;
            }
            () = quiet_after(&self.stop, open, socket, self.service.quiet) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "connection ended early");
        }
    }
}

/// Comes after the stop signal, when for so long no answer has been under way and no request has waited to be read.
async fn quiet_after(stop: &CancellationToken, open: &Open, socket: &TcpStream, quiet: Duration) {
    stop.cancelled().await;
    let mut since = Instant::now();
    loop {
        // The socket itself is asked: the runtime of a busy machine may not have heard yet of a request that is there.
        if open.is_busy() || connection::has_unread(socket) {
            since = Instant::now();
        } else if since.elapsed() >= quiet {
            return;
        }
        tokio::time::sleep(QUIET_STEP).await;
    }
}

async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
    acceptor: &TlsAcceptor,
    stream: S,
) -> io::Result<TlsStream<S>> {
    let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
    shaken.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use socket2::{Domain, Socket, Type};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const LIMITS: Limits =
        Limits { connections: 8, client_write: Duration::from_secs(5), grace: Duration::from_secs(5) };

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    async fn serve_yes(server: Server, stop: CancellationToken) {
        let service = Service {
            tls: None,
            quiet: QUIET,
            metrics: None,
            answer: |_: Request<Incoming>| async { Response::new(body::full("yes")) },
            refuse: |_: &Request<Incoming>| Response::new(body::full("no")),
        };
        server.serve(service, Tasks::default(), stop).await;
    }

    #[tokio::test]
    async fn a_client_is_answered_that_was_connected_before_the_runtime_heard_of_it() {
        let server = Server::bind(loopback(), LIMITS).unwrap();
        let mut client = std::net::TcpStream::connect(server.address()).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        serve_yes(server, stop).await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("yes"), "{answer}");
    }

    #[tokio::test]
    async fn a_client_that_has_begun_to_connect_when_a_listener_closes_is_answered() {
        let server = Server::bind(loopback(), LIMITS).unwrap();
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // The last packet of its handshake comes with its first bytes (tcp(7), `TCP_QUICKACK`): it is connected, the
        // listener does not know yet.
        client.set_tcp_quickack(false).unwrap();
        client.connect(&server.address().into()).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut client = TcpStream::from_std(client.into()).unwrap();
        let (stop, mut answer) = (CancellationToken::new(), String::new());
        stop.cancel();
        let served = serve_yes(server, stop);
        let asked = async {
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            client.read_to_string(&mut answer).await.unwrap();
        };
        // In this order: the listener has begun to close when the client writes.
        tokio::join!(biased; served, asked);
        assert!(answer.ends_with("yes"), "{answer}");
    }

    #[tokio::test]
    async fn a_connection_is_not_quiet_while_a_request_waits_to_be_read() {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        client.write_all(b"GET").await.unwrap();
        let (stop, open) = (CancellationToken::new(), Open::default());
        stop.cancel();
        let quiet = quiet_after(&stop, &open, &socket, Duration::ZERO);
        let mut quiet = pin!(quiet);
        assert!(tokio::time::timeout(QUIET_STEP * 4, quiet.as_mut()).await.is_err());
        socket.readable().await.unwrap();
        socket.try_read(&mut [0; 8]).unwrap();
        tokio::time::timeout(Duration::from_secs(10), quiet).await.unwrap();
    }
}
