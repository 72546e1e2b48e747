//! One build, in order: specification, cells, inputs, plan, layers, images, layout, registry.

mod error;
mod extras;
mod fetching;
mod inputs;
mod inventory;
mod locking;
mod planning;
mod pushing;
mod requirements;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Instant,
};

use self::inputs::{Inputs, Prepared};
pub use self::{
    error::BuildError,
    locking::{Change, lock},
    planning::plan,
};
use crate::{
    cache::{Cache, CacheError, Content},
    digest::Digest,
    image::{self, Added, Image},
    layer::{self, Layer, LayerError, member},
    lock::{Lock, LockError, Pins},
    plan::{
        self, Refused,
        layers::{Files, Limits, Planned},
        locked::{LockedPlan, fingerprint},
    },
    platform::Platform,
    progress::Progress,
    publish::{Publication, Tag, docker_archive, layout},
    registry::{Registry, Settings},
    report::{ImageReport, LayerReport, RefusedReport, Report},
    spec::{self, Input, Matrix, Source, SparkSource, Wanted},
    tree,
};

/// What to build and how; the command line, checked.
#[derive(Debug, Clone)]
pub struct Options {
    /// The specification.
    pub spec: PathBuf,
    /// Where the OCI layout goes; by default `dist` beside the specification.
    pub output: Option<PathBuf>,
    /// A file for `docker load` that is written as well.
    pub docker_archive: Option<PathBuf>,
    /// Whether to push.
    pub push: bool,
    /// Whether refused cells are left out instead of failing the build.
    pub skip_refused: bool,
    /// The lock; by default it lies beside the specification and has its name.
    pub lock: Option<PathBuf>,
    /// Whether there must be a lock.
    pub locked: bool,
    /// For a plan: the lock of images that a node has already.
    pub against: Option<PathBuf>,
    /// For a plan: whether layers that were never built are, so that every size is known.
    pub exact: bool,
    /// The cache.
    pub cache: PathBuf,
    /// Threads for compression.
    pub jobs: usize,
    /// How to reach registries.
    pub registries: Settings,
    /// Replaces the specification's base with this archive or layout.
    pub base: Option<PathBuf>,
    /// Replaces the specification's Spark source with this archive.
    pub spark: Option<PathBuf>,
    /// Whether documents about the images are made: what is in them, and where it came from.
    pub sbom: bool,
    /// Whether only what the cache has may be used.
    pub offline: bool,
    /// `SOURCE_DATE_EPOCH`: the creation time in image configurations.
    pub epoch: Option<u64>,
}

/// Repairs of a damaged cache in one command; a disk that damages more than that is broken.
const REPAIRS: usize = 3;

/// A specification whose inputs are all in the cache, and what its images will be made of.
struct Planning {
    matrix: Matrix,
    prepared: Vec<Prepared>,
    layers: Vec<Planned>,
    warnings: Vec<String>,
    /// The inputs that were used, in the form of a lock.
    lock: Lock,
}

/// A finished cell.
struct Built<'a> {
    prepared: &'a Prepared,
    image: Image,
    labels: Vec<String>,
}

/// Builds every cell of a specification. Needs a multi-threaded runtime.
pub async fn run(options: &Options, progress: &Progress) -> Result<Report, BuildError> {
    let cache = Cache::open(&options.cache)?;
    repaired(&cache, async || build(options, &cache, progress).await).await
}

/// Runs a command again when it has met damaged content of the cache: that has been removed, and what it was made of
/// makes it again.
async fn repaired<T>(
    cache: &Cache,
    mut attempt: impl AsyncFnMut() -> Result<T, BuildError>,
) -> Result<T, BuildError> {
    for _ in 0..REPAIRS {
        match attempt().await {
            Err(error) if cache.take_damaged() > 0 => {
                tracing::warn!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "damaged cache: repairing it"
                );
                blocking(|| {
                    cache.verify_all();
                    member::verify_all(cache);
                });
                let removed = cache.take_damaged();
                tracing::warn!(removed, "all other files of the cache verified: building again");
            }
            result => return result,
        }
    }
    attempt().await
}

