//! Agents among themselves.

mod vectors;
