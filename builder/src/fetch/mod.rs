//! Files of servers and object stores, brought into the cache: side by side, resumed, verified, with the user's logins.

pub mod download;
pub mod logins;
pub mod objects;
pub mod part;
pub mod pip;
