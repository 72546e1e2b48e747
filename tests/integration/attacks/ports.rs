//! Another process of the agent's user at the agent's ports.

use kit::{
    agent::{Agent, AgentConfig},
    registry::FakeUpstream,
};
use tokio::net::TcpSocket;

/// With `SO_REUSEPORT` on both sides the kernel would give it a part of the requests.
#[tokio::test(flavor = "multi_thread")]
async fn no_other_process_can_share_a_port_of_the_agent() {
    let upstream = FakeUpstream::start().await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    for address in [agent.addresses.mirror, agent.addresses.admin] {
        let socket = TcpSocket::new_v4().expect("sockets are available");
        socket.set_reuseport(true).expect("the kernel shares ports");
        socket.set_reuseaddr(true).expect("the kernel shares ports");
        let listening = socket.bind(address).and_then(|()| socket.listen(16));
        let error = listening.expect_err("the port is the agent's alone");
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse, "{address}");
    }
}