async fn build(options: &Options, cache: &Cache, progress: &Progress) -> Result<Report, BuildError> {
    let started = Instant::now();
    let registry = Registry::new(options.registries.clone());
    let lock = read_lock(options)?;
    let mut planning = prepare(options, cache, &registry, progress, lock.as_ref(), true).await?;
    if let Some(lock) = &lock {
        lock.check_codec(&lock_path(options), planning.matrix.compression)?;
        complete(lock, &planning)?;
    }
    blocking(|| write_bases(options, cache, &mut planning, progress))?;
    let built = blocking(|| images(options, cache, &planning, progress))?;
    blocking(|| verify(options, cache, &built))?;
    let mut publication = publication(&planning.matrix, &built);
    if options.sbom {
        publication.referrers =
            blocking(|| inventory::referrers(options, cache, &planning, &built, progress))?;
    }
    let output = output(options);
    blocking(|| layout::write(cache, &output, &publication))?;
    if let Some(path) = &options.docker_archive {
        let repository = &planning.matrix.repository;
        blocking(|| docker_archive::write(cache, path, repository, &publication))?;
    }
    let push = if options.push {
        Some(pushing::push(&planning, &registry, cache, &publication, progress).await?)
    } else {
        None
    };
    let tags = publication.tags.iter();
    Ok(Report {
        referrers: publication.referrers.iter().map(|referrer| referrer.manifest.descriptor.digest).collect(),
        tags: tags.map(|tag| (tag.name.clone(), tag.document.descriptor.digest)).collect(),
        images: built.iter().map(|built| built.report(&planning.matrix)).collect(),
        refused: planning.matrix.refused.iter().map(refused_report).collect(),
        output: output.display().to_string(),
        warnings: planning.warnings,
        push,
        seconds: seconds(started),
    })
}

/// Where the lock lies: `hearth.yaml` has `hearth.lock`.
fn lock_path(options: &Options) -> PathBuf {
    options.lock.clone().unwrap_or_else(|| options.spec.with_extension("lock"))
}

fn read_lock(options: &Options) -> Result<Option<Lock>, LockError> {
    let path = lock_path(options);
    match Lock::read(&path)? {
        None if options.locked || options.lock.is_some() => Err(LockError::Absent { path }),
        lock => Ok(lock),
    }
}

/// A build writes only layers of its lock: anything else would come to other images elsewhere.
fn complete(lock: &Lock, planning: &Planning) -> Result<(), LockError> {
    let known: BTreeSet<Digest> = lock.layers.iter().map(|layer| layer.tree).collect();
    match planning.layers.iter().find(|layer| !known.contains(&fingerprint(&layer.tree))) {
        None => Ok(()),
        Some(layer) => {
            Err(LockError::Stale { what: format!("the layer \"{}\" as it is now", layer.label()) })
        }
    }
}

async fn prepare(
    options: &Options,
    cache: &Cache,
    registry: &Registry,
    progress: &Progress,
    lock: Option<&Lock>,
    strict: bool,
) -> Result<Planning, BuildError> {
    let mut matrix = spec::load(&options.spec)?;
    replace_sources(&mut matrix, options);
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

/// Compresses the bases that are root file systems.
fn write_bases(
    options: &Options,
    cache: &Cache,
    planning: &mut Planning,
    progress: &Progress,
) -> Result<(), LayerError> {
    let codec = planning.matrix.compression;
    planning.prepared.iter_mut().try_for_each(|one| one.base.write(cache, codec, options.jobs, progress))
}

/// Writes the planned layers, each once.
fn write_layers(
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
fn images<'a>(
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
fn verify(options: &Options, cache: &Cache, built: &[Built<'_>]) -> Result<(), CacheError> {
    let blobs: BTreeSet<Content> =
        built.iter().flat_map(|built| &built.image.layers).map(|layer| layer.blob).collect();
    cache.verify_blobs(&Vec::from_iter(blobs), options.jobs)
}

/// Compression and disk work for seconds: the runtime moves its other tasks away from this thread.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

fn seconds(started: Instant) -> f64 {
    (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
}

fn output(options: &Options) -> PathBuf {
    let beside = || options.spec.parent().unwrap_or(Path::new("")).join("dist");
    options.output.clone().unwrap_or_else(beside)
}

fn replace_sources(matrix: &mut Matrix, options: &Options) {
    for Wanted { cell, recipe } in &mut matrix.wanted {
        if let Some(path) = &options.base {
            recipe.base = if path.is_dir() {
                spec::Base::Layout(path.clone(), None)
            } else {
                spec::Base::RootFs(path.clone())
            };
        }
        if let Some(path) = &options.spark {
            let text = path.to_string_lossy();
            let path = cell.fill(&text).map_or_else(|_| path.clone(), PathBuf::from);
            recipe.spark = SparkSource::Archive(Input { place: Source::Path(path), checksum: None });
        }
    }
}

/// The images with their tags; the platforms of an image come together under an index.
fn publication<'a>(matrix: &Matrix, built: &'a [Built<'_>]) -> Publication<'a> {
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
    fn report(&self, matrix: &Matrix) -> ImageReport {
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

fn refused_report(refused: &Refused) -> RefusedReport {
    RefusedReport {
        cell: refused.cell.name(),
        impossible: refused.verdict.impossible.clone(),
        untested: refused.verdict.untested.clone(),
    }
}
