//! The recipe of one cell: its overlays merged, placeholders filled, every value checked.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    Base, FileContent, FileInput, Input, Jars, Matrix, MavenRepository, Recipe, Source, SparkSource,
    SpecError, Wanted, Wheels,
    check::Check,
    keys::{ArchiveKeys, At, BaseKeys, Document, FileKeys, JarsKeys, Overlay, RepositoryKeys, WheelsKeys},
};
use crate::{
    checksum::Checksum,
    image,
    plan::Cell,
    sources::{maven::coordinate::Coordinate, objects},
    tree::ImagePath,
};

/// Everything that the overlays of a cell say.
pub(super) struct Merged(Overlay);

impl Merged {
    /// Single values are replaced by later overlays, maps are merged by name, lists grow.
    pub(super) fn of<'a>(overlays: impl Iterator<Item = &'a Overlay>) -> Self {
        let mut merged = Overlay::default();
        for overlay in overlays.cloned() {
            merged.tags.extend(overlay.tags);
            merged.base = overlay.base.or(merged.base);
            merged.env.extend(overlay.env);
            merged.labels.extend(overlay.labels);
            merged.files.extend(overlay.files);
            merged.wheels = overlay.wheels.or(merged.wheels);
            merged.user = overlay.user.or(merged.user);
            merged.entrypoint = overlay.entrypoint.or(merged.entrypoint);
            merged.command = overlay.command.or(merged.command);
            merged.working_directory = overlay.working_directory.or(merged.working_directory);
            if let Some(sources) = overlay.sources {
                let known = merged.sources.get_or_insert_default();
                known.spark = sources.spark.or(known.spark.take());
                known.java = sources.java.or(known.java.take());
                known.python = sources.python.or(known.python.take());
            }
            if let Some(jars) = overlay.jars {
                let known = merged.jars.get_or_insert_default();
                known.repositories.extend(jars.repositories);
                known.packages.extend(jars.packages);
                known.exclude.extend(jars.exclude);
                known.keep_spark.extend(jars.keep_spark);
            }
        }
        Self(merged)
    }
}

/// The digest algorithms of the `sha256` and `sha512` keys beside a file.
type Sums<'a> = (&'a Option<At<String>>, &'a Option<At<String>>);

