//! The durations and counts of the data path that are not configurable, in one place: one module for each file that
//! uses them.
//!
//! Values that an operator may need to change are in the configuration. When a transfer is retried is
//! [`crate::upstream::RetryPolicy`]; how a registry's limits are counted is in `upstream/limits.rs`.

pub(crate) mod download;
pub(crate) mod peers;
pub(crate) mod swarm;
