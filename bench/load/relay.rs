//! A node whose network card or memory damages what it sends: a relay in front of an agent's peer listener flips one byte
//! in the middle of every piece that the agent sends, and passes everything else on as it is.
//!
//! HTTP/1.1 with `Content-Length` on kept connections, as agents speak it; requests have no body. When one side ends, the
//! other one is ended too: a peer that gives up a request must not leave the agent waiting for it.

use std::{io, net::SocketAddr};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

const PIECES: &str = "/peer/v1/pieces/";
/// Longest head that is passed on.
const HEAD: u64 = 64 << 10;
const BUFFER: usize = 64 << 10;

/// This program as such a relay, until it is killed. Words: the address to listen on, and the agent's.
pub(crate) async fn run_alone(words: &[String]) -> Result<()> {
    let [listen, agent] = words else { bail!("a relay needs two addresses") };
    let listener = TcpListener::bind(listen.parse::<SocketAddr>()?).await?;
    accept(listener, agent.parse()?).await
}

async fn accept(listener: TcpListener, agent: SocketAddr) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        connections.spawn(relay(stream, agent));
        while connections.try_join_next().is_some() {}
    }
}

/// Serves one connection; however it ends, both ends see it closed.
async fn relay(peer: TcpStream, agent: SocketAddr) -> io::Result<()> {
    let agent = TcpStream::connect(agent).await?;
    peer.set_nodelay(true)?;
    agent.set_nodelay(true)?;
    let (peer, mut to_peer) = peer.into_split();
    let (agent, mut to_agent) = agent.into_split();
    let (mut peer, mut agent) = (BufReader::new(peer), BufReader::with_capacity(BUFFER, agent));
    while let Some(request) = head(&mut peer).await? {
        to_agent.write_all(&request).await?;
        let answer = tokio::select! {
            answer = head(&mut agent) => answer?,
            // Nothing comes before the answer but the end of the connection.
            _ = peer.fill_buf() => return Ok(()),
        };
        let Some(answer) = answer else { return Ok(()) };
        let (length, flip) = plan(&request, &answer).map_err(io::Error::other)?;
        to_peer.write_all(&answer).await?;
        pass(&mut agent, &mut to_peer, length, flip).await?;
    }
    Ok(())
}

/// A head with the empty line at its end, or `None` when the connection ends before it.
async fn head(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let (mut head, mut from) = (Vec::new(), from.take(HEAD));
    while !head.ends_with(b"\r\n\r\n") {
        if from.read_until(b'\n', &mut head).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(head))
}

/// The length of an answer's body, and which byte of it to flip.
fn plan(request: &[u8], answer: &[u8]) -> Result<(u64, Option<u64>)> {
    let (request, answer) = (String::from_utf8_lossy(request), String::from_utf8_lossy(answer));
    let status = answer.split(' ').nth(1).unwrap_or_default();
    let length = answer.lines().filter_map(|line| line.split_once(':'));
    let length = length
        .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map(|(_, value)| value.trim().parse())
        .next()
        .context("an agent's answers have a length")??;
    let piece = request.split(' ').nth(1).is_some_and(|target| target.starts_with(PIECES));
    Ok((length, (piece && status == "200" && length > 0).then_some(length / 2)))
}

async fn pass(
    from: &mut (impl AsyncBufRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    length: u64,
    flip: Option<u64>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut position = 0;
    while position < length {
        let most = usize::try_from(length - position).unwrap_or(BUFFER).min(BUFFER);
        let read = from.read(&mut buffer[..most]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let place = flip.and_then(|at| at.checked_sub(position)).and_then(|at| usize::try_from(at).ok());
        if let Some(byte) = place.and_then(|at| buffer[..read].get_mut(at)) {
            *byte ^= 1;
        }
        to.write_all(&buffer[..read]).await?;
        position += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_byte_of_each_piece_is_flipped_and_nothing_else_on_a_kept_connection() {
        let body = |target: &str| format!("{target:64}").into_bytes();
        let agent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = agent.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = agent.accept().await.unwrap();
            let mut connection = BufReader::new(&mut stream);
            while let Some(request) = head(&mut connection).await.unwrap() {
                let target = String::from_utf8_lossy(&request).split(' ').nth(1).unwrap().to_owned();
                let status = if target.ends_with("held") { "202 Accepted" } else { "200 OK" };
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: 64\r\n\r\n");
                connection.get_mut().write_all(head.as_bytes()).await.unwrap();
                connection.get_mut().write_all(&body(&target)).await.unwrap();
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = listener.local_addr().unwrap();
        let relaying = tokio::spawn(accept(listener, address));
        let mut peer = BufReader::new(TcpStream::connect(relay).await.unwrap());
        for (target, flipped) in [
            ("/peer/v1/health", 0),
            ("/peer/v1/pieces/sha256:1/0", 1),
            ("/peer/v1/pieces/sha256:1/held", 0),
            ("/peer/v1/pieces/sha256:1/1", 1),
            ("/peer/v1/manifests/sha256:2", 0),
        ] {
            peer.write_all(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
            head(&mut peer).await.unwrap().unwrap();
            let mut got = vec![0; 64];
            peer.read_exact(&mut got).await.unwrap();
            let wrong = got.iter().zip(body(target)).filter(|(got, sent)| *got != sent).count();
            assert_eq!(wrong, flipped, "{target}");
        }
        drop(peer);
        serving.await.expect("the agent sees the end of the connection");
        relaying.abort();
    }
}
