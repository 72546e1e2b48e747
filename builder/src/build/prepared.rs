//! What images are made of, once all inputs are in the cache.

use std::collections::BTreeSet;

use crate::{
    image,
    lock::Lock,
    plan::layers::{Files, Planned},
    sources::base::Base,
    spec::{Matrix, Wanted},
};

/// A cell with all its inputs, before any of its own layers is written.
#[derive(Debug)]
pub struct Prepared {
    /// The cell and what was asked for.
    pub wanted: Wanted,
    /// Its base.
    pub base: Base,
    /// The files that it adds to the base.
    pub files: Files,
    /// Its environment, labels and annotations.
    pub settings: image::Settings,
    /// The names of the inputs that it is made of, as a lock has them.
    pub inputs: BTreeSet<String>,
}

impl Prepared {
    /// The first of its tags.
    pub fn tag(&self) -> &str {
        &self.wanted.recipe.tags[0]
    }
}

/// A specification whose inputs are all in the cache, and what its images will be made of.
pub(super) struct Planning {
    pub(super) matrix: Matrix,
    pub(super) prepared: Vec<Prepared>,
    pub(super) layers: Vec<Planned>,
    pub(super) warnings: Vec<String>,
    /// The inputs that were used, in the form of a lock.
    pub(super) lock: Lock,
}
