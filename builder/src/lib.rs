//! Builds reproducible Spark images without a container engine and without root.
pub mod cache;
pub mod digest;
pub mod layer;
pub mod progress;
pub mod sources;
pub mod tree;
