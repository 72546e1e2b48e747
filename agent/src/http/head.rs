//! The limit for a request's head, counted from its first byte, and for the first request of a connection from the
//! connection's beginning: a client that connects and says nothing holds a descriptor that others need.
//!
//! Between requests a connection may stay idle for longer: container runtimes keep theirs.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

use super::body::{Open, OpenWatch};

/// Longest time for a request's head.
pub(super) const HEAD: Duration = Duration::from_secs(5);

/// Where a connection stands. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Head {
    /// Since when a head is under way.
    pending: watch::Sender<Option<Instant>>,
    open: OpenWatch,
    limit: Duration,
}

impl Head {
    /// Of a connection that has just begun. `open` says whether an answer is under way.
    pub(super) fn new(open: &Open) -> Self {
        Self { pending: watch::Sender::new(Some(Instant::now())), open: open.watch(), limit: HEAD }
    }

    /// Bytes have arrived: of a head, unless they are a body's.
    pub(super) fn received(&self) {
        if !self.open.is_busy() {
            self.pending.send_if_modified(|pending| {
                let begins = pending.is_none();
                pending.get_or_insert_with(Instant::now);
                begins
            });
        }
    }

    /// A request is there.
    pub(super) fn complete(&self) {
        self.pending.send_replace(None);
    }

    /// Comes when a head takes too long.
    pub(super) async fn late(&self) {
        let mut pending = self.pending.subscribe();
        loop {
            let since = *pending.borrow_and_update();
            let late = async {
                match since {
                    Some(since) => tokio::time::sleep_until(since + self.limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = late => return,
                // The sender lives as long as this.
                _ = pending.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_head_is_due_from_the_beginning_and_later_ones_from_their_first_byte() {
        let open = Open::default();
        let head = Head { limit: Duration::from_millis(10), ..Head::new(&open) };
        let since = || *head.pending.borrow();
        let late = async || tokio::time::timeout(Duration::from_mins(1), head.late()).await.is_ok();
        assert!(since().is_some() && late().await);
        head.complete();
        assert_eq!(since(), None, "idle between requests");
        head.received();
        let begun = since();
        head.received();
        assert!(begun.is_some() && since() == begun, "further bytes do not prolong it");
        assert!(late().await);
        head.complete();
        let _answer = open.clone();
        head.received();
        assert_eq!(since(), None, "bytes of a body");
    }
}
