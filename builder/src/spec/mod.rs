//! `hearth.yaml`: what a user asks for, checked.
//!
//! ```text
//! keys (serde, strict) -> axes -> cells (plan) -> for each cell: defaults, then lines whose `when` holds, then its
//! variant, merged -> a Recipe: no placeholders, no relative paths, no choices left
//! ```
//!
//! Parsing is strict. An unknown key, a wrong value or a missing one is an error with file, line and column; a
//! misspelt key comes with the nearest valid one. No two images have the same tag. The keys are documented in
//! `docker/README.md`, and [`schema`] is made from their types.

mod check;
pub mod file;
mod keys;
mod merge;
mod needs;
mod packages;
mod recipe;
mod schema;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

pub use self::schema::schema;
use crate::{
    checksum::Checksum,
    coordinate::Coordinate,
    layer::codec::Codec,
    matrix::{Cell, Refused},
    registry::Repository,
    tree::ImagePath,
    version::Version,
};

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
    /// How layers are compressed.
    pub compression: Codec,
    /// The cells to build with what goes into them.
    pub wanted: Vec<Wanted>,
    /// Cells that are refused.
    pub refused: Vec<Refused>,
}

/// A cell and what goes into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The cell.
    pub cell: Cell,
    /// What goes into it.
    pub recipe: Recipe,
}

impl Wanted {
    /// The Spark of the image and where it comes from; `None` for a plain image.
    pub fn spark(&self) -> Option<(&Version, &SparkSource)> {
        self.cell.spark.as_ref().zip(self.recipe.spark.as_ref())
    }
}

/// Everything that a specification says about one cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The tags; the first is its name.
    pub tags: Vec<String>,
    /// The base image.
    pub base: Base,
    /// Where Spark comes from; images without the axis have none.
    pub spark: Option<SparkSource>,
    /// A Java runtime for bases that have none.
    pub java: Option<Input>,
    /// A Python for bases that have none.
    pub python: Option<Input>,
    /// Environment variables added to the image.
    pub env: BTreeMap<String, String>,
    /// Labels added to the image.
    pub labels: BTreeMap<String, String>,
    /// Files added to the image.
    pub files: Vec<FileInput>,
    /// JARs by Maven coordinates.
    pub jars: Jars,
    /// Python packages.
    pub wheels: Option<Wheels>,
    /// Whether Python files get bytecode.
    pub bytecode: bool,
    /// Whether an archive of class data is made for Java.
    pub class_data: bool,
    /// The user, when it is not the default.
    pub user: Option<String>,
    /// The program that containers start with, when it is not the default.
    pub entrypoint: Option<Vec<String>>,
    /// Its arguments when a container is started with none.
    pub command: Option<Vec<String>>,
    /// Where containers start, when it is not the default.
    pub working_directory: Option<String>,
    /// Ports that containers listen on, with their protocol.
    pub ports: BTreeSet<String>,
}

/// What an image stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// A root file system archive.
    RootFs(PathBuf),
    /// An OCI image layout, and which of its images.
    Layout(PathBuf, Option<String>),
    /// A reference to a registry.
    Image(String),
    /// Nothing.
    Scratch,
}

/// A file that is read, and what it must be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Input {
    /// Where it is.
    pub place: Source,
    /// What it must come to; a URL always has one.
    pub checksum: Option<Checksum>,
}

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// On this disk.
    Path(PathBuf),
    /// On a server.
    Url(String),
}

/// Where Spark comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SparkSource {
    /// A release archive or a source distribution.
    Archive(Input),
    /// A package, found through the user's package index.
    PyPi(String),
}

/// Something that is put into an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInput {
    /// What.
    pub content: FileContent,
    /// Where it goes.
    pub to: ImagePath,
    /// Whether `to` is the directory that a file is put into, under its own name.
    pub into: bool,
    /// Permission bits, when they are given.
    pub mode: Option<u32>,
    /// User and group.
    pub owner: (u64, u64),
    /// Where the specification asks for it.
    pub at: Place,
}

/// What is put into an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileContent {
    /// A file or directory.
    Input(Input),
    /// A text.
    Text(String),
    /// An empty directory.
    Directory,
}

/// JARs by Maven coordinates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Jars {
    /// Where they come from.
    pub repositories: Vec<MavenRepository>,
    /// What is asked for.
    pub packages: Vec<Coordinate>,
    /// `group:artifact` that are left out.
    pub exclude: Vec<String>,
    /// `group:artifact` of which Spark's version is kept.
    pub keep_spark: Vec<String>,
}

/// A Maven repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MavenRepository {
    /// Its URL, then those of its mirrors; each ends without a slash.
    pub urls: Vec<String>,
    /// The environment variable with the user name.
    pub username_env: Option<String>,
    /// The environment variable with the password.
    pub password_env: Option<String>,
}

/// Python packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wheels {
    /// A `uv.lock` or `pylock.toml`.
    Lock {
        /// The file.
        path: PathBuf,
        /// Extras of the project that are installed, too.
        extras: Vec<String>,
        /// Dependency groups that are installed, too.
        groups: Vec<String>,
    },
    /// A requirements file and further requirements.
    Requirements(Option<PathBuf>, Vec<String>),
}

#[cfg(test)]
mod tests;
