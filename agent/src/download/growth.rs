//! How many connections make a transfer fastest. Pure: measurements in, a number out.

use crate::limits::download::growth::{CONVINCED, FAST_CONNECTION, TOO_LATE, WORTH_IT};

/// Finds the number of requests beyond which more of them do not help: doubles it while the throughput grows.
#[derive(Clone, Debug)]
pub(super) struct Growth {
    target: usize,
    most: usize,
    rate_before: f64,
    /// Measurements in a row that showed no gain.
    disappointments: u32,
    settled: bool,
}

impl Growth {
    pub(super) fn new(most: usize) -> Self {
        Self { target: 1, most: most.max(1), rate_before: 0.0, disappointments: 0, settled: most <= 1 }
    }

    pub(super) fn target(&self) -> usize {
        self.target
    }

    /// The registry accepts no more than these requests: stop growing.
    pub(super) fn settle_at(&mut self, requests: usize) {
        self.target = requests.clamp(1, self.most);
        self.settled = true;
    }

    /// Adds a measurement made while `target` requests were all receiving bytes: bytes per second, and bytes left.
    pub(super) fn measured(&mut self, rate: f64, left: u64) {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let (requests, left) = (self.target as f64, left as f64);
        if self.settled || left < rate * TOO_LATE.as_secs_f64() || rate > requests * FAST_CONNECTION {
            return;
        }
        if rate < self.rate_before * WORTH_IT {
            self.disappointments += 1;
            self.settled = self.disappointments >= CONVINCED;
            return;
        }
        self.disappointments = 0;
        self.rate_before = rate;
        self.target = (self.target * 2).min(self.most);
        self.settled = self.target == self.most;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_double_while_the_throughput_grows() {
        let mut growth = Growth::new(8);
        growth.measured(75e6, u64::MAX);
        growth.measured(150e6, u64::MAX);
        growth.measured(300e6, u64::MAX);
        assert_eq!(growth.target(), 8);
        let mut growth = Growth::new(8);
        growth.measured(75e6, u64::MAX);
        for _ in 0..3 {
            growth.measured(80e6, u64::MAX);
        }
        growth.measured(200e6, u64::MAX);
        assert_eq!(growth.target(), 2, "the second connection did not help");
        let mut growth = Growth::new(8);
        growth.measured(75e6, u64::MAX);
        growth.measured(80e6, u64::MAX);
        growth.measured(150e6, u64::MAX);
        assert_eq!(growth.target(), 4, "one measurement may be noise");
        let mut growth = Growth::new(8);
        growth.measured(75e6, 10_000_000);
        growth.measured(400e6, u64::MAX);
        assert_eq!(growth.target(), 1, "too late, or fast enough");
    }
}
