//! Everything that an image is made of, brought into the cache and checked: the part of a build that reads.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use super::{BuildError, Options, blocking};
use crate::{
    cache::{Cache, Content, Shelf},
    digest::Digest,
    image,
    lock::Pins,
    plan::{Cell, layers::Files},
    progress::Progress,
    registry::Registry,
    runtime,
    sources::{
        archive::Flavour,
        base::{self, Base, Context, Origin},
        detect::{self, Found},
        download, pypi,
        spark::{self, Distribution},
    },
    spec::{self, Matrix, SparkSource},
    tree::FIXED_TIME,
    version::Version,
};

/// A cell with all its inputs, before any of its own layers is written.
#[derive(Debug)]
pub struct Prepared {
    /// The cell.
    pub cell: Cell,
    /// Its tag.
    pub tag: String,
    /// Its base.
    pub base: Base,
    /// The files that it adds to the base.
    pub files: Files,
    /// Its environment, labels and annotations.
    pub settings: image::Settings,
}

/// Reads inputs; what several cells share is read once.
#[derive(Debug)]
pub struct Inputs<'a> {
    options: &'a Options,
    matrix: &'a Matrix,
    cache: &'a Cache,
    registry: &'a Registry,
    progress: &'a Progress,
    bases: HashMap<String, Base>,
    sparks: HashMap<Version, Archive>,
    /// What was used, held against the lock.
    pub pins: Pins,
    /// What the user should know about the inputs.
    pub warnings: Vec<String>,
}

/// A Spark archive on this disk, with its digest when that was checked on the way here.
#[derive(Debug, Clone)]
struct Archive {
    path: PathBuf,
    name: String,
    digest: Option<Digest>,
}

impl<'a> Inputs<'a> {
    /// Nothing is read yet.
    pub fn new(
        options: &'a Options,
        matrix: &'a Matrix,
        cache: &'a Cache,
        registry: &'a Registry,
        progress: &'a Progress,
        pins: Pins,
    ) -> Self {
        let (bases, sparks) = (HashMap::new(), HashMap::new());
        Self { options, matrix, cache, registry, progress, bases, sparks, pins, warnings: Vec::new() }
    }

    /// Reads everything that a cell needs.
    pub async fn prepare(&mut self, cell: &Cell) -> Result<Prepared, BuildError> {
        tracing::debug!(cell = cell.name(), "reading inputs");
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
        blocking(|| self.assemble(cell, base, &found, &archive))
    }

    fn assemble(
        &mut self,
        cell: &Cell,
        base: Base,
        found: &Found,
        archive: &Archive,
    ) -> Result<Prepared, BuildError> {
        let spark = self.lay_out(cell, archive)?;
        let mut settings = runtime::settings(cell, &base, &spark, found, &self.matrix.env);
        settings.labels.extend(self.matrix.labels.clone());
        settings.created = rfc3339(self.options.epoch.unwrap_or(FIXED_TIME));
        settings.annotations = BTreeMap::from([
            ("org.opencontainers.image.base.name".to_owned(), base.name.clone()),
            ("org.opencontainers.image.base.digest".to_owned(), base.digest.to_string()),
            ("org.opencontainers.image.created".to_owned(), settings.created.clone()),
            ("org.opencontainers.image.version".to_owned(), cell.spark.to_string()),
        ]);
        let spark = runtime::fit(spark.tree, &base.view)?;
        let hearth = runtime::fit(runtime::files(self.cache, cell, &base.view)?, &base.view)?;
        let files = Files::new(base.layers.len(), spark, hearth);
        let tag = cell.fill(&self.matrix.tag).expect("the specification was checked for every cell");
        Ok(Prepared { cell: cell.clone(), tag, base, files, settings })
    }

    fn lay_out(&mut self, cell: &Cell, archive: &Archive) -> Result<Distribution, BuildError> {
        let fail = |source| BuildError::Archive { path: archive.path.clone(), source };
        let (cache, progress) = (self.cache, self.progress);
        let source = if let Some(digest) = archive.digest {
            let (path, name) = (&archive.path, &archive.name);
            base::unpack_known(cache, path, name, digest, Flavour::Source, progress).map_err(fail)?
        } else {
            let (digest, tree) =
                base::unpacked(cache, &archive.path, Flavour::Source, progress).map_err(fail)?;
            if let SparkSource::Path(path, Some(expected)) = &self.matrix.spark
                && *expected != digest
            {
                return Err(BuildError::Pinned { path: path.clone(), found: digest, expected: *expected });
            }
            // A file that the command line puts in the place of the specification's is not what was locked.
            if self.options.spark.is_none() {
                self.pins.used(&spark_name(cell), digest, &self.relative(&archive.path))?;
            }
            tree
        };
        spark::lay_out(cache, &source, &cell.spark, cell.scala.as_ref())
            .map_err(|source| BuildError::Spark { path: archive.path.clone(), source })
    }

