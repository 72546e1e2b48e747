//! Finds a package's source distribution through the user's package index.
//!
//! `uv lock` is run in a scratch project: it knows the user's indexes, credentials, mirrors and certificates
//! (`uv.toml`, `UV_*`, `netrc`, keyrings), and its lock gives URL and SHA-256 without downloading anything.
//! The scratch project declares the package's metadata itself (`tool.uv.dependency-metadata`); without that,
//! uv would download 300 MB and run the package's `setup.py` only to learn its dependencies.
//!
//! An index that is configured for pip only is handed over: see `pip_index`.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use serde::Deserialize;
use tokio::process::Command;

use crate::{digest::Digest, version::Version};

/// A resolver that answers at all answers within this time.
const TIMEOUT: Duration = Duration::from_mins(3);

/// The oldest Python that uv reasons about.
const OLDEST: (u32, u32) = (3, 8);

/// Where a source distribution is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Where to download it.
    pub url: String,
    /// What must come.
    pub digest: Digest,
}

/// Why a package could not be found.
#[derive(Debug, thiserror::Error)]
pub enum PyPiError {
    /// uv cannot be started.
    #[error(
        "cannot run `uv`, which finds packages: install it (`pip install uv`), or give `sources.spark` a `path` or a `url`"
    )]
    NoUv(#[source] std::io::Error),
    /// The scratch project cannot be written.
    #[error("cannot write a scratch project for uv")]
    Scratch(#[source] std::io::Error),
    /// uv takes too long.
    #[error("`uv` did not find `{0}` within {seconds} s", seconds = TIMEOUT.as_secs())]
    Timeout(String),
    /// uv says no.
    #[error("`uv` cannot find `{package}`: {said}")]
    Refused {
        /// The package and version.
        package: String,
        /// What uv wrote.
        said: String,
    },
    /// The lock has no usable source distribution.
    #[error("the package index has no source distribution of `{package}` with a SHA-256: {why}")]
    NoSource {
        /// The package and version.
        package: String,
        /// What the lock says.
        why: String,
    },
}

/// Finds the source distribution of `package` in `version`, for an image with this Python.
pub async fn locate(
    package: &str,
    version: &Version,
    python: Option<&Version>,
) -> Result<Located, PyPiError> {
    let wanted = format!("{package} {version}");
    let scratch = tempfile::tempdir().map_err(PyPiError::Scratch)?;
    let found = uv(scratch.path(), &["python", "find", "--show-version"], &wanted).await?;
    let local: Option<Version> = String::from_utf8_lossy(&found.stdout).trim().parse().ok();
    let floor = python_floor(python.map(Version::line), local.map(|version| version.line()));
    let project = project(package, version, floor);
    std::fs::write(scratch.path().join("pyproject.toml"), project).map_err(PyPiError::Scratch)?;
    let output = uv(scratch.path(), &["lock", "--no-progress"], &wanted).await?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(PyPiError::Refused { package: wanted, said });
    }
    let lock = std::fs::read_to_string(scratch.path().join("uv.lock")).map_err(PyPiError::Scratch)?;
    read_lock(&lock, package, version).map_err(|why| PyPiError::NoSource { package: wanted, why })
}

async fn uv(directory: &Path, arguments: &[&str], wanted: &str) -> Result<Output, PyPiError> {
    let mut command = Command::new("uv");
    command.args(arguments).current_dir(directory).stdin(Stdio::null()).kill_on_drop(true);
    if let Some(index) = pip_index().await {
        command.env("UV_DEFAULT_INDEX", index);
    }
    let run = tokio::time::timeout(TIMEOUT, command.output());
    run.await.map_err(|_| PyPiError::Timeout(wanted.to_owned()))?.map_err(PyPiError::NoUv)
}

/// The index that the user configured for pip alone: uv does not read pip's configuration. `None` as soon as
/// uv has a configuration of its own.
async fn pip_index() -> Option<String> {
    const OWN: [&str; 4] = ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_CONFIG_FILE"];
    let home = |name: &str, rest: &str| std::env::var_os(name).map(|home| Path::new(&home).join(rest));
    let files = [
        Some(PathBuf::from("/etc/uv/uv.toml")),
        home("XDG_CONFIG_HOME", "uv/uv.toml"),
        home("HOME", ".config/uv/uv.toml"),
    ];
    let in_file = files.iter().flatten().any(|file| file.is_file());
    if in_file || OWN.iter().any(|name| std::env::var_os(name).is_some()) {
        return None;
    }
    if let Ok(index) = std::env::var("PIP_INDEX_URL") {
        return Some(index);
    }
    let mut pip = Command::new("pip");
    pip.args(["config", "get", "global.index-url"]).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(20), pip.output()).await.ok()?.ok()?;
    let index = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !index.is_empty()).then_some(index)
}

