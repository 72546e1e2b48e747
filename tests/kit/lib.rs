//! Test kit.

pub mod agent;
pub mod build_fixture;
pub mod certificates;
pub mod cluster;
pub mod disk;
pub mod fixtures;
pub mod kubernetes;
pub mod layering;
pub mod metrics;
pub mod net;
pub mod peer;
pub mod process;
pub mod pull;
pub mod registry;
pub mod runtime;
pub mod wire;
