//! The link of one node on loopback: connections through it share one rate in each direction, as packets on a wire do.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Mutex,
    task::JoinHandle,
};

use crate::cluster::Place;

/// Bytes that pass at once, and about what waits in a socket's buffer: with the usual megabytes of loopback a link would
/// swallow what its receiver never gets.
const BUFFER: u32 = 16 * 1024;

/// What a timer that fires late does not cost.
const LATE: Duration = Duration::from_millis(10);

/// Relays with one rate in each direction. Dropping it ends them.
#[derive(Debug)]
pub struct Link {
    to_node: Arc<Pace>,
    from_node: Arc<Pace>,
    relays: Vec<JoinHandle<()>>,
}

/// One direction.
#[derive(Debug)]
struct Pace {
    bytes_per_second: u32,
    /// When the next bytes may pass. Waiting for it is waiting for the wire: first come, first served.
    free: Mutex<Instant>,
}

impl Drop for Link {
    fn drop(&mut self) {
        for relay in &self.relays {
            relay.abort();
        }
    }
}

impl Link {
    /// A link with this rate.
    pub fn new(bytes_per_second: u32) -> Self {
        let pace = || Arc::new(Pace { bytes_per_second, free: Mutex::new(Instant::now()) });
        Self { to_node: pace(), from_node: pace(), relays: Vec::new() }
    }

    /// Nothing passes in either direction for so long.
    pub async fn pause(&self, long: Duration) {
        for pace in [&self.to_node, &self.from_node] {
            let mut free = pace.free.lock().await;
            *free = (*free).max(Instant::now()) + long;
        }
    }

    /// Where the node reaches this address over its link.
    pub async fn to(&mut self, target: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback ports are available");
        let address = listener.local_addr().expect("it is bound");
        self.relays.push(tokio::spawn(accept(
            listener,
            target,
            self.to_node.clone(),
            self.from_node.clone(),
        )));
        address
    }

    /// Takes a place in the cluster, where others reach the node, whose listener is at `node`, over its link.
    pub fn serve(&mut self, place: &Place, node: SocketAddr) {
        let (back, forth) = (self.from_node.clone(), self.to_node.clone());
        self.relays.push(tokio::spawn(accept(place.listen(), node, back, forth)));
    }
}

/// `back` is the direction from `target` to the one who connects.
async fn accept(listener: TcpListener, target: SocketAddr, back: Arc<Pace>, forth: Arc<Pace>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(relay(stream, target, back.clone(), forth.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn relay(client: TcpStream, target: SocketAddr, back: Arc<Pace>, forth: Arc<Pace>) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(BUFFER)?;
    let server = socket.connect(target).await?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    // When one side closes the connection, the other side's is closed too: an aborted request must not go on.
    tokio::select! {
        ended = pass(from_client, to_server, forth) => ended,
        ended = pass(from_server, to_client, back) => ended,
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, pace: Arc<Pace>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER as usize];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        pace.pass(u32::try_from(read).unwrap_or(BUFFER)).await;
        to.write_all(&buffer[..read]).await?;
    }
}

impl Pace {
    async fn pass(&self, bytes: u32) {
        let mut free = self.free.lock().await;
        let now = Instant::now();
        let until = (*free).max(now.checked_sub(LATE).unwrap_or(now))
            + Duration::from_secs(1) * bytes / self.bytes_per_second;
        *free = until;
        tokio::time::sleep_until(until.into()).await;
    }
}
