//! The Unix socket for programs of this node: what changes something, and names of images, which may be secrets.
//!
//! A TCP port of the loopback interface is open to every process and every pod in the node's network. The socket lies in a
//! directory that only the agent's user may enter, has mode 0600, and the kernel says whose process has connected: the
//! agent's own user and root are served.
//!
//! At a rolling update two agents have one data directory. The new one puts its socket in the place of the old one's, and
//! each removes at its end only its own.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

use super::{Admin, head::HEAD};
use crate::task::Tasks;

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 32;

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a Unix socket of this process is.
#[derive(Debug)]
pub(super) struct Placed {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Placed {
    /// Binds, in the place of what an earlier agent has left there.
    pub(super) fn bind(path: &Path) -> io::Result<(UnixListener, Self)> {
        // Bound aside and moved: at no moment is there a socket that others may use, or none.
        let aside = path.with_extension(format!("{}-new", std::process::id()));
        remove(&aside)?;
        let listener = UnixListener::bind(&aside)?;
        let placed = place(&aside, path);
        if placed.is_err() {
            // Only the first error matters.
            let _ = remove(&aside);
        }
        Ok((listener, Self { path: path.to_owned(), identity: placed? }))
    }

    /// A newer agent may have put its own socket there.
    pub(super) fn remove_own(&self) {
        let own = fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity);
        if own && let Err(error) = remove(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "Unix socket not removed");
        }
    }
}

/// A bound socket.
#[derive(Debug)]
pub struct LocalServer {
    listener: UnixListener,
    placed: Placed,
}

impl LocalServer {
    /// Binds, in the place of what an earlier agent has left there.
    pub fn bind(path: &Path) -> io::Result<Self> {
        Placed::bind(path).map(|(listener, placed)| Self { listener, placed })
    }

    /// Serves until `stop`, then removes the socket; requests under way are not waited for here.
    pub async fn serve(self, admin: Admin, tasks: Tasks, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        while let Some(accepted) = stop.run_until_cancelled(self.accept(&places)).await {
            match accepted {
                Ok((stream, place)) => {
                    let (admin, stop) = (admin.clone(), stop.clone());
                    tasks.spawn("local", async move {
                        answer(stream, admin, stop).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of the Unix socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        self.placed.remove_own();
    }

    async fn accept(&self, places: &Arc<Semaphore>) -> io::Result<(UnixStream, OwnedSemaphorePermit)> {
        let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
        Ok((self.listener.accept().await?.0, place))
    }
}

fn place(aside: &Path, path: &Path) -> io::Result<(u64, u64)> {
    fs::set_permissions(aside, fs::Permissions::from_mode(0o600))?;
    let identity = identity(&fs::symlink_metadata(aside)?);
    fs::rename(aside, path)?;
    Ok(identity)
}

fn identity(found: &fs::Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

async fn answer(stream: UnixStream, admin: Admin, stop: CancellationToken) {
    match stream.peer_cred() {
        Ok(peer) if may_call(peer.uid(), rustix::process::geteuid().as_raw()) => {}
        Ok(peer) => {
            tracing::warn!(
                uid = peer.uid(),
                "connection refused: only the agent's user and root may call it"
            );
            return;
        }
        Err(error) => {
            tracing::warn!(%error, "connection refused: its user is not known");
            return;
        }
    }
    let service = service_fn(|request| {
        let answered = admin.clone().answer_local(request);
        async { Ok::<_, std::convert::Infallible>(answered.await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).half_close(true);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "connection of the Unix socket ended early");
    }
}

/// Pure.
pub(super) fn may_call(uid: u32, own: u32) -> bool {
    uid == 0 || uid == own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_agents_user_and_root_may_call() {
        for (uid, own, expected) in
            [(0, 65_532, true), (65_532, 65_532, true), (1_000, 65_532, false), (1, 0, false)]
        {
            assert_eq!(may_call(uid, own), expected, "{uid} {own}");
        }
    }

    #[tokio::test]
    async fn a_new_agents_socket_takes_the_place_of_the_old_one_and_outlives_it() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("agent.sock");
        // What an agent that was killed leaves behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let old = LocalServer::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let new = LocalServer::bind(&path).unwrap();
        old.placed.remove_own();
        assert!(path.exists());
        new.placed.remove_own();
        assert!(!path.exists());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }
}
