//! A peer of a cluster that does not do as it should.

use std::{net::SocketAddr, time::Duration};

use hearth_agent::peers::layout::Layout;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
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
    /// Grants all background work, and has nothing.
    Generous,
}

/// The peer. Dropping it ends it.
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
        Self(tokio::spawn(accept(place.listen(), manner)))
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
    let head = head(stream).await?;
    String::from_utf8_lossy(&head).split(' ').nth(1).map(str::to_owned)
}

/// The next request or answer up to its body; `None` at the end.
async fn head(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(head)
}

async fn answer(stream: &mut TcpStream, manner: Manner, target: &str) -> std::io::Result<()> {
    let empty = |status: &str, more: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n{more}\r\n");
    match manner {
        Manner::Stalls => tokio::time::sleep(Duration::from_mins(10)).await,
        Manner::Generous if target.starts_with("/peer/v1/budget") => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"waitMs\":0}").await?;
        }
        Manner::Busy | Manner::Generous => {
            stream.write_all(empty("503 Service Unavailable", "").as_bytes()).await?;
        }
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

/// A real agent behind a relay that changes one byte of every piece it sends. Dropping it ends the relay.
#[derive(Debug)]
pub struct AlteringRelay(JoinHandle<()>);

impl Drop for AlteringRelay {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl AlteringRelay {
    /// Takes a place in the cluster for the agent whose peer listener is at `agent`.
    pub fn start(place: &Place, agent: SocketAddr) -> Self {
        let listener = place.listen();
        Self(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(relay(stream, agent));
                while connections.try_join_next().is_some() {}
            }
        }))
    }
}

/// Passes requests on, one after the other, and alters the pieces among the answers.
async fn relay(mut client: TcpStream, agent: SocketAddr) -> Option<()> {
    let mut server = TcpStream::connect(agent).await.ok()?;
    loop {
        let asked = head(&mut client).await?;
        server.write_all(&asked).await.ok()?;
        let answer = head(&mut server).await?;
        client.write_all(&answer).await.ok()?;
        let text = String::from_utf8_lossy(&answer).to_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut left: usize = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
        let mut alter = asked.starts_with(b"GET /peer/v1/pieces/") && text.starts_with("http/1.1 200");
        let mut buffer = vec![0; 64 * 1024];
        while left > 0 {
            let most = left.min(buffer.len());
            let read = server.read(&mut buffer[..most]).await.ok().filter(|read| *read > 0)?;
            if std::mem::take(&mut alter) {
                buffer[read / 2] ^= 1;
            }
            client.write_all(&buffer[..read]).await.ok()?;
            left -= read;
        }
    }
}
