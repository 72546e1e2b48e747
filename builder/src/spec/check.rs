//! From the text of a specification to a checked [`Matrix`]: the shape (serde), the axes and cells, and then the
//! recipe of every cell ([`super::recipe`]).

use std::{collections::BTreeMap, path::Path};

use oci::NameError;
use serde_saphyr::Location;

use super::{
    Matrix, Place, SpecError, Wanted,
    keys::{At, AxesKeys, CellKeys, Document, Overlay, WhenKeys},
    merge::Merged,
};
use crate::{
    layer::codec::Codec,
    matrix::{self, Axes, Cell, Cells, Refused, condition::Condition},
    platform::Platform,
    version::Version,
};

/// Checks the text of a specification; `path` is its name in messages and the root of relative paths, and `tag`
/// replaces the key of this name.
pub fn parse(path: &Path, text: &str, tag: Option<&str>) -> Result<Matrix, SpecError> {
    let check = Check { file: path, directory: path.parent().unwrap_or(Path::new("")) };
    let options = serde_saphyr::options! { with_snippet: false };
    let mut document: Document =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| check.yaml(&error))?;
    if let Some(tag) = tag {
        document.tag = document.tag.with(tag.to_owned());
    }
    check.document(&document)
}

/// Where messages point to and paths start.
pub(super) struct Check<'a> {
    file: &'a Path,
    pub(super) directory: &'a Path,
}

/// The overlays of a document with the cells that they are for.
struct Overlays {
    defaults: Overlay,
    lines: Vec<(Condition, Overlay)>,
    variants: BTreeMap<String, Overlay>,
}

impl Overlays {
    /// Defaults, lines, variant: later ones win.
    fn of(&self, cell: &Cell) -> impl Iterator<Item = &Overlay> {
        let lines = self.lines.iter().filter(|(condition, _)| condition.holds(cell));
        let variant = cell.variant.as_ref().and_then(|name| self.variants.get(name));
        std::iter::once(&self.defaults).chain(lines.map(|(_, overlay)| overlay)).chain(variant)
    }
}

