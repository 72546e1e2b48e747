//! Where finished images go, and what is published of them.

pub mod docker_archive;
mod error;
pub mod layout;
mod publication;
mod referrers;
mod session;
mod transfer;
mod unreferenced;
pub mod upload;

pub use self::{
    error::PushError,
    publication::{Publication, Tag},
    session::Pusher,
};
