//! What a registry still allows this account: read from its answers, spent on waiting pods first. Pure: time is
//! handed in.
//!
//! Sources: `ratelimit-limit: 100;w=21600` and `ratelimit-remaining: 20;w=21600` on manifest answers, `Retry-After` and
//! 429 on any. Two classes: demand (a client waits) and background (pre-pull), which stops at a reserve. While the
//! registry asks to be left alone nobody is let through, so that a herd of pods costs it nothing.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use http::HeaderMap;
use serde::Serialize;

use super::text;
use crate::types::RepoName;

/// Share of the limit that background work leaves to waiting pods.
const RESERVE: f64 = 0.3;

/// Left alone after a 429 that names no time; doubles with each further one.
const FIRST_GATE: Duration = Duration::from_secs(2);

/// Longest time left alone on our own account.
const LONGEST_GATE: Duration = Duration::from_mins(1);

/// A registry's own wait is believed up to here.
const LONGEST_NAMED: Duration = Duration::from_hours(6);

/// Repositories whose use is listed by name; the rest is one sum.
const NAMED: usize = 64;

/// Who a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A client waits for the answer.
    Demand,
    /// Nobody waits.
    Background,
}

/// The budget of one registry and account.
#[derive(Debug, Default)]
pub(super) struct Budget {
    limit: Option<u64>,
    remaining: Option<u64>,
    window: Option<Duration>,
    /// When the first request of the window was seen: it refills one window later at the latest.
    since: Option<Instant>,
    gate: Option<Instant>,
    refusals: u32,
    throttled: u64,
    used: HashMap<String, u64>,
    used_by_others: u64,
}

/// A budget as people see it.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BudgetStatus {
    /// Requests allowed per window, when the registry says so.
    pub limit: Option<u64>,
    /// Requests left, when the registry says so.
    pub remaining: Option<u64>,
    /// Length of the window in seconds.
    pub window_seconds: Option<u64>,
    /// Seconds until the window has refilled, at the latest.
    pub refills_in_seconds: Option<u64>,
    /// Seconds for which the registry asked to be left alone.
    pub throttled_for_seconds: Option<u64>,
    /// 429 answers so far.
    pub throttled: u64,
    /// Manifest requests by repository.
    pub used_by: Vec<(String, u64)>,
}

impl Budget {
    /// Whether a request may be sent now; otherwise how long to wait.
    pub(super) fn admit(&self, class: Class, now: Instant) -> Result<(), Duration> {
        if let Some(wait) =
            self.gate.and_then(|until| until.checked_duration_since(now)).filter(|wait| !wait.is_zero())
        {
            return Err(wait);
        }
        if class == Class::Background
            && let (Some(limit), Some(remaining)) = (self.limit, self.remaining)
        {
            #[expect(clippy::cast_precision_loss, reason = "limits are far below 2^52")]
            let reserve_reached = (remaining as f64) < limit as f64 * RESERVE;
            if reserve_reached && let Some(wait) = self.refills_in(now) {
                return Err(wait);
            }
        }
        Ok(())
    }

