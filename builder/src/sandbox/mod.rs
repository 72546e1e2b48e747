//! Runs programs of an image while it is built, without root and without a container engine.
//!
//! ```text
//! Root::assemble   the tree on this disk, in the cache's directory for temporary files
//! Root::run        unshare (util-linux): new user, mount, PID, network, IPC and UTS namespaces
//!   enter          the same hearth in them: /proc, a few devices, loopback, pivot_root, and then the program
//! ```
//!
//! The program sees the image's files and nothing else of this machine: no other file, process, network or
//! environment variable. It has a time limit, its output is bounded, and it ends with the build. User 0 in
//! it is the user that runs hearth, so it can do nothing outside that this user cannot do.
//!
//! A machine that does not allow this (another processor, no user namespaces, no `unshare`) is not an error here: the
//! caller learns why, as a text.

mod enter;
mod error;
mod root;
mod run;

pub use self::{
    enter::enter,
    error::{SUBCOMMAND, SandboxError},
    root::Root,
    run::{Job, Ran},
};
