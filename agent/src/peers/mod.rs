//! Other agents of the cluster: how a blob is cut between them and who stands above whom for each piece.
//!
//! `rank` gives every piece its own tree over all members, known to everyone without a message; `layout` cuts blobs
//! into pieces and stripes; `plan` says what to ask for next, whom, and what to answer. All are pure, and
//! `bench/sim` runs them on thousands of simulated nodes. Nothing here asks a peer yet: each agent still fetches for itself.

pub mod layout;
pub mod plan;
pub mod rank;
