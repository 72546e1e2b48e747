//! The membership of the cluster: three sources of peers behind one trait, and one channel to all that use the list.
//!
//! A source publishes whole lists; readers see the newest one. This node is in every list, whether or not the source
//! contains it. A source that cannot be read keeps the last list: requests to peers that are gone fail and are
//! skipped.

use std::{future::Future, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Membership, Peer};
use crate::metrics::Metrics;

/// A source of peers.
pub trait Directory: Send + 'static {
    /// Publishes lists until `stop`.
    fn run(self, publish: Publisher, stop: CancellationToken) -> impl Future<Output = ()> + Send;
}

/// Receives the peers that a directory has found.
#[derive(Debug)]
pub struct Publisher {
    me: Peer,
    sender: watch::Sender<Arc<Membership>>,
    metrics: Metrics,
}

impl Publisher {
    pub(super) fn new(me: Peer, metrics: Metrics) -> (Self, watch::Receiver<Arc<Membership>>) {
        let (sender, receiver) = watch::channel(Arc::new(Membership::new([], &me)));
        metrics.known_peers.set(1);
        (Self { me, sender, metrics }, receiver)
    }

    /// Publishes a list, if it differs from the last one.
    pub fn publish(&self, found: impl IntoIterator<Item = Peer>) {
        let membership = Membership::new(found, &self.me);
        if membership.all() == self.sender.borrow().all() {
            return;
        }
        let count = membership.all().len();
        tracing::info!(membership = count, "cluster changed");
        self.metrics.known_peers.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.sender.send_replace(Arc::new(membership));
    }

    /// This node, as the other peers should see it.
    pub fn me(&self) -> &Peer {
        &self.me
    }
}

/// A list that does not change.
pub(super) struct Fixed(pub(super) Vec<Peer>);

impl Directory for Fixed {
    async fn run(self, publish: Publisher, stop: CancellationToken) {
        publish.publish(self.0);
        stop.cancelled().await;
    }
}
