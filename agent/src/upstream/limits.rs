//! What a registry's endpoint allows now: its rate limit, and how failures are counted. Pure: time is handed in.
//!
//! **Failures.** What is under way together is one failure ([`Streak`]): a blip that meets 24 requests is one blip.
//! Three in a row open the circuit, when they are about the endpoint: no connection, or different things that failed.
//! One thing that fails again and again (a broken blob) has a penalty of its own, and costs nothing else anything.
//!
//! ```text
//! closed --3 failures in a row--> open (1 s, doubling to 30 s) --time is up--> one probe --success--> closed
//!                                   ^------------------------------------------failure--+
//! ```
//!
//! **Rate limit.** Sources: `ratelimit-limit: 100;w=21600` and `ratelimit-remaining: 20;w=21600` on manifest answers,
//! `Retry-After` and 429 on any. Two classes: demand (a client waits) and background (pre-pull), which stops at a reserve.
//! After a 429 no request is let through for a while, so that a herd of pods costs the registry nothing.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use http::HeaderMap;
use serde::Serialize;

use super::headers::text;
use crate::types::RepoName;

#[cfg(test)]
mod tests;

/// Failures in a row that open the circuit, and that give one thing a penalty.
const FAILURES: u32 = 3;

/// First time a circuit is open, or a penalty lasts; doubles with each further failure.
const FIRST: Duration = Duration::from_secs(1);

/// Longest time of either.
const LONGEST: Duration = Duration::from_secs(30);

/// Things remembered that failed. Past it those that have not failed for [`LONGEST`] are dropped, and then further ones are
/// not told apart.
const MOST: usize = 1_024;

/// Share of the limit that background work leaves to waiting pods.
const RESERVE: f64 = 0.3;

/// Without requests after a 429 that names no time; doubles with each further one. Short, because most are blips.
const FIRST_GATE: Duration = Duration::from_secs(1);

/// Longest time without requests that the registry did not ask for.
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
    refusals: Streak,
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
    /// Seconds for which the registry asked to be spared.
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
    fn answered(&mut self, headers: &HeaderMap, now: Instant) {
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

    /// A 429 to a request sent at `began`: nobody is let through for the time it names, or a growing one. Returns how long
    /// that still is.
    fn refused(&mut self, retry_after: Option<Duration>, began: Instant, now: Instant) -> Duration {
        self.throttled += 1;
        let counted = self.refusals.fail(began, now);
        let wait = match retry_after {
            Some(named) => Some(named.min(LONGEST_NAMED)),
            None => counted.then(|| growing(FIRST_GATE, self.refusals.count - 1, LONGEST_GATE)),
        };
        if let Some(until) = wait.map(|wait| now + wait) {
            // Of several answers to requests that were under way together the longest wait counts.
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
    /// Counts the failure of a request sent at `began`, unless it was under way when the last one was counted. Returns
    /// whether it did.
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

/// How one request ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome<'a> {
    /// With an answer that settles it, "does not exist" and "not allowed" too. The header, when it is a success.
    Settled(Option<&'a HeaderMap>),
    /// With a 429, and the wait that it names.
    Throttled(Option<Duration>),
    /// Without a connection.
    Unreachable,
    /// Connected, but without an answer that can be used: a reset, silence, 5xx.
    Broken,
    /// Before the registry was asked.
    NotSent,
}

/// Why a request is not sent, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The registry asked for it, or answered 429.
    Throttled(Duration),
    /// The endpoint fails.
    CircuitOpen(Duration),
    /// What is asked for fails, again and again.
    Penalty(Duration),
}

/// Everything that decides whether one endpoint is asked. A subject is what a request is about: its method and path.
#[derive(Debug, Default)]
pub(super) struct Limits {
    pub(super) budget: Budget,
    circuit: Circuit,
    penalties: HashMap<String, Penalty>,
}

impl Limits {
    /// Whether a request may be sent now, for a client that waits.
    pub(super) fn admit(&mut self, subject: &str, now: Instant) -> Result<(), Refusal> {
        self.budget.admit(Class::Demand, now).map_err(Refusal::Throttled)?;
        // Before the circuit: what is known to be broken must not be its probe.
        if let Some(penalty) = self.penalties.get_mut(subject) {
            penalty.admit(now).map_err(Refusal::Penalty)?;
        }
        self.circuit.admit(now).map_err(Refusal::CircuitOpen)
    }

    /// Takes in how a request ended that was admitted at `began`. Returns the wait after a 429.
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

/// Of one subject. While it lasts, and after it until one request has gone well, the subject is asked for once in a while.
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
        // This one tells; others wait for what comes of it, or for as long again.
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

/// Of one endpoint.
#[derive(Debug, Default)]
struct Circuit {
    streak: Streak,
    /// Failures of the streak that were no connection.
    unreachable: u32,
    /// Subjects that failed in the streak.
    broken: HashSet<String>,
    open_until: Option<Instant>,
    /// How often it opened since the last success.
    opened: u32,
    /// When the request that tells whether to close was sent.
    probe: Option<Instant>,
}

impl Circuit {
    /// A request let through while open is the probe: the next one waits for its outcome, or for as long again.
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

    /// `known` that the subject has failed before: as the probe it would tell nothing.
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
        // While it is open the probe alone decides.
        if self.probe == Some(began) || (self.open_until.is_none() && enough) {
            self.opened = self.opened.saturating_add(1);
            self.open_until = Some(now + self.pause());
            self.probe = None;
        }
    }

    /// What came of a request says nothing of the endpoint: if it was the probe, the next one is.
    fn give_back(&mut self, began: Instant, now: Instant) {
        if self.probe == Some(began) {
            self.probe = None;
            self.open_until = Some(now);
        }
    }
}
