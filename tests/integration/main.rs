//! Integration tests.

mod cli;
mod layering;
mod mirror;
mod registry;