/// The `requires-python` of the scratch project. It has to admit an interpreter of this machine (uv starts
/// one) and must not be lower than what the package needs; the image's Python is the best guess at that.
fn python_floor(image: Option<(u32, u32)>, local: Option<(u32, u32)>) -> (u32, u32) {
    match (image.filter(|python| *python >= OLDEST), local) {
        (Some(image), Some(local)) => image.min(local),
        (Some(python), None) | (None, Some(python)) => python,
        (None, None) => OLDEST,
    }
}

fn project(package: &str, version: &Version, floor: (u32, u32)) -> String {
    let (major, minor) = floor;
    format!(
        r#"[project]
name = "hearth-scratch"
version = "0"
requires-python = ">={major}.{minor}"
dependencies = ["{package}=={version}"]

[[tool.uv.dependency-metadata]]
name = "{package}"
version = "{version}"
requires-dist = []
"#
    )
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: Option<String>,
    sdist: Option<Sdist>,
}

#[derive(Deserialize)]
struct Sdist {
    url: Option<String>,
    hash: Option<String>,
}

fn read_lock(text: &str, package: &str, version: &Version) -> Result<Located, String> {
    let lock: Lock = toml::from_str(text).map_err(|error| format!("its lock cannot be read: {error}"))?;
    let version = version.to_string();
    let mut named = lock.package.into_iter().filter(|locked| locked.name == package);
    let locked = named
        .find(|locked| locked.version.as_deref() == Some(&version))
        .ok_or("the lock does not have it")?;
    let sdist = locked.sdist.ok_or("only built packages exist")?;
    let digest = sdist.hash.ok_or("it has no hash")?.parse().map_err(|error| format!("{error}"))?;
    let url = sdist.url.ok_or("it has no URL")?;
    Ok(Located { url, digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"
version = 1
[[package]]
name = "hearth-scratch"
version = "0"
source = { virtual = "." }
[[package]]
name = "pyspark"
version = "3.5.9"
source = { registry = "https://index.example.com/simple" }
sdist = { url = "https://files.example.com/pyspark-3.5.9.tar.gz", hash = "sha256:ea27adc39ddac9413b8951e45aa748cbed6c785971b81386efc41938f6243d93", size = 317858593 }
"#;

    #[test]
    fn the_lock_gives_url_and_digest() {
        let version = "3.5.9".parse().unwrap();
        let located = read_lock(LOCK, "pyspark", &version).unwrap();
        assert_eq!(located.url, "https://files.example.com/pyspark-3.5.9.tar.gz");
        assert!(located.digest.hex().starts_with("ea27adc3"));
        for (from, to, expected) in [
            ("3.5.9\"\nsource", "3.5.8\"\nsource", "does not have it"),
            ("sha256:ea", "md5:ea", "is not a digest"),
            ("sdist = {", "other = {", "only built packages"),
            ("[[package]]", "[[package", "cannot be read"),
        ] {
            let error = read_lock(&LOCK.replace(from, to), "pyspark", &version).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_scratch_project_suits_this_machine_and_the_image() {
        let cases = [
            (Some((3, 11)), Some((3, 13)), (3, 11)),
            (Some((3, 13)), Some((3, 11)), (3, 11)),
            (Some((2, 7)), Some((3, 11)), (3, 11)),
            (None, Some((3, 12)), (3, 12)),
            (Some((3, 9)), None, (3, 9)),
            (None, None, (3, 8)),
        ];
        for (image, local, expected) in cases {
            assert_eq!(python_floor(image, local), expected, "{image:?} {local:?}");
        }
        let text = project("pyspark", &"3.5.9".parse().unwrap(), (3, 11));
        assert!(toml::from_str::<toml::Table>(&text).is_ok(), "{text}");
    }
}
