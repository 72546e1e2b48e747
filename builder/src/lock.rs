//! `hearth.lock`: what a specification came to, so that it comes to the same again, anywhere and later.
//!
//! ```text
//! version, codec, headers    who reads it, and how layers are written: other bytes need another lock
//! inputs                     name -> digest and origin: "spark 3.5.9", "base base.tar"
//! layers                     every layer by its files, lowest first
//! images                     which layers each image has, by the digest over its files
//! ```
//!
//! A build takes inputs from the cache or from their origin and checks their digests; nothing is looked up
//! anew. Layers of the lock are kept as they are ([`crate::plan::locked`]): a new image gets those that fit it
//! and new ones for the rest. The file is JSON in one form, written aside and renamed.

mod differences;
pub mod pins;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    digest::{Digest, Mismatch},
    layer::{codec::Codec, header},
    package::{normal, of_wheel},
    plan::locked::{LockedLayer, LockedPlan},
};

const VERSION: u32 = 1;

/// A lock of a hundred images has a few megabytes.
const LIMIT: u64 = 256 << 20;

/// What a specification came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lock {
    version: u32,
    /// The codec with its version and level.
    codec: String,
    /// The version of the writer of tar headers.
    headers: u32,
    /// Inputs by name.
    pub inputs: BTreeMap<String, Pin>,
    /// Layers, lowest first.
    pub layers: Vec<LockedLayer>,
    /// The layers of each image by their position; the key is the digest over the image's files. Locks of earlier
    /// versions of hearth do not have it.
    #[serde(default)]
    images: BTreeMap<Digest, Vec<usize>>,
}

/// One input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pin {
    /// SHA-256 of the archive, or of the image's manifest.
    pub digest: Digest,
    /// Where it came from.
    pub origin: String,
    /// The classes that an archive of class data is made of, compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<String>,
}

/// What is wrong with a lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It cannot be read.
    #[error("cannot read the lock `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write the lock `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not what this version of hearth reads.
    #[error("the lock `{}` cannot be used: {problem}; make it again with `hearth lock`", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The specification asks for something that was not locked.
    #[error("the lock does not have {what}: the specification has changed; run `hearth lock`")]
    Stale {
        /// What is missing.
        what: String,
    },
    /// An input is no longer what was locked.
    #[error(
        "`{name}` has the digest `{found}`, but `{expected}` is locked: bring the old one back, or take the new one with `hearth lock --upgrade '{name}'`",
        found = .mismatch.found, expected = .mismatch.expected
    )]
    Changed {
        /// The input.
        name: String,
        /// What is there, and what was locked.
        mismatch: Box<Mismatch>,
    },
    /// Files that a build makes itself cannot be made here.
    #[error(
        "`{name}` is locked, but cannot be made here: {why}; build where the lock was made, or with the cache of that build, or lock anew with `hearth lock --upgrade '{name}'`"
    )]
    Unmade {
        /// Their name.
        name: String,
        /// Why.
        why: String,
    },
    /// Two inputs have the same name.
    #[error(
        "`{name}` is used with the digests `{expected}` and `{found}`: two cells need different files of one name",
        found = .mismatch.found, expected = .mismatch.expected
    )]
    Twice {
        /// The input.
        name: String,
        /// What is there now, and what was there before.
        mismatch: Box<Mismatch>,
    },
    /// `--upgrade` names nothing.
    #[error("the lock has no input and no Python package `{name}`: it has `{known}`")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// There is none where one is needed.
    #[error("there is no lock `{}`: make it with `hearth lock`", path.display())]
    Absent {
        /// The file.
        path: PathBuf,
    },
}

impl Lock {
    /// What was planned, in the form of a lock.
    pub fn new(codec: Codec, inputs: BTreeMap<String, Pin>, plan: LockedPlan) -> Self {
        let LockedPlan { layers, images } = plan;
        let (codec, headers) = (codec.id().to_owned(), header::VERSION);
        Self { version: VERSION, codec, headers, inputs, layers, images }
    }

    /// The layers and the images that have them.
    pub fn plan(&self) -> LockedPlan {
        LockedPlan { layers: self.layers.clone(), images: self.images.clone() }
    }

    /// Removes all layers, so that files are grouped anew.
    pub fn forget_layers(&mut self) {
        self.layers.clear();
        self.images.clear();
    }

