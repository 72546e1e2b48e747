//! One build, in order: specification, cells, inputs, plan, layers, images, layout, registry.

mod error;
mod extras;
mod inputs;
mod inventory;
mod locking;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Instant,
};

use self::inputs::{Inputs, Prepared};
pub use self::{
    error::BuildError,
    locking::{Change, lock},
};
use crate::{
    cache::{Cache, Content},
    digest::Digest,
    image::{self, Added, Image},
    layer::{self, Layer},
    lock::{Lock, LockError, Pins},
    plan::{
        self, Refused,
        frozen::fingerprint,
        layers::{Files, Limits, Planned},
    },
    platform::Platform,
    progress::Progress,
    publish::{Publication, Tag, layout, upload::Pusher},
    registry::{Registry, Repository, Settings},
    report::{
        Against, AgainstImage, ImageReport, LayerReport, PlanReport, PlannedLayer, PushReport, RefusedReport,
        Report,
    },
    sources::{base, download},
    spec::{self, Input, Matrix, Source, SparkSource, Wanted},
    tree::{self, Entry},
};

/// What to build and how; the command line, checked.
#[derive(Debug, Clone)]
pub struct Options {
    /// The specification.
    pub spec: PathBuf,
    /// Where the OCI layout goes; by default `dist` beside the specification.
    pub output: Option<PathBuf>,
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
    let started = Instant::now();
    let cache = Cache::open(&options.cache)?;
    let registry = Registry::new(options.registries.clone());
    let lock = read_lock(options)?;
    let planning = prepare(options, &cache, &registry, progress, lock.as_ref(), true).await?;
    if let Some(lock) = &lock {
        lock.check_codec(&lock_path(options), planning.matrix.compression)?;
        complete(lock, &planning)?;
    }
    let built = blocking(|| images(options, &cache, &planning, progress))?;
    let mut publication = publication(&planning.matrix, &built);
    if options.sbom {
        publication.referrers = blocking(|| inventory::referrers(options, &cache, &planning, &built))?;
    }
    let output = output(options);
    blocking(|| layout::write(&cache, &output, &publication))?;
    let push = if options.push {
        Some(push(&planning, &registry, &cache, &publication, progress).await?)
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

/// Reads all inputs and says what a build would make of them; nothing is compressed, written or pushed.
pub async fn plan(options: &Options, progress: &Progress) -> Result<PlanReport, BuildError> {
    // A plan is where a user looks at refused combinations: they are a part of its answer.
    let options = Options { skip_refused: true, ..options.clone() };
    let cache = Cache::open(&options.cache)?;
    let registry = Registry::new(options.registries.clone());
    let against = match &options.against {
        None => None,
        Some(path) => {
            let lock = Lock::read(path)?.ok_or_else(|| LockError::Absent { path: path.clone() })?;
            Some((path, lock))
        }
    };
    // A plan is also where a user sees what a stale lock comes to: new inputs are looked up.
    let lock = read_lock(&options)?;
    let planning = prepare(&options, &cache, &registry, progress, lock.as_ref(), false).await?;
    let codec = planning.matrix.compression;
    let names = names(&planning);
    let describe = |planned: &Planned| PlannedLayer {
        label: planned.label(),
        images: planned.images.iter().map(|at| names[*at].clone()).collect(),
        files: planned.tree.values().filter(|entry| entry.content().is_some()).count(),
        bytes: tree::bytes(&planned.tree),
        blob: layer::known(&cache, &planned.tree, codec).map(|layer| layer.blob),
    };
    let layers: Vec<PlannedLayer> = planning.layers.iter().map(describe).collect();
    let cells = planning.prepared.iter().map(|prepared| prepared.wanted.cell.name());
    let images = names.iter().cloned().zip(cells).collect();
    let refused = planning.matrix.refused.iter().map(refused_report).collect();
    let against = against.map(|(path, lock)| compare(&path.display().to_string(), &lock, &planning));
    let repository = planning.matrix.repository.to_string();
    let distinct_bytes = distinct(&planning);
    let report = PlanReport::new(repository, images, refused, layers, planning.warnings);
    Ok(PlanReport { distinct_bytes, against, ..report })
}

/// Bytes of every distinct file once: what no plan can get below.
fn distinct(planning: &Planning) -> u64 {
    let trees = planning.prepared.iter().flat_map(|prepared| prepared.files.parts.values());
    let contents: BTreeSet<Content> =
        trees.flat_map(|tree| tree.values()).filter_map(Entry::content).collect();
    contents.into_iter().map(|content| content.size).sum()
}

/// What a node that has the images of an old lock would download for each image, in uncompressed bytes.
fn compare(name: &str, old: &Lock, planning: &Planning) -> Against {
    let had: BTreeSet<Digest> = old.layers.iter().map(|layer| layer.tree).collect();
    let bases: BTreeSet<Digest> = old.inputs.values().map(|pin| pin.digest).collect();
    let new: Vec<bool> =
        planning.layers.iter().map(|layer| !had.contains(&fingerprint(&layer.tree))).collect();
    let names = names(planning);
    let image = |(at, prepared): (usize, &Prepared)| {
        let own = planning.layers.iter().zip(&new).filter(|(layer, new)| **new && layer.images.contains(&at));
        let (count, bytes) =
            own.fold((0, 0), |(count, bytes), (layer, _)| (count + 1, bytes + tree::bytes(&layer.tree)));
        let base_is_new = !bases.contains(&prepared.base.digest);
        AgainstImage { tag: names[at].clone(), layers: count, bytes, base_is_new }
    };
    let unique = planning.layers.iter().zip(&new).filter(|(_, new)| **new);
    Against {
        lock: name.to_owned(),
        images: planning.prepared.iter().enumerate().map(image).collect(),
        unique_bytes: unique.map(|(layer, _)| tree::bytes(&layer.tree)).sum(),
    }
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
    let mut inputs = Inputs::new(options, &matrix, cache, registry, progress, Pins::new(lock, strict))?;
    let mut prepared = Vec::new();
    for wanted in &matrix.wanted {
        prepared.push(inputs.prepare(wanted).await?);
    }
    let (warnings, pins) = (inputs.warnings, inputs.pins.seen);
    let files: Vec<Files> = prepared.iter().map(|prepared| prepared.files.clone()).collect();
    let frozen = lock.map(|lock| lock.layers.as_slice()).unwrap_or_default();
    let layers = plan::layers::layers(&files, frozen, Limits::default());
    let lock = Lock::new(matrix.compression, pins, &layers);
    Ok(Planning { matrix, prepared, layers, warnings, lock })
}

/// Writes the planned layers, each once, and stacks them.
fn images<'a>(
    options: &Options,
    cache: &Cache,
    planning: &'a Planning,
    progress: &Progress,
) -> Result<Vec<Built<'a>>, BuildError> {
    let mut written: Vec<Layer> = Vec::new();
    for planned in &planning.layers {
        let bar = progress.bytes(&planned.label(), tree::bytes(&planned.tree));
        written.push(layer::write(cache, &planned.tree, planning.matrix.compression, options.jobs, &bar)?);
    }
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

/// How images are called in plans: by their first tag, and their platform where a tag has several.
fn names(planning: &Planning) -> Vec<String> {
    let name = |prepared: &Prepared| {
        let tag = prepared.tag();
        let same = planning.prepared.iter().filter(|other| other.tag() == tag).count();
        if same > 1 { format!("{tag} {}", prepared.wanted.cell.platform) } else { tag.to_owned() }
    };
    planning.prepared.iter().map(name).collect()
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

/// The layers of bases that lie in other repositories of the registry that is pushed to.
fn mounts(planning: &Planning) -> BTreeMap<Digest, Repository> {
    let target = &planning.matrix.repository;
    let mut found = BTreeMap::new();
    for Prepared { wanted, base, .. } in &planning.prepared {
        let spec::Base::Image(name) = &wanted.recipe.base else { continue };
        let Ok(source) = base::repository_of(name).parse::<Repository>() else { continue };
        if source.endpoint() == target.endpoint() && source != *target {
            found.extend(base.layers.iter().map(|layer| (layer.blob.digest, source.clone())));
        }
    }
    found
}

async fn push(
    planning: &Planning,
    registry: &Registry,
    cache: &Cache,
    publication: &Publication<'_>,
    progress: &Progress,
) -> Result<PushReport, BuildError> {
    let (matrix, mounts) = (&planning.matrix, mounts(planning));
    let client = download::client()
        .map_err(|source| BuildError::Input { name: matrix.repository.to_string(), source })?;
    let repository = &matrix.repository;
    let pusher = Pusher { registry, client: &client, cache, repository, mounts: &mounts, progress };
    let mut report = PushReport { repository: matrix.repository.to_string(), ..PushReport::default() };
    for sent in pusher.push(publication).await? {
        if sent.uploaded {
            report.uploaded.push(sent.digest);
            report.uploaded_bytes += sent.size;
        } else {
            report.skipped.push(sent.digest);
            report.skipped_bytes += sent.size;
        }
    }
    Ok(report)
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
