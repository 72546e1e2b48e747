//! Who is here: three sources of members behind one trait, and one channel to everyone who wants to know.
//!
//! A source publishes whole lists; whoever reads them sees the newest. This node is in every list, whether the source
//! knows of it yet or not. A source that cannot be read keeps the last list: members that are gone are found out by
//! asking them.

use std::{future::Future, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Member, Members};
use crate::metrics::Metrics;

/// A source of members.
pub trait Directory: Send + 'static {
    /// Publishes lists until `stop`.
    fn run(self, publish: Publisher, stop: CancellationToken) -> impl Future<Output = ()> + Send;
}

/// Where a directory puts what it has found.
#[derive(Debug)]
pub struct Publisher {
    me: Member,
    sender: watch::Sender<Arc<Members>>,
    metrics: Metrics,
}

impl Publisher {
    pub(super) fn new(me: Member, metrics: Metrics) -> (Self, watch::Receiver<Arc<Members>>) {
        let (sender, receiver) = watch::channel(Arc::new(Members::new([], &me)));
        metrics.peer_members.set(1);
        (Self { me, sender, metrics }, receiver)
    }

    /// Tells everyone, if it is news.
    pub fn publish(&self, found: impl IntoIterator<Item = Member>) {
        let members = Members::new(found, &self.me);
        if members.all() == self.sender.borrow().all() {
            return;
        }
        let count = members.all().len();
        tracing::info!(members = count, "cluster changed");
        self.metrics.peer_members.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.sender.send_replace(Arc::new(members));
    }

    /// This node, as the others should know it.
    pub fn me(&self) -> &Member {
        &self.me
    }
}

/// A list that does not change.
pub(super) struct Fixed(pub(super) Vec<Member>);

impl Directory for Fixed {
    async fn run(self, publish: Publisher, stop: CancellationToken) {
        publish.publish(self.0);
        stop.cancelled().await;
    }
}
