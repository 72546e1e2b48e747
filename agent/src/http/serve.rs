//! Accepting connections and serving HTTP/1.1 on them, inside of TLS where members are asked who they are, until told to
//! stop.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderValue, Request, Response, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockFilter, SockRef};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{
    Admin, Mirror, PeerApi,
    api::Peer,
    body::{self, Body, Open},
    connection::{self, ClientStream},
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

/// For how long a listener that closes waits for clients that have begun to connect: a round trip, with time to spare.
const HANDSHAKES: Duration = Duration::from_millis(100);

/// Longest time for a member to show who it is.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Limits of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at once; further clients wait in the kernel's queue.
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
}

impl Server {
    /// Binds. Port 0 takes a free one. `SO_REUSEPORT` lets a new process take over while the old one drains.
    pub fn bind(address: SocketAddr, limits: Limits) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(true)?;
        socket.bind(address)?;
        let listener = socket.listen(1024)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, limits })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves the mirror until `stop`, then lets open requests finish within the grace period.
    pub async fn serve_mirror(self, mirror: Mirror, metrics: Metrics, tasks: Tasks, stop: CancellationToken) {
        let count =
            move |open: bool| if open { metrics.connections.inc() } else { metrics.connections.dec() };
        self.serve(None, QUIET, move |request| mirror.clone().answer(request), count, tasks, stop).await;
    }

    /// Serves other agents until `stop`; with `tls` only those that show a member's certificate.
    pub async fn serve_peers(
        self,
        peers: PeerApi,
        tls: Option<Arc<Tls>>,
        tasks: Tasks,
        stop: CancellationToken,
    ) {
        let at_once = Duration::ZERO;
        self.serve(tls, at_once, move |request| peers.clone().answer(request), |_| 0, tasks, stop).await;
    }

    /// Serves the admin side until `stop`.
    pub async fn serve_admin(self, admin: Admin, tasks: Tasks, stop: CancellationToken) {
        let at_once = Duration::ZERO;
        self.serve(None, at_once, move |request| admin.clone().answer(request), |_| 0, tasks, stop).await;
    }

    async fn serve<F>(
        self,
        tls: Option<Arc<Tls>>,
        quiet: Duration,
        answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        count: impl Fn(bool) -> i64 + Clone + Send + Sync + 'static,
        tasks: Tasks,
        stop: CancellationToken,
    ) where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let permits = Arc::new(Semaphore::new(self.limits.connections));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(Duration::from_mins(1)).half_close(true);
        // Nothing is sent: closed when the last connection has been served.
        let (serving, mut all_served) = mpsc::channel::<()>(1);
        let begin = |(socket, permit): Accepted| {
            let socket = Arc::new(socket);
            let stream = ClientStream::new(socket.clone(), self.limits.client_write);
            let connection =
                Connection { http: http.clone(), answer: answer.clone(), quiet, stop: stop.clone() };
            let acceptor = tls.as_ref().map(|tls| TlsAcceptor::from(tls.server()));
            let (count, serving) = (count.clone(), serving.clone());
            tasks.spawn("connection", async move {
                let _permit = permit;
                count(true);
                match acceptor {
                    None => connection.serve(stream, &socket).await,
                    Some(acceptor) => match shake_hands(&acceptor, stream).await {
                        Ok(stream) => connection.serve(stream, &socket).await,
                        Err(error) => {
                            let peer = socket.peer_addr().ok();
                            tracing::debug!(%error, ?peer, "connection refused: no member's certificate");
                        }
                    },
                }
                drop(serving);
                connection::end(&socket).await;
                count(false);
            });
        };
        while let Some(accepted) = stop.run_until_cancelled(accept(&self.listener, &permits)).await {
            match accepted {
                Ok(accepted) => begin(accepted),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        close(self.listener, &permits, begin).await;
        drop(serving);
        if tokio::time::timeout(self.limits.grace, all_served.recv()).await.is_err() {
            tracing::warn!(address = %self.address, "open requests did not finish within the grace period");
        }
    }
}

/// What it takes to serve one connection.
struct Connection<A> {
    http: http1::Builder,
    answer: A,
    quiet: Duration,
    stop: CancellationToken,
}

