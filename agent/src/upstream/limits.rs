//! Whether a registry's endpoint may be requested now: its rate limit, and its failures. Pure: time is passed
//! in.
//!
//! **Failures.** Requests that run at the same time and fail are one failure ([`Streak`]): a short outage that
//! hits 24 requests counts once. Three failures in a row open the circuit if they concern the endpoint: no
//! connection, or different content that failed. Content that fails again and again (a broken blob) has a
//! penalty of its own, and does not affect other requests.
//!
//! ```text
//! closed --3 failures in a row--> open (1 s, doubling to 30 s) --time is up--> one probe --success--> closed
//!                                   ^------------------------------------------failure--+
//! ```
//!
//! **Rate limit.** Sources: `ratelimit-limit: 100;w=21600` and `ratelimit-remaining: 20;w=21600` on manifest
//! responses, `Retry-After` and 429 on any. Two classes: demand (a client waits) and background (pre-pull),
//! which stops at a reserve. After a 429 no requests are sent for a while, so that many pods do not cause more
//! of them.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use http::HeaderMap;
use serde::Serialize;

use super::{error::UpstreamError, headers::text};
use crate::types::{Digest, RepoName};

#[cfg(test)]
mod tests;

/// Failures in a row that open the circuit, or that give a subject a penalty.
const FAILURES: u32 = 3;

/// First time a circuit is open, or a penalty lasts; doubles with each further failure.
const FIRST: Duration = Duration::from_secs(1);

/// Longest time of either.
const LONGEST: Duration = Duration::from_secs(30);

/// Subjects that are tracked. Beyond this, those without a failure for [`LONGEST`] are dropped, and further
/// ones share one entry.
const MOST: usize = 1_024;

/// Share of the limit that is reserved for waiting pods.
const RESERVE: f64 = 0.3;

/// Time without requests after a 429 without `Retry-After`; doubles with each further one. Short, because most
/// are brief.
const FIRST_GATE: Duration = Duration::from_secs(1);

/// Longest time without requests when the registry sent no `Retry-After`.
const LONGEST_GATE: Duration = Duration::from_mins(1);

/// Longest `Retry-After` that is respected.
const LONGEST_NAMED: Duration = Duration::from_hours(6);

/// Repositories whose requests are listed by name; the others are summed up.
const NAMED: usize = 64;

/// The purpose of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A client waits for the response.
    Demand,
    /// No client waits, and the registry counts it: a manifest.
    Background,
    /// No client waits, and registries do not count it: a blob.
    Uncounted,
}

/// The budget of one registry and account.
#[derive(Debug, Default)]
pub(super) struct Budget {
    limit: Option<u64>,
    remaining: Option<u64>,
    /// Counted requests since the registry said so: a "not found" says nothing of what is left.
    since_told: u64,
    window: Option<Duration>,
    /// When the registry last said how many are left.
    told: Option<Instant>,
    source: u64,
    /// When the first request of the window was seen: the window is refilled one window later at the latest.
    since: Option<Instant>,
    gate: Option<Instant>,
    refusals: Streak,
    throttled: u64,
    used: HashMap<String, u64>,
    used_by_others: u64,
}

/// What a registry said of its rate limit to one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Whose limit it is: nodes with different addresses or accounts have limits of their own. 0 when the registry does not say.
    pub source: u64,
    /// Requests allowed per window.
    pub limit: u64,
    /// Requests left.
    pub remaining: u64,
    /// Length of the window.
    pub window: Duration,
    /// How long ago it said so.
    pub age: Duration,
}

