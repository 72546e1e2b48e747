//! The kit's own registry: that it is a registry for real clients, and that each fault is on the wire what its name says.

mod clients;
mod faults;
mod protocol;