    /// Reads a lock; `None` when there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, LockError> {
        let fail = |source| LockError::Read { path: path.to_owned(), source };
        let unusable = |problem: String| LockError::Unusable { path: path.to_owned(), problem };
        let length = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(fail)?.len(),
        };
        if length > LIMIT {
            return Err(unusable(format!("it has {length} bytes")));
        }
        Self::parse(path, &fs::read(path).map_err(fail)?).map(Some)
    }

    /// Reads the text of a lock; `path` is its name in messages.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self, LockError> {
        let unusable = |problem: String| LockError::Unusable { path: path.to_owned(), problem };
        let value: serde_json::Value =
            serde_json::from_slice(text).map_err(|error| unusable(error.to_string()))?;
        match value["version"].as_u64() {
            Some(version) if version == u64::from(VERSION) => {}
            _ => return Err(unusable(format!("its version is not {VERSION}"))),
        }
        serde_json::from_value(value).map_err(|error| unusable(error.to_string()))
    }

    /// Writes the lock aside and renames it.
    pub fn write(&self, path: &Path) -> Result<(), LockError> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let write = || {
            let mut file = tempfile::Builder::new()
                .prefix(".hearth-")
                .tempfile_in(directory.unwrap_or_else(|| Path::new(".")))?;
            file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
            let mut text = serde_json::to_vec_pretty(self)?;
            text.push(b'\n');
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)
        };
        write().map(drop).map_err(|source| LockError::Write { path: path.to_owned(), source })
    }

    /// Whether the same files come to the same bytes as when the lock was made.
    pub fn is_written_with(&self, codec: Codec) -> bool {
        self.codec == codec.id() && self.headers == header::VERSION
    }

    /// Refuses a lock whose layers were written in another way.
    pub fn check_codec(&self, path: &Path, codec: Codec) -> Result<(), LockError> {
        if self.is_written_with(codec) {
            return Ok(());
        }
        let problem = format!(
            "its layers were written with `{}` and headers {}, but now it would be `{}` and headers {}",
            self.codec,
            self.headers,
            codec.id(),
            header::VERSION
        );
        Err(LockError::Unusable { path: path.to_owned(), problem })
    }

    /// Forgets inputs, so that they are resolved anew. `names` are names of inputs or of Python packages. A request is
    /// forgotten with everything that it came to; a part of a request only by itself, and the other parts stay
    /// preferred versions.
    pub fn forget(&mut self, names: &[String]) -> Result<(), LockError> {
        for name in names {
            let named = |known: &str| known == name || is_wheel_of(known, name);
            let found: Vec<String> = self.inputs.keys().filter(|known| named(known)).cloned().collect();
            if found.is_empty() {
                let known: Vec<&str> = self.inputs.keys().map(String::as_str).collect();
                return Err(LockError::Unknown { name: name.clone(), known: known.join("`, `") });
            }
            for input in found {
                self.inputs.remove(&input);
                match input.split_once(PART) {
                    Some((request, _)) => drop(self.inputs.remove(request)),
                    None => self.inputs.retain(|known, _| !is_part(known, &input)),
                }
            }
        }
        Ok(())
    }
}

/// Request, package and version of the name of a wheel.
fn wheel(name: &str) -> Option<(&str, String, String)> {
    let (request, file) = name.split_once(PART)?;
    let (package, version) = of_wheel(file)?;
    Some((request, package, version))
}

fn is_wheel_of(name: &str, package: &str) -> bool {
    wheel(name).is_some_and(|(_, found, _)| found == normal(package))
}

/// The name of a part of a request: `wheels requirements.txt: numpy-2.0.0.whl`.
pub fn part(request: &str, name: &str) -> String {
    format!("{request}{PART}{name}")
}

const PART: &str = ": ";

fn is_part(name: &str, request: &str) -> bool {
    name.strip_prefix(request).is_some_and(|rest| rest.starts_with(PART))
}

#[cfg(test)]
mod tests {
    use super::{pins::Pins, *};

    fn lock(inputs: &[(&str, &str)]) -> Lock {
        let pin = |text: &str| Pin {
            digest: Digest::of(text.as_bytes()),
            origin: "somewhere".to_owned(),
            classes: None,
        };
        let inputs = inputs.iter().map(|(name, text)| ((*name).to_owned(), pin(text))).collect();
        Lock::new(Codec::Gzip, inputs, LockedPlan::default())
    }

