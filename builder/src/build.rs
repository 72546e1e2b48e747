//! One build, in order: specification, cells, sources, layers, images, layout, registry.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::Instant,
};

use crate::{
    cache::{Cache, CacheError, Shelf},
    image::{self, Added, Image},
    layer::{self, LayerError},
    plan::{self, Cell, Refused},
    progress::Progress,
    publish::{
        layout::{self, LayoutError, Named},
        upload::{PushError, Pusher},
    },
    registry::{Registry, Settings},
    report::{ImageReport, LayerReport, PushReport, RefusedReport, Report},
    runtime::{self, RuntimeError},
    sources::{
        archive::{ArchiveError, Flavour},
        base::{self, Base, BaseError, Context, Origin},
        detect::{self, DetectError},
        download::{self, DownloadError},
        pypi::{self, PyPiError},
        spark::{self, Distribution, SparkError},
    },
    spec::{self, Matrix, SparkSource, SpecError},
    tree::FIXED_TIME,
    version::Version,
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
    /// `SOURCE_DATE_EPOCH`: the creation time in image configurations.
    pub epoch: Option<u64>,
}

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The specification is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Cells are refused.
    #[error("{}", refusals(.0))]
    Refused(Vec<Refused>),
    /// The base cannot be used.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The base does not suit a cell.
    #[error("cannot build {cell}")]
    Unsuitable {
        /// The cell.
        cell: String,
        /// Why.
        #[source]
        source: DetectError,
    },
    /// Spark cannot be found.
    #[error("cannot find Spark {version}")]
    Find {
        /// Which one.
        version: Version,
        /// Why.
        #[source]
        source: PyPiError,
    },
    /// Spark cannot be downloaded.
    #[error("cannot get Spark {version}")]
    Download {
        /// Which one.
        version: Version,
        /// Why.
        #[source]
        source: DownloadError,
    },
    /// The Spark archive is not the one that was pinned.
    #[error("`{}` has the digest `{found}` instead of `{expected}`", path.display())]
    Pinned {
        /// The archive.
        path: PathBuf,
        /// Its digest.
        found: crate::digest::Digest,
        /// The specification's.
        expected: crate::digest::Digest,
    },
    /// The Spark archive cannot be read.
    #[error("cannot use the Spark archive `{}`", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: ArchiveError,
    },
    /// It is no Spark.
    #[error("cannot use the Spark archive `{}`", path.display())]
    Spark {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: SparkError,
    },
    /// Our files do not fit the base.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A layer cannot be written.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The output cannot be written.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The push failed.
    #[error(transparent)]
    Push(#[from] PushError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl BuildError {
    /// 2 for what the user has to change in the specification, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Spec(_) | Self::Refused(_) | Self::Unsuitable { .. } => 2,
            _ => 1,
        }
    }
}

fn refusals(refused: &[Refused]) -> String {
    let mut text = "these combinations are refused:".to_owned();
    for Refused { cell, verdict } in refused {
        for reason in &verdict.impossible {
            text = format!("{text}\n  {}: {reason}", cell.name());
        }
        for reason in &verdict.untested {
            text = format!("{text}\n  {}: {reason} (build it with `allowUntested: true`)", cell.name());
        }
    }
    format!("{text}\nchange the axes, or leave such combinations out with --skip-refused")
}

/// Builds every cell of a specification. Needs a multi-threaded runtime.
pub async fn run(options: &Options, progress: &Progress) -> Result<Report, BuildError> {
    let started = Instant::now();
    let mut matrix = spec::load(&options.spec)?;
    replace_sources(&mut matrix, options);
    let cells = plan::cells(&matrix.axes, matrix.allow_untested);
    if cells.built.is_empty() || (!cells.refused.is_empty() && !options.skip_refused) {
        return Err(BuildError::Refused(cells.refused));
    }
    let cache = Cache::open(&options.cache)?;
    let registry = Registry::new(options.registries.clone());
    let mut builder = Builder {
        options,
        matrix: &matrix,
        cache: &cache,
        registry: &registry,
        progress,
        bases: HashMap::new(),
        sparks: HashMap::new(),
        warnings: Vec::new(),
    };
    let mut built = Vec::new();
    for cell in &cells.built {
        built.push(builder.cell(cell).await?);
    }
    let warnings = builder.warnings;
    let output = output(options);
    let named: Vec<Named<'_>> =
        built.iter().map(|built| Named { name: &built.tag, image: &built.image }).collect();
    blocking(|| layout::write(&cache, &output, &named))?;
    let push =
        if options.push { Some(push(&matrix, &registry, &cache, &built, progress).await?) } else { None };
    Ok(Report {
        images: built.iter().map(|built| built.report(&matrix)).collect(),
        refused: cells.refused.into_iter().map(refused_report).collect(),
        output: output.display().to_string(),
        warnings,
        push,
        seconds: (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
    })
}

/// Compression and disk work for seconds: the runtime moves its other tasks away from this thread.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

fn output(options: &Options) -> PathBuf {
    let beside = || options.spec.parent().unwrap_or(Path::new("")).join("dist");
    options.output.clone().unwrap_or_else(beside)
}

fn replace_sources(matrix: &mut Matrix, options: &Options) {
    if let Some(path) = &options.base {
        matrix.base = if path.is_dir() {
            spec::Base::Layout(path.clone(), None)
        } else {
            spec::Base::RootFs(path.clone())
        };
    }
    if let Some(path) = &options.spark {
        matrix.spark = SparkSource::Path(path.clone(), None);
    }
}

struct Builder<'a> {
    options: &'a Options,
    matrix: &'a Matrix,
    cache: &'a Cache,
    registry: &'a Registry,
    progress: &'a Progress,
    /// Bases and Sparks that several cells share, by their filled-in names.
    bases: HashMap<String, Base>,
    sparks: HashMap<Version, PathBuf>,
    warnings: Vec<String>,
}

