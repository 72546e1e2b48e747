//! Reads `pylock.toml` (PEP 751) and `uv.lock`: which packages an image gets, and from which files.
//!
//! Pure: text in, packages out. Both formats cover every Python and platform at once; markers say what is for this
//! one. In a `uv.lock` the packages are reached from the project along its dependencies.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Url;
use serde::Deserialize;

use super::{marker::Environment, tags};
use crate::{digest::Digest, package::normal};

/// A wheel to install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wheel {
    /// Its package, in the one spelling.
    pub package: String,
    /// Its file name.
    pub file: String,
    /// A URL, or a path relative to the lock.
    pub place: String,
    /// What must come.
    pub digest: Digest,
}

/// What is installed beside the dependencies of the project.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct More {
    /// Extras of the project (`project.optional-dependencies`).
    pub extras: Vec<String>,
    /// Dependency groups (PEP 735).
    pub groups: Vec<String>,
}

/// The wheels that a lock comes to, by package.
pub fn wheels(text: &str, environment: &Environment, more: &More) -> Result<Vec<Wheel>, String> {
    let table: toml::Table = toml::from_str(text).map_err(|error| format!("it cannot be read: {error}"))?;
    let value = toml::Value::Table(table);
    if value.get("lock-version").is_some() {
        return pylock(
            value.try_into().map_err(|error| format!("it is no pylock.toml: {error}"))?,
            environment,
            more,
        );
    }
    if value.get("version").is_some() {
        return uv_lock(
            &value.try_into().map_err(|error| format!("it is no uv.lock: {error}"))?,
            environment,
            more,
        );
    }
    Err("it is neither a pylock.toml nor a uv.lock".to_owned())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct PyLock {
    lock_version: String,
    #[serde(default)]
    packages: Vec<PyPackage>,
    #[serde(default)]
    default_groups: Vec<String>,
    #[serde(default)]
    extras: Vec<String>,
    #[serde(default)]
    dependency_groups: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct PyPackage {
    name: String,
    version: Option<String>,
    marker: Option<String>,
    #[serde(default)]
    wheels: Vec<PyFile>,
    sdist: Option<toml::Table>,
    vcs: Option<toml::Table>,
    directory: Option<toml::Table>,
    archive: Option<toml::Table>,
}

#[derive(Debug, Deserialize)]
struct PyFile {
    name: Option<String>,
    url: Option<String>,
    path: Option<String>,
    #[serde(default)]
    hashes: BTreeMap<String, String>,
}

fn pylock(lock: PyLock, environment: &Environment, more: &More) -> Result<Vec<Wheel>, String> {
    if lock.lock_version.split('.').next() != Some("1") {
        return Err(format!("its version `{}` is not one that hearth reads (1.x)", lock.lock_version));
    }
    known("extra", &more.extras, &lock.extras)?;
    known("group", &more.groups, &lock.dependency_groups)?;
    let names: Vec<String> = [&lock.default_groups, &more.extras, &more.groups].map(Clone::clone).concat();
    let mut found = Vec::new();
    for package in lock.packages {
        let wanted = match &package.marker {
            Some(marker) => environment.holds(marker, &names)?,
            None => true,
        };
        if !wanted {
            continue;
        }
        let name = normal(&package.name);
        if of_spark(&name) {
            continue;
        }
        if package.vcs.is_some() || package.directory.is_some() || package.archive.is_some() {
            return Err(format!("`{name}` is no wheel but a source tree: build a wheel of it first"));
        }
        let files = package.wheels.into_iter().filter_map(|file| {
            let place = file.url.or(file.path)?;
            let from_place = || place.rsplit('/').next().unwrap_or(&place).to_owned();
            let hash = file.hashes.get("sha256").map(|hex| format!("sha256:{hex}"));
            Some((file.name.unwrap_or_else(from_place), place, hash))
        });
        found.push(best(&name, package.version.as_deref(), files, package.sdist.is_some(), environment)?);
    }
    Ok(sorted(found))
}

/// Refuses names that a lock does not have.
fn known<'a>(
    kind: &str,
    wanted: &[String],
    known: impl IntoIterator<Item = &'a String>,
) -> Result<(), String> {
    let known: Vec<&String> = known.into_iter().collect();
    let missing = wanted.iter().find(|name| !known.iter().any(|known| normal(known) == normal(name)));
    let Some(name) = missing else { return Ok(()) };
    let list: Vec<&str> = known.into_iter().map(String::as_str).collect();
    let list = if list.is_empty() { "none".to_owned() } else { format!("`{}`", list.join("`, `")) };
    Err(format!("it has no {kind} `{name}` (it has {list})"))
}

#[derive(Debug, Deserialize)]
struct UvLock {
    version: u32,
    #[serde(default)]
    package: Vec<UvPackage>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct UvPackage {
    name: String,
    version: Option<String>,
    #[serde(default)]
    source: BTreeMap<String, toml::Value>,
    #[serde(default)]
    resolution_markers: Vec<String>,
    #[serde(default)]
    dependencies: Vec<UvDependency>,
    #[serde(default)]
    optional_dependencies: BTreeMap<String, Vec<UvDependency>>,
    #[serde(default)]
    dev_dependencies: BTreeMap<String, Vec<UvDependency>>,
    #[serde(default)]
    wheels: Vec<UvFile>,
    sdist: Option<toml::Value>,
}

#[derive(Debug, Deserialize)]
struct UvDependency {
    name: String,
    version: Option<String>,
    marker: Option<String>,
    #[serde(default)]
    extra: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct UvFile {
    url: Option<String>,
    path: Option<String>,
    filename: Option<String>,
    hash: Option<String>,
}

impl UvPackage {
    /// The project itself, whose dependencies are wanted.
    fn is_project(&self) -> bool {
        ["virtual", "editable", "directory"].iter().any(|kind| self.source.contains_key(*kind))
    }
}

/// Which list of dependencies of a package is followed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum List {
    Plain,
    Extra(String),
    Group(String),
}

impl UvPackage {
    fn dependencies(&self, list: &List) -> &[UvDependency] {
        let named = |lists: &'_ BTreeMap<String, Vec<UvDependency>>, name: &String| -> Option<String> {
            lists.keys().find(|key| normal(key) == normal(name)).cloned()
        };
        match list {
            List::Plain => &self.dependencies,
            List::Extra(name) => {
                named(&self.optional_dependencies, name).map_or(&[], |key| &self.optional_dependencies[&key])
            }
            List::Group(name) => {
                named(&self.dev_dependencies, name).map_or(&[], |key| &self.dev_dependencies[&key])
            }
        }
    }
}

/// Where the walk starts: the projects with the extras and groups that are asked for.
fn roots(lock: &UvLock, more: &More) -> Result<Vec<(usize, List)>, String> {
    let projects = || lock.package.iter().enumerate().filter(|(_, package)| package.is_project());
    known("extra", &more.extras, projects().flat_map(|(_, package)| package.optional_dependencies.keys()))?;
    known("group", &more.groups, projects().flat_map(|(_, package)| package.dev_dependencies.keys()))?;
    let extras = more.extras.iter().cloned().map(List::Extra);
    let lists = std::iter::once(List::Plain).chain(extras);
    let lists: Vec<List> = lists.chain(more.groups.iter().cloned().map(List::Group)).collect();
    Ok(projects().flat_map(|(at, _)| lists.iter().map(move |list| (at, list.clone()))).collect())
}

fn uv_lock(lock: &UvLock, environment: &Environment, more: &More) -> Result<Vec<Wheel>, String> {
    if lock.version != 1 {
        return Err(format!("its version {} is not one that hearth reads (1)", lock.version));
    }
    let mut open = roots(lock, more)?;
    if open.is_empty() {
        return Err("it has no project whose dependencies could be installed".to_owned());
    }
    let mut seen: BTreeSet<(usize, List)> = open.iter().cloned().collect();
    while let Some((at, list)) = open.pop() {
        let extras = match &list {
            List::Extra(name) => vec![name.clone()],
            List::Plain | List::Group(_) => Vec::new(),
        };
        for dependency in lock.package[at].dependencies(&list) {
            let holds = dependency.marker.as_ref().map(|marker| environment.holds(marker, &extras));
            if !holds.unwrap_or(Ok(true))? || of_spark(&normal(&dependency.name)) {
                continue;
            }
            let target = target(lock, dependency, environment)?;
            let lists = dependency.extra.iter().cloned().map(List::Extra);
            let lists = std::iter::once(List::Plain).chain(lists).map(|list| (target, list));
            open.extend(lists.filter(|next| seen.insert(next.clone())));
        }
    }
    let reached: BTreeSet<usize> = seen.into_iter().map(|(at, _)| at).collect();
    let mut found = Vec::new();
    for package in reached.into_iter().map(|at| &lock.package[at]).filter(|package| !package.is_project()) {
        let files = package.wheels.iter().filter_map(|file| {
            let place = file.url.clone().or_else(|| file.path.clone())?;
            let name = file.filename.clone();
            let name = name.unwrap_or_else(|| place.rsplit('/').next().unwrap_or(&place).to_owned());
            Some((name, place, file.hash.clone()))
        });
        let (name, version) = (normal(&package.name), package.version.as_deref());
        found.push(best(&name, version, files, package.sdist.is_some(), environment)?);
    }
    Ok(sorted(found))
}

/// Whether a package is in every image already, from the Spark distribution; many packages say that they need it.
fn of_spark(name: &str) -> bool {
    matches!(name, "pyspark" | "py4j")
}

/// A package may be there in several versions, each for some environments.
fn target(lock: &UvLock, wanted: &UvDependency, environment: &Environment) -> Result<usize, String> {
    for (at, package) in lock.package.iter().enumerate() {
        let same =
            package.name == wanted.name && (wanted.version.is_none() || package.version == wanted.version);
        let mut fits = package.resolution_markers.is_empty() || wanted.version.is_some();
        for marker in &package.resolution_markers {
            fits |= same && environment.holds(marker, &[])?;
        }
        if same && fits {
            return Ok(at);
        }
    }
    Err(format!("it needs `{}`, which it does not have for this Python and platform", wanted.name))
}

/// The wheel of a package that suits best.
fn best(
    name: &str,
    version: Option<&str>,
    files: impl Iterator<Item = (String, String, Option<String>)>,
    source: bool,
    environment: &Environment,
) -> Result<Wheel, String> {
    let all: Vec<_> = files.collect();
    let shown = version.map_or_else(|| name.to_owned(), |version| format!("{name} {version}"));
    let suiting = all.iter().filter_map(|file| Some((tags::rank(&file.0, environment)?, file)));
    let Some((_, (file, place, hash))) = suiting.min() else {
        let Environment { python, platform, libc } = environment;
        let target = format!("Python {python} on {platform} with {libc}");
        return Err(if all.is_empty() && source {
            format!(
                "`{shown}` exists as a source distribution only: hearth installs wheels, since building runs code of the package on this machine; build a wheel and put it into your index"
            )
        } else {
            format!("`{shown}` has no wheel for {target} (there are {})", all.len())
        });
    };
    let hash = hash.as_deref().ok_or_else(|| format!("the wheel `{file}` has no SHA-256"))?;
    let digest = Digest::parse_sha256(hash).map_err(|error| format!("the wheel `{file}`: {error}"))?;
    Ok(Wheel { package: name.to_owned(), file: file.clone(), place: local(place), digest })
}

/// A `file:` URL, as uv names what it finds with `--find-links`, as a path; anything else as it is.
fn local(place: &str) -> String {
    let path =
        Url::parse(place).ok().filter(|url| url.scheme() == "file").and_then(|url| url.to_file_path().ok());
    path.and_then(|path| Some(path.to_str()?.to_owned())).unwrap_or_else(|| place.to_owned())
}

fn sorted(mut wheels: Vec<Wheel>) -> Vec<Wheel> {
    wheels.sort_by(|left, right| left.package.cmp(&right.package));
    wheels
}

#[cfg(test)]
#[path = "lockfile_tests.rs"]
mod tests;
