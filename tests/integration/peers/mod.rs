//! Agents among themselves.

mod burst;
mod vectors;