/// A finished cell.
struct Built {
    cell: Cell,
    tag: String,
    image: Image,
    labels: Vec<String>,
}

impl Builder<'_> {
    async fn cell(&mut self, cell: &Cell) -> Result<Built, BuildError> {
        tracing::debug!(cell = cell.name(), "building");
        let base = self.base(cell).await?;
        let path = image::env(&base.config, "PATH");
        let found = detect::check(&base.view, cell, image::env(&base.config, "JAVA_HOME"), path)
            .map_err(|source| BuildError::Unsuitable { cell: cell.name(), source })?;
        for warning in &found.warnings {
            if !self.warnings.contains(warning) {
                self.warnings.push(warning.clone());
            }
        }
        let archive = self.spark(cell).await?;
        blocking(|| self.assemble(cell, &base, &found, &archive))
    }

    fn assemble(
        &self,
        cell: &Cell,
        base: &Base,
        found: &detect::Found,
        archive: &Path,
    ) -> Result<Built, BuildError> {
        let spark = self.lay_out(cell, archive)?;
        let mut settings = runtime::settings(cell, base, &spark, found, &self.matrix.env);
        settings.labels.extend(self.matrix.labels.clone());
        settings.created = rfc3339(self.options.epoch.unwrap_or(FIXED_TIME));
        settings.annotations = BTreeMap::from([
            ("org.opencontainers.image.base.name".to_owned(), base.name.clone()),
            ("org.opencontainers.image.base.digest".to_owned(), base.digest.to_string()),
            ("org.opencontainers.image.created".to_owned(), settings.created.clone()),
            ("org.opencontainers.image.version".to_owned(), cell.spark.to_string()),
        ]);
        let spark_tree = runtime::fit(spark.tree, &base.view)?;
        let hearth_tree = runtime::fit(runtime::files(self.cache, cell, &base.view)?, &base.view)?;
        let mut added = Vec::new();
        for (name, tree) in plan::layers(spark_tree, hearth_tree) {
            let bar = self.progress.bytes(name.label(), crate::tree::bytes(&tree));
            let layer = layer::write(self.cache, &tree, self.matrix.compression, self.options.jobs, &bar)?;
            added.push(Added { label: name.label().to_owned(), layer });
        }
        let image = image::assemble(&base.config, &base.layers, &added, &settings);
        let base_labels = base.layers.iter().map(|_| format!("base {}", base.name));
        let labels = base_labels.chain(added.iter().map(|added| added.label.clone())).collect();
        let tag = cell.fill(&self.matrix.tag).expect("the specification was checked for every cell");
        Ok(Built { cell: cell.clone(), tag, image, labels })
    }

    fn lay_out(&self, cell: &Cell, archive: &Path) -> Result<Distribution, BuildError> {
        let fail = |source| BuildError::Archive { path: archive.to_owned(), source };
        let (digest, source) =
            base::unpacked(self.cache, archive, Flavour::Source, self.progress).map_err(fail)?;
        if let SparkSource::Path(path, Some(expected)) = &self.matrix.spark
            && *expected != digest
        {
            return Err(BuildError::Pinned { path: path.clone(), found: digest, expected: *expected });
        }
        spark::lay_out(self.cache, &source, &cell.spark, cell.scala.as_ref())
            .map_err(|source| BuildError::Spark { path: archive.to_owned(), source })
    }

    async fn base(&mut self, cell: &Cell) -> Result<Base, BuildError> {
        let context = Context {
            cache: self.cache,
            progress: self.progress,
            platform: self.matrix.platform,
            jobs: self.options.jobs,
        };
        let path = |path: &Path| PathBuf::from(fill(cell, &path.to_string_lossy()));
        let key = match &self.matrix.base {
            spec::Base::RootFs(text) | spec::Base::Layout(text, _) => path(text).display().to_string(),
            spec::Base::Image(text) => fill(cell, text),
        };
        if let Some(base) = self.bases.get(&key) {
            return Ok(base.clone());
        }
        let base = match &self.matrix.base {
            spec::Base::RootFs(archive) => {
                blocking(|| base::from_archive(context, &path(archive), self.matrix.compression))?
            }
            spec::Base::Layout(directory, name) => {
                let name = name.as_ref().map(|name| fill(cell, name));
                base::from_image(context, Origin::Layout(&path(directory), name.as_deref())).await?
            }
            spec::Base::Image(_) => base::from_image(context, Origin::Registry(self.registry, &key)).await?,
        };
        self.bases.insert(key, base.clone());
        Ok(base)
    }

    /// The archive with the cell's Spark, on this disk.
    async fn spark(&mut self, cell: &Cell) -> Result<PathBuf, BuildError> {
        if let Some(path) = self.sparks.get(&cell.spark) {
            return Ok(path.clone());
        }
        let path = match &self.matrix.spark {
            SparkSource::Path(path, _) => PathBuf::from(fill(cell, &path.to_string_lossy())),
            SparkSource::Url(url, digest) => self.download(cell, &fill(cell, url), *digest).await?,
            SparkSource::PyPi(package) => {
                let bar = self.progress.step(&format!("looking for {package} {}", cell.spark));
                let located = pypi::locate(package, &cell.spark, cell.python.as_ref())
                    .await
                    .map_err(|source| BuildError::Find { version: cell.spark.clone(), source })?;
                drop(bar);
                self.download(cell, &located.url, located.digest).await?
            }
        };
        self.sparks.insert(cell.spark.clone(), path.clone());
        Ok(path)
    }

    async fn download(
        &self,
        cell: &Cell,
        url: &str,
        digest: crate::digest::Digest,
    ) -> Result<PathBuf, BuildError> {
        let fail = |source| BuildError::Download { version: cell.spark.clone(), source };
        let client = download::client().map_err(fail)?;
        let content = download::fetch(&client, self.cache, url, digest, self.progress).await.map_err(fail)?;
        Ok(self.cache.path(Shelf::Files, &content.digest))
    }
}

