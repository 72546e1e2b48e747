//! When to retry, and how far the clocks are apart. Pure except for the random numbers.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::{Duration, SystemTime},
};

use http::{HeaderMap, header};

use super::{error::UpstreamError, headers::text};

/// First pause; doubles with each failure.
const FIRST: Duration = Duration::from_millis(200);

/// Longest pause while a client may be waiting.
const LONGEST: Duration = Duration::from_secs(5);

/// When a failed request or transfer is retried. One policy for everything that is resumed: downloads, segments
/// for peers, streams without caching, small requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Failures in a row without progress after which there are no more retries.
    pub attempts: u32,
    /// Bytes that count as progress: a registry that sends two bytes and closes the connection must not be
    /// requested a hundred thousand times.
    pub progress: u64,
}

impl RetryPolicy {
    /// A transfer that clients wait for.
    pub const TRANSFER: Self = Self { attempts: 4, progress: 64 * 1024 };
    /// A segment that peers wait for: after the last retry the next peer reads it.
    pub const FOR_PEERS: Self = Self { attempts: 3, ..Self::TRANSFER };
    /// A request with a small response: it succeeds as a whole or fails.
    pub(super) const SMALL_REQUEST: Self = Self { attempts: 3, ..Self::TRANSFER };
}

/// The failures in a row of one transfer.
#[derive(Debug)]
pub struct Retries {
    policy: RetryPolicy,
    failures: u32,
    total: u64,
}

impl Retries {
    /// Starts with `total` bytes that have arrived already.
    pub fn new(policy: RetryPolicy, total: u64) -> Self {
        Self { policy, failures: 0, total }
    }

    /// Counts a failure when `total` bytes have arrived, and returns the pause before the next retry, if there
    /// is one.
    pub fn pause(&mut self, total: u64, error: &UpstreamError) -> Option<Duration> {
        self.note(total);
        let may_pass = matches!(error, UpstreamError::Throttled { .. } | UpstreamError::Unavailable { .. });
        if may_pass && self.failures < self.policy.attempts { backoff(self.failures, error) } else { None }
    }

    fn note(&mut self, total: u64) {
        if total >= self.total.saturating_add(self.policy.progress) {
            (self.failures, self.total) = (0, total);
        } else {
            self.failures += 1;
        }
    }
}

/// The pause before a retry after `failures` in a row, or `None` when waiting is not worth it: half of it
/// fixed, half random, so that nodes that failed together do not retry together.
fn backoff(failures: u32, error: &UpstreamError) -> Option<Duration> {
    let random = RandomState::new().hash_one(failures);
    pause(failures, error, u16::try_from(random % 1024).unwrap_or(0))
}

/// `dice` is a random number below 1024.
fn pause(failures: u32, error: &UpstreamError, dice: u16) -> Option<Duration> {
    if let UpstreamError::Throttled { retry_after, .. } = error {
        return retry_after.filter(|wait| *wait <= LONGEST);
    }
    let full = FIRST.saturating_mul(2_u32.saturating_pow(failures)).min(LONGEST);
    Some(full / 2 + full / 2 * u32::from(dice) / 1024)
}

/// Seconds by which `now` is ahead of the `Date` of an answer; a cache may have kept that answer for as long as `Age` says.
pub(super) fn clock_ahead(headers: &HeaderMap, now: SystemTime) -> Option<i64> {
    let age = text(headers, header::AGE.as_str()).and_then(|age| age.trim().parse().ok()).unwrap_or(0);
    let date = httpdate::parse_http_date(text(headers, header::DATE.as_str())?).ok()?;
    let there = date.checked_add(Duration::from_secs(age))?;
    let seconds = |span: Duration| i64::try_from(span.as_secs()).ok();
    match now.duration_since(there) {
        Ok(ahead) => seconds(ahead),
        Err(behind) => seconds(behind.duration()).map(|seconds| -seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_compared_with_the_date_of_an_answer() {
        let now = httpdate::parse_http_date("Sat, 21 Nov 2026 10:00:00 GMT").unwrap();
        for (date, age, expected) in [
            (Some("Sat, 21 Nov 2026 09:59:58 GMT"), None, Some(2)),
            (Some("Sat, 21 Nov 2026 10:05:00 GMT"), None, Some(-300)),
            (Some("Sat, 21 Nov 2026 09:00:00 GMT"), Some("3600"), Some(0)),
            (Some("Sat, 21 Nov 2026 09:59:00 GMT"), Some("18446744073709551615"), None),
            (Some("yesterday"), None, None),
            (None, None, None),
        ] {
            let mut headers = HeaderMap::new();
            let pairs = [(header::DATE, date), (header::AGE, age)];
            for (name, value) in pairs.into_iter().filter_map(|(name, value)| Some((name, value?))) {
                headers.insert(name, value.parse().unwrap());
            }
            assert_eq!(clock_ahead(&headers, now), expected, "{date:?} {age:?}");
        }
    }

    #[test]
    fn retries_end_without_progress_and_continue_with_it() {
        let registry = || "r".parse().unwrap();
        let broken = UpstreamError::Unavailable { registry: registry(), reason: String::new() };
        let policy = RetryPolicy { attempts: 3, progress: 10 };
        for (totals, tried_again) in [
            (&[0, 0, 0][..], &[true, true, false][..]),
            // Nine bytes are next to nothing, but add up.
            (&[9, 9, 9], &[true, true, false]),
            (&[9, 18, 27, 36], &[true, true, true, true]),
            (&[10, 10, 20, 20, 20], &[true, true, true, true, true]),
            (&[10, 10, 10, 10], &[true, true, true, false]),
        ] {
            let mut retries = Retries::new(policy, 0);
            let seen: Vec<_> = totals.iter().map(|total| retries.pause(*total, &broken).is_some()).collect();
            assert_eq!(seen, tried_again, "{totals:?}");
        }
        let missing = UpstreamError::NotFound { registry: registry() };
        assert_eq!(Retries::new(policy, 0).pause(0, &missing), None, "a retry does not help");
    }

    #[test]
    fn pauses_grow_up_to_a_limit_and_end_when_waiting_is_not_worth_it() {
        let broken = UpstreamError::Unavailable { registry: "r".parse().unwrap(), reason: String::new() };
        let millis = |failures, dice| pause(failures, &broken, dice).unwrap().as_millis();
        assert_eq!([millis(0, 0), millis(1, 0), millis(2, 0), millis(30, 0)], [100, 200, 400, 2_500]);
        assert!(millis(0, 1023) < 200 && millis(30, 1023) < 5_000);
        let throttled =
            |retry_after| UpstreamError::Throttled { registry: "r".parse().unwrap(), retry_after };
        assert_eq!(pause(0, &throttled(Some(Duration::from_secs(2))), 0), Some(Duration::from_secs(2)));
        assert_eq!(pause(0, &throttled(Some(Duration::from_mins(1))), 0), None);
        assert_eq!(pause(0, &throttled(None), 0), None);
    }
}