impl Check<'_> {
    pub(super) fn recipe(
        &self,
        document: &Document,
        merged: &Merged,
        cell: &Cell,
    ) -> Result<Recipe, SpecError> {
        let Merged(overlay) = merged;
        let sources = overlay.sources.clone().unwrap_or_default();
        let missing = |key: &str| {
            let problem = format!("the key `{key}` is missing for {}", cell.name());
            self.wrong(document.axes.at(), &problem)
        };
        let base = overlay.base.as_ref().ok_or_else(|| missing("base"))?;
        let spark = sources.spark.as_ref().ok_or_else(|| missing("sources.spark"))?;
        let archive = |key: &str, keys: &Option<At<ArchiveKeys>>| {
            keys.as_ref().map(|keys| self.archive(key, keys, cell)).transpose()
        };
        self.env(document, &overlay.env)?;
        Ok(Recipe {
            tags: self.tags(document, overlay, cell)?,
            base: self.base(base, cell)?,
            spark: self.spark(spark, cell)?,
            java: archive("sources.java", &sources.java)?,
            python: archive("sources.python", &sources.python)?,
            env: overlay.env.clone(),
            labels: overlay.labels.clone(),
            files: overlay.files.iter().map(|keys| self.file(keys, cell)).collect::<Result<_, _>>()?,
            jars: self.jars(overlay.jars.as_ref(), cell)?,
            wheels: overlay.wheels.as_ref().map(|keys| self.wheels(keys, cell)).transpose()?,
            user: overlay.user.as_ref().map(|user| user.value().clone()),
            entrypoint: overlay.entrypoint.clone(),
            command: overlay.command.clone(),
            working_directory: overlay.working_directory.as_ref().map(|text| text.value().clone()),
        })
    }

    fn fill(&self, key: &str, text: &At<String>, cell: &Cell) -> Result<String, SpecError> {
        cell.fill(text.value()).map_err(|why| self.wrong(text.at(), &format!("`{key}`: {why}")))
    }

    fn tags(&self, document: &Document, overlay: &Overlay, cell: &Cell) -> Result<Vec<String>, SpecError> {
        let mut tags = Vec::new();
        for text in std::iter::once(&document.tag).chain(&overlay.tags) {
            let tag = self.fill("tag", text, cell)?;
            if !image::is_tag(&tag) {
                let problem = format!(
                    "`tag`: `{tag}` is no tag: letters, digits, `_`, `.` and `-`, at most 128, not starting with `.` or `-`"
                );
                return Err(self.wrong(text.at(), &problem));
            }
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        Ok(tags)
    }

    /// Only cells that differ in nothing but the platform may share a tag.
    pub(super) fn unique_tags(&self, document: &Document, wanted: &[Wanted]) -> Result<(), SpecError> {
        let mut seen: BTreeMap<&str, &Wanted> = BTreeMap::new();
        for one in wanted {
            for tag in &one.recipe.tags {
                let Some(other) = seen.insert(tag, one) else { continue };
                let same = Cell { platform: other.cell.platform, ..one.cell.clone() } == other.cell;
                if !same || one.cell.platform == other.cell.platform {
                    let problem = format!(
                        "`tag`: several cells would be called `{tag}` ({}; {}): name every axis with several values, such as `{{java}}`",
                        other.cell.name(),
                        one.cell.name()
                    );
                    return Err(self.wrong(document.tag.at(), &problem));
                }
            }
        }
        Ok(())
    }

    /// A checksum that stands beside a name with placeholders fits one of the files only.
    pub(super) fn one_checksum_per_file(
        &self,
        wanted: &[Wanted],
        document: &Document,
    ) -> Result<(), SpecError> {
        let mut places: HashMap<Checksum, (&Source, &Cell)> = HashMap::new();
        for Wanted { cell, recipe } in wanted {
            let SparkSource::Archive(Input { place, checksum: Some(checksum) }) = &recipe.spark else {
                continue;
            };
            match places.insert(*checksum, (place, cell)) {
                Some((other, before)) if other != place || before.spark != cell.spark => {
                    let problem = format!(
                        "`sources.spark`: a checksum fits one Spark version, but it is given for {} and {}: use `lines`",
                        before.spark, cell.spark
                    );
                    return Err(self.wrong(document.axes.at(), &problem));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn base(&self, keys: &At<BaseKeys>, cell: &Cell) -> Result<Base, SpecError> {
        let BaseKeys { rootfs, layout, image, r#ref } = keys.value();
        let fill = |text: &At<String>| self.fill("base", text, cell);
        if let (Some(text), None) = (r#ref, layout) {
            return Err(self.wrong(text.at(), "`base.ref` goes with `base.layout` only"));
        }
        match (rootfs, layout, image) {
            (Some(path), None, None) => Ok(Base::RootFs(self.directory.join(fill(path)?))),
            (None, Some(path), None) => {
                let name = r#ref.as_ref().map(fill).transpose()?;
                Ok(Base::Layout(self.directory.join(fill(path)?), name))
            }
            (None, None, Some(text)) => {
                let name = fill(text)?;
                crate::registry::check_reference(&name)
                    .map_err(|error| self.wrong(text.at(), &format!("`base.image`: {error}")))?;
                Ok(Base::Image(name))
            }
            _ => Err(self.wrong(keys.at(), "`base` needs exactly one of `rootfs`, `layout` and `image`")),
        }
    }

    fn spark(&self, keys: &At<ArchiveKeys>, cell: &Cell) -> Result<SparkSource, SpecError> {
        let Some(package) = &keys.value().pypi else {
            return self.archive("sources.spark", keys, cell).map(SparkSource::Archive);
        };
        let ArchiveKeys { path, url, sha256, sha512, .. } = keys.value();
        if path.is_some() || url.is_some() {
            return Err(
                self.wrong(keys.at(), "`sources.spark` needs exactly one of `path`, `url` and `pypi`")
            );
        }
        if let Some(sum) = sha256.as_ref().or(sha512.as_ref()) {
            return Err(self.wrong(sum.at(), "`sources.spark.pypi` takes no checksum: the index has it"));
        }
        if package.value() == "pyspark" {
            return Ok(SparkSource::PyPi(package.value().clone()));
        }
        let problem =
            format!("`sources.spark.pypi` is `{}`, but only `pyspark` holds Spark", package.value());
        Err(self.wrong(package.at(), &problem))
    }

    fn archive(&self, key: &str, keys: &At<ArchiveKeys>, cell: &Cell) -> Result<Input, SpecError> {
        let ArchiveKeys { path, url, pypi, sha256, sha512 } = keys.value();
        let input = match (path, url, pypi) {
            (None, None, None) | (_, _, Some(_)) => None,
            (path, url, None) => self.input(key, path.as_ref(), url.as_ref(), (sha256, sha512), cell)?,
        };
        let choice = if key == "sources.spark" { "`path`, `url` and `pypi`" } else { "`path` and `url`" };
        input.ok_or_else(|| self.wrong(keys.at(), &format!("`{key}` needs exactly one of {choice}")))
    }

    /// A file on this disk or on a server; `None` unless exactly one of them is given.
    fn input(
        &self,
        key: &str,
        path: Option<&At<String>>,
        url: Option<&At<String>>,
        (sha256, sha512): Sums<'_>,
        cell: &Cell,
    ) -> Result<Option<Input>, SpecError> {
        let sum = |name: &str, text: &At<String>, read: fn(&str) -> Result<Checksum, _>| {
            read(text.value()).map_err(|error: crate::checksum::ParseChecksumError| {
                self.wrong(text.at(), &format!("`{key}.{name}`: {error}"))
            })
        };
        let checksum = match (sha256, sha512) {
            (Some(text), None) => Some(sum("sha256", text, Checksum::sha256)?),
            (None, Some(text)) => Some(sum("sha512", text, Checksum::sha512)?),
            (None, None) => None,
            (Some(_), Some(text)) => {
                return Err(self.wrong(text.at(), &format!("`{key}` takes one of `sha256` and `sha512`")));
            }
        };
        let place = match (path, url) {
            (Some(path), None) => Source::Path(self.directory.join(self.fill(key, path, cell)?)),
            (None, Some(text)) => {
                let url = self.fill(key, text, cell)?;
                match scheme(&url) {
                    Some("file") => {
                        let path = url.trim_start_matches("file:").trim_start_matches("//");
                        Source::Path(self.directory.join(path))
                    }
                    Some("http" | "https") => Source::Url(url),
                    _ if objects::is_object(&url) => Source::Url(url),
                    _ => {
                        let all = objects::SCHEMES.join("`, `");
                        let problem =
                            format!("`{key}.url` needs one of the schemes `https`, `http`, `file`, `{all}`");
                        return Err(self.wrong(text.at(), &problem));
                    }
                }
            }
            _ => return Ok(None),
        };
        if let (Source::Url(_), None, Some(text)) = (&place, checksum, url) {
            let problem =
                format!("`{key}.url` needs a `sha256` or a `sha512` beside it: the digest of the file");
            return Err(self.wrong(text.at(), &problem));
        }
        Ok(Some(Input { place, checksum }))
    }

    fn file(&self, keys: &At<FileKeys>, cell: &Cell) -> Result<FileInput, SpecError> {
        let FileKeys { to, path, url, text, sha256, sha512, mode, owner } = keys.value();
        let place = self.fill("files.to", to, cell)?;
        let absolute = place.strip_prefix('/').and_then(|below| ImagePath::new(below).ok());
        let place = absolute.ok_or_else(|| {
            self.wrong(to.at(), &format!("`files.to`: `{place}` is no absolute path of a file"))
        })?;
        let choice = || self.wrong(keys.at(), "`files` needs exactly one of `path`, `url` and `text`");
        let content = match (text, path, url) {
            (Some(text), None, None) => FileContent::Text(text.value().clone()),
            (None, path, url) => {
                let input = self.input("files", path.as_ref(), url.as_ref(), (sha256, sha512), cell)?;
                FileContent::Input(input.ok_or_else(choice)?)
            }
            _ => return Err(choice()),
        };
        let mode = mode.as_ref().map(|text| {
            let bits = u32::from_str_radix(text.value(), 8).ok().filter(|bits| *bits <= 0o7777);
            let problem = format!("`files.mode`: `{}` is no octal mode such as `0755`", text.value());
            bits.ok_or_else(|| self.wrong(text.at(), &problem))
        });
        let owner = owner.as_ref().map(|text| {
            let ids = text.value().split_once(':');
            let ids = ids.and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
            let problem = format!("`files.owner`: `{}` is no `user:group` in numbers", text.value());
            ids.ok_or_else(|| self.wrong(text.at(), &problem))
        });
        let owner = owner.transpose()?.unwrap_or((0, 0));
        Ok(FileInput { content, to: place, mode: mode.transpose()?, owner })
    }

    fn jars(&self, keys: Option<&JarsKeys>, cell: &Cell) -> Result<Jars, SpecError> {
        let Some(keys) = keys else { return Ok(Jars::default()) };
        let texts = |texts: &[At<String>]| -> Result<Vec<String>, SpecError> {
            let mut seen = BTreeSet::new();
            let filled = texts.iter().map(|text| self.fill("jars", text, cell));
            let filled: Vec<String> = filled.collect::<Result<_, _>>()?;
            Ok(filled.into_iter().filter(|text| seen.insert(text.clone())).collect())
        };
        let mut packages: Vec<Coordinate> = Vec::new();
        for text in &keys.packages {
            let package = self.fill("jars.packages", text, cell)?.parse();
            let package =
                package.map_err(|error| self.wrong(text.at(), &format!("`jars.packages`: {error}")))?;
            if !packages.contains(&package) {
                packages.push(package);
            }
        }
        if let (Some(package), []) = (keys.packages.first(), keys.repositories.as_slice()) {
            let problem = "`jars.packages` needs `jars.repositories`: none is built in";
            return Err(self.wrong(package.at(), problem));
        }
        let repositories = keys.repositories.iter().map(|keys| self.repository(keys, cell));
        Ok(Jars {
            repositories: repositories.collect::<Result<_, _>>()?,
            packages,
            exclude: texts(&keys.exclude)?,
            keep_spark: texts(&keys.keep_spark)?,
        })
    }

    fn repository(&self, keys: &At<RepositoryKeys>, cell: &Cell) -> Result<MavenRepository, SpecError> {
        let RepositoryKeys { url, mirrors, username_env, password_env } = keys.value();
        let mut urls = Vec::new();
        for text in std::iter::once(url).chain(mirrors) {
            let url = self.fill("jars.repositories", text, cell)?;
            let url = url.trim_end_matches('/');
            let relative = url.strip_prefix("file:").filter(|path| !path.starts_with('/'));
            match (scheme(url), relative) {
                (_, Some(path)) => urls.push(format!("file:{}", self.directory.join(path).display())),
                (Some("http" | "https" | "file"), None) => urls.push(url.to_owned()),
                _ => {
                    let problem = format!("`jars.repositories`: `{url}` is no http(s) or file URL");
                    return Err(self.wrong(text.at(), &problem));
                }
            }
        }
        let (username_env, password_env) = (username_env.clone(), password_env.clone());
        Ok(MavenRepository { urls, username_env, password_env })
    }

    fn wheels(&self, keys: &At<WheelsKeys>, cell: &Cell) -> Result<Wheels, SpecError> {
        let WheelsKeys { lock, requirements, packages } = keys.value();
        if cell.python.is_none() {
            return Err(self.wrong(keys.at(), "`wheels` needs the axis `python`: wheels are chosen for it"));
        }
        let path = |text: &At<String>| Ok(self.directory.join(self.fill("wheels", text, cell)?));
        match (lock, requirements, packages.as_slice()) {
            (Some(lock), None, []) => Ok(Wheels::Lock(path(lock)?)),
            (None, None, []) | (Some(_), _, _) => {
                Err(self.wrong(keys.at(), "`wheels` needs either `lock`, or `requirements` or `packages`"))
            }
            (None, requirements, packages) => {
                let packages = packages.iter().map(|text| self.fill("wheels", text, cell));
                let requirements = requirements.as_ref().map(path).transpose()?;
                Ok(Wheels::Requirements(requirements, packages.collect::<Result<_, _>>()?))
            }
        }
    }

    fn env(&self, document: &Document, env: &BTreeMap<String, String>) -> Result<(), SpecError> {
        let bad = |name: &&String| name.is_empty() || name.contains(['=', '\0']);
        match env.keys().find(bad) {
            None => Ok(()),
            Some(name) => {
                let problem = format!("`env`: `{name}` is no name of an environment variable");
                Err(self.wrong(document.api_version.at(), &problem))
            }
        }
    }
}

fn scheme(url: &str) -> Option<&str> {
    url.split_once(':').map(|(scheme, _)| scheme)
}

impl Matrix {
    /// The tags with the positions of their manifests, in the order of the cells.
    pub fn tags(&self) -> Vec<(&str, Vec<usize>)> {
        let mut tags: Vec<(&str, Vec<usize>)> = Vec::new();
        for (at, wanted) in self.wanted.iter().enumerate() {
            for tag in &wanted.recipe.tags {
                match tags.iter_mut().find(|(known, _)| known == tag) {
                    Some((_, positions)) => positions.push(at),
                    None => tags.push((tag, vec![at])),
                }
            }
        }
        tags
    }
}