/// The specification has checked every template with every cell.
fn fill(cell: &Cell, template: &str) -> String {
    cell.fill(template).unwrap_or_else(|_| template.to_owned())
}

async fn push(
    matrix: &Matrix,
    registry: &Registry,
    cache: &Cache,
    built: &[Built],
    progress: &Progress,
) -> Result<PushReport, BuildError> {
    let client = download::client()
        .map_err(|source| BuildError::Download { version: built[0].cell.spark.clone(), source })?;
    let pusher = Pusher { registry, client: &client, cache, repository: &matrix.repository, progress };
    let images: Vec<(String, &Image)> = built.iter().map(|built| (built.tag.clone(), &built.image)).collect();
    let mut report = PushReport { repository: matrix.repository.to_string(), ..PushReport::default() };
    for sent in pusher.push(&images).await? {
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

impl Built {
    fn report(&self, matrix: &Matrix) -> ImageReport {
        let layers = self.image.layers.iter().zip(&self.labels).map(|(layer, label)| LayerReport {
            label: label.clone(),
            digest: layer.blob.digest,
            size: layer.blob.size,
            diff_id: layer.diff_id,
            media_type: layer.media_type.clone(),
        });
        ImageReport {
            reference: format!("{}:{}", matrix.repository, self.tag),
            cell: self.cell.name(),
            manifest: self.image.manifest.descriptor.digest,
            config: self.image.config.descriptor.digest,
            layers: layers.collect(),
        }
    }
}

fn refused_report(refused: Refused) -> RefusedReport {
    RefusedReport {
        cell: refused.cell.name(),
        impossible: refused.verdict.impossible,
        untested: refused.verdict.untested,
    }
}

/// Seconds since 1970 as `2026-11-21T10:00:00Z`. The calendar arithmetic is Howard Hinnant's
/// `civil_from_days` ("chrono-Compatible Low-Level Date Algorithms"), for days after 1970.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_registries_expect_them() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (FIXED_TIME, "1980-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_255_199, "2026-11-21T09:59:59Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), expected);
        }
    }
}