impl Check<'_> {
    fn document(&self, document: &Document) -> Result<Matrix, SpecError> {
        self.fixed("apiVersion", &document.api_version, "hearth.dev/v1alpha1")?;
        self.fixed("kind", &document.kind, "ImageMatrix")?;
        let repository = document.repository.value().parse().map_err(|error| {
            let hint = match error {
                NameError::NotRepository(_) => ": tags come from the key `tag`",
                _ => "",
            };
            self.wrong(document.repository.at(), &format!("`repository`: {error}{hint}"))
        })?;
        let axes = self.axes(document)?;
        let overlays = self.overlays(document)?;
        let compression = self.compression(document.compression.as_ref())?;
        let cells = matrix::cells(&axes, document.allow_untested);
        if cells.built.is_empty() && cells.refused.is_empty() {
            let problem = "nothing is left to build: `exclude` and `when` leave out every combination";
            return Err(self.wrong(document.axes_at(), problem));
        }
        self.matched(document, &axes, &overlays, &cells)?;
        let mut wanted = Vec::new();
        for cell in cells.built {
            let merged = Merged::of(overlays.of(&cell));
            let recipe = self.recipe(document, &merged, &cell)?;
            wanted.push(Wanted { cell, recipe });
        }
        self.unique_tags(document, &wanted)?;
        self.one_checksum_per_file(&wanted, document)?;
        Ok(Matrix { repository, compression, wanted, refused: cells.refused })
    }

    /// A condition that holds nowhere is a mistake: what it guards would be left out silently.
    fn matched(
        &self,
        document: &Document,
        axes: &Axes,
        overlays: &Overlays,
        cells: &Cells,
    ) -> Result<(), SpecError> {
        let mut left: Vec<Cell> = cells.built.clone();
        for Refused { cell, .. } in &cells.refused {
            left.extend(axes.platforms.iter().map(|platform| Cell { platform: *platform, ..cell.clone() }));
        }
        let nowhere = |key: &str, at| {
            self.wrong(at, &format!("`{key}` holds for no combination that is left: it would have no effect"))
        };
        for (line, (condition, _)) in document.lines.iter().zip(&overlays.lines) {
            if !left.iter().any(|cell| condition.holds(cell)) {
                return Err(nowhere("lines.when", line.when.at()));
            }
        }
        for (name, variant) in &document.variants {
            if !left.iter().any(|cell| cell.variant.as_ref() == Some(name)) {
                return Err(match &variant.when {
                    Some(when) => nowhere(&format!("variants.{name}.when"), when.at()),
                    None => self.wrong(
                        document.axes_at(),
                        &format!("`exclude` leaves out every image of the variant `{name}`"),
                    ),
                });
            }
        }
        let all: Vec<Cell> = matrix::combinations(axes).collect();
        for (when, condition) in document.exclude.iter().zip(&axes.exclude) {
            if !all.iter().any(|cell| condition.holds(cell)) {
                return Err(nowhere("exclude", when.at()));
            }
        }
        Ok(())
    }

    fn fixed(&self, key: &str, found: &At<String>, expected: &str) -> Result<(), SpecError> {
        if found.value() == expected {
            return Ok(());
        }
        let problem =
            format!("`{key}` is `{}`, but this version of hearth reads `{expected}`", found.value());
        Err(self.wrong(found.at(), &problem))
    }

    fn axes(&self, document: &Document) -> Result<Axes, SpecError> {
        let none = AxesKeys::default();
        let keys = document.axes.as_ref().map_or(&none, At::value);
        let AxesKeys { spark, java, scala, python, platform } = keys;
        for (name, values) in [("spark", spark), ("java", java)] {
            if values.as_ref().is_some_and(Vec::is_empty) {
                let problem =
                    format!("`axes.{name}` needs at least one version; images without it leave the key out");
                return Err(self.wrong(document.axes_at(), &problem));
            }
        }
        let (spark, java) = (spark.as_deref().unwrap_or_default(), java.as_deref().unwrap_or_default());
        for (name, values, needed) in [("java", java, spark), ("spark", spark, scala)] {
            if let (Some(value), []) = (needed.first(), values) {
                let of = if name == "java" { "spark" } else { "scala" };
                let problem = format!("`axes.{of}` needs `axes.{name}` as well");
                return Err(self.wrong(value.at(), &problem));
            }
        }
        let variant = |(name, variant): (&String, &super::keys::Variant)| {
            let when = variant.when.as_ref();
            let when = when.map_or_else(|| Ok(Condition::default()), |when| self.condition(when))?;
            Ok((name.clone(), when))
        };
        let variants: Vec<_> = document.variants.iter().map(variant).collect::<Result<_, _>>()?;
        let platforms = self.platforms(document, platform)?;
        let exclude = document.exclude.iter().map(|when| self.condition(when)).collect::<Result<_, _>>()?;
        let include = document.include.iter().map(|cell| self.included(document, cell, platforms[0]));
        Ok(Axes {
            spark: self.axis("spark", spark)?,
            java: self.axis("java", java)?,
            scala: self.axis("scala", scala)?,
            python: self.axis("python", python)?,
            include: include.collect::<Result<_, _>>()?,
            variants,
            platforms,
            exclude,
        })
    }

    fn axis(&self, name: &str, values: &[At<String>]) -> Result<Vec<Version>, SpecError> {
        let mut versions = Vec::new();
        for value in values {
            let version = self.version(name, value)?;
            if versions.contains(&version) {
                let problem = format!("`axes.{name}`: `{version}` is listed twice");
                return Err(self.wrong(value.at(), &problem));
            }
            versions.push(version);
        }
        Ok(versions)
    }

    fn version(&self, axis: &str, value: &At<String>) -> Result<Version, SpecError> {
        let (depth, example) = match axis {
            "spark" => (3, "`3.5.9` or `3.5.1-amzn-1`"),
            "java" => (1, "`17`: the major version alone"),
            "scala" => (2, "`2.12`"),
            _ => (2, "`3.11`: major and minor"),
        };
        let wrong = |why: &str| self.wrong(value.at(), &format!("`axes.{axis}`: {why}"));
        let version: Version = value.value().parse().map_err(|error| wrong(&format!("{error}")))?;
        // Vendors add numbers and suffixes to the version of their Spark.
        let vendor = axis == "spark" && version.depth() > depth;
        if vendor || (version.depth() == depth && (axis == "spark" || version.suffix().is_empty())) {
            Ok(version)
        } else {
            Err(wrong(&format!("`{version}` should look like {example}")))
        }
    }

    fn platforms(&self, document: &Document, axis: &[At<String>]) -> Result<Vec<Platform>, SpecError> {
        let read = |key: &str, text: &At<String>| {
            let parsed = text.value().parse::<Platform>();
            parsed.map_err(|error| self.wrong(text.at(), &format!("`{key}`: {error}")))
        };
        match (&document.platform, axis) {
            (Some(one), []) => Ok(vec![read("platform", one)?]),
            (Some(one), _) => {
                Err(self.wrong(one.at(), "`platform` and `axes.platform` say the same: keep one of them"))
            }
            (None, []) => Ok(vec![Platform::host()]),
            (None, axis) => {
                let mut platforms = Vec::new();
                for text in axis {
                    let platform = read("axes.platform", text)?;
                    if platforms.contains(&platform) {
                        let problem = format!("`axes.platform`: `{platform}` is listed twice");
                        return Err(self.wrong(text.at(), &problem));
                    }
                    platforms.push(platform);
                }
                Ok(platforms)
            }
        }
    }

    fn included(
        &self,
        document: &Document,
        cell: &At<CellKeys>,
        platform: Platform,
    ) -> Result<Cell, SpecError> {
        let CellKeys { spark, java, scala, python, variant } = cell.value();
        let optional = |axis: &str, text: &Option<At<String>>| {
            text.as_ref().map(|text| self.version(axis, text)).transpose()
        };
        let variant = variant.as_ref().map(|name| {
            let known: Vec<&str> = document.variants.keys().map(String::as_str).collect();
            if known.contains(&name.value().as_str()) {
                return Ok(name.value().clone());
            }
            let hint = match crate::nearest(name.value(), &known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("`variants` has `{}`", known.join("`, `")),
            };
            Err(self.wrong(name.at(), &format!("`include`: unknown variant `{}`: {hint}", name.value())))
        });
        if let (Some(spark), None) = (spark, java) {
            return Err(self.wrong(spark.at(), "`include`: `spark` needs `java` as well"));
        }
        if let (Some(scala), None) = (scala, spark) {
            return Err(self.wrong(scala.at(), "`include`: `scala` needs `spark` as well"));
        }
        Ok(Cell {
            spark: optional("spark", spark)?,
            java: optional("java", java)?,
            scala: optional("scala", scala)?,
            python: optional("python", python)?,
            variant: variant.transpose()?,
            platform,
        })
    }

    fn overlays(&self, document: &Document) -> Result<Overlays, SpecError> {
        let lines = document.lines.iter().map(|line| Ok((self.condition(&line.when)?, line.overlay())));
        let variants = document.variants.iter().map(|(name, variant)| (name.clone(), variant.overlay()));
        Ok(Overlays {
            defaults: document.overlay(),
            lines: lines.collect::<Result<_, _>>()?,
            variants: variants.collect(),
        })
    }

    fn condition(&self, keys: &At<WhenKeys>) -> Result<Condition, SpecError> {
        let WhenKeys { spark, scala, java, python, platform, variant } = keys.value();
        let mut condition = Condition::default();
        let mut empty = true;
        for (axis, text) in
            matrix::condition::AXES.into_iter().zip([spark, scala, java, python, platform, variant])
        {
            let Some(text) = text else { continue };
            empty = false;
            condition
                .add(axis, text.value())
                .map_err(|error| self.wrong(text.at(), &format!("`{axis}`: {error}")))?;
        }
        if empty {
            return Err(
                self.wrong(keys.at(), "a condition needs at least one axis, such as `spark: \"3.5\"`")
            );
        }
        Ok(condition)
    }

    fn compression(&self, text: Option<&At<String>>) -> Result<Codec, SpecError> {
        match text.map(|text| (text.value().as_str(), text.at())) {
            None | Some(("zstd:chunked", _)) => Ok(Codec::ZstdChunked),
            Some(("zstd", _)) => Ok(Codec::Zstd),
            Some(("gzip", _)) => Ok(Codec::Gzip),
            Some((other, at)) => Err(self.wrong(
                at,
                &format!("`compression` is `{other}`: it can be `zstd:chunked`, `zstd` or `gzip`"),
            )),
        }
    }

    pub(super) fn wrong(&self, at: Location, problem: &str) -> SpecError {
        SpecError::Wrong { at: self.place(at), problem: problem.to_owned() }
    }

    pub(super) fn place(&self, at: Location) -> Place {
        Place { file: self.file.to_owned(), line: at.line(), column: at.column() }
    }

    fn yaml(&self, error: &serde_saphyr::Error) -> SpecError {
        use serde_saphyr::Error;
        let problem = match error {
            Error::SerdeUnknownField { field, expected, .. } => unknown_key(field, expected),
            Error::SerdeMissingField { field, .. } => format!("the key `{field}` is missing"),
            other => {
                // The library repeats the place at the end of its text.
                let text = other.to_string();
                let text = text.split(" at line ").next().unwrap_or(&text);
                [text, example(text)].concat()
            }
        };
        self.wrong(error.location().unwrap_or(Location::UNKNOWN), &problem)
    }
}

/// What YAML's words for shapes mean.
fn example(problem: &str) -> &'static str {
    if problem.contains("mapping") || problem.contains("expected a map") {
        " (a mapping is `key: value` on lines of its own, or `{ key: value }`)"
    } else if problem.contains("sequence") {
        " (a list is `- a` on lines of its own, or `[a, b]`)"
    } else {
        ""
    }
}

/// Says which key was probably meant.
fn unknown_key(field: &str, expected: &[&str]) -> String {
    match crate::nearest(field, expected) {
        Some(key) => format!("unknown key `{field}`: did you mean `{key}`?"),
        None => format!("unknown key `{field}`: expected one of `{}`", expected.join("`, `")),
    }
}