    /// A path as the lock names it: the same wherever the specification lies.
    fn relative(&self, path: &Path) -> String {
        let directory = self.options.spec.parent().unwrap_or(Path::new(""));
        path.strip_prefix(directory).unwrap_or(path).display().to_string()
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
            spec::Base::RootFs(text) | spec::Base::Layout(text, None) => path(text).display().to_string(),
            spec::Base::Layout(text, Some(name)) => format!("{} {}", path(text).display(), fill(cell, name)),
            spec::Base::Image(text) => fill(cell, text),
        };
        if let Some(base) = self.bases.get(&key) {
            return Ok(base.clone());
        }
        let origin = self.relative(Path::new(&key));
        let name = format!("base {origin}");
        let mut base = match &self.matrix.base {
            spec::Base::RootFs(archive) => {
                blocking(|| base::from_archive(context, &path(archive), self.matrix.compression))?
            }
            spec::Base::Layout(directory, name) => {
                let name = name.as_ref().map(|name| fill(cell, name));
                base::from_image(context, Origin::Layout(&path(directory), name.as_deref())).await?
            }
            spec::Base::Image(_) => {
                // A tag may have moved since: the locked manifest is asked for by its digest.
                let reference = match self.pins.get(&name)? {
                    Some(pin) => base::pinned(&key, pin.digest),
                    None => key.clone(),
                };
                base::from_image(context, Origin::Registry(self.registry, &reference)).await?
            }
        };
        if matches!(self.matrix.base, spec::Base::Image(_)) {
            base.name.clone_from(&key);
        }
        if self.options.base.is_none() {
            self.pins.used(&name, base.digest, &origin)?;
        }
        self.bases.insert(key, base.clone());
        Ok(base)
    }

    /// The archive with the cell's Spark, on this disk.
    async fn spark(&mut self, cell: &Cell) -> Result<Archive, BuildError> {
        if let Some(archive) = self.sparks.get(&cell.spark) {
            return Ok(archive.clone());
        }
        let archive = match &self.matrix.spark {
            SparkSource::Path(path, _) => {
                let path = PathBuf::from(fill(cell, &path.to_string_lossy()));
                Archive { name: path.display().to_string(), path, digest: None }
            }
            SparkSource::Url(url, digest) => self.download(cell, &fill(cell, url), *digest).await?,
            SparkSource::PyPi(package) => {
                if let Some(pin) = self.pins.get(&spark_name(cell))? {
                    let archive = self.download(cell, &pin.origin, pin.digest).await?;
                    self.sparks.insert(cell.spark.clone(), archive.clone());
                    return Ok(archive);
                }
                let bar = self.progress.step(&format!("looking for {package} {}", cell.spark));
                let located = pypi::locate(package, &cell.spark, cell.python.as_ref())
                    .await
                    .map_err(|source| BuildError::Find { version: cell.spark.clone(), source })?;
                drop(bar);
                self.download(cell, &located.url, located.digest).await?
            }
        };
        self.sparks.insert(cell.spark.clone(), archive.clone());
        Ok(archive)
    }

    async fn download(&mut self, cell: &Cell, url: &str, digest: Digest) -> Result<Archive, BuildError> {
        let fail = |source| BuildError::Download { version: cell.spark.clone(), source };
        let client = download::client().map_err(fail)?;
        let content: Content =
            download::fetch(&client, self.cache, url, digest, self.progress).await.map_err(fail)?;
        // The index's URLs hold no secrets; one that the user wrote may, and the specification has it anyway.
        let from_index = matches!(self.matrix.spark, SparkSource::PyPi(_));
        let origin = if from_index { url.to_owned() } else { download::redacted(url) };
        self.pins.used(&spark_name(cell), digest, &origin)?;
        let path = self.cache.path(Shelf::Files, &content.digest);
        Ok(Archive { path, name: download::last_segment(url), digest: Some(digest) })
    }
}

/// How a Spark is called in the lock.
fn spark_name(cell: &Cell) -> String {
    format!("spark {}", cell.spark)
}

/// The specification has checked every template with every cell.
fn fill(cell: &Cell, template: &str) -> String {
    cell.fill(template).unwrap_or_else(|_| template.to_owned())
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
