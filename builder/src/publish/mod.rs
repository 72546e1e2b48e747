//! Gives finished images away: into an OCI image layout on disk, and to a registry.

pub mod layout;
mod session;
pub mod upload;
