//! How many clients a listener serves at once, and what those above that number are told.
//!
//! A client of the node itself (its address is the one it connected to, as a kubelet's probe, or a loopback address on a
//! loopback listener) may use every place. Clients from elsewhere have three quarters of them together, and each address
//! one in eight: those above that are closed at once. So a flood from the network leaves room for the node and for others.
//!
//! A client that waits for a connection waits silently, and container runtimes have no time-out of their own for that. So
//! every connection is accepted; above the limit it is answered once, with 503 and `Retry-After`, and closed. The answers
//! under way are bounded too: above that number a connection is closed without one.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Refusals under way at once: at most so many, and no more than a quarter of the connections that are served.
const REFUSALS: usize = 256;

/// The least number of connections of an address from elsewhere.
const LEAST: usize = 8;

/// Longest time for a client to send the request that is refused, and to take the answer.
pub(super) const REFUSAL: Duration = Duration::from_secs(1);

/// Least time between two log lines about refused clients.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// What becomes of a connection. The permits are held for as long as it is open.
#[derive(Debug)]
pub(super) enum Admitted {
    /// Its requests are answered.
    Served(Place),
    /// Its first request is answered with a refusal.
    Refused(OwnedSemaphorePermit),
    /// It is closed.
    Closed,
}

/// A place among the open connections of a listener.
#[derive(Debug)]
pub(super) struct Place {
    _open: OwnedSemaphorePermit,
    _foreign: Option<Foreign>,
}

/// The part of a place that only clients from elsewhere need.
#[derive(Debug)]
struct Foreign {
    _permit: OwnedSemaphorePermit,
    addresses: Addresses,
    address: IpAddr,
}

/// Open connections by address.
type Addresses = Arc<Mutex<HashMap<IpAddr, usize>>>;

impl Drop for Foreign {
    fn drop(&mut self) {
        let mut addresses = self.addresses.lock();
        if let Some(count) = addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

/// The number of open connections of one listener.
#[derive(Debug)]
pub(super) struct Admission {
    open: Arc<Semaphore>,
    foreign: Arc<Semaphore>,
    addresses: Addresses,
    per_address: usize,
    refusals: Arc<Semaphore>,
    limit: usize,
    refused: Mutex<Refused>,
}

/// Refused clients since the last log line.
#[derive(Debug, Default)]
struct Refused {
    count: u64,
    logged: Option<Instant>,
}

impl Admission {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            open: Arc::new(Semaphore::new(limit)),
            foreign: Arc::new(Semaphore::new((limit - limit / 4).max(1))),
            addresses: Arc::default(),
            per_address: (limit / 8).max(LEAST),
            refusals: Arc::new(Semaphore::new(REFUSALS.min(limit / 4).max(LEAST))),
            limit,
            refused: Mutex::default(),
        }
    }

    /// Decides about a connection that was accepted just now, from `client` to the address `own`.
    pub(super) fn admit(&self, client: Option<IpAddr>, own: Option<IpAddr>) -> Admitted {
        let foreign = client.filter(|client| Some(*client) != own).map(|client| self.foreign(group(client)));
        if matches!(foreign, Some(None)) {
            self.log();
            return Admitted::Closed;
        }
        if let Ok(permit) = self.open.clone().try_acquire_owned() {
            return Admitted::Served(Place { _open: permit, _foreign: foreign.flatten() });
        }
        self.log();
        match self.refusals.clone().try_acquire_owned() {
            Ok(permit) => Admitted::Refused(permit),
            Err(_) => Admitted::Closed,
        }
    }

    fn foreign(&self, address: IpAddr) -> Option<Foreign> {
        let permit = self.foreign.clone().try_acquire_owned().ok()?;
        let mut addresses = self.addresses.lock();
        let count = addresses.entry(address).or_default();
        if *count >= self.per_address {
            return None;
        }
        *count += 1;
        Some(Foreign { _permit: permit, addresses: self.addresses.clone(), address })
    }

    fn log(&self) {
        let due = self.refused.lock().due(Instant::now());
        if let Some(count) = due {
            tracing::warn!(
                limit = self.limit,
                count,
                "clients refused: all connections of the listener, or of their address, are in use"
            );
        }
    }
}

/// What counts as one address: a host has as many IPv6 addresses of its network as it likes (RFC 4291, 2.5.4).
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Refused {
    /// Counts one more; the number to log when a line is due. Pure.
    fn due(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        if self.logged.is_some_and(|at| now.saturating_duration_since(at) < LOG_INTERVAL) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_above_the_limit_are_refused_and_those_above_that_are_closed() {
        let (admission, node) = (Admission::new(2), Some(IpAddr::from([10, 0, 0, 1])));
        let mut held: Vec<_> = (0..=(2 + LEAST)).map(|_| admission.admit(node, node)).collect();
        let served = held.iter().filter(|one| matches!(one, Admitted::Served(_))).count();
        let refused = held.iter().filter(|one| matches!(one, Admitted::Refused(_))).count();
        assert_eq!((served, refused), (2, LEAST));
        assert!(matches!(held.last(), Some(Admitted::Closed)));
        held.clear();
        assert!(matches!(admission.admit(node, node), Admitted::Served(_)));
    }

    #[test]
    fn clients_from_elsewhere_leave_room_for_each_other_and_for_the_node() {
        let (admission, node) = (Admission::new(128), Some(IpAddr::from([10, 0, 0, 1])));
        let is_served = |admitted: &Admitted| matches!(admitted, Admitted::Served(_));
        let mut held: Vec<_> = (0..20).map(|_| admission.admit(Some([10, 0, 0, 2].into()), node)).collect();
        assert_eq!(held.iter().filter(|one| is_served(one)).count(), 16, "an eighth");
        for last in 3..=40 {
            held.extend((0..20).map(|_| admission.admit(Some([10, 0, 0, last].into()), node)));
        }
        assert_eq!(held.iter().filter(|one| is_served(one)).count(), 96, "three quarters");
        let own: Vec<_> = (0..32).map(|_| admission.admit(node, node)).collect();
        assert!(own.iter().all(is_served));
        held.clear();
        assert!(admission.addresses.lock().is_empty());
        let networks = ["fd00::1", "fd00::2", "fd00:0:0:1::1"].map(|text| group(text.parse().unwrap()));
        assert!(networks[0] == networks[1] && networks[1] != networks[2]);
        assert_eq!(group("::ffff:10.0.0.2".parse().unwrap()), IpAddr::from([10, 0, 0, 2]));
    }

    #[test]
    fn refused_clients_are_logged_once_in_a_while_with_their_number() {
        let (mut refused, begin) = (Refused::default(), Instant::now());
        for (at, expected) in [(0, Some(1)), (1, None), (59, None), (60, Some(3)), (61, None), (200, Some(2))]
        {
            assert_eq!(refused.due(begin + Duration::from_secs(at)), expected, "{at}");
        }
    }
}
