//! A member of a cluster that does not do as it should.

use std::time::Duration;

use hearth_agent::peers::layout::Layout;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};

use crate::cluster::Place;

/// How it misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Gives every piece at once, wrong.
    Lies,
    /// Takes requests and says nothing.
    Stalls,
    /// Is always busy.
    Busy,
    /// Has everything on its way, for ever, and shows no sign of life.
    Holds,
    /// Sends half of every piece and hangs up.
    Cuts,
    /// Speaks another version.
    Foreign,
}

/// The member. Dropping it ends it.
#[derive(Debug)]
pub struct BadPeer(JoinHandle<()>);

impl Drop for BadPeer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl BadPeer {
    /// Takes a place in the cluster.
    pub fn start(place: &Place, manner: Manner) -> Self {
        let socket = TcpSocket::new_v4().expect("sockets are available");
        socket.set_reuseport(true).expect("the kernel shares ports");
        socket.bind(place.address).expect("the place is reserved");
        let listener = socket.listen(128).expect("a bound socket listens");
        Self(tokio::spawn(accept(listener, manner)))
    }
}

async fn accept(listener: TcpListener, manner: Manner) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, manner));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(mut stream: TcpStream, manner: Manner) {
    while let Some(target) = request(&mut stream).await {
        if answer(&mut stream, manner, &target).await.is_err() {
            return;
        }
    }
}

/// The target of the next request; `None` at the end.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8_lossy(&head);
    text.split(' ').nth(1).map(str::to_owned)
}

async fn answer(stream: &mut TcpStream, manner: Manner, target: &str) -> std::io::Result<()> {
    let empty = |status: &str, more: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n{more}\r\n");
    match manner {
        Manner::Stalls => tokio::time::sleep(Duration::from_mins(10)).await,
        Manner::Busy => stream.write_all(empty("503 Service Unavailable", "").as_bytes()).await?,
        Manner::Foreign => stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await?,
        Manner::Holds => {
            tokio::time::sleep(Duration::from_millis(200)).await;
            stream.write_all(empty("202 Accepted", "hearth-activity: 7\r\n").as_bytes()).await?;
        }
        Manner::Lies | Manner::Cuts => {
            let Some(length) = length_of(target) else {
                return stream.write_all(empty("503 Service Unavailable", "").as_bytes()).await;
            };
            let wrong = vec![0x5a; usize::try_from(length).expect("a piece fits into memory")];
            stream
                .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").as_bytes())
                .await?;
            let sent = if manner == Manner::Cuts { &wrong[..wrong.len() / 2] } else { &wrong[..] };
            stream.write_all(sent).await?;
            if manner == Manner::Cuts {
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
        }
    }
    Ok(())
}

/// Bytes of the piece that a target names.
fn length_of(target: &str) -> Option<u64> {
    let (path, query) = target.split_once('?')?;
    let piece: u64 = path.strip_prefix("/peer/v1/pieces/")?.split('/').nth(1)?.parse().ok()?;
    let size: u64 = query.split('&').find_map(|pair| pair.strip_prefix("size="))?.parse().ok()?;
    let bytes = Layout::new(size).bytes(piece);
    Some(bytes.end - bytes.start)
}
