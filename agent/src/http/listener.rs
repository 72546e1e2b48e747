//! A listening socket: how it is made, how connections are taken from it, and how it is closed so that no client notices.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{SockFilter, SockRef};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// For how long a listener that closes waits for clients that have begun to connect: a round trip, with time to spare.
const HANDSHAKES: Duration = Duration::from_millis(100);

/// Clients that wait in the kernel's queue to be accepted.
const BACKLOG: u32 = 1024;

/// Listens. Port 0 takes a free one. With `beside`, an agent of an earlier version may listen at the same port, with
/// `SO_REUSEPORT`; without, no other process can.
pub(super) fn bind(address: SocketAddr, beside: bool) -> io::Result<TcpListener> {
    match listen(address, false) {
        Err(error) if beside && error.kind() == io::ErrorKind::AddrInUse => listen(address, true),
        listening => listening,
    }
}

fn listen(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(shared)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The next client.
pub(super) async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (socket, _) = listener.accept().await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Drops the packets that begin a connection: those with SYN (RFC 9293, 3.1), which is bit 1 of the header's octet 13.
/// The instructions are those of `linux/bpf_common.h`.
const NO_NEW_CLIENTS: [SockFilter; 4] = [
    // BPF_LD | BPF_B | BPF_ABS
    SockFilter::new(0x30, 0, 0, 13),
    // BPF_JMP | BPF_JSET | BPF_K
    SockFilter::new(0x45, 0, 1, 0x02),
    // BPF_RET | BPF_K: nothing of the packet, all of it
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];

/// Takes the connections that wait, and closes the listener. The kernel resets what waits at a socket that is closed, or
/// has begun to connect to it, though another process listens on the same port. So first no client can begin any more:
/// it repeats its SYN a second later (RFC 6298), and then it gets to the other process. Those that have begun get the
/// time to finish.
pub(super) async fn close(listener: TcpListener, mut begin: impl FnMut(TcpStream)) {
    if let Err(error) = SockRef::from(&listener).attach_filter(&NO_NEW_CLIENTS) {
        tracing::debug!(%error, "clients that connect at this moment may be refused");
    }
    let last = async {
        while let Ok(socket) = accept(&listener).await {
            begin(socket);
        }
    };
    tokio::time::timeout(HANDSHAKES, last).await.ok();
    // Asked directly: the runtime may not have heard yet of what waits.
    let listener = match listener.into_std() {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!(%error, "clients that wait for a connection are refused"),
    };
    loop {
        let accepted = listener.accept().and_then(|(socket, _)| {
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            TcpStream::from_std(socket)
        });
        match accepted {
            Ok(socket) => begin(socket),
            // It left while it waited.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::*;

    #[tokio::test]
    async fn no_other_process_listens_at_a_port_that_was_not_shared() {
        let own = bind(SocketAddr::from(([127, 0, 0, 1], 0)), true).unwrap();
        let address = own.local_addr().unwrap();
        for shared in [false, true] {
            assert_eq!(listen(address, shared).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
    }

    #[tokio::test]
    async fn clients_that_connect_while_a_listener_closes_get_to_the_other_one_on_its_port() {
        let old = listen(SocketAddr::from(([127, 0, 0, 1], 0)), true).unwrap();
        let address = old.local_addr().unwrap();
        let _waiting = std::net::TcpStream::connect(address).unwrap();
        let new = bind(address, true).unwrap();
        let (mut taken, mut clients) = (Vec::new(), Vec::new());
        let connect = |accepted| {
            taken.push(accepted);
            for _ in 0..20 {
                let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                client.set_nonblocking(true).unwrap();
                // Under way when this returns.
                client.connect(&address.into()).ok();
                clients.push(client);
            }
        };
        close(old, connect).await;
        assert_eq!((taken.len(), clients.len()), (1, 20));
        for arrived in 0..clients.len() {
            let accepted = tokio::time::timeout(Duration::from_secs(10), new.accept()).await;
            accepted.unwrap_or_else(|_| panic!("only {arrived} arrived")).unwrap();
        }
        for client in clients {
            assert!(client.take_error().unwrap().is_none());
        }
    }
}
