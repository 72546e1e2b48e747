//! Layers, images and what is published of them.

use std::collections::BTreeSet;

use super::{
    BuildError, Options,
    prepared::{Planning, Prepared},
};
use crate::{
    cache::{Cache, CacheError, Content},
    image::{self, Added, Image},
    layer::{self, Layer, LayerError},
    matrix::Refused,
    platform::Platform,
    progress::Progress,
    publish::{Publication, Tag},
    report::{ImageReport, LayerReport, RefusedReport},
    spec::Matrix,
    tree,
};

/// A finished cell.
pub(super) struct Built<'a> {
    pub(super) prepared: &'a Prepared,
    pub(super) image: Image,
    pub(super) labels: Vec<String>,
}

/// Compresses the bases that are root file systems.
pub(super) fn write_bases(
    options: &Options,
    cache: &Cache,
    planning: &mut Planning,
    progress: &Progress,
) -> Result<(), LayerError> {
    let codec = planning.matrix.compression;
    planning.prepared.iter_mut().try_for_each(|one| one.base.write(cache, codec, options.jobs, progress))
}

/// Writes the planned layers, each once.
pub(super) fn write_layers(
    options: &Options,
    cache: &Cache,
    planning: &Planning,
    progress: &Progress,
) -> Result<Vec<Layer>, LayerError> {
    let trees = planning
        .layers
        .iter()
        .map(|planned| (&planned.tree, progress.bytes(&planned.label(), tree::bytes(&planned.tree))));
    layer::write_all(cache, trees, planning.matrix.compression, options.jobs)
}

/// Writes the planned layers and stacks them.
pub(super) fn images<'a>(
    options: &Options,
    cache: &Cache,
    planning: &'a Planning,
    progress: &Progress,
) -> Result<Vec<Built<'a>>, BuildError> {
    let written = write_layers(options, cache, planning, progress)?;
    let stack = |(at, prepared): (usize, &'a Prepared)| {
        let own = planning.layers.iter().zip(&written).filter(|(planned, _)| planned.images.contains(&at));
        let added: Vec<Added> =
            own.map(|(planned, layer)| Added { label: planned.label(), layer: layer.clone() }).collect();
        let base = &prepared.base;
        let image = image::assemble(&base.config, &base.layers, &added, &prepared.settings);
        let labels = base.layers.iter().map(|_| format!("base {}", base.name));
        let labels = labels.chain(added.into_iter().map(|added| added.label)).collect();
        Built { prepared, image, labels }
    };
    Ok(planning.prepared.iter().enumerate().map(stack).collect())
}

/// Verifies every layer of the images: an earlier run has written most of them, and the disk may have changed them.
pub(super) fn verify(options: &Options, cache: &Cache, built: &[Built<'_>]) -> Result<(), CacheError> {
    let blobs: BTreeSet<Content> =
        built.iter().flat_map(|built| &built.image.layers).map(|layer| layer.blob).collect();
    cache.verify_blobs(&Vec::from_iter(blobs), options.jobs)
}

/// The images with their tags; the platforms of an image come together under an index.
pub(super) fn publication<'a>(matrix: &Matrix, built: &'a [Built<'_>]) -> Publication<'a> {
    let tag = |(name, positions): (&str, Vec<usize>)| {
        let of_tag = positions.into_iter().map(|at| &built[at]);
        let images: Vec<(Platform, &Image)> =
            of_tag.map(|built| (built.prepared.wanted.cell.platform, &built.image)).collect();
        Tag { name: name.to_owned(), document: image::tagged(&images) }
    };
    let tags = matrix.tags().into_iter().map(tag).collect();
    Publication { images: built.iter().map(|built| &built.image).collect(), tags, referrers: Vec::new() }
}

impl Built<'_> {
    pub(super) fn report(&self, matrix: &Matrix) -> ImageReport {
        let layers = self.image.layers.iter().zip(&self.labels).map(|(layer, label)| LayerReport {
            label: label.clone(),
            digest: layer.blob.digest,
            size: layer.blob.size,
            diff_id: layer.diff_id,
            media_type: layer.media_type.clone(),
        });
        ImageReport {
            reference: format!("{}:{}", matrix.repository, self.prepared.tag()),
            cell: self.prepared.wanted.cell.name(),
            platform: self.prepared.wanted.cell.platform.to_string(),
            manifest: self.image.manifest.descriptor.digest,
            config: self.image.config.descriptor.digest,
            layers: layers.collect(),
        }
    }
}

pub(super) fn refused_report(refused: &Refused) -> RefusedReport {
    RefusedReport {
        cell: refused.cell.name(),
        impossible: refused.verdict.impossible.clone(),
        untested: refused.verdict.untested.clone(),
    }
}
