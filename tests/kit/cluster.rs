//! Several agents in this process that know each other: a cluster on loopback.

use std::{fmt::Write as _, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

use crate::agent::{Agent, AgentConfig};

/// One peer's place: its name and the port that is kept for it.
#[derive(Debug)]
pub struct Place {
    /// `node-00` and so on.
    pub name: String,
    /// Its zone; empty for none.
    pub zone: String,
    /// Where its peer listener is, or will be.
    pub address: SocketAddr,
    /// Bound but never listening: keeps the port from everyone who does not ask for it.
    _reserved: TcpSocket,
}

impl Place {
    /// A free port under a name.
    pub fn reserve(name: &str, zone: &str) -> Self {
        let socket = TcpSocket::new_v4().expect("sockets are available");
        socket.set_reuseaddr(true).expect("the kernel reserves ports");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("loopback ports are available");
        let address = socket.local_addr().expect("it is bound");
        Self { name: name.to_owned(), zone: zone.to_owned(), address, _reserved: socket }
    }

    /// Listens there, for whoever is no agent.
    pub(crate) fn listen(&self) -> TcpListener {
        let socket = TcpSocket::new_v4().expect("sockets are available");
        socket.set_reuseaddr(true).expect("the kernel reserves ports");
        socket.bind(self.address).expect("the place is reserved");
        socket.listen(128).expect("a bound socket listens")
    }

    /// Its entry of `peer.members`.
    pub fn entry(&self) -> String {
        let zone = if self.zone.is_empty() { String::new() } else { format!("@{}", self.zone) };
        format!("{}{zone}={}", self.name, self.address)
    }
}

/// Places for `count` peers without zones.
pub fn places(count: usize) -> Vec<Place> {
    (0..count).map(|at| Place::reserve(&format!("node-{at:02}"), "")).collect()
}

/// The configuration of one peer that knows `others`. `more` are further keys of `peer` in flow style, or nothing.
pub fn peer_config<'a>(
    base: &AgentConfig,
    place: &Place,
    others: impl IntoIterator<Item = &'a Place>,
    more: &str,
) -> AgentConfig {
    let entries: Vec<_> = others.into_iter().map(Place::entry).collect();
    let mut peer = format!("peer: {{ listen: \"{}\", name: {}", place.address, place.name);
    if !place.zone.is_empty() {
        let _ = write!(peer, ", zone: {}", place.zone);
    }
    let _ = write!(peer, ", members: \"{}\"", entries.join(","));
    if !more.is_empty() {
        let _ = write!(peer, ", {more}");
    }
    base.clone().with(&(peer + " }"))
}

/// Agents that all know each other.
#[derive(Debug)]
pub struct Cluster {
    /// Their places.
    pub places: Vec<Place>,
    /// The agents, in the same order.
    pub agents: Vec<Agent>,
}

impl Cluster {
    /// Starts `count` peers with one configuration; `more` are further keys of `peer`.
    pub async fn start(base: &AgentConfig, count: usize, more: &str) -> Self {
        Self::start_at(base, places(count), more).await
    }

    /// Starts a peer at every place.
    pub async fn start_at(base: &AgentConfig, places: Vec<Place>, more: &str) -> Self {
        let mut agents = Vec::new();
        for place in &places {
            agents.push(Agent::start(&peer_config(base, place, &places, more)).await);
        }
        Self { places, agents }
    }
}
