//! Decides which files become which layers of the images. Pure functions only.

mod cut;
pub mod layers;
pub mod locked;
mod parts;
