//! Listening sockets that one agent hands to the next, at a rolling update.
//!
//! Both agents then accept from the same queues, so no client meets a closed port, and no other process needs to be let onto the
//! ports: `SO_REUSEPORT` would let any process of the same user take a part of the requests. The sockets travel over a Unix
//! socket (`unix(7)`, `SCM_RIGHTS`) with mode 0600 beside the one for programs of this node:
//!
//! ```text
//! new agent -- connects --> old agent: is it my user, or root?
//! new agent <-- one byte, and the descriptors of all listeners -- old agent
//! ```
//!
//! The new agent finds by their addresses which of its listeners they are, and then offers them to the next one.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::local::{Placed, may_call};

/// Most sockets that are handed over: mirror, peers, admin.
const MOST: usize = 3;

/// Longest wait for the other agent.
const ANSWER: Duration = Duration::from_secs(2);

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether sockets of this process are another's too. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared(Arc<AtomicBool>);

impl Shared {
    pub(super) fn is(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn note(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What an agent that runs already has handed over.
#[derive(Debug, Default)]
pub struct Inherited(Vec<TcpListener>);

impl Inherited {
    /// Asks an agent that runs already; nothing when there is none, or an older one. Blocking, for seconds at most.
    pub fn ask(admin_socket: &Path) -> Self {
        let path = path_of(admin_socket);
        match receive(&path) {
            Ok(sockets) => Self(sockets),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Self::default()
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot take over the listeners of the agent that runs");
                Self::default()
            }
        }
    }

    /// The listener at this address.
    pub(super) fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let at = self.0.iter().position(|socket| socket.local_addr().is_ok_and(|found| found == address))?;
        Some(self.0.swap_remove(at))
    }
}

/// Hands this agent's listeners to the next agent.
#[derive(Debug)]
pub struct Handover {
    listener: UnixListener,
    placed: Placed,
    sockets: Vec<OwnedFd>,
    shared: Vec<Shared>,
}

impl Handover {
    /// Binds, in the place of an earlier agent's socket.
    pub fn bind<'a>(
        admin_socket: &Path,
        servers: impl IntoIterator<Item = &'a super::Server>,
    ) -> io::Result<Self> {
        let path = path_of(admin_socket);
        let (mut sockets, mut shared) = (Vec::new(), Vec::new());
        for server in servers {
            let (socket, mark) = server.share()?;
            sockets.push(socket);
            shared.push(mark);
        }
        let (listener, placed) = Placed::bind(&path)?;
        Ok(Self { listener, placed, sockets, shared })
    }

    /// Hands over to each agent that asks, until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        while let Some(accepted) = stop.run_until_cancelled(self.listener.accept()).await {
            match accepted {
                Ok((stream, _)) => {
                    if let Err(error) = self.give(&stream).await {
                        tracing::warn!(%error, "listeners not handed to another agent");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of the hand-over socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        self.placed.remove_own();
    }

    async fn give(&self, stream: &tokio::net::UnixStream) -> io::Result<()> {
        let uid = stream.peer_cred()?.uid();
        if !may_call(uid, rustix::process::geteuid().as_raw()) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("user {uid} asked for them"),
            ));
        }
        tokio::time::timeout(ANSWER, stream.writable()).await.map_err(io::Error::other)??;
        // From here on it may be that another process accepts from them.
        self.shared.iter().for_each(Shared::note);
        let descriptors: Vec<_> = self.sockets.iter().map(|socket| socket.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("too many listeners"));
        }
        sendmsg(stream, &[IoSlice::new(&[1])], &mut control, SendFlags::NOSIGNAL)?;
        tracing::info!("handed the listeners to a new agent");
        Ok(())
    }
}

/// Beside the socket for programs of this node.
fn path_of(admin_socket: &Path) -> PathBuf {
    let mut name = admin_socket.as_os_str().to_owned();
    name.push("-handover");
    name.into()
}

fn receive(path: &Path) -> io::Result<Vec<TcpListener>> {
    // Connecting gives the same error for a socket without a server and for none.
    fs::symlink_metadata(path)?;
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors.map(TcpListener::from));
        }
    }
    Ok(sockets)
}
