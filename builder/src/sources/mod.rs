//! Where the files of an image come from.
//!
//! Every source ends in the cache (contents by digest) and a description: a [`crate::tree::Tree`] of what it
//! holds. Nothing here decides where files go in the image except [`spark`], which knows Spark's layout.

pub mod archive;
pub mod base;
pub mod detect;
pub mod directory;
pub mod elf;
pub mod maven;
pub mod packages;
pub mod pypi;
pub mod relocate;
pub mod scan;
pub mod spark;
mod sparse;
pub mod tarball;
pub mod uv;
pub mod view;
pub mod wheels;
pub mod zip;

/// Whether a file is compiled Python: its header holds a time, and the image's own Python makes another.
fn is_compiled_python(path: &str) -> bool {
    path.split('/').any(|part| part == "__pycache__") || path.rsplit('.').next() == Some("pyc")
}
