//! Finds a package's source distribution through the user's package index.
//!
//! `uv lock` is run in a scratch project: it knows the user's indexes, credentials, mirrors and certificates
//! (`uv.toml`, `UV_*`, `netrc`, keyrings), and its lock gives URL and SHA-256 without downloading anything.
//! The scratch project declares the package's metadata itself (`tool.uv.dependency-metadata`); without that,
//! uv would download 300 MB and run the package's `setup.py` only to learn its dependencies.
//!

use serde::Deserialize;

use super::uv::{UvError, run};
use crate::{digest::Digest, version::Version};

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
    /// uv cannot find it.
    #[error("cannot find `{package}`")]
    Uv {
        /// The package and version.
        package: String,
        /// Why.
        #[source]
        source: UvError,
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
    offline: bool,
) -> Result<Located, PyPiError> {
    let wanted = format!("{package} {version}");
    let fail = |source| PyPiError::Uv { package: wanted.clone(), source };
    let scratch = tempfile::tempdir().map_err(|error| fail(UvError::Scratch(error)))?;
    let found = run(scratch.path(), &["python", "find", "--show-version"], offline).await.map_err(fail)?;
    let local: Option<Version> = String::from_utf8_lossy(&found.stdout).trim().parse().ok();
    let floor = python_floor(python.map(Version::line), local.map(|version| version.line()));
    let project = project(package, version, floor);
    std::fs::write(scratch.path().join("pyproject.toml"), project)
        .map_err(|error| fail(UvError::Scratch(error)))?;
    let output = run(scratch.path(), &["lock", "--no-progress"], offline).await.map_err(fail)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(fail(UvError::Refused(said)));
    }
    let lock = std::fs::read_to_string(scratch.path().join("uv.lock"))
        .map_err(|error| fail(UvError::Scratch(error)))?;
    read_lock(&lock, package, version).map_err(|why| PyPiError::NoSource { package: wanted, why })
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
    let digest =
        Digest::parse_sha256(&sdist.hash.ok_or("it has no hash")?).map_err(|error| error.to_string())?;
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
