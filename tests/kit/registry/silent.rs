//! Upstreams that say nothing: the faults that cost a client its time-outs.

use std::net::SocketAddr;

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};

/// Accepts connections and never answers.
#[derive(Debug)]
pub struct Mute {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Mute {
    /// Starts one on a free loopback port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let task = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        Self { address, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Does not even complete the TCP handshake: its accept queue is full, so the kernel drops every SYN.
#[derive(Debug)]
pub struct BlackHole {
    address: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    /// Starts one on a free loopback port.
    pub async fn start() -> Self {
        let socket = TcpSocket::new_v4().expect("sockets are available");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a loopback port is free");
        let listener = socket.listen(1).expect("a bound socket listens");
        let address = listener.local_addr().expect("a bound socket has an address");
        let mut queued = Vec::new();
        // A backlog of one holds two on Linux; fill until a handshake no longer completes.
        while let Ok(Ok(stream)) =
            tokio::time::timeout(std::time::Duration::from_millis(200), TcpStream::connect(address)).await
        {
            queued.push(stream);
        }
        Self { address, _listener: listener, _queued: queued }
    }

    /// Where it does not answer.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
