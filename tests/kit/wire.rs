//! HTTP/1.1 by hand, for tests that care about the bytes on the wire: how a connection ends, whether a body was cut,
//! what a malformed request gets.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::agent::CLIENT;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As long as `Content-Length` said; the connection may still be open.
    Complete,
    /// FIN before that.
    Fin,
    /// RST.
    Reset,
    /// Nothing for the whole time limit.
    Silent,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status line and headers as received, without the empty line.
    pub head: String,
    /// The body as far as it came.
    pub body: Vec<u8>,
    /// How it ended.
    pub ending: Ending,
    /// From sending the request to the end of the head.
    pub head_after: Duration,
}

impl Answer {
    /// The status code, or 0 if no head came.
    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// One connection with a request on it.
#[derive(Debug)]
pub struct Exchange {
    stream: TcpStream,
    sent: Instant,
    limit: Duration,
    buffer: Vec<u8>,
}

impl Exchange {
    /// Connects and sends these bytes. `limit` bounds every later wait for the next byte.
    pub async fn open(address: SocketAddr, request: &[u8], limit: Duration) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request).await?;
        Ok(Self { stream, sent: Instant::now(), limit, buffer: Vec::new() })
    }

    /// Reads up to the end of the head and gives it; what follows stays for [`Exchange::read`].
    pub async fn head(&mut self) -> Result<String, Ending> {
        loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.buffer[..at]).into_owned();
                self.buffer.drain(..at + 4);
                return Ok(head);
            }
            self.more().await?;
        }
    }

    /// Reads exactly so many body bytes.
    pub async fn read(&mut self, count: usize) -> Result<Vec<u8>, Ending> {
        while self.buffer.len() < count {
            self.more().await?;
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// Sends more on the same connection.
    pub async fn send(&mut self, request: &[u8]) -> io::Result<()> {
        self.sent = Instant::now();
        self.stream.write_all(request).await
    }

    /// Reads one whole answer. `bodiless` for an answer to `HEAD`.
    pub async fn answer(&mut self, bodiless: bool) -> Answer {
        let head = match self.head().await {
            Ok(head) => head,
            Err(ending) => {
                let body = std::mem::take(&mut self.buffer);
                return Answer { head: String::new(), body, ending, head_after: self.sent.elapsed() };
            }
        };
        let head_after = self.sent.elapsed();
        let length = header(&head, "content-length").and_then(|text| text.parse::<usize>().ok());
        let want = if bodiless { Some(0) } else { length };
        let ending = loop {
            if want.is_some_and(|want| self.buffer.len() >= want) {
                break Ending::Complete;
            }
            if let Err(ending) = self.more().await {
                break ending;
            }
        };
        let keep = want.unwrap_or(usize::MAX).min(self.buffer.len());
        Answer { head, body: self.buffer.drain(..keep).collect(), ending, head_after }
    }

    /// Waits for the connection to end and says how; bytes that arrive meanwhile are dropped.
    pub async fn ending(&mut self) -> Ending {
        loop {
            if let Err(ending) = self.more().await {
                return ending;
            }
            self.buffer.clear();
        }
    }

    /// Ends the connection with RST, as a client that has seen enough does.
    pub fn reset(self) {
        // Failing to set it leaves an orderly close, which is a milder form of the same thing.
        let _ = self.stream.set_zero_linger();
    }

    async fn more(&mut self) -> Result<(), Ending> {
        match tokio::time::timeout(self.limit, self.stream.read_buf(&mut self.buffer)).await {
            Err(_) => Err(Ending::Silent),
            Ok(Ok(0)) => Err(Ending::Fin),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Ending::Reset),
        }
    }
}

/// Sends a request and reads the whole answer.
pub async fn exchange(address: SocketAddr, request: &str, limit: Duration) -> io::Result<Answer> {
    let mut exchange = Exchange::open(address, request.as_bytes(), limit).await?;
    Ok(exchange.answer(request.starts_with("HEAD ")).await)
}

/// A `GET` with these extra header lines (each ending in CRLF).
pub fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\nuser-agent: {CLIENT}\r\n{headers}\r\n")
}