/// The state of a rate limit, for people.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BudgetStatus {
    /// Requests allowed per window, if the registry reports it.
    pub limit: Option<u64>,
    /// Requests left, if the registry reports it.
    pub remaining: Option<u64>,
    /// Length of the window in seconds.
    pub window_seconds: Option<u64>,
    /// Seconds until the window has refilled, at the latest.
    pub refills_in_seconds: Option<u64>,
    /// Seconds without requests because of a 429.
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
        let cost = match class {
            Class::Demand => None,
            Class::Background => Some(1),
            Class::Uncounted => Some(0),
        };
        if let (Some(cost), Some(limit), Some(remaining)) = (cost, self.limit, self.remaining) {
            let spent = !leaves_reserve(limit, remaining.saturating_sub(self.since_told), cost);
            if spent && let Some(wait) = self.refills_in(now) {
                return Err(wait);
            }
        }
        Ok(())
    }

    fn refills_in(&self, now: Instant) -> Option<Duration> {
        (self.since? + self.window?).checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    /// What the registry said last, for other nodes. Without a window there is nothing to wait for.
    pub(super) fn told(&self, now: Instant) -> Option<Told> {
        Some(Told {
            source: self.source,
            limit: self.limit?,
            remaining: self.remaining?.saturating_sub(self.since_told),
            window: self.window?,
            age: now.saturating_duration_since(self.told?),
        })
    }

    /// Counts a request that registries count: a manifest GET.
    pub(super) fn spent(&mut self, repository: &RepoName) {
        self.since_told = self.since_told.saturating_add(1);
        if let Some(count) = self.used.get_mut(repository.as_str()) {
            *count += 1;
        } else if self.used.len() < NAMED {
            self.used.insert(repository.to_string(), 1);
        } else {
            self.used_by_others += 1;
        }
    }

    /// Reads the rate limit in a response.
    fn answered(&mut self, headers: &HeaderMap, now: Instant) {
        let limit = text(headers, "ratelimit-limit").and_then(parse);
        let remaining = text(headers, "ratelimit-remaining").and_then(parse);
        if let Some((limit, window)) = limit {
            self.limit = Some(limit);
            self.window = window.or(self.window);
        }
        if let Some((remaining, window)) = remaining {
            // More requests left than before: a new window has started.
            if self.remaining.is_none_or(|before| remaining > before) {
                self.since = Some(now);
            }
            (self.remaining, self.since_told, self.told) = (Some(remaining), 0, Some(now));
            self.source = text(headers, "docker-ratelimit-source").map_or(0, hash);
            self.window = window.or(self.window);
        }
    }

    /// A 429 to a request sent at `began`: no requests for the time in it, or for a growing one. Returns the
    /// rest of that time.
    fn refused(&mut self, retry_after: Option<Duration>, began: Instant, now: Instant) -> Duration {
        self.throttled += 1;
        let counted = self.refusals.fail(began, now);
        let wait = match retry_after {
            Some(named) => Some(named.min(LONGEST_NAMED)),
            None => counted.then(|| growing(FIRST_GATE, self.refusals.count - 1, LONGEST_GATE)),
        };
        if let Some(until) = wait.map(|wait| now + wait) {
            // Of several responses to requests that ran at the same time, the longest wait counts.
            self.gate = Some(if counted { until } else { self.gate.map_or(until, |gate| gate.max(until)) });
        }
        self.gate.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
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

/// A number in the place of an address or an account, the same on every node.
fn hash(source: &str) -> u64 {
    u64::from_str_radix(&Digest::of(source.as_bytes()).hex()[..16], 16).unwrap_or(0)
}

/// Whether the reserve for waiting pods is still whole after `cost` more requests. A limit of 0 means that there is none.
#[expect(clippy::cast_precision_loss, reason = "limits are far below 2^52")]
pub(super) fn leaves_reserve(limit: u64, left: u64, cost: u64) -> bool {
    limit == 0 || left.checked_sub(cost).is_some_and(|after| after as f64 >= limit as f64 * RESERVE)
}

/// `100;w=21600`: a number, and a window in seconds.
fn parse(value: &str) -> Option<(u64, Option<Duration>)> {
    let mut parts = value.split(';').map(str::trim);
    let number = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")?.parse().ok().map(Duration::from_secs));
    Some((number, window))
}

/// Failures in a row.
#[derive(Clone, Copy, Debug, Default)]
struct Streak {
    count: u32,
    last: Option<Instant>,
}

impl Streak {
    /// Counts the failure of a request sent at `began`, unless it was running when the last one was counted.
    /// Returns whether it was counted.
    fn fail(&mut self, began: Instant, now: Instant) -> bool {
        if self.last.is_some_and(|last| began <= last) {
            return false;
        }
        *self = Self { count: self.count.saturating_add(1), last: Some(now) };
        true
    }
}

/// `first`, doubled `doublings` times, `longest` at most.
fn growing(first: Duration, doublings: u32, longest: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(doublings)).min(longest)
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome<'a> {
    /// A final response, also "not found" and "denied". The headers, if it is a success.
    Settled(Option<&'a HeaderMap>),
    /// A 429, with its `Retry-After`.
    Throttled(Option<Duration>),
    /// No connection.
    Unreachable,
    /// A connection, but no usable response: a reset, silence, 5xx.
    Broken,
    /// The request was not sent.
    NotSent,
}

/// Why a request is not sent, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The registry answered 429.
    Throttled(Duration),
    /// The endpoint fails.
    CircuitOpen(Duration),
    /// The requested content fails again and again.
    Penalty(Duration),
}

/// Everything that decides whether one endpoint is requested. A subject is what a request is about: its method
/// and path.
#[derive(Debug, Default)]
pub(super) struct Limits {
    pub(super) budget: Budget,
    circuit: Circuit,
    penalties: HashMap<String, Penalty>,
    /// The last failure, and when it was.
    last_error: Option<(Instant, String)>,
}

impl Limits {
    /// Whether a request may be sent now, for a client that waits.
    pub(super) fn admit(&mut self, subject: &str, now: Instant) -> Result<(), Refusal> {
        self.budget.admit(Class::Demand, now).map_err(Refusal::Throttled)?;
        // Before the circuit: content that is known to fail must not be its probe.
        if let Some(penalty) = self.penalties.get_mut(subject) {
            penalty.admit(now).map_err(Refusal::Penalty)?;
        }
        self.circuit.admit(now).map_err(Refusal::CircuitOpen)
    }

    /// Records the outcome of a request that was admitted at `began`. Returns the wait after a 429.
    pub(super) fn settle(
        &mut self,
        subject: &str,
        began: Instant,
        outcome: Outcome<'_>,
        now: Instant,
    ) -> Option<Duration> {
        match outcome {
            Outcome::Settled(headers) => {
                self.budget.refusals = Streak::default();
                if let Some(headers) = headers {
                    self.budget.answered(headers, now);
                }
                self.penalties.remove(subject);
                self.circuit.succeeded();
                None
            }
            Outcome::Throttled(retry_after) => {
                self.circuit.succeeded();
                Some(self.budget.refused(retry_after, began, now))
            }
            Outcome::Unreachable => {
                self.circuit.unreachable(began, now);
                None
            }
            Outcome::Broken => {
                let known = self.penalties.contains_key(subject);
                self.circuit.broken(subject, known, began, now);
                self.punish(subject, began, now);
                None
            }
            Outcome::NotSent => {
                self.circuit.give_back(began, now);
                None
            }
        }
    }

    /// Remembers why a request failed, for the errors of requests that are rejected afterwards.
    pub(super) fn note_error(&mut self, error: &UpstreamError, now: Instant) {
        if let UpstreamError::Unavailable { reason, .. } = error {
            self.last_error = Some((now, reason.clone()));
        }
    }

    /// The last failure and its age.
    pub(super) fn last_error(&self, now: Instant) -> Option<(Duration, &str)> {
        self.last_error.as_ref().map(|(at, reason)| (now.saturating_duration_since(*at), reason.as_str()))
    }

    fn punish(&mut self, subject: &str, began: Instant, now: Instant) {
        if self.penalties.len() >= MOST {
            let recent = |last: Instant| now.saturating_duration_since(last) < LONGEST;
            self.penalties.retain(|_, penalty| penalty.streak.last.is_some_and(recent));
        }
        if self.penalties.len() < MOST || self.penalties.contains_key(subject) {
            self.penalties.entry(subject.to_owned()).or_default().failed(began, now);
        }
    }

    /// How long the circuit is still open.
    pub(super) fn open_for(&self, now: Instant) -> Option<Duration> {
        self.circuit.open_until.and_then(|until| until.checked_duration_since(now))
    }
}

/// The penalty of one subject. While it lasts, and until a request succeeds, the subject is requested from time
/// to time only.
#[derive(Debug, Default)]
struct Penalty {
    streak: Streak,
    until: Option<Instant>,
}

impl Penalty {
    fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        let Some(until) = self.until else { return Ok(()) };
        if now < until {
            return Err(until - now);
        }
        // This request is the probe; others wait for its outcome, or for the same time again.
        self.until = Some(now + self.pause());
        Ok(())
    }

    fn failed(&mut self, began: Instant, now: Instant) {
        if self.streak.fail(began, now) && self.streak.count >= FAILURES {
            self.until = Some(now + self.pause());
        }
    }

    fn pause(&self) -> Duration {
        growing(FIRST, self.streak.count.saturating_sub(FAILURES), LONGEST)
    }
}

