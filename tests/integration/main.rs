//! Integration tests.

mod archives;
mod attacks;
mod cli;
mod cluster;
mod fuzz;
mod images;
mod layering;
mod manifests;
mod mirror;
mod observe;
mod peers;
mod prepull;
mod registry;
mod signatures;
mod traces;