impl<A, F> Connection<A>
where
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>>,
{
    /// Until the client leaves, or has been quiet for a while after the stop signal.
    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin, socket: &TcpStream) {
        let (open, peer) = (Open::default(), socket.peer_addr().ok());
        let service = service_fn(|mut request: Request<Incoming>| {
            if let Some(peer) = peer {
                request.extensions_mut().insert(Peer(peer));
            }
            let (open, answered) = (open.clone(), (self.answer)(request));
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
            () = quiet_after(&self.stop, &open, socket, self.quiet) => {
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

/// A client's connection, and its share of those that may be open.
type Accepted = (TcpStream, OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> io::Result<Accepted> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (socket, _) = listener.accept().await?;
    socket.set_nodelay(true)?;
    Ok((socket, permit))
}

/// Drops the packets that begin a connection: those with SYN (RFC 9293, 3.1), which is bit 1 of the header's octet 13.
/// The instructions are those of `linux/bpf_common.h`.
const NO_NEW_CLIENTS: [SockFilter; 4] = [
    // BPF_LD | BPF_B | BPF_ABS
    SockFilter::new(0x30, 0, 0, 13),
    // BPF_JMP | BPF_JSET | BPF_K
    SockFilter::new(0x45, 0, 1, 0x02),
    // BPF_RET | BPF_K: nothing of the packet, all of it
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];

/// Takes the connections that wait, and closes the listener. The kernel resets what waits at a socket that is closed, or
/// has begun to connect to it, though another process listens on the same port. So first no client can begin any more:
/// it repeats its SYN a second later (RFC 6298), and then it gets to the other process. Those that have begun get the
/// time to finish.
async fn close(listener: TcpListener, permits: &Arc<Semaphore>, mut begin: impl FnMut(Accepted)) {
    if let Err(error) = SockRef::from(&listener).attach_filter(&NO_NEW_CLIENTS) {
        tracing::debug!(%error, "clients that connect at this moment may be refused");
    }
    let last = async {
        while let Ok(accepted) = accept(&listener, permits).await {
            begin(accepted);
        }
    };
    tokio::time::timeout(HANDSHAKES, last).await.ok();
    // Asked directly: the runtime may not have heard yet of what waits.
    let listener = match listener.into_std() {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!(%error, "clients that wait for a connection are refused"),
    };
    while let Ok(permit) = permits.clone().try_acquire_owned() {
        let accepted = listener.accept().and_then(|(socket, _)| {
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            TcpStream::from_std(socket)
        });
        match accepted {
            Ok(socket) => begin((socket, permit)),
            // It left while it waited.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                break;
            }
        }
    }
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

    #[tokio::test]
    async fn a_client_is_answered_that_was_connected_before_the_runtime_heard_of_it() {
        let server = Server::bind(loopback(), LIMITS).unwrap();
        let mut client = std::net::TcpStream::connect(server.address()).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        let answer = |_| async { Response::new(body::full("yes")) };
        server.serve(None, QUIET, answer, |_| 0, Tasks::default(), stop).await;
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
        let served = server.serve(
            None,
            QUIET,
            |_| async { Response::new(body::full("yes")) },
            |_| 0,
            Tasks::default(),
            stop,
        );
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

    #[tokio::test]
    async fn clients_that_connect_while_a_listener_closes_get_to_the_other_one_on_its_port() {
        let old = Server::bind(loopback(), LIMITS).unwrap();
        let address = old.address();
        let _waiting = std::net::TcpStream::connect(address).unwrap();
        let new = Server::bind(address, LIMITS).unwrap();
        let (mut taken, mut clients) = (Vec::new(), Vec::new());
        let connect = |accepted| {
            taken.push(accepted);
            for _ in 0..20 {
                let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                client.set_nonblocking(true).unwrap();
                // Under way when this returns.
                client.connect(&address.into()).ok();
                clients.push(client);
            }
        };
        // The one connection that it may take is the one that waits; it does not look for more.
        close(old.listener, &Arc::new(Semaphore::new(1)), connect).await;
        assert_eq!((taken.len(), clients.len()), (1, 20));
        for arrived in 0..clients.len() {
            let accepted = tokio::time::timeout(Duration::from_secs(10), new.listener.accept()).await;
            accepted.unwrap_or_else(|_| panic!("only {arrived} arrived")).unwrap();
        }
        for client in clients {
            assert!(client.take_error().unwrap().is_none());
        }
    }
}
