//! From a specification to what its images will be made of.

use std::path::PathBuf;

use super::{
    BuildError, Options,
    inputs::Inputs,
    prepared::{Planning, Prepared},
    pushing,
};
use crate::{
    cache::Cache,
    lock::{Lock, pins::Pins},
    plan::{
        self,
        layers::{Files, Limits, Planned},
        locked::LockedPlan,
    },
    progress::Progress,
    registry::Registry,
    spec::{self, Input, Matrix, Source, SparkSource, Wanted},
};
pub(super) async fn prepare(
    options: &Options,
    cache: &Cache,
    registry: &Registry,
    progress: &Progress,
    lock: Option<&Lock>,
    strict: bool,
) -> Result<Planning, BuildError> {
    let mut matrix = spec::file::load(&options.spec, options.tag.as_deref())?;
    if let Some(repository) = &options.repository {
        matrix.repository = repository.clone();
    }
    replace_sources(&mut matrix, options)?;
    if matrix.wanted.is_empty() || (!matrix.refused.is_empty() && !options.skip_refused) {
        return Err(BuildError::Refused(matrix.refused));
    }
    if options.push {
        pushing::check(&matrix.repository, registry, cache, progress).await?;
    }
    let mut inputs = Inputs::new(options, &matrix, cache, registry, progress, Pins::new(lock, strict))?;
    inputs.prefetch().await?;
    let mut outlines = Vec::new();
    for wanted in &matrix.wanted {
        outlines.push(inputs.outline(wanted).await?);
    }
    inputs.resolve_wheels(&outlines).await?;
    let mut prepared = Vec::new();
    for outline in outlines {
        prepared.push(inputs.prepare(outline).await?);
    }
    let (warnings, pins) = (inputs.warnings, inputs.pins.seen);
    let layers = layers(&prepared, &lock.map(Lock::plan).unwrap_or_default());
    let plan = LockedPlan::of(&layers, prepared.iter().map(|prepared| &prepared.files));
    let lock = Lock::new(matrix.compression, pins, plan);
    Ok(Planning { matrix, prepared, layers, warnings, lock })
}

/// Plans the layers of all images; in which order the specification lists them makes no difference.
fn layers(prepared: &[Prepared], locked: &LockedPlan) -> Vec<Planned> {
    let mut order: Vec<usize> = (0..prepared.len()).collect();
    order.sort_by_key(|at| &prepared[*at].wanted.cell);
    let files: Vec<Files> = order.iter().map(|at| prepared[*at].files.clone()).collect();
    let mut layers = plan::layers::layers(&files, locked, Limits::default());
    for layer in &mut layers {
        layer.images = layer.images.iter().map(|at| order[*at]).collect();
        layer.images.sort_unstable();
    }
    layers
}

fn replace_sources(matrix: &mut Matrix, options: &Options) -> Result<(), BuildError> {
    if options.spark.is_some() && matrix.wanted.iter().all(|wanted| wanted.spark().is_none()) {
        return Err(BuildError::NoSpark);
    }
    for Wanted { cell, recipe } in &mut matrix.wanted {
        if let Some(path) = &options.base {
            recipe.base = if path.is_dir() {
                spec::Base::Layout(path.clone(), None)
            } else {
                spec::Base::RootFs(path.clone())
            };
        }
        if let Some(path) = options.spark.as_ref().filter(|_| cell.spark.is_some()) {
            let text = path.to_string_lossy();
            let path = cell.fill(&text).map_or_else(|_| path.clone(), PathBuf::from);
            recipe.spark = Some(SparkSource::Archive(Input { place: Source::Path(path), checksum: None }));
        }
    }
    Ok(())
}
