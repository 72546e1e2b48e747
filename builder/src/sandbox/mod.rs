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
mod root;
mod run;

pub use self::{
    enter::enter,
    root::Root,
    run::{Job, Ran},
};
use crate::cache::CacheError;

/// The subcommand of `hearth` that [`enter`] serves.
pub const SUBCOMMAND: &str = "enter-sandbox";

/// Why a program of the image did not run or did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// This machine cannot do it, or the program failed: the reason.
    #[error("{0}")]
    Failed(String),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}
