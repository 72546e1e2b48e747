//! The recipe of one cell: its overlays merged, placeholders filled, every value checked.

use std::collections::{BTreeMap, HashMap};

use oci::{ImageName, Tag};

use super::{
    Base, FileContent, FileInput, Input, Matrix, Recipe, Source, SparkSource, SpecError, Wanted,
    check::Check,
    keys::{ArchiveKeys, At, BaseKeys, Document, FileKeys, Overlay},
    merge::Merged,
};
use crate::{checksum::Checksum, fetch::objects, matrix::Cell, tree::ImagePath, version::Version};

/// The digest algorithms of the `sha256` and `sha512` keys beside a file.
type Sums<'a> = (&'a Option<At<String>>, &'a Option<At<String>>);

impl Check<'_> {
    pub(super) fn recipe(
        &self,
        document: &Document,
        merged: &Merged,
        cell: &Cell,
    ) -> Result<Recipe, SpecError> {
        let overlay = merged.overlay();
        let sources = overlay.sources.clone().unwrap_or_default();
        let missing = |key: &str| {
            let problem = format!("the key `{key}` is missing for {}", cell.name());
            self.wrong(document.axes_at(), &problem)
        };
        self.needs(overlay, cell)?;
        let base = overlay.base.as_ref().ok_or_else(|| missing("base"))?;
        let spark = match (&cell.spark, &sources.spark) {
            (None, _) => None,
            (Some(_), None) => return Err(missing("sources.spark")),
            (Some(_), Some(keys)) => Some(self.spark(keys, cell)?),
        };
        let archive = |key: &str, keys: &Option<At<ArchiveKeys>>| {
            keys.as_ref().map(|keys| self.archive(key, keys, cell)).transpose()
        };
        self.env_names(document, &overlay.env)?;
        Ok(Recipe {
            tags: self.tags(document, overlay, cell)?,
            base: self.base(base, cell)?,
            spark,
            java: archive("sources.java", &sources.java)?,
            python: archive("sources.python", &sources.python)?,
            env: self.texts("env", &overlay.env, cell)?,
            labels: self.texts("labels", &overlay.labels, cell)?,
            files: overlay.files.iter().map(|keys| self.file(keys, cell)).collect::<Result<_, _>>()?,
            jars: self.jars(overlay.jars.as_ref().map(At::value), cell)?,
            wheels: overlay.wheels.as_ref().map(|keys| self.wheels(keys, cell)).transpose()?,
            bytecode: overlay.bytecode.unwrap_or(true),
            class_data: overlay.jvm.as_ref().and_then(|jvm| jvm.value().class_data_sharing).unwrap_or(false),
            user: overlay.user.as_ref().map(|user| self.user(user, cell)).transpose()?,
            entrypoint: self.arguments("entrypoint", overlay.entrypoint.as_ref(), cell)?,
            command: self.arguments("command", overlay.command.as_ref(), cell)?,
            working_directory: overlay
                .working_directory
                .as_ref()
                .map(|text| self.working_directory(text, cell))
                .transpose()?,
            ports: overlay.ports.iter().map(|text| self.port(text, cell)).collect::<Result<_, _>>()?,
        })
    }

    fn fill_text(&self, key: &str, text: &At<String>, cell: &Cell) -> Result<String, SpecError> {
        cell.fill_text(text.value()).map_err(|why| self.wrong(text.at(), &format!("`{key}`: {why}")))
    }

    fn texts(
        &self,
        key: &str,
        texts: &BTreeMap<String, At<String>>,
        cell: &Cell,
    ) -> Result<BTreeMap<String, String>, SpecError> {
        texts.iter().map(|(name, text)| Ok((name.clone(), self.fill_text(key, text, cell)?))).collect()
    }

    fn arguments(
        &self,
        key: &str,
        texts: Option<&Vec<At<String>>>,
        cell: &Cell,
    ) -> Result<Option<Vec<String>>, SpecError> {
        let fill =
            |texts: &Vec<At<String>>| texts.iter().map(|text| self.fill_text(key, text, cell)).collect();
        texts.map(fill).transpose()
    }

    /// `user` or `user:group`, as names or numbers, as the image configuration takes them.
    fn user(&self, text: &At<String>, cell: &Cell) -> Result<String, SpecError> {
        let user = self.fill_text("user", text, cell)?;
        let name = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-$".contains(&byte))
        };
        let parts: Vec<&str> = user.split(':').collect();
        if parts.len() <= 2 && parts.into_iter().all(name) {
            return Ok(user);
        }
        let problem = format!("`user`: `{user}` is not `user` or `user:group`, each a name or a number");
        Err(self.wrong(text.at(), &problem))
    }

    fn working_directory(&self, text: &At<String>, cell: &Cell) -> Result<String, SpecError> {
        let directory = self.fill_text("workingDirectory", text, cell)?;
        let below = directory.strip_prefix('/');
        if below.is_some_and(|below| below.is_empty() || ImagePath::new(below).is_ok()) {
            return Ok(directory);
        }
        let problem = format!("`workingDirectory`: `{directory}` is not an absolute path without `..`");
        Err(self.wrong(text.at(), &problem))
    }

    /// `8080` or `53/udp`, as the image configuration has it.
    fn port(&self, text: &At<String>, cell: &Cell) -> Result<String, SpecError> {
        let filled = self.fill_text("ports", text, cell)?;
        let (number, protocol) = filled.split_once('/').unwrap_or((&filled, "tcp"));
        match number.parse::<u16>() {
            Ok(port) if port > 0 && matches!(protocol, "tcp" | "udp" | "sctp") => {
                Ok(format!("{port}/{protocol}"))
            }
            _ => {
                let problem =
                    format!("`ports`: `{filled}` is no port such as `8080` or `53/udp` (tcp, udp or sctp)");
                Err(self.wrong(text.at(), &problem))
            }
        }
    }

    pub(super) fn fill(&self, key: &str, text: &At<String>, cell: &Cell) -> Result<String, SpecError> {
        cell.fill(text.value()).map_err(|why| self.wrong(text.at(), &format!("`{key}`: {why}")))
    }

    fn tags(&self, document: &Document, overlay: &Overlay, cell: &Cell) -> Result<Vec<String>, SpecError> {
        let mut tags = Vec::new();
        for text in std::iter::once(&document.tag).chain(&overlay.tags) {
            let tag = self.fill("tag", text, cell)?;
            if tag.parse::<Tag>().is_err() {
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
        let mut places: HashMap<Checksum, (&Source, &Version)> = HashMap::new();
        for Wanted { cell, recipe } in wanted {
            let Some((spark, SparkSource::Archive(Input { place, checksum: Some(checksum) }))) =
                cell.spark.as_ref().zip(recipe.spark.as_ref())
            else {
                continue;
            };
            match places.insert(*checksum, (place, spark)) {
                Some((other, before)) if other != place || before != spark => {
                    let problem = format!(
                        "`sources.spark`: a checksum fits one Spark version, but it is given for {before} and {spark}: use `lines`"
                    );
                    return Err(self.wrong(document.axes_at(), &problem));
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
                if name == "scratch" {
                    return Ok(Base::Scratch);
                }
                name.parse::<ImageName>()
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
        let into = place.ends_with('/');
        let absolute = place.strip_prefix('/').and_then(|below| ImagePath::new(below).ok());
        let place = absolute.ok_or_else(|| {
            self.wrong(to.at(), &format!("`files.to`: `{place}` is no absolute path of a file"))
        })?;
        if let (true, Some(text)) = (into, text) {
            let problem = format!("`files.to`: `{place}/` is a directory, and a `text` has no name: add one");
            return Err(self.wrong(text.at(), &problem));
        }
        let choice = || {
            let problem = "`files` needs exactly one of `path`, `url` and `text`; without them `to` is an empty directory, \
                           with a slash at its end";
            self.wrong(keys.at(), problem)
        };
        let content = match (text, path, url) {
            (Some(text), None, None) => FileContent::Text(text.value().clone()),
            (None, None, None) if into => FileContent::Directory,
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
        let at = self.place(keys.at());
        Ok(FileInput { content, to: place, into, mode: mode.transpose()?, owner, at })
    }

    fn env_names(&self, document: &Document, env: &BTreeMap<String, At<String>>) -> Result<(), SpecError> {
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

pub(super) fn scheme(url: &str) -> Option<&str> {
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