    fn refills_in(&self, now: Instant) -> Option<Duration> {
        (self.since? + self.window?).checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    /// Counts a request that the registry counts: a manifest GET.
    pub(super) fn spent(&mut self, repository: &RepoName) {
        if let Some(count) = self.used.get_mut(repository.as_str()) {
            *count += 1;
        } else if self.used.len() < NAMED {
            self.used.insert(repository.to_string(), 1);
        } else {
            self.used_by_others += 1;
        }
    }

    /// Reads what an answer says about the limit.
    pub(super) fn answered(&mut self, headers: &HeaderMap, now: Instant) {
        self.refusals = 0;
        let limit = text(headers, "ratelimit-limit").and_then(parse);
        let remaining = text(headers, "ratelimit-remaining").and_then(parse);
        if let Some((limit, window)) = limit {
            self.limit = Some(limit);
            self.window = window.or(self.window);
        }
        if let Some((remaining, window)) = remaining {
            // More left than before: a new window has begun.
            if self.remaining.is_none_or(|before| remaining > before) {
                self.since = Some(now);
            }
            self.remaining = Some(remaining);
            self.window = window.or(self.window);
        }
    }

    /// A 429: nobody is let through for the time it names, or a growing one.
    pub(super) fn refused(&mut self, retry_after: Option<Duration>, now: Instant) -> Duration {
        self.throttled += 1;
        let own = FIRST_GATE.saturating_mul(2_u32.saturating_pow(self.refusals)).min(LONGEST_GATE);
        self.refusals = self.refusals.saturating_add(1);
        let wait = retry_after.map_or(own, |named| named.min(LONGEST_NAMED));
        self.gate = Some(now + wait);
        wait
    }

    pub(super) fn status(&self, now: Instant) -> BudgetStatus {
        let mut used_by: Vec<_> = self.used.iter().map(|(name, count)| (name.clone(), *count)).collect();
        used_by.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        if self.used_by_others > 0 {
            used_by.push(("(others)".into(), self.used_by_others));
        }
        let gate =
            self.gate.and_then(|until| until.checked_duration_since(now)).filter(|wait| !wait.is_zero());
        BudgetStatus {
            limit: self.limit,
            remaining: self.remaining,
            window_seconds: self.window.map(|window| window.as_secs()),
            refills_in_seconds: self.refills_in(now).map(|wait| wait.as_secs()),
            throttled_for_seconds: gate.map(|wait| wait.as_secs() + 1),
            throttled: self.throttled,
            used_by,
        }
    }
}

/// `100;w=21600`: a number, and a window in seconds.
fn parse(value: &str) -> Option<(u64, Option<Duration>)> {
    let mut parts = value.split(';').map(str::trim);
    let number = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")?.parse().ok().map(Duration::from_secs));
    Some((number, window))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(limit: &str, remaining: &str) -> HeaderMap {
        let header = |name: &'static str, value: &str| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        HeaderMap::from_iter([header("ratelimit-limit", limit), header("ratelimit-remaining", remaining)])
    }

    #[test]
    fn background_stops_at_the_reserve_and_demand_goes_on() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        assert!(budget.admit(Class::Background, now).is_ok(), "no limit is known");
        budget.answered(&headers("100;w=21600", "30;w=21600"), now);
        assert!(budget.admit(Class::Background, now).is_ok());
        budget.answered(&headers("100;w=21600", "29;w=21600"), now);
        assert_eq!(budget.admit(Class::Background, now), Err(Duration::from_hours(6)));
        assert!(budget.admit(Class::Demand, now).is_ok());
        assert!(budget.admit(Class::Background, now + Duration::from_hours(6)).is_ok(), "refilled");
        budget.answered(&headers("100;w=21600", "nonsense"), now);
        assert_eq!(budget.status(now).remaining, Some(29));
    }

    #[test]
    fn a_429_stops_everyone_for_the_time_it_names_or_a_growing_one() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        assert_eq!(budget.refused(Some(Duration::from_mins(1)), now), Duration::from_mins(1));
        assert_eq!(budget.admit(Class::Demand, now), Err(Duration::from_mins(1)));
        assert!(budget.admit(Class::Demand, now + Duration::from_mins(1)).is_ok());
        let mut budget = Budget::default();
        let waits: Vec<_> = (0..7).map(|_| budget.refused(None, now).as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60]);
        budget.answered(&HeaderMap::new(), now);
        assert_eq!(budget.refused(None, now).as_secs(), 2);
        assert_eq!(budget.status(now).throttled, 8);
    }

    #[test]
    fn use_is_listed_by_repository_within_bounds() {
        let mut budget = Budget::default();
        for n in 0..NAMED + 10 {
            budget.spent(&format!("r{n}").parse().unwrap());
        }
        budget.spent(&"r5".parse().unwrap());
        let used = budget.status(Instant::now()).used_by;
        assert_eq!(used[0], ("r5".to_owned(), 2));
        assert_eq!(used.last(), Some(&("(others)".to_owned(), 10)));
    }
}
