//! Everything that an image is made of, brought into the cache and checked: the part of a build that reads.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use super::{BuildError, Options, prepared::Prepared, repair::blocking};
use crate::{
    cache::{Cache, Content, Shelf},
    checksum::Checksum,
    date,
    digest::Digest,
    fetch::download::{self, Downloader, Remote},
    image,
    lock::pins::Pins,
    matrix::Cell,
    plain,
    plan::layers::{Files, LayerName},
    progress::Progress,
    registry::Registry,
    runtime,
    sources::{
        archive::Flavour,
        base::{self, Base, Context, Origin},
        detect::{self, Found},
        directory, pypi,
        spark::{self, Distribution},
        wheels::lockfile::Wheel,
        zip,
    },
    spec::{self, Input, Matrix, Source, SparkSource, Wanted},
    tree::{FIXED_TIME, Tree},
    version::Version,
};

/// A cell whose base and runtimes are known: enough to choose its Python packages.
#[derive(Debug)]
pub struct Outline {
    wanted: Wanted,
    base: Base,
    parts: BTreeMap<LayerName, Tree>,
    pub(super) found: Found,
    inputs: BTreeSet<String>,
}

impl Outline {
    /// The cell and what was asked for.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }
}

/// Reads inputs; what several cells share is read once.
#[derive(Debug)]
pub struct Inputs<'a> {
    pub(super) options: &'a Options,
    pub(super) matrix: &'a Matrix,
    pub(super) cache: &'a Cache,
    pub(super) registry: &'a Registry,
    pub(super) progress: &'a Progress,
    pub(super) downloader: Downloader<'a>,
    bases: HashMap<String, Base>,
    archives: HashMap<String, Archive>,
    /// Sparks that were looked up, by their names in a lock.
    pub(super) located: HashMap<String, pypi::Located>,
    /// Python packages that were resolved, by the name of their request in a lock.
    pub(super) resolved: HashMap<String, Vec<Wheel>>,
    /// What was used, held against the lock.
    pub pins: Pins,
    /// What the user should know about the inputs.
    pub warnings: Vec<String>,
}

