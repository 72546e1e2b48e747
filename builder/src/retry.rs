//! When a failed network request is tried again. The policy is pure; waiting is the caller's.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

/// Attempts for one request, the first included.
pub const ATTEMPTS: u32 = 6;

/// The longest wait that a `Retry-After` header can ask for; registries' windows are longer than a build
/// should stand still.
const LONGEST: Duration = Duration::from_mins(2);

/// Time to connect, TLS included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// A transfer that moves no byte for this long is given up (and tried again).
pub const STALL_TIMEOUT: Duration = Duration::from_mins(1);

/// Whether an answer may be different the next time: time-outs, throttling and faults of the server.
pub fn worth_retrying(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// How long to wait after failed attempt number `attempt` (the first is 1); `None` when it was the last.
/// Doubles from half a second and is spread by up to a quarter, so that many builds do not come back together.
pub fn wait(attempt: u32, retry_after: Option<Duration>, spread: f64) -> Option<Duration> {
    if attempt >= ATTEMPTS {
        return None;
    }
    let own = Duration::from_millis(500) * 2u32.pow(attempt - 1);
    let base = retry_after.map_or(own, |asked| asked.min(LONGEST).max(own));
    Some(base.mul_f64(1.0 + spread.clamp(0.0, 1.0) / 4.0))
}

/// A number between 0 and 1 that differs between processes and moments; no secret, no statistics.
pub fn spread() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    f64::from((now.subsec_nanos() ^ std::process::id()) % 1000) / 1000.0
}

/// Waits as [`wait`] says; `false` when there is no attempt left.
pub async fn pause(attempt: u32, retry_after: Option<Duration>) -> bool {
    match wait(attempt, retry_after, spread()) {
        None => false,
        Some(time) => {
            tokio::time::sleep(time).await;
            true
        }
    }
}

/// How an attempt failed.
#[derive(Debug)]
pub enum Failed<E> {
    /// The same would happen again.
    Final(E),
    /// It may go better the next time, after the wait that the server asks for.
    Again(E, Option<Duration>),
}

impl<E> Failed<E> {
    /// By whether it may pass.
    pub fn of(error: E, may_pass: impl FnOnce(&E) -> bool) -> Self {
        if may_pass(&error) { Self::Again(error, None) } else { Self::Final(error) }
    }

    /// The error, whatever may come of it.
    pub fn into_error(self) -> E {
        match self {
            Self::Final(error) | Self::Again(error, _) => error,
        }
    }
}

/// Repeats what may go better the next time, with the waits of [`wait`]. `what` is for the log.
pub async fn retried<T, E: fmt::Display>(
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, Failed<E>>,
) -> Result<T, E> {
    let mut count = 1;
    loop {
        let (error, asked) = match attempt().await {
            Ok(done) => return Ok(done),
            Err(Failed::Final(error)) => return Err(error),
            Err(Failed::Again(error, asked)) => (error, asked),
        };
        tracing::warn!(attempt = count, error = %error, "{what} failed: retrying");
        if !pause(count, asked).await {
            return Err(error);
        }
        count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_honour_the_server_and_end() {
        let seconds = Duration::from_secs;
        let cases = [
            (1, None, Some(Duration::from_millis(500))),
            (3, None, Some(seconds(2))),
            (1, Some(seconds(7)), Some(seconds(7))),
            (5, Some(seconds(1)), Some(seconds(8))),
            (1, Some(seconds(86_400)), Some(LONGEST)),
            (ATTEMPTS, Some(seconds(1)), None),
        ];
        for (attempt, asked, expected) in cases {
            assert_eq!(wait(attempt, asked, 0.0), expected, "{attempt} {asked:?}");
        }
        assert_eq!(wait(2, None, 1.0), Some(Duration::from_millis(1250)));
    }
}
