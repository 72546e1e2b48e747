//! Python packages: from a lock or requirements to files in an image.
//!
//! ```text
//! uv.lock, pylock.toml ------------------------\
//! requirements --> uv pip compile --> pylock ---+--> lockfile (pure) --> wheels by URL and digest --> install
//! ```
//!
//! All images with the same requirements are resolved in one run of uv where that is possible ([`resolution`]).
//!
//! Wheels are chosen for the image's Python and platform, whatever this machine has. Source distributions are refused:
//! building one runs its code here, and gives other bytes each time.

pub mod install;
pub mod lockfile;
pub mod marker;
pub mod resolution;
pub mod tags;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use self::marker::Environment;
use super::uv::{self, UvError};
use crate::{digest::Digest, package::normal, spec::Wheels};

/// A lock or a requirements file of a thousand packages has a few megabytes.
const LIMIT: u64 = 64 << 20;

/// Why wheels cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum WheelsError {
    /// A file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// uv cannot lock the requirements.
    #[error("cannot lock the requirements of Python packages")]
    Uv(#[from] UvError),
    /// The lock cannot be used.
    #[error("cannot use {what}: {problem}")]
    Lock {
        /// Which lock.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// A hashed requirements file does not have what was chosen.
    #[error("`{file}` is not among the hashes of `{package}` in the requirements")]
    Hash {
        /// The wheel.
        file: String,
        /// Its package.
        package: String,
    },
}

/// What is asked for, read from disk: it changes when the answer may change.
#[derive(Debug)]
pub struct Request {
    /// The text of the lock, or of all requirements.
    text: String,
    /// Whether it is a lock already.
    locked: bool,
    /// Extras and groups of the lock that are installed as well.
    more: lockfile::More,
}

impl Request {
    /// Reads the files that a specification names.
    pub fn read(wheels: &Wheels) -> Result<Self, WheelsError> {
        match wheels {
            Wheels::Lock { path, extras, groups } => {
                let more = lockfile::More { extras: extras.clone(), groups: groups.clone() };
                Ok(Self { text: read(path)?, locked: true, more })
            }
            Wheels::Requirements(path, packages) => {
                let mut text = path.as_deref().map(read).transpose()?.unwrap_or_default();
                for package in packages {
                    text = format!("{}\n{package}\n", text.trim_end());
                }
                Ok(Self { text, locked: false, more: lockfile::More::default() })
            }
        }
    }

    /// What the lock remembers of it.
    pub fn digest(&self) -> Digest {
        let lockfile::More { extras, groups } = &self.more;
        if extras.is_empty() && groups.is_empty() {
            return Digest::of(self.text.as_bytes());
        }
        Digest::of(format!("{}\nextras {extras:?} groups {groups:?}", self.text).as_bytes())
    }

    /// Locks requirements for some environments; uv keeps `preferred` versions where it can. A lock stays what it is.
    async fn lock(
        &self,
        environments: &[&Environment],
        preferred: &BTreeMap<String, String>,
        offline: bool,
    ) -> Result<String, WheelsError> {
        if self.locked {
            return Ok(self.text.clone());
        }
        Ok(uv::compile(&self.text, environments, preferred, offline).await?)
    }

    /// Chooses the wheels of a lock for an environment.
    fn choose(&self, lock: &str, environment: &Environment) -> Result<Vec<lockfile::Wheel>, WheelsError> {
        let what = if self.locked { "the lock of Python packages" } else { "what `uv` locked" };
        let wheels = lockfile::wheels(lock, environment, &self.more)
            .map_err(|problem| WheelsError::Lock { what: what.to_owned(), problem })?;
        if self.locked {
            return Ok(wheels);
        }
        let hashes = hashes(&self.text);
        for wheel in &wheels {
            let known = hashes.get(&wheel.package);
            let fine = hashes.is_empty() || known.is_some_and(|known| known.contains(&wheel.digest.hex()));
            if !fine {
                return Err(WheelsError::Hash { file: wheel.file.clone(), package: wheel.package.clone() });
            }
        }
        Ok(wheels)
    }
}

fn read(path: &Path) -> Result<String, WheelsError> {
    let fail = |source| WheelsError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(fail)?;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::io::Read::take(file, LIMIT), &mut text).map_err(fail)?;
    Ok(text)
}

/// The SHA-256 hashes of a requirements file by package; empty when it has none.
fn hashes(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.replace("\\\n", " ").lines() {
        let name: String =
            line.trim_start().chars().take_while(|c| c.is_alphanumeric() || "-_.".contains(*c)).collect();
        let hashes = line.split("--hash=sha256:").skip(1).filter_map(|rest| rest.split_whitespace().next());
        let hashes: Vec<String> = hashes.map(str::to_owned).collect();
        if !name.is_empty() && !hashes.is_empty() {
            found.entry(normal(&name)).or_default().extend(hashes);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_from_requirements() {
        let text = "# comment\nNum_Py==2.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\nplain==1\n";
        let found = hashes(text);
        assert_eq!(found.len(), 1);
        assert_eq!(found["num-py"], BTreeSet::from(["aa".to_owned(), "bb".to_owned()]));
        assert!(hashes("plain==1\n").is_empty());
    }
}