/// A file on this disk that was checked.
#[derive(Debug, Clone)]
pub(super) struct Archive {
    pub(super) path: PathBuf,
    /// What it is called.
    pub(super) name: String,
    pub(super) digest: Digest,
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
    ) -> Result<Self, BuildError> {
        let downloader = Downloader::new(cache, progress, options.offline)
            .map_err(|source| BuildError::Input { name: "anything".to_owned(), source })?;
        Ok(Self {
            options,
            matrix,
            cache,
            registry,
            progress,
            downloader,
            bases: HashMap::new(),
            archives: HashMap::new(),
            located: HashMap::new(),
            resolved: HashMap::new(),
            pins,
            warnings: Vec::new(),
        })
    }

    /// Reads what a cell stands on.
    pub async fn outline(&mut self, wanted: &Wanted) -> Result<Outline, BuildError> {
        tracing::debug!(cell = wanted.cell.name(), "reading base and runtimes");
        self.pins.touched.clear();
        let base = self.base(wanted).await?;
        let parts = self.runtimes(wanted).await?;
        let found = self.detect(wanted, &base, &parts)?;
        let inputs = std::mem::take(&mut self.pins.touched);
        Ok(Outline { wanted: wanted.clone(), base, parts, found, inputs })
    }

    /// Reads everything else that a cell needs.
    pub async fn prepare(&mut self, outline: Outline) -> Result<Prepared, BuildError> {
        let Outline { wanted, base, mut parts, found, inputs } = outline;
        let (cell, recipe) = (&wanted.cell, &wanted.recipe);
        tracing::debug!(cell = cell.name(), "reading inputs");
        self.pins.touched = inputs;
        let mut settings = match wanted.spark() {
            None => plain::settings(cell, &base, &found, recipe),
            Some((version, source)) => {
                let (distribution, digest) = self.distribution(cell, version, source).await?;
                let settings = runtime::settings(cell, &base, &distribution, &found, recipe);
                let jars = self.jars(version, &recipe.jars, &distribution.tree, digest).await?;
                parts.insert(LayerName::Jars, jars);
                for (path, entry) in distribution.tree {
                    parts.entry(LayerName::of_spark(&path)).or_default().insert(path, entry);
                }
                let own = blocking(|| runtime::files(self.cache, version, &base.view))?;
                parts.insert(LayerName::Hearth, own);
                settings
            }
        };
        self.annotate(&mut settings, &wanted, &base);
        parts.insert(LayerName::Wheels, self.wheels(&wanted, &found).await?);
        parts.insert(LayerName::Bytecode, self.bytecode(&wanted, &base, &found, &parts)?);
        parts.insert(LayerName::Files, self.files(recipe).await?);
        parts.insert(LayerName::ClassData, self.class_data(&wanted, &base, &found, &parts, &settings.env)?);
        let files = blocking(|| {
            let parts = runtime::arrange(parts)?;
            let fitted = parts.into_iter().map(|(name, tree)| Ok((name, runtime::fit(tree, &base.view)?)));
            let fitted: BTreeMap<LayerName, Tree> = fitted.collect::<Result<_, BuildError>>()?;
            if cell.spark.is_none() {
                plain::check_start(self.cache, cell, &base, &fitted, recipe)
                    .map_err(|source| BuildError::Start { cell: cell.name(), source })?;
            }
            Ok::<_, BuildError>(Files { base_layers: base.layer_count(), parts: fitted })
        })?;
        let inputs = std::mem::take(&mut self.pins.touched);
        Ok(Prepared { wanted, base, files, settings, inputs })
    }

    /// What the base and the runtimes beside it have.
    fn detect(
        &mut self,
        wanted: &Wanted,
        base: &Base,
        parts: &BTreeMap<LayerName, Tree>,
    ) -> Result<Found, BuildError> {
        let mut view = base.view.clone();
        for tree in parts.values() {
            for (path, node) in crate::sources::view::View::of_tree(self.cache, tree)?.nodes() {
                view.put(path, node.clone());
            }
        }
        let java_home = match &wanted.recipe.java {
            Some(_) => Some(format!("/{}", runtime::JAVA)),
            None => image::env(&base.config, "JAVA_HOME").map(str::to_owned),
        };
        let path = runtime::search_path(base, &wanted.recipe);
        let found = detect::check(&view, &wanted.cell, java_home.as_deref(), Some(&path))
            .map_err(|source| BuildError::Unsuitable { cell: wanted.cell.name(), source })?;
        for warning in &found.warnings {
            self.warn(warning);
        }
        Ok(found)
    }

    pub(super) fn warn(&mut self, warning: &str) {
        if !self.warnings.iter().any(|known| known == warning) {
            self.warnings.push(warning.to_owned());
        }
    }

    fn annotate(&self, settings: &mut image::Settings, wanted: &Wanted, base: &Base) {
        settings.labels.extend(wanted.recipe.labels.clone());
        settings.created = date::rfc3339(self.options.epoch.unwrap_or(FIXED_TIME));
        let version = wanted.cell.spark.as_ref().map(Version::to_string);
        let based = !matches!(wanted.recipe.base, spec::Base::Scratch);
        let annotations = [
            ("base.name", Some(base.name.clone()).filter(|_| based)),
            ("base.digest", Some(base.digest.to_string()).filter(|_| based)),
            ("created", Some(settings.created.clone())),
            ("version", version.or_else(|| settings.labels.get("org.opencontainers.image.version").cloned())),
        ];
        settings.annotations = annotations
            .into_iter()
            .filter_map(|(name, value)| Some((format!("org.opencontainers.image.{name}"), value?)))
            .collect();
    }

    /// The files of a Spark and the digest of the archive that has them.
    async fn distribution(
        &mut self,
        cell: &Cell,
        version: &Version,
        source: &SparkSource,
    ) -> Result<(Distribution, Digest), BuildError> {
        let archive = self.spark(cell, version, source).await?;
        blocking(|| {
            let source = self.unpack(&archive)?;
            let laid_out = spark::lay_out(self.cache, &source, version, cell.scala.as_ref())
                .map_err(|source| BuildError::Spark { path: archive.path.clone(), source })?;
            Ok((laid_out, archive.digest))
        })
    }

    /// Reads an archive of a project's files.
    pub(super) fn unpack(&self, archive: &Archive) -> Result<Tree, BuildError> {
        let Archive { path, name, digest } = archive;
        if zip::is_zip(path) {
            return zip::unpack(self.cache, path, *digest)
                .map_err(|source| BuildError::Zip { path: path.clone(), source });
        }
        base::unpack_known(self.cache, path, name, *digest, Flavour::Source, self.progress)
            .map_err(|source| BuildError::Archive { path: path.clone(), source })
    }

    /// A checked file as content of an image, and whether its owner may execute it.
    pub(super) fn content(&self, archive: &Archive) -> Result<(Content, bool), BuildError> {
        let Archive { path, digest, .. } = archive;
        self.cache.verify_archive(path, *digest)?;
        let (content, executable) = directory::file(self.cache, path)
            .map_err(|source| BuildError::Directory { path: path.clone(), source })?;
        if content.digest == *digest {
            return Ok((content, executable));
        }
        let (found, expected) = (content.digest.to_string(), digest.to_string());
        Err(BuildError::Pinned { path: path.clone(), found, expected })
    }

    /// A path as the lock names it: the same wherever the specification lies.
    pub(super) fn relative(&self, path: &Path) -> String {
        let directory = self.options.spec.parent().unwrap_or(Path::new(""));
        path.strip_prefix(directory).unwrap_or(path).display().to_string()
    }

    async fn base(&mut self, wanted: &Wanted) -> Result<Base, BuildError> {
        let platform = wanted.cell.platform;
        let (cache, progress) = (self.cache, self.progress);
        let context = Context { cache, progress, platform, offline: self.options.offline };
        let key = match &wanted.recipe.base {
            // There is nothing to read, and nothing to lock.
            spec::Base::Scratch => return Ok(base::scratch(platform)),
            spec::Base::RootFs(path) | spec::Base::Layout(path, None) => path.display().to_string(),
            spec::Base::Layout(path, Some(name)) => format!("{} {name}", path.display()),
            spec::Base::Image(name) => name.clone(),
        };
        let origin = self.relative(Path::new(&key));
        // One name stands for another image on each platform, and a file for the same one.
        let several = self.matrix.wanted.iter().any(|other| other.cell.platform != platform);
        let of_platform = several && !matches!(wanted.recipe.base, spec::Base::RootFs(_));
        let name = if of_platform { format!("base {origin} {platform}") } else { format!("base {origin}") };
        let known = format!("{platform} {key}");
        self.pins.touched.insert(name.clone());
        if let Some(base) = self.bases.get(&known) {
            return Ok(base.clone());
        }
        let mut base = match &wanted.recipe.base {
            spec::Base::RootFs(archive) => {
                blocking(|| base::from_archive(context, archive, self.matrix.compression))?
            }
            spec::Base::Layout(directory, name) => {
                base::from_image(context, Origin::Layout(directory, name.as_deref())).await?
            }
            spec::Base::Scratch => base::scratch(platform),
            spec::Base::Image(_) => {
                // A tag may have moved since: the locked manifest is asked for by its digest.
                let reference = match self.pins.get(&name)? {
                    Some(pin) => base::pinned(&key, pin.digest),
                    None => key.clone(),
                };
                base::from_image(context, Origin::Registry(self.registry, &reference)).await?
            }
        };
        if matches!(wanted.recipe.base, spec::Base::Image(_)) {
            base.name.clone_from(&key);
        }
        if self.options.base.is_none() {
            self.pins.used(&name, base.digest, &origin)?;
        }
        self.bases.insert(known, base.clone());
        Ok(base)
    }

    /// The archive with the cell's Spark, on this disk.
    async fn spark(
        &mut self,
        cell: &Cell,
        version: &Version,
        source: &SparkSource,
    ) -> Result<Archive, BuildError> {
        let name = match (source, &cell.scala) {
            // Releases are built for one Scala each; the package exists once.
            (SparkSource::Archive(_), Some(scala)) => format!("spark {version} scala {scala}"),
            _ => format!("spark {version}"),
        };
        let package = match source {
            // A file that the command line puts in the place of the specification's is not what was locked.
            SparkSource::Archive(input) if self.options.spark.is_some() => {
                return self.local(input, &name);
            }
            SparkSource::Archive(input) => return self.input(&name, input).await,
            SparkSource::PyPi(package) => package,
        };
        self.pins.touched.insert(name.clone());
        if let Some(archive) = self.archives.get(&name) {
            return Ok(archive.clone());
        }
        let (url, digest) = if let Some(pin) = self.pins.get(&name)? {
            (pin.origin, pin.digest)
        } else if let Some(located) = self.located.get(&name) {
            (located.url.clone(), located.digest)
        } else {
            let _bar = self.progress.step(&format!("looking for {package} {version}"));
            let located = pypi::locate(package, version, cell.python.as_ref(), self.options.offline)
                .await
                .map_err(|source| BuildError::Find { version: version.clone(), source })?;
            (located.url, located.digest)
        };
        // The index's URLs hold no secrets.
        self.download(&name, Remote::of_index(&url), Checksum::Sha256(digest), &url).await
    }

    /// A file that the specification names, checked and noted for the lock.
    pub(super) async fn input(&mut self, name: &str, input: &Input) -> Result<Archive, BuildError> {
        self.pins.touched.insert(name.to_owned());
        if let Some(archive) = self.archives.get(name) {
            return Ok(archive.clone());
        }
        match &input.place {
            Source::Path(path) => {
                let archive = self.local(input, name)?;
                self.pins.used(name, archive.digest, &self.relative(path))?;
                Ok(archive)
            }
            Source::Url(url) => {
                let locked = self.pins.get(name)?.map(|pin| Checksum::Sha256(pin.digest));
                let checksum =
                    locked.or(input.checksum).ok_or_else(|| BuildError::NoChecksum(url.clone()))?;
                // A URL that the user wrote may hold secrets, and the specification has it anyway.
                self.download(name, Remote::open(url), checksum, &download::redacted(url)).await
            }
        }
    }

    fn local(&mut self, input: &Input, name: &str) -> Result<Archive, BuildError> {
        let Source::Path(path) = &input.place else { return Err(BuildError::NoChecksum(name.to_owned())) };
        let fail = |source| BuildError::Archive { path: path.clone(), source };
        let (digest, result) =
            blocking(|| base::checked(path, input.checksum, self.progress)).map_err(fail)?;
        if let (Err(found), Some(expected)) = (result, input.checksum) {
            let (found, expected) = (found.to_string(), expected.to_string());
            return Err(BuildError::Pinned { path: path.clone(), found, expected });
        }
        let archive = Archive { path: path.clone(), name: path.display().to_string(), digest };
        self.archives.insert(name.to_owned(), archive.clone());
        Ok(archive)
    }

    pub(super) async fn download(
        &mut self,
        name: &str,
        remote: Remote<'_>,
        checksum: Checksum,
        origin: &str,
    ) -> Result<Archive, BuildError> {
        let content = self
            .downloader
            .fetch(remote, checksum)
            .await
            .map_err(|source| BuildError::Input { name: name.to_owned(), source })?;
        self.pins.used(name, content.digest, origin)?;
        let path = self.cache.path(Shelf::Files, &content.digest);
        let archive = Archive { path, name: download::last_segment(remote.url), digest: content.digest };
        self.archives.insert(name.to_owned(), archive.clone());
        Ok(archive)
    }
}