/// The circuit of one endpoint.
#[derive(Debug, Default)]
struct Circuit {
    streak: Streak,
    /// Failed connections in the streak.
    unreachable: u32,
    /// Subjects that failed in the streak.
    broken: HashSet<String>,
    open_until: Option<Instant>,
    /// How often it has opened since the last success.
    opened: u32,
    /// When the probe was sent that decides whether to close the circuit.
    probe: Option<Instant>,
}

impl Circuit {
    /// A request that is admitted while the circuit is open is the probe: the next one waits for its outcome,
    /// or for the same time again.
    fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match self.open_until {
            None => Ok(()),
            Some(until) if now < until => Err(until - now),
            Some(_) => {
                self.open_until = Some(now + self.pause());
                self.probe = Some(now);
                Ok(())
            }
        }
    }

    fn pause(&self) -> Duration {
        growing(FIRST, self.opened.saturating_sub(1), LONGEST)
    }

    fn succeeded(&mut self) {
        *self = Self::default();
    }

    fn unreachable(&mut self, began: Instant, now: Instant) {
        if self.streak.fail(began, now) {
            self.unreachable += 1;
        }
        self.failed(began, now);
    }

    /// `known` means that the subject has failed before: as a probe it would show nothing.
    fn broken(&mut self, subject: &str, known: bool, began: Instant, now: Instant) {
        self.streak.fail(began, now);
        if self.broken.len() < MOST {
            self.broken.insert(subject.to_owned());
        }
        if known && self.probe == Some(began) {
            self.give_back(began, now);
        } else {
            self.failed(began, now);
        }
    }

    fn failed(&mut self, began: Instant, now: Instant) {
        let different = self.broken.len() + self.unreachable as usize;
        let enough = self.streak.count >= FAILURES && different >= FAILURES as usize;
        // While the circuit is open, only the probe decides.
        if self.probe == Some(began) || (self.open_until.is_none() && enough) {
            self.opened = self.opened.saturating_add(1);
            self.open_until = Some(now + self.pause());
            self.probe = None;
        }
    }

    /// The outcome of a request shows nothing about the endpoint: if it was the probe, the next request is the
    /// probe.
    fn give_back(&mut self, began: Instant, now: Instant) {
        if self.probe == Some(began) {
            self.probe = None;
            self.open_until = Some(now);
        }
    }
}
