//! Stops calling a container runtime that crashes when it is called: a defect of the agent or of the runtime must not
//! crash it over and over on every node of a cluster. Pure except for the lock.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};

/// A crash counts when it comes this soon after the start of a call. A pull takes longer, and an administrator may
/// restart the runtime meanwhile.
const RIGHT_AFTER: Duration = Duration::from_secs(10);

/// This many crashes after the same call, without an answer to it in between, are not a coincidence.
const MOST: u32 = 2;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The runtime answered, also with an error.
    Answered,
    /// The connection was closed during the call, and nothing listens at the socket any more.
    Gone,
    /// Anything else: it does not show whether the runtime crashed.
    Other,
}

/// Why the runtime is not called any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The call after which it crashed.
    pub method: &'static str,
    /// Since when it is not called.
    pub since: Timestamp,
}

#[derive(Debug, Default)]
struct State {
    ends: HashMap<&'static str, u32>,
    stopped: Option<Stopped>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Guard(Mutex<State>);

impl Guard {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Why the runtime must not be called.
    pub(super) fn stopped(&self) -> Option<Stopped> {
        self.state().stopped
    }

    /// Notes the outcome of a call that took `elapsed`; returns whether the runtime must not be called any more from
    /// now on.
    pub(super) fn note(&self, method: &'static str, outcome: Outcome, elapsed: Duration) -> bool {
        let mut state = self.state();
        match outcome {
            Outcome::Answered => drop(state.ends.remove(method)),
            Outcome::Gone if elapsed < RIGHT_AFTER => {
                let ends = state.ends.entry(method).or_default();
                *ends += 1;
                if *ends >= MOST && state.stopped.is_none() {
                    state.stopped = Some(Stopped { method, since: Timestamp::now() });
                    return true;
                }
            }
            Outcome::Gone | Outcome::Other => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_crashed_twice_after_the_same_call_is_not_called_again() {
        use Outcome::{Answered, Gone, Other};
        const SOON: Duration = Duration::from_secs(1);
        for (calls, expected) in [
            (&[("a", Gone, SOON)][..], None),
            (&[("a", Gone, SOON), ("a", Gone, SOON)], Some("a")),
            (&[("a", Gone, SOON), ("b", Gone, SOON)], None),
            (&[("a", Gone, SOON), ("b", Answered, SOON), ("a", Gone, SOON)], Some("a")),
            (&[("a", Gone, SOON), ("a", Answered, SOON), ("a", Gone, SOON)], None),
            (&[("a", Gone, SOON), ("a", Other, SOON), ("a", Gone, SOON)], Some("a")),
            (&[("a", Gone, RIGHT_AFTER), ("a", Gone, RIGHT_AFTER)], None),
        ] {
            let guard = Guard::default();
            let said =
                calls.iter().filter(|(method, outcome, elapsed)| guard.note(method, *outcome, *elapsed));
            assert_eq!(said.count(), usize::from(expected.is_some()), "{calls:?}");
            assert_eq!(guard.stopped().map(|stopped| stopped.method), expected, "{calls:?}");
        }
    }
}
