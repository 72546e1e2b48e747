//! Where the files of an image come from.
//!
//! Every source ends in the cache (contents by digest) and a description: a [`crate::tree::Tree`] of what it
//! holds. Nothing here decides where files go in the image except [`spark`], which knows Spark's layout.

pub mod archive;
pub mod base;
pub mod detect;
pub mod download;
pub mod pypi;
pub mod scan;
pub mod spark;
pub mod view;
