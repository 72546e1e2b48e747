//! Where a download stands, and the only arrows between its phases.
//!
//! ```text
//! Connecting --first answer--> Streaming --all bytes hash right--> Verified --on disk under its name--> Done
//!      |                           |                                   |
//!      +---------------------------+-----------------------------------+--> Failed
//! ```

use super::error::FetchError;

/// Where a download stands; see the module's diagram.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    Connecting,
    Streaming,
    Verified,
    Done,
    Failed(FetchError),
}

/// News for readers. The count only makes every change a change.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) phase: Phase,
    pub(super) writes: u64,
}

/// Whether the diagram has an arrow from one phase to another. Pure.
pub(super) fn may_follow(from: &Phase, to: &Phase) -> bool {
    matches!(
        (from, to),
        (Phase::Connecting, Phase::Streaming | Phase::Verified | Phase::Done | Phase::Failed(_))
            | (Phase::Streaming, Phase::Verified | Phase::Done | Phase::Failed(_))
            | (Phase::Verified, Phase::Done | Phase::Failed(_))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_change_only_along_the_arrows_of_the_diagram() {
        let phases = [
            Phase::Connecting,
            Phase::Streaming,
            Phase::Verified,
            Phase::Done,
            Phase::Failed(FetchError::Stopping),
        ];
        let table = [
            [false, true, true, true, true],
            [false, false, true, true, true],
            [false, false, false, true, true],
            [false; 5],
            [false; 5],
        ];
        for (from, row) in phases.iter().zip(table) {
            for (to, allowed) in phases.iter().zip(row) {
                assert_eq!(may_follow(from, to), allowed, "{from:?} to {to:?}");
            }
        }
    }
}
