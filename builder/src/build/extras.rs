//! What an image has beside its base and its Spark: runtimes, and the user's own files.

use std::{collections::BTreeMap, path::Path};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{BuildError, fetching::Fetch, inputs::Inputs, repair::blocking, requirements::Required};
use crate::{
    cache::Shelf,
    checksum::Checksum,
    coordinate::Coordinate,
    digest::Digest,
    fetch::download::{Remote, last_segment, redacted},
    lock::{self, Pin},
    plan::layers::LayerName,
    runtime,
    sources::{
        detect::Found,
        directory,
        maven::{self, MavenError, Repositories, resolve},
        relocate,
        wheels::{
            install::{self, Target},
            lockfile::Wheel,
        },
    },
    spec::{FileContent, FileInput, Input, Jars, Recipe, Source, SpecError, Wanted},
    tree::{Entry, ImagePath, Kind, Tree},
    version::Version,
};

/// Checksums of JARs asked for at once: small files.
const LOOKUPS: usize = 8;

impl Inputs<'_> {
    /// The Java and the Python that the specification brings along.
    pub(super) async fn runtimes(
        &mut self,
        wanted: &Wanted,
    ) -> Result<BTreeMap<LayerName, Tree>, BuildError> {
        let mut parts = BTreeMap::new();
        let Wanted { cell, recipe } = wanted;
        // An old Python has no `python3`, and a new one no `python`: the version is always there.
        let python = cell.python.as_ref().map_or("3".to_owned(), ToString::to_string);
        let python = format!("bin/python{python}");
        let runtimes: [(&Option<Input>, _, _, &[&str]); 2] = [
            (&recipe.java, LayerName::Java, runtime::JAVA, &["bin/java", "release"]),
            (&recipe.python, LayerName::Python, runtime::PYTHON, &[&python]),
        ];
        for (input, name, home, marks) in runtimes {
            let Some(input) = input else { continue };
            let place = match &input.place {
                Source::Path(path) => self.relative(path),
                Source::Url(url) => redacted(url),
            };
            let archive = self.input(&format!("{} {place}", name.word()), input).await?;
            let tree = blocking(|| {
                let unpacked = self.unpack(&archive)?;
                relocate::relocate(&unpacked, home, marks)
                    .map_err(|source| BuildError::Relocate { path: archive.path.clone(), source })
            })?;
            parts.insert(name, tree);
        }
        Ok(parts)
    }

    /// JARs by Maven coordinates with all that they need, beside those of Spark.
    pub(super) async fn jars(
        &mut self,
        version: &Version,
        jars: &Jars,
        spark: &Tree,
        spark_digest: Digest,
    ) -> Result<Tree, BuildError> {
        if jars.packages.is_empty() {
            return Ok(Tree::new());
        }
        let asked: Vec<String> = jars.packages.iter().map(ToString::to_string).collect();
        let asked = [&asked, &jars.exclude, &jars.keep_spark].map(|list| list.join(" ")).join("\n");
        let (asked, with_spark) =
            (Digest::of(asked.as_bytes()), Digest::of(format!("{asked}\n{spark_digest}").as_bytes()));
        let name = format!("jars spark {version} {}", asked.short());
        let downloader = self.downloader.clone();
        let repositories = Repositories::new(&downloader, &jars.repositories);
        let found: Vec<(String, Input)> = if let Some(parts) = self.pins.resolved(&name, with_spark)? {
            parts.into_iter().map(|(part, pin)| (part, self.pinned(&pin))).collect()
        } else {
            self.locate(repositories.as_ref().map_err(copy)?, jars, spark, &name).await?
        };
        self.pins.request(&name, with_spark, "jars");
        let remote = |(coordinate, input): &(String, Input)| match input {
            Input { place: Source::Url(url), checksum: Some(checksum) } => Some(Fetch {
                name: lock::part(&name, coordinate),
                url: url.clone(),
                checksum: *checksum,
                basic: repositories.as_ref().ok().and_then(|repositories| {
                    repositories.basic(url).map(|(user, password)| (user.to_owned(), password.to_owned()))
                }),
                of_index: false,
            }),
            _ => None,
        };
        self.fetch_all(found.iter().filter_map(remote).collect()).await?;
        let mut tree = Tree::new();
        for (coordinate, input) in found {
            let part = lock::part(&name, &coordinate);
            let archive = match &input {
                // A process that has the file needs no credentials any more.
                Input { place: Source::Url(url), checksum: Some(checksum) } => {
                    let basic = repositories.as_ref().ok().and_then(|repositories| repositories.basic(url));
                    self.download(&part, Remote { basic, ..Remote::open(url) }, *checksum, &redacted(url))
                        .await?
                }
                local => self.input(&part, local).await?,
            };
            let (content, _) = blocking(|| self.content(&archive))?;
            let coordinate: Coordinate =
                coordinate.parse().map_err(|problem| MavenError::Coordinate { part, problem })?;
            let mut place = format!("opt/spark/jars/{}", coordinate.file());
            if tree.contains_key(place.as_str()) {
                // Two groups have an artifact of this name.
                place = format!("opt/spark/jars/{}.{}", coordinate.project.group, coordinate.file());
            }
            let place = ImagePath::new(&place).map_err(|source| BuildError::Place { path: place, source })?;
            tree.insert(place, Entry::file(content, 0o644));
        }
        Ok(tree)
    }

    /// Resolves coordinates and finds every file.
    async fn locate(
        &self,
        repositories: &Repositories<'_>,
        jars: &Jars,
        spark: &Tree,
        name: &str,
    ) -> Result<Vec<(String, Input)>, BuildError> {
        let _bar = self.progress.step(&format!("resolving {name}"));
        let provided = blocking(|| maven::provided(self.cache, spark))?;
        let wanted = resolve::Wanted {
            packages: jars.packages.clone(),
            exclude: &jars.exclude,
            keep: &jars.keep_spark,
            provided: Some(&provided),
        };
        let coordinates = repositories.resolve(&wanted).await?;
        let locate = async |coordinate: Coordinate| {
            Ok::<_, MavenError>((coordinate.to_string(), repositories.locate(&coordinate).await?))
        };
        Ok(stream::iter(coordinates.into_iter().map(locate)).buffered(LOOKUPS).try_collect().await?)
    }

    /// A locked input as one that can be read.
    fn pinned(&self, pin: &Pin) -> Input {
        let place = if pin.origin.contains("://") {
            Source::Url(pin.origin.clone())
        } else {
            Source::Path(self.options.spec.parent().unwrap_or(Path::new("")).join(&pin.origin))
        };
        Input { place, checksum: Some(Checksum::Sha256(pin.digest)) }
    }

    /// The Python packages, laid out for the image's Python.
    pub(super) async fn wheels(&mut self, wanted: &Wanted, found: &Found) -> Result<Tree, BuildError> {
        let Some(required) = self.required(wanted, found)? else { return Ok(Tree::new()) };
        let Required { name, shown, directory, program, request, .. } = &required;
        let locked = self.pins.resolved(name, request.digest())?;
        let files: Vec<(String, Input)> = if let Some(parts) = locked {
            parts.into_iter().map(|(file, pin)| (file, self.pinned(&pin))).collect()
        } else {
            let resolved = self.resolved.get(name).into_iter().flatten().cloned();
            let input = |Wheel { place, digest, .. }| Input {
                place: if place.contains("://") {
                    Source::Url(place)
                } else {
                    Source::Path(directory.join(place))
                },
                checksum: Some(Checksum::Sha256(digest)),
            };
            resolved.map(|wheel| (wheel.file.clone(), input(wheel))).collect()
        };
        self.pins.request(name, request.digest(), shown);
        let target = Target { directory: runtime::WHEELS, python: program.clone() };
        let remote = files.iter().filter_map(|(file, input)| match input {
            Input { place: Source::Url(url), checksum: Some(checksum) } => Some(Fetch {
                name: lock::part(name, file),
                url: url.clone(),
                checksum: *checksum,
                basic: None,
                of_index: true,
            }),
            _ => None,
        });
        self.fetch_all(remote.collect()).await?;
        let mut tree = Tree::new();
        for (file, input) in files {
            let part = lock::part(name, &file);
            let archive = match &input {
                Input { place: Source::Url(url), checksum: Some(checksum) } => {
                    self.download(&part, Remote::of_index(url), *checksum, url).await?
                }
                local => self.input(&part, local).await?,
            };
            let installed = blocking(|| {
                let unpacked = self.unpack(&archive)?;
                install::install(self.cache, &unpacked, &target)
                    .map_err(|source| BuildError::Install { file: file.clone(), source })
            })?;
            for (path, entry) in installed {
                if tree.get(&path).is_some_and(|other| *other != entry) {
                    self.warn(&format!("`{path}` is in several Python packages: that of `{file}` is taken"));
                }
                tree.insert(path, entry);
            }
        }
        Ok(tree)
    }

    /// The files that the specification adds, in its order. A file may replace one that came with a directory; two
    /// entries for one file contradict each other.
    pub(super) async fn files(&mut self, recipe: &Recipe) -> Result<Tree, BuildError> {
        let mut tree = Tree::new();
        let mut single: BTreeMap<ImagePath, &FileInput> = BTreeMap::new();
        for file in &recipe.files {
            let (to, entry) = match &file.content {
                FileContent::Text(text) => {
                    let content = self.cache.put(Shelf::Files, &mut text.as_bytes())?;
                    (file.to.clone(), own(file, Entry::file(content, 0o644)))
                }
                FileContent::Directory => (file.to.clone(), own(file, Entry::directory(0o755))),
                FileContent::Input(Input { place: Source::Path(path), .. }) if path.is_dir() => {
                    self.directory(file, path, &mut tree)?;
                    continue;
                }
                FileContent::Input(input) => (target(file, input)?, self.file(file, input).await?),
            };
            if let Some(other) = single.insert(to.clone(), file)
                && (&other.content, other.mode, other.owner) != (&file.content, file.mode, file.owner)
            {
                let problem = format!("`files`: `{to}` contradicts the entry at {}", other.at);
                return Err(SpecError::Wrong { at: file.at.clone(), problem }.into());
            }
            tree.insert(to, entry);
        }
        Ok(tree)
    }

    /// Adds what is in a directory.
    fn directory(&mut self, file: &FileInput, path: &Path, tree: &mut Tree) -> Result<(), BuildError> {
        let read = blocking(|| directory::read(self.cache, path))
            .map_err(|source| BuildError::Directory { path: path.to_owned(), source })?;
        let name = self.relative(path);
        self.pins.used(&format!("files {name}"), directory::digest(&read), &name)?;
        for (below, entry) in read {
            let place = ImagePath::new(&format!("{}/{below}", file.to.as_str()))
                .map_err(|source| BuildError::Place { path: below.clone(), source })?;
            tree.insert(place, own(file, entry));
        }
        Ok(())
    }

    async fn file(&mut self, file: &FileInput, input: &Input) -> Result<Entry, BuildError> {
        let name = match &input.place {
            Source::Path(path) => format!("file {}", self.relative(path)),
            Source::Url(url) => format!("file {}", redacted(url)),
        };
        let archive = self.input(&name, input).await?;
        blocking(|| {
            let (content, executable) = self.content(&archive)?;
            // What comes from a server has no permission bits.
            let executable = executable && matches!(input.place, Source::Path(_));
            Ok(own(file, Entry::file(content, if executable { 0o755 } else { 0o644 })))
        })
    }
}

/// The credentials are read once, and their lack matters only when they are needed.
fn copy(error: &MavenError) -> BuildError {
    match error {
        MavenError::Variable(name) => MavenError::Variable(name.clone()).into(),
        other => MavenError::Resolve(other.to_string()).into(),
    }
}

/// Where a single file goes: a directory takes it under its own name.
fn target(file: &FileInput, input: &Input) -> Result<ImagePath, BuildError> {
    if !file.into {
        return Ok(file.to.clone());
    }
    let name = match &input.place {
        Source::Path(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        Source::Url(url) => last_segment(url),
    };
    file.to.join(&name).map_err(|source| BuildError::Place { path: format!("{}/{name}", file.to), source })
}

/// Mode and owner as the specification has them. A mode is for files; directories can be entered where it reads.
fn own(file: &FileInput, entry: Entry) -> Entry {
    let mode = match (file.mode, &entry.kind) {
        (Some(mode), Kind::Directory) => mode | (mode & 0o444) >> 2,
        (Some(mode), Kind::File { .. }) => mode,
        _ => entry.mode,
    };
    let (uid, gid) = file.owner;
    Entry { mode, uid, gid, ..entry }
}
