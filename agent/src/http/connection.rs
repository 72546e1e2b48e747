//! A client's connection: bounded waits for slow readers, and an end that the client can live with.
//!
//! Closing a socket while bytes of the client lie unread makes the kernel send RST, and container runtimes fail a
//! pull on RST where they resume after FIN. So the end is: FIN first, then read and drop for a moment, then close.
//!
//! A slow reader is one that takes bytes, however few; only one that takes none for `limits.clientWrite` is ended. The
//! kernel says that a socket takes bytes again when a third of its send buffer is free, which is megabytes, and minutes
//! at 10 KB a second. So the kernel is told to hold little that it has not sent yet (`TCP_NOTSENT_LOWAT`), and asked
//! itself, by a write, before a connection is ended.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

use super::head::Head;

/// How long unread bytes are dropped before the socket is closed.
const LINGER: Duration = Duration::from_secs(1);

/// Most bytes dropped while lingering.
const LINGER_BYTES: usize = 1024 * 1024;

/// Bytes that the kernel holds for a client beyond those that the client's window takes. It also bounds what a client
/// that reads nothing costs: send buffers count against the memory limit of a container.
const UNSENT: u32 = 128 * 1024;

/// Both directions of a client's socket. Shared, so that it can be ended after the HTTP connection has released it.
#[derive(Debug)]
pub(super) struct ClientStream {
    socket: Arc<TcpStream>,
    write_limit: Duration,
    stuck: Pin<Box<Sleep>>,
    is_stuck: bool,
    head: Option<Head>,
}

impl ClientStream {
    /// Only a client that takes nothing within `write_limit` is ended, however slow it is.
    pub(super) fn new(socket: Arc<TcpStream>, write_limit: Duration) -> Self {
        // The bytes in flight are not bounded by it (tcp(7)), so it costs no throughput.
        if let Err(error) = SockRef::from(&*socket).set_tcp_notsent_lowat(UNSENT) {
            tracing::debug!(%error, "a client that reads slowly may be cut");
        }
        let stuck = Box::pin(tokio::time::sleep(write_limit));
        Self { socket, write_limit, stuck, is_stuck: false, head: None }
    }

    /// Tells of bytes that arrive.
    pub(super) fn watched(self, head: Head) -> Self {
        Self { head: Some(head), ..self }
    }

    /// Whether a client has taken no byte for the limit: it pins buffers.
    fn poll_stuck(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_stuck {
            self.is_stuck = true;
            let until = Instant::now() + self.write_limit;
            self.stuck.as_mut().reset(until);
        }
        self.stuck.as_mut().poll(context)
    }

    /// Writes by `write`, a system call that must not block.
    fn poll_with(
        &mut self,
        context: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let outcome = match self.socket.poll_write_ready(context) {
                Poll::Pending => {
                    ready!(self.poll_stuck(context));
                    // The kernel reports room only when there is much; it takes bytes as soon as there is any.
                    write(&self.socket).map_err(|error| match error.kind() {
                        io::ErrorKind::WouldBlock => {
                            io::Error::new(io::ErrorKind::TimedOut, "the client takes no bytes")
                        }
                        _ => error,
                    })
                }
                Poll::Ready(Err(error)) => Err(error),
                Poll::Ready(Ok(())) => match self.socket.try_io(Interest::WRITABLE, || write(&self.socket)) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    outcome => outcome,
                },
            };
            self.is_stuck = false;
            return Poll::Ready(outcome);
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.poll_read_ready(context))?;
            match self.socket.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(read) => {
                    buffer.advance(read);
                    if let Some(head) = self.head.as_ref().filter(|_| read > 0) {
                        head.received();
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_with(context, |socket| {
            Ok(rustix::net::send(socket, bytes, rustix::net::SendFlags::NOSIGNAL)?)
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_with(context, |socket| Ok(rustix::io::writev(socket, slices)?))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(send_fin(&self.socket))
    }
}

fn send_fin(socket: &TcpStream) -> io::Result<()> {
    match rustix::net::shutdown(socket, rustix::net::Shutdown::Write) {
        // The client was faster.
        Err(rustix::io::Errno::NOTCONN) => Ok(()),
        outcome => outcome.map_err(Into::into),
    }
}

/// Whether the client has sent what has not been read yet.
pub(super) fn has_unread(socket: &TcpStream) -> bool {
    let peeked = rustix::net::recv(socket, &mut [0], rustix::net::RecvFlags::PEEK);
    peeked.is_ok_and(|(read, _)| read > 0)
}

/// Ends a connection: FIN, then a moment of reading, so that no unread byte turns the close into RST.
pub(super) async fn end(socket: &TcpStream) {
    if send_fin(socket).is_err() {
        return;
    }
    let drain = async {
        let (mut buffer, mut dropped) = ([0; 4096], 0);
        while dropped < LINGER_BYTES && socket.readable().await.is_ok() {
            match socket.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => dropped += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, drain).await;
}
