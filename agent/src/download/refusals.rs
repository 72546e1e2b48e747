//! What follows from the answers of the owners of registries' budgets: how long an owner may make background work wait. Pure: time is
//! passed in.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::{
    limits::download::budget::{IGNORED, MOST_REFUSED},
    types::RegistryHost,
};

/// The owners' refusals, by registry.
#[derive(Debug, Default)]
pub(super) struct Refusals(HashMap<RegistryHost, Refused>);

#[derive(Clone, Copy, Debug)]
enum Refused {
    /// By an answer since then.
    Since(Instant),
    /// The owner was wrong: it is not asked until then.
    Wrong(Instant),
}

/// What follows from an owner's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It granted the request.
    Go,
    /// It did not.
    Wait(Duration),
    /// It has refused for so long that it is to be checked.
    Check,
}

impl Refusals {
    /// Whether the owner is not asked now.
    pub(super) fn ignores(&self, registry: &RegistryHost, now: Instant) -> bool {
        matches!(self.0.get(registry), Some(Refused::Wrong(until)) if now < *until)
    }

    /// An owner's answer.
    pub(super) fn answered(
        &mut self,
        registry: &RegistryHost,
        refused: Option<Duration>,
        now: Instant,
    ) -> Turn {
        let Some(wait) = refused else {
            self.0.remove(registry);
            return Turn::Go;
        };
        let since = match self.0.get(registry) {
            Some(Refused::Since(since)) => *since,
            _ => now,
        };
        self.0.insert(registry.clone(), Refused::Since(since));
        let left = (since + MOST_REFUSED).saturating_duration_since(now);
        if left.is_zero() { Turn::Check } else { Turn::Wait(wait.min(left)) }
    }

    /// The owner was checked.
    pub(super) fn checked(&mut self, registry: &RegistryHost, wrong: bool, now: Instant) {
        let refused = if wrong { Refused::Wrong(now + IGNORED) } else { Refused::Since(now) };
        self.0.insert(registry.clone(), refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_that_refuses_for_long_is_checked_and_ignored_when_it_is_wrong() {
        let registry: RegistryHost = "r.test".parse().unwrap();
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let hour = Some(Duration::from_hours(1));
        assert_eq!(refusals.answered(&registry, None, start), Turn::Go);
        assert_eq!(refusals.answered(&registry, hour, start), Turn::Wait(MOST_REFUSED));
        let second = Duration::from_secs(1);
        let later = start + MOST_REFUSED.saturating_sub(second);
        assert_eq!(refusals.answered(&registry, hour, later), Turn::Wait(second));
        assert_eq!(refusals.answered(&registry, Some(second / 2), later), Turn::Wait(second / 2));
        let check = start + MOST_REFUSED;
        assert_eq!(refusals.answered(&registry, hour, check), Turn::Check);
        refusals.checked(&registry, false, check);
        assert!(!refusals.ignores(&registry, check));
        assert_eq!(refusals.answered(&registry, hour, check), Turn::Wait(MOST_REFUSED), "it was right");
        refusals.checked(&registry, true, check);
        assert!(refusals.ignores(&registry, check) && !refusals.ignores(&registry, check + IGNORED));
        assert_eq!(refusals.answered(&registry, hour, check + IGNORED), Turn::Wait(MOST_REFUSED));
        assert_eq!(refusals.answered(&registry, None, check + IGNORED), Turn::Go);
        assert!(refusals.0.is_empty());
    }
}
