//! `hearth.yaml`: what a user asks for, checked.
//!
//! Parsing is strict. An unknown key, a wrong value or a missing one is an error with file, line and column; a
//! misspelt key comes with the nearest valid one. The result, [`Matrix`], holds only checked values: relative
//! paths are joined with the directory of the specification, placeholders are known to be axes, and no two
//! cells have the same tag. The keys are documented in `docker/README.md`.

mod check;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

pub use self::check::parse;
use crate::{digest::Digest, layer::codec::Codec, plan::Axes, registry::Repository};

/// A specification is a page of text; anything larger is a mistake.
const LIMIT: u64 = 1 << 20;

/// What is wrong with a specification. Shown as `FILE:LINE:COLUMN: what`.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file cannot be read.
    #[error("cannot read the specification `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{at}: {problem}")]
    Wrong {
        /// Where.
        at: Place,
        /// What, and what to write instead.
        problem: String,
    },
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    file: PathBuf,
    line: u64,
    column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// A checked specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// Where the images go.
    pub repository: Repository,
    /// The tag's template.
    pub tag: String,
    /// The base image.
    pub base: Base,
    /// The axes.
    pub axes: Axes,
    /// Where Spark comes from.
    pub spark: SparkSource,
    /// How layers are compressed.
    pub compression: Codec,
    /// Whether cells that nobody vouches for are built.
    pub allow_untested: bool,
    /// The platform, `linux/amd64` or `linux/arm64`.
    pub platform: Platform,
    /// Environment variables added to the image.
    pub env: BTreeMap<String, String>,
    /// Labels added to the image.
    pub labels: BTreeMap<String, String>,
}

/// An operating system and processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// 64-bit x86.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Platform {
    /// The platform of this machine.
    pub fn host() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 }
    }

    /// The architecture as image configurations spell it.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// The base image; texts may hold `{axis}` placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// A root file system archive.
    RootFs(PathBuf),
    /// An OCI image layout, and which of its images.
    Layout(PathBuf, Option<String>),
    /// A reference to a registry.
    Image(String),
}

/// Where the `pyspark` source distribution comes from; texts may hold `{axis}` placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SparkSource {
    /// A file; its digest is checked when given.
    Path(PathBuf, Option<Digest>),
    /// A URL and its digest.
    Url(String, Digest),
    /// A package, found through the user's package index.
    PyPi(String),
}

/// Reads and checks a specification file.
pub fn load(path: &Path) -> Result<Matrix, SpecError> {
    let fail = |source| SpecError::Read { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(fail)?.len();
    if length > LIMIT {
        let text = format!("{length} bytes are more than the {LIMIT} a specification may have");
        return Err(fail(std::io::Error::new(std::io::ErrorKind::FileTooLarge, text)));
    }
    parse(path, &std::fs::read_to_string(path).map_err(fail)?)
}

#[cfg(test)]
mod tests;
