//! How long a client waits while nothing arrives. Pure.

use std::time::{Duration, Instant};

pub use crate::limits::download::stillness::CHECK;
use crate::limits::download::stillness::LONGEST;

/// Measures for how long nothing has arrived.
#[derive(Debug)]
pub struct Stillness {
    began: Instant,
    moved: Instant,
    seen: Option<u64>,
}

impl Stillness {
    /// Starts when nothing has arrived yet.
    pub fn new(now: Instant) -> Self {
        Self { began: now, moved: now, seen: None }
    }

    /// Whether to stop waiting. `movement` rises with every byte of the download; `None` while there is no download.
    pub fn is_over(&mut self, movement: Option<u64>, now: Instant, patience: Duration) -> bool {
        // The first value is only the baseline.
        if movement.is_some() && self.seen.is_some() && movement != self.seen {
            self.moved = now;
        }
        self.seen = movement.or(self.seen);
        now.duration_since(self.moved) >= patience || now.duration_since(self.began) >= LONGEST.max(patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_waits_while_bytes_arrive_and_not_during_silence() {
        let (start, patience) = (Instant::now(), Duration::from_secs(5));
        let at = |seconds| start + Duration::from_secs(seconds);
        // Bytes received by each second; returns the second at which the wait ends.
        let over = |bytes: &dyn Fn(u64) -> Option<u64>| {
            let mut still = Stillness::new(start);
            (1..1_000).find(|second| still.is_over(bytes(*second), at(*second), patience))
        };
        for (bytes, expected, what) in [
            (&(|_| None) as &dyn Fn(u64) -> Option<u64>, Some(5), "no download"),
            (&|_| Some(0), Some(5), "a download without bytes"),
            (&|second| Some(second.min(7)), Some(12), "bytes until second 7"),
            (
                &|second| (second < 3).then_some(9),
                Some(5),
                "a download that had bytes before and receives none",
            ),
            (&|second| Some(second), Some(270), "bytes all the time"),
            (&|second| Some(second / 4), Some(270), "bytes every four seconds"),
        ] {
            assert_eq!(over(bytes), expected, "{what}");
        }
    }
}
