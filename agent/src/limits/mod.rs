//! The durations and counts of the data path that nobody configures, in one place: one module for each file that uses them.
//!
//! What an operator may have reason to change is in the configuration. When a transfer is tried again is
//! [`crate::upstream::RetryPolicy`]; how a registry's limits are counted is in `upstream/limits.rs`.

pub(crate) mod download;
pub(crate) mod peers;
pub(crate) mod swarm;
