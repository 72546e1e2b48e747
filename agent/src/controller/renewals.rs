//! Which agents report: a `NodeCache` that is not renewed says nothing about its node any more. Pure: times are passed in.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

/// Renewals after which a `NodeCache` counts as not renewed.
const MISSED: u32 = 3;

/// When each `NodeCache` was last renewed, by the clock of this process.
#[derive(Debug)]
pub(super) struct Renewals {
    limit: Duration,
    /// What the agent wrote last, and since when this process knows it. `None`: longer ago than the clock goes back.
    last: HashMap<String, (Option<Timestamp>, Option<Instant>)>,
}

impl Renewals {
    /// `heartbeat` is how often agents renew.
    pub(super) fn new(heartbeat: Duration) -> Self {
        Self { limit: heartbeat * MISSED, last: HashMap::new() }
    }

    /// Notes what an agent wrote (`updated`) and when that arrived here. The node's clock counts only for what this process
    /// sees for the first time, because it cannot know when that was written.
    pub(super) fn note(
        &mut self,
        node: &str,
        updated: Option<Timestamp>,
        arrived: Instant,
        arrived_at: Timestamp,
    ) {
        let before = self.last.get(node);
        if before.is_some_and(|(known, _)| *known == updated) {
            return;
        }
        let at = match (before, updated) {
            (_, None) => None,
            (Some(_), Some(_)) => Some(arrived),
            (None, Some(updated)) => {
                let age = Duration::try_from(arrived_at.duration_since(updated)).unwrap_or_default();
                arrived.checked_sub(age)
            }
        };
        self.last.insert(node.to_owned(), (updated, at));
    }

    /// Whether the node's agent has reported lately.
    pub(super) fn is_current(&self, node: &str, now: Instant) -> bool {
        let at = self.last.get(node).and_then(|(_, at)| *at);
        at.is_some_and(|at| now.saturating_duration_since(at) < self.limit)
    }

    pub(super) fn keep_only(&mut self, exists: impl Fn(&str) -> bool) {
        self.last.retain(|node, _| exists(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_report_counts_as_long_as_it_is_renewed() {
        let (start, second) = (Instant::now() + Duration::from_hours(2), Duration::from_secs(1));
        let wall = |seconds: i64| Timestamp::from_second(10_000 + seconds).unwrap();
        let mut renewals = Renewals::new(20 * second);
        let current = |renewals: &Renewals, after: u32| renewals.is_current("n", start + after * second);
        assert!(!current(&renewals, 0), "an agent that has not written");
        renewals.note("n", None, start, wall(0));
        assert!(!current(&renewals, 0), "an object without a status");
        // Seen for the first time with an old time: the agent may have stopped long ago.
        let mut late = Renewals::new(20 * second);
        late.note("n", Some(wall(-59)), start, wall(0));
        assert!(current(&late, 0) && !current(&late, 1));
        // The clock of the node is an hour behind, or ahead: changes count from then on.
        for skew in [-3_600, 3_600] {
            let mut renewals = Renewals::new(20 * second);
            renewals.note("n", Some(wall(skew)), start, wall(0));
            renewals.note("n", Some(wall(skew + 20)), start + 20 * second, wall(20));
            assert!(current(&renewals, 79) && !current(&renewals, 80), "{skew}");
            // Read again after an error of the watch: not renewed by that.
            renewals.note("n", Some(wall(skew + 20)), start + 70 * second, wall(70));
            assert!(!current(&renewals, 80), "{skew}");
            renewals.keep_only(|_| false);
            assert!(!current(&renewals, 21), "{skew}");
        }
    }
}
