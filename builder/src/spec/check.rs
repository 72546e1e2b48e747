//! From the text of a specification to a checked [`Matrix`]: first the shape (serde), then the values.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use super::{Base, Matrix, Place, Platform, SparkSource, SpecError};
use crate::{
    digest::Digest,
    layer::codec::Codec,
    plan::{Axes, Cell},
    version::Version,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    api_version: Spanned<String>,
    kind: Spanned<String>,
    repository: Spanned<String>,
    tag: Spanned<String>,
    base: Spanned<BaseKeys>,
    axes: Spanned<AxesKeys>,
    sources: SourcesKeys,
    #[serde(default)]
    compression: Option<Spanned<String>>,
    #[serde(default)]
    allow_untested: bool,
    #[serde(default)]
    platform: Option<Spanned<String>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BaseKeys {
    rootfs: Option<Spanned<String>>,
    layout: Option<Spanned<String>>,
    image: Option<Spanned<String>>,
    r#ref: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AxesKeys {
    spark: Vec<Spanned<String>>,
    java: Vec<Spanned<String>>,
    #[serde(default)]
    scala: Vec<Spanned<String>>,
    #[serde(default)]
    python: Vec<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourcesKeys {
    spark: Spanned<SparkKeys>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SparkKeys {
    path: Option<Spanned<String>>,
    url: Option<Spanned<String>>,
    pypi: Option<Spanned<String>>,
    sha256: Option<Spanned<String>>,
}

/// Checks the text of a specification; `path` is its name in messages and the root of relative paths.
pub fn parse(path: &Path, text: &str) -> Result<Matrix, SpecError> {
    let check = Check { file: path, directory: path.parent().unwrap_or(Path::new("")) };
    let options = serde_saphyr::options! { with_snippet: false };
    let document: Document =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| check.yaml(&error))?;
    check.document(document)
}

struct Check<'a> {
    file: &'a Path,
    directory: &'a Path,
}

impl Check<'_> {
    fn document(&self, document: Document) -> Result<Matrix, SpecError> {
        self.fixed("apiVersion", &document.api_version, "hearth.dev/v1alpha1")?;
        self.fixed("kind", &document.kind, "ImageMatrix")?;
        let repository = &document.repository;
        let repository = repository
            .value
            .parse()
            .map_err(|error| self.wrong(repository.referenced, &format!("`repository`: {error}")))?;
        let axes = self.axes(&document.axes)?;
        let cells = crate::plan::cells(&axes, true);
        let cells: Vec<&Cell> =
            cells.built.iter().chain(cells.refused.iter().map(|refused| &refused.cell)).collect();
        self.tags(&document.tag, &cells)?;
        let base = self.base(&document.base, cells[0])?;
        let spark = self.spark(&document.sources.spark, &cells)?;
        self.env(&document)?;
        Ok(Matrix {
            repository,
            tag: document.tag.value,
            base,
            axes,
            spark,
            compression: self.compression(document.compression.as_ref())?,
            allow_untested: document.allow_untested,
            platform: self.platform(document.platform.as_ref())?,
            env: document.env,
            labels: document.labels,
        })
    }

    fn fixed(&self, key: &str, found: &Spanned<String>, expected: &str) -> Result<(), SpecError> {
        if found.value == expected {
            return Ok(());
        }
        let problem = format!("`{key}` is `{}`, but this version of hearth reads `{expected}`", found.value);
        Err(self.wrong(found.referenced, &problem))
    }

    fn axes(&self, keys: &Spanned<AxesKeys>) -> Result<Axes, SpecError> {
        let at = keys.referenced;
        let keys = &keys.value;
        let axes = Axes {
            spark: self.axis("spark", &keys.spark, 3..=3, "`3.5.9`")?,
            java: self.axis("java", &keys.java, 1..=1, "`17`: the major version alone")?,
            scala: self.axis("scala", &keys.scala, 2..=2, "`2.12`")?,
            python: self.axis("python", &keys.python, 2..=2, "`3.11`: major and minor")?,
        };
        for (name, values) in [("spark", &axes.spark), ("java", &axes.java)] {
            if values.is_empty() {
                return Err(self.wrong(at, &format!("`axes.{name}` needs at least one version")));
            }
        }
        Ok(axes)
    }

    fn axis(
        &self,
        name: &str,
        values: &[Spanned<String>],
        depth: std::ops::RangeInclusive<usize>,
        example: &str,
    ) -> Result<Vec<Version>, SpecError> {
        let mut versions = Vec::new();
        for value in values {
            let wrong = |why: &str| self.wrong(value.referenced, &format!("`axes.{name}`: {why}"));
            let version: Version = value.value.parse().map_err(|error| wrong(&format!("{error}")))?;
            if !depth.contains(&version.depth()) {
                return Err(wrong(&format!("`{version}` should look like {example}")));
            }
            if versions.contains(&version) {
                return Err(wrong(&format!("`{version}` is listed twice")));
            }
            versions.push(version);
        }
        Ok(versions)
    }

    fn tags(&self, template: &Spanned<String>, cells: &[&Cell]) -> Result<(), SpecError> {
        let mut seen = BTreeSet::new();
        for cell in cells {
            let wrong = |why: &str| self.wrong(template.referenced, &format!("`tag`: {why}"));
            let tag = cell.fill(&template.value).map_err(|why| wrong(&why))?;
            if !is_tag(&tag) {
                return Err(wrong(&format!(
                    "`{tag}` is no tag: letters, digits, `_`, `.` and `-`, at most 128, not starting with `.` or `-`"
                )));
            }
            if !seen.insert(tag.clone()) {
                return Err(wrong(&format!(
                    "several cells would be called `{tag}`: name every axis with several values, such as `{{java}}`"
                )));
            }
        }
        Ok(())
    }

    fn base(&self, keys: &Spanned<BaseKeys>, cell: &Cell) -> Result<Base, SpecError> {
        let BaseKeys { rootfs, layout, image, r#ref } = &keys.value;
        for text in [rootfs, layout, image, r#ref].into_iter().flatten() {
            cell.fill(&text.value).map_err(|why| self.wrong(text.referenced, &format!("`base`: {why}")))?;
        }
        if let Some(text) = r#ref
            && layout.is_none()
        {
            return Err(self.wrong(text.referenced, "`base.ref` goes with `base.layout` only"));
        }
        match (rootfs, layout, image) {
            (Some(path), None, None) => Ok(Base::RootFs(self.directory.join(&path.value))),
            (None, Some(path), None) => Ok(Base::Layout(
                self.directory.join(&path.value),
                r#ref.as_ref().map(|text| text.value.clone()),
            )),
            (None, None, Some(image)) => {
                let name = cell.fill(&image.value).unwrap_or_default();
                crate::registry::check_reference(&name)
                    .map_err(|error| self.wrong(image.referenced, &format!("`base.image`: {error}")))?;
                Ok(Base::Image(image.value.clone()))
            }
            _ => {
                Err(self.wrong(keys.referenced, "`base` needs exactly one of `rootfs`, `layout` and `image`"))
            }
        }
    }

    fn spark(&self, keys: &Spanned<SparkKeys>, cells: &[&Cell]) -> Result<SparkSource, SpecError> {
        let SparkKeys { path, url, pypi, sha256 } = &keys.value;
        let digest = match sha256 {
            None => None,
            Some(text) => {
                if cells.iter().any(|cell| cell.spark != cells[0].spark) {
                    let problem =
                        "`sources.spark.sha256` fits one Spark version, but `axes.spark` has several";
                    return Err(self.wrong(text.referenced, problem));
                }
                let digest = Digest::from_hex(&text.value)
                    .map_err(|_| self.wrong(text.referenced, "`sources.spark.sha256` needs 64 hex digits"))?;
                Some(digest)
            }
        };
        for text in [path, url].into_iter().flatten() {
            let wrong = |why: String| self.wrong(text.referenced, &format!("`sources.spark`: {why}"));
            cells[0].fill(&text.value).map_err(wrong)?;
        }
        match (path, url, pypi) {
            (Some(path), None, None) => Ok(SparkSource::Path(self.directory.join(&path.value), digest)),
            (None, Some(url), None) => {
                if !url.value.starts_with("https://") && !url.value.starts_with("http://") {
                    return Err(self.wrong(url.referenced, "`sources.spark.url` needs an http(s) URL"));
                }
                let missing = "`sources.spark.url` needs a `sha256` beside it: the digest of the file";
                Ok(SparkSource::Url(
                    url.value.clone(),
                    digest.ok_or_else(|| self.wrong(url.referenced, missing))?,
                ))
            }
            (None, None, Some(package)) if sha256.is_none() => {
                if package.value == "pyspark" {
                    return Ok(SparkSource::PyPi(package.value.clone()));
                }
                let problem =
                    format!("`sources.spark.pypi` is `{}`, but only `pyspark` holds Spark", package.value);
                Err(self.wrong(package.referenced, &problem))
            }
            (None, None, Some(package)) => {
                Err(self
                    .wrong(package.referenced, "`sources.spark.pypi` takes no `sha256`: the index has it"))
            }
            _ => {
                Err(self
                    .wrong(keys.referenced, "`sources.spark` needs exactly one of `path`, `url` and `pypi`"))
            }
        }
    }

    fn env(&self, document: &Document) -> Result<(), SpecError> {
        let bad = |name: &&String| name.is_empty() || name.contains(['=', '\0']);
        match document.env.keys().find(bad) {
            None => Ok(()),
            Some(name) => {
                let problem = format!("`env`: `{name}` is no name of an environment variable");
                Err(self.wrong(document.api_version.referenced, &problem))
            }
        }
    }

    fn compression(&self, text: Option<&Spanned<String>>) -> Result<Codec, SpecError> {
        match text.map(|text| (text.value.as_str(), text.referenced)) {
            None | Some(("gzip", _)) => Ok(Codec::Gzip),
            Some(("zstd", _)) => Ok(Codec::Zstd),
            Some((other, at)) => {
                Err(self.wrong(at, &format!("`compression` is `{other}`: it can be `gzip` or `zstd`")))
            }
        }
    }

    fn platform(&self, text: Option<&Spanned<String>>) -> Result<Platform, SpecError> {
        match text.map(|text| (text.value.as_str(), text.referenced)) {
            None => Ok(Platform::host()),
            Some(("linux/amd64", _)) => Ok(Platform::Amd64),
            Some(("linux/arm64", _)) => Ok(Platform::Arm64),
            Some((other, at)) => {
                let problem = format!("`platform` is `{other}`: it can be `linux/amd64` or `linux/arm64`");
                Err(self.wrong(at, &problem))
            }
        }
    }

    fn wrong(&self, at: Location, problem: &str) -> SpecError {
        let at = Place { file: self.file.to_owned(), line: at.line(), column: at.column() };
        SpecError::Wrong { at, problem: problem.to_owned() }
    }

    fn yaml(&self, error: &serde_saphyr::Error) -> SpecError {
        use serde_saphyr::Error;
        let problem = match error {
            Error::SerdeUnknownField { field, expected, .. } => unknown_key(field, expected),
            Error::SerdeMissingField { field, .. } => format!("the key `{field}` is missing"),
            other => {
                // The library repeats the place at the end of its text.
                let text = other.to_string();
                text.split(" at line ").next().unwrap_or(&text).to_owned()
            }
        };
        self.wrong(error.location().unwrap_or(Location::UNKNOWN), &problem)
    }
}

/// Says which key was probably meant.
fn unknown_key(field: &str, expected: &[&str]) -> String {
    let near = expected
        .iter()
        .map(|key| (strsim::damerau_levenshtein(&field.to_lowercase(), &key.to_lowercase()), key))
        .min()
        // Half of the letters wrong is no misspelling any more.
        .filter(|(distance, key)| *distance * 2 <= key.len().max(field.len()));
    match near {
        Some((_, key)) => format!("unknown key `{field}`: did you mean `{key}`?"),
        None => format!("unknown key `{field}`: expected one of `{}`", expected.join("`, `")),
    }
}

/// The grammar of tags in the OCI distribution specification.
fn is_tag(text: &str) -> bool {
    let mut bytes = text.bytes();
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= 128
        && bytes.next().is_some_and(word)
        && bytes.all(|byte| word(byte) || byte == b'.' || byte == b'-')
}
