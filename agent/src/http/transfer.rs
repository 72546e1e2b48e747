//! Bodies of the admin API that are as large as images: an archive that is imported or exported, between the connection and a
//! thread that reads or writes it. Bounded queues both ways; a peer that stops is given up.

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::body::Body;

/// Pieces between the two sides.
const QUEUE: usize = 8;

/// Bytes gathered before they are sent.
const CHUNK: usize = 256 * 1024;

/// Longest silence of a client inside its archive.
const IDLE: Duration = Duration::from_mins(1);

/// A request's body for a thread that reads: the reader, and what moves the bytes.
pub(super) fn incoming(
    body: Incoming,
    stop: CancellationToken,
) -> (impl Read + Send, impl Future<Output = ()> + Send) {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(QUEUE);
    let pump = async move {
        let mut body = body;
        loop {
            let frame = tokio::select! {
                () = stop.cancelled() => Err(io::Error::other("the agent is shutting down")),
                frame = tokio::time::timeout(IDLE, body.frame()) => match frame {
                    Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client stopped sending")),
                    Ok(None) => return,
                    Ok(Some(frame)) => frame.map_err(io::Error::other),
                },
            };
            let (piece, last) = match frame {
                Ok(frame) => match frame.into_data() {
                    Ok(bytes) => (Ok(bytes), false),
                    Err(_) => continue,
                },
                Err(error) => (Err(error), true),
            };
            // After the import has ended the rest of the body is read and dropped, so that the client sees the response.
            if sender.send(piece).await.is_err() && last {
                return;
            }
            if last {
                return;
            }
        }
    };
    (Incomer { receiver, current: Bytes::new() }, pump)
}

struct Incomer {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for Incomer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.current = piece?,
            }
        }
        let count = self.current.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

/// A body that a thread writes.
pub(super) fn outgoing(stop: CancellationToken) -> (impl Write + Send, Body) {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(QUEUE);
    let body = StreamBody::new(stream::unfold(receiver, |mut receiver| async {
        let piece = receiver.recv().await?;
        Some((piece.map(Frame::data), receiver))
    }));
    (Outgoer { sender, buffer: Vec::with_capacity(CHUNK), stop }, body.boxed_unsync())
}

struct Outgoer {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
    stop: CancellationToken,
}

impl Write for Outgoer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        if piece.is_empty() {
            return Ok(());
        }
        if self.stop.is_cancelled() {
            return Err(io::Error::other("the agent is shutting down"));
        }
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone");
        self.sender.blocking_send(Ok(piece.into())).map_err(gone)
    }
}
