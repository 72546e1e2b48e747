//! The phases of a download, and the allowed changes between them.
//!
//! ```text
//! Connecting --first response--> Streaming --all bytes match--> Verified --committed to the store--> Done
//!      |                             |                             |
//!      +-----------------------------+-----------------------------+--> Failed
//! ```

use super::error::FetchError;

/// The phase of a download; see the module's diagram.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    Connecting,
    Streaming,
    Verified,
    Done,
    Failed(FetchError),
}

/// Progress for readers. The count makes every update differ from the one before.
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
