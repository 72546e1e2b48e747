//! Reads `pylock.toml` (PEP 751) and `uv.lock`: which packages an image gets, and from which files.
//!
//! Pure: text in, packages out. Both formats cover every Python and platform at once; markers say what is for this
//! one. In a `uv.lock` the packages are reached from the project along its dependencies.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{
    marker::{Environment, normal},
    tags,
};
use crate::digest::Digest;

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

/// The wheels that a lock comes to, by package.
pub fn wheels(text: &str, environment: &Environment) -> Result<Vec<Wheel>, String> {
    let table: toml::Table = toml::from_str(text).map_err(|error| format!("it cannot be read: {error}"))?;
    let value = toml::Value::Table(table);
    if value.get("lock-version").is_some() {
        return pylock(
            value.try_into().map_err(|error| format!("it is no pylock.toml: {error}"))?,
            environment,
        );
    }
    if value.get("version").is_some() {
        return uv_lock(
            &value.try_into().map_err(|error| format!("it is no uv.lock: {error}"))?,
            environment,
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

fn pylock(lock: PyLock, environment: &Environment) -> Result<Vec<Wheel>, String> {
    if lock.lock_version.split('.').next() != Some("1") {
        return Err(format!("its version `{}` is not one that hearth reads (1.x)", lock.lock_version));
    }
    let mut found = Vec::new();
    for package in lock.packages {
        let wanted = match &package.marker {
            Some(marker) => environment.holds(marker, &lock.default_groups)?,
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

fn uv_lock(lock: &UvLock, environment: &Environment) -> Result<Vec<Wheel>, String> {
    if lock.version != 1 {
        return Err(format!("its version {} is not one that hearth reads (1)", lock.version));
    }
    let roots = lock.package.iter().enumerate().filter(|(_, package)| package.is_project());
    let mut open: Vec<(usize, Option<String>)> = roots.map(|(at, _)| (at, None)).collect();
    if open.is_empty() {
        return Err("it has no project whose dependencies could be installed".to_owned());
    }
    let mut seen: BTreeSet<(usize, Option<String>)> = open.iter().cloned().collect();
    while let Some((at, extra)) = open.pop() {
        let package = &lock.package[at];
        let dependencies = match &extra {
            None => Some(&package.dependencies),
            Some(extra) => package.optional_dependencies.get(extra),
        };
        let extras: Vec<String> = extra.into_iter().collect();
        for dependency in dependencies.into_iter().flatten() {
            let holds = dependency.marker.as_ref().map(|marker| environment.holds(marker, &extras));
            if !holds.unwrap_or(Ok(true))? || of_spark(&normal(&dependency.name)) {
                continue;
            }
            let target = target(lock, dependency, environment)?;
            let wanted = std::iter::once(None).chain(dependency.extra.iter().cloned().map(Some));
            open.extend(wanted.map(|extra| (target, extra)).filter(|next| seen.insert(next.clone())));
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
    let digest = hash.parse().map_err(|error| format!("the wheel `{file}`: {error}"))?;
    Ok(Wheel { package: name.to_owned(), file: file.clone(), place: place.clone(), digest })
}

fn sorted(mut wheels: Vec<Wheel>) -> Vec<Wheel> {
    wheels.sort_by(|left, right| left.package.cmp(&right.package));
    wheels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::Platform;

    fn environment(python: &str) -> Environment {
        Environment { python: python.parse().unwrap(), platform: Platform::Amd64, libc: tags::ASSUMED }
    }

    fn files(found: &[Wheel]) -> Vec<&str> {
        found.iter().map(|wheel| wheel.file.as_str()).collect()
    }

    fn hash(letter: &str) -> String {
        letter.repeat(64)
    }

    fn pylock_text() -> String {
        format!(
            r#"lock-version = "1.0"
[[packages]]
name = "NumPy"
version = "2.0.0"
wheels = [
  {{ url = "https://files.example.com/numpy-2.0.0-cp311-cp311-manylinux_2_17_x86_64.whl", hashes = {{ sha256 = "{a}" }} }},
  {{ path = "wheels/numpy-2.0.0-cp312-cp312-manylinux_2_17_x86_64.whl", hashes = {{ sha256 = "{b}" }} }},
]
[[packages]]
name = "colorama"
version = "0.4"
marker = "sys_platform == 'win32'"
wheels = [{{ name = "colorama-0.4-py3-none-any.whl", url = "https://x/y", hashes = {{ sha256 = "{a}" }} }}]
"#,
            a = hash("a"),
            b = hash("b")
        )
    }

    #[test]
    fn a_pylock_gives_the_wheels_of_one_environment() {
        let text = pylock_text();
        let found = wheels(&text, &environment("3.11")).unwrap();
        assert_eq!(files(&found), ["numpy-2.0.0-cp311-cp311-manylinux_2_17_x86_64.whl"]);
        assert_eq!(found[0].package, "numpy");
        let found = wheels(&text, &environment("3.12")).unwrap();
        assert_eq!(found[0].place, "wheels/numpy-2.0.0-cp312-cp312-manylinux_2_17_x86_64.whl");
        let error = wheels(&text, &environment("3.13")).unwrap_err();
        assert!(error.contains("`numpy 2.0.0` has no wheel for Python 3.13 on linux/amd64"), "{error}");
        let source = "lock-version = \"1.0\"\n[[packages]]\nname = \"old\"\nsdist = { url = \"x\" }\n";
        let error = wheels(source, &environment("3.11")).unwrap_err();
        assert!(error.contains("source distribution only"), "{error}");
        for (from, to, expected) in [
            ("1.0\"\n[[", "2.0\"\n[[", "not one that hearth reads"),
            ("sha256 = \"aaa", "md5 = \"aaa", "no SHA-256"),
            ("lock-version", "something", "neither"),
            ("marker = \"", "marker = \"? ", "stray"),
        ] {
            let error = wheels(&text.replace(from, to), &environment("3.11")).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn pyspark_comes_with_spark_whoever_needs_it() {
        // There is no wheel of it: looked at, it would be refused.
        let pylock = "lock-version = \"1.0\"\n[[packages]]\nname = \"PySpark\"\nsdist = { url = \"x\" }\n";
        assert_eq!(wheels(pylock, &environment("3.11")), Ok(Vec::new()));
        let uv = "version = 1\n[[package]]\nname = \"app\"\nsource = { virtual = \".\" }\n\
                  dependencies = [{ name = \"pyspark\" }]\n[[package]]\nname = \"pyspark\"\nversion = \"3.5.9\"\n\
                  source = { registry = \"https://i\" }\nsdist = { url = \"x\" }\ndependencies = [{ name = \"py4j\" }]\n";
        assert_eq!(wheels(uv, &environment("3.11")), Ok(Vec::new()));
    }

    #[test]
    fn a_uv_lock_is_followed_from_the_project_along_markers_and_extras() {
        let wheel = |name: &str, version: &str| {
            let (file, hash) = (format!("{name}-{version}-py3-none-any.whl"), hash("c"));
            format!("wheels = [{{ url = \"https://x/{file}\", hash = \"sha256:{hash}\", size = 1 }}]\n")
        };
        let package = |name: &str, version: &str, more: &str| {
            let wheel = wheel(name, version);
            format!(
                "[[package]]\nname = \"{name}\"\nversion = \"{version}\"\nsource = {{ registry = \"https://i\" }}\n{wheel}{more}"
            )
        };
        let text = [
            "version = 1\nrevision = 3\nrequires-python = \">=3.8\"\n".to_owned(),
            "[[package]]\nname = \"project\"\nversion = \"0\"\nsource = { virtual = \".\" }\ndependencies = [{ name = \"a\", extra = [\"fast\"] }, { name = \"w\", marker = \"sys_platform == 'win32'\" }]\n".to_owned(),
            package("a", "1", "dependencies = [{ name = \"b\" }]\n[package.optional-dependencies]\nfast = [{ name = \"c\", version = \"2\" }]\nslow = [{ name = \"d\" }]\n"),
            package("b", "1", "dependencies = [{ name = \"a\" }]\n"),
            package("c", "1", "resolution-markers = [\"python_version < '3.9'\"]\n"),
            package("c", "2", "resolution-markers = [\"python_version >= '3.9'\"]\n"),
            package("d", "1", ""),
            package("w", "1", ""),
        ]
        .concat();
        let found = wheels(&text, &environment("3.11")).unwrap();
        assert_eq!(files(&found), ["a-1-py3-none-any.whl", "b-1-py3-none-any.whl", "c-2-py3-none-any.whl"]);
        let error = wheels(&text.replace("virtual", "registry"), &environment("3.11")).unwrap_err();
        assert!(error.contains("no project"), "{error}");
        let error =
            wheels(&text.replace("name = \"b\" }", "name = \"z\" }"), &environment("3.11")).unwrap_err();
        assert!(error.contains("needs `z`"), "{error}");
    }
}
