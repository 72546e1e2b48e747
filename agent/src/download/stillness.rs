//! Whether anything still arrives of what a client waits for. Pure.

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
    /// Nothing has arrived yet.
    pub fn new(now: Instant) -> Self {
        Self { began: now, moved: now, seen: None }
    }

    /// Whether to wait no longer. `movement` rises with every byte of the download; `None` while there is no download.
    pub fn is_over(&mut self, movement: Option<u64>, now: Instant, patience: Duration) -> bool {
        // The first number is where counting begins.
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
    fn bytes_that_arrive_are_waited_for_and_silence_is_not() {
        let (start, patience) = (Instant::now(), Duration::from_secs(5));
        let at = |seconds| start + Duration::from_secs(seconds);
        // Bytes at each second; the second at which the wait is over.
        let over = |bytes: &dyn Fn(u64) -> Option<u64>| {
            let mut still = Stillness::new(start);
            (1..1_000).find(|second| still.is_over(bytes(*second), at(*second), patience))
        };
        for (bytes, expected, what) in [
            (&(|_| None) as &dyn Fn(u64) -> Option<u64>, Some(5), "no download"),
            (&|_| Some(0), Some(5), "a download without bytes"),
            (&|second| Some(second.min(7)), Some(12), "bytes until second 7"),
            (&|second| (second < 3).then_some(9), Some(5), "one that had bytes before and brings none"),
            (&|second| Some(second), Some(270), "bytes all the time"),
            (&|second| Some(second / 4), Some(270), "bytes every four seconds"),
        ] {
            assert_eq!(over(bytes), expected, "{what}");
        }
    }
}