    #[test]
    fn a_lock_reads_back_what_it_wrote_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hearth.lock");
        assert_eq!(Lock::read(&path).unwrap(), None);
        let written = lock(&[("spark 3.5.9", "a")]);
        written.write(&path).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), Some(written.clone()));
        for text in ["", "{", "{\"version\": 2}", "{\"version\": 1}"] {
            fs::write(&path, text).unwrap();
            let error = Lock::read(&path).unwrap_err().to_string();
            assert!(error.contains("hearth.lock") && error.contains("`hearth lock`"), "{error}");
        }
        assert!(written.check_codec(&path, Codec::Gzip).is_ok());
        assert!(written.check_codec(&path, Codec::Zstd).is_err());
    }

    #[test]
    fn differences_are_named() {
        let old = lock(&[("base base.tar", "a"), ("spark 3.5.8", "b"), ("same", "c")]);
        let new = lock(&[("base base.tar", "z"), ("spark 3.5.9", "b"), ("same", "c")]);
        let expected =
            ["`base base.tar` has changed", "`spark 3.5.9` is new", "`spark 3.5.8` is no longer needed"];
        assert_eq!(old.differences(&new), expected);
        assert!(old.differences(&old).is_empty());
    }

    #[test]
    fn inputs_are_held_against_the_lock() {
        let locked = lock(&[("a", "a")]);
        let mut strict = Pins::new(Some(&locked), true);
        assert!(strict.used("a", Digest::of(b"a"), "x").is_ok());
        assert!(matches!(strict.used("a", Digest::of(b"b"), "x"), Err(LockError::Changed { .. })));
        assert!(matches!(strict.used("b", Digest::of(b"b"), "x"), Err(LockError::Stale { .. })));
        assert!(Pins::new(Some(&locked), false).used("b", Digest::of(b"b"), "x").is_ok());
        assert!(Pins::new(None, true).used("b", Digest::of(b"b"), "x").is_ok());
        assert!(locked.clone().forget(&["a".to_owned()]).is_ok());
        assert!(matches!(locked.clone().forget(&["b".to_owned()]), Err(LockError::Unknown { .. })));
    }

    #[test]
    fn a_request_is_remembered_with_what_it_came_to() {
        let locked = lock(&[("wheels r.txt", "r"), ("wheels r.txt: a.whl", "a"), ("wheels r.txt2", "x")]);
        let strict = Pins::new(Some(&locked), true);
        let parts = strict.resolved("wheels r.txt", Digest::of(b"r")).unwrap().unwrap();
        assert_eq!(parts.len(), 1);
        assert_eq!((parts[0].0.as_str(), parts[0].1.digest), ("a.whl", Digest::of(b"a")));
        assert!(matches!(strict.resolved("wheels r.txt", Digest::of(b"s")), Err(LockError::Stale { .. })));
        assert_eq!(Pins::new(Some(&locked), false).resolved("wheels r.txt", Digest::of(b"s")).unwrap(), None);
        for name in ["wheels r.txt", "wheels r.txt: a.whl"] {
            let mut lock = locked.clone();
            lock.forget(&[name.to_owned()]).unwrap();
            assert_eq!(lock.inputs.keys().collect::<Vec<_>>(), ["wheels r.txt2"]);
        }
        let before = lock(&[
            ("wheels r", "r"),
            ("wheels r: Num_Py-2.2.1-cp311-cp311-linux_x86_64.whl", "n"),
            ("wheels r: six-1.16-py3-none-any.whl", "s"),
        ]);
        let mut forgotten = before.clone();
        forgotten.forget(&["num-py".to_owned()]).unwrap();
        assert_eq!(forgotten.inputs.keys().collect::<Vec<_>>(), ["wheels r: six-1.16-py3-none-any.whl"]);
        let pins = Pins::new(Some(&forgotten), false);
        assert_eq!(pins.resolved("wheels r", Digest::of(b"r")).unwrap(), None);
        assert_eq!(
            pins.parts(|request| request == "wheels r").collect::<Vec<_>>(),
            ["six-1.16-py3-none-any.whl"]
        );
        let after = lock(&[
            ("wheels r", "r"),
            ("wheels r: Num_Py-2.4.6-cp311-cp311-linux_x86_64.whl", "m"),
            ("wheels r: six-1.16-py3-none-any.whl", "s"),
        ]);
        assert_eq!(before.differences(&after), ["`wheels r`: `num-py` is 2.4.6 instead of 2.2.1"]);
        let listed = |digest: &str, six: &str| {
            let request = format!("wheels {digest} python3.11 linux/amd64");
            let files = [
                format!("{request}: a-1-py3-none-any.whl"),
                format!("{request}: six-{six}-py3-none-any.whl"),
            ];
            lock(&[(&request, digest), (&files[0], "a"), (&files[1], six)])
        };
        let expected = [
            "`wheels bb python3.11 linux/amd64`: `six` is 1.17 instead of 1.16",
            "`wheels bb python3.11 linux/amd64` is new",
            "`wheels aa python3.11 linux/amd64` is no longer needed",
        ];
        assert_eq!(listed("aa", "1.16").differences(&listed("bb", "1.17")), expected);
        let mut pins = Pins::default();
        pins.used("a", Digest::of(b"1"), "x").unwrap();
        assert!(matches!(pins.used("a", Digest::of(b"2"), "x"), Err(LockError::Twice { .. })));
    }
}
