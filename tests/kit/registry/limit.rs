//! Throttling as public registries do it: so many manifest `GET`s per window, `HEAD` and blobs free.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::StatusCode;

use super::delivery::Reply;

#[derive(Debug)]
struct Window {
    limit: u64,
    length: Duration,
    started: Instant,
    used: u64,
}

/// One account's budget; none until [`Throttle::set`].
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<Option<Window>>);

impl Throttle {
    pub(super) fn set(&self, limit: Option<(u64, Duration)>) {
        let window = limit.map(|(limit, length)| Window { limit, length, started: Instant::now(), used: 0 });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = window;
    }

    /// Counts a manifest request when `counted`, adds the rate-limit headers, and past the limit turns the answer into 429.
    pub(super) fn apply(&self, counted: bool, reply: Reply) -> Reply {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(window) = guard.as_mut() else { return reply };
        if window.started.elapsed() >= window.length {
            (window.started, window.used) = (Instant::now(), 0);
        }
        let refused = counted && window.used >= window.limit;
        if counted && !refused {
            window.used += 1;
        }
        let seconds = window.length.as_secs();
        let remaining = window.limit - window.used;
        let reply = if refused {
            let wait = window.length.saturating_sub(window.started.elapsed()).as_secs() + 1;
            Reply::error(
                StatusCode::TOO_MANY_REQUESTS,
                "TOOMANYREQUESTS",
                "toomanyrequests: You have reached your pull rate limit.",
            )
            .header("retry-after", &wait.to_string())
        } else {
            reply
        };
        reply
            .header("ratelimit-limit", &format!("{};w={seconds}", window.limit))
            .header("ratelimit-remaining", &format!("{remaining};w={seconds}"))
    }
}
