//! What a plan is about: the parts of an image, its files, and the layers that they come to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    tree::{Entry, ImagePath, Tree},
};

/// Which part of an image a file belongs to; files of different parts share no layer unless one is too small.
/// The order is that of the layers, and of who wins where two parts have the same path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerName {
    /// A Java runtime.
    Java,
    /// A Python.
    Python,
    /// `/opt/spark/jars` but Spark's own.
    SparkJars,
    /// Spark's own JARs: every release has others, while what it depends on mostly stays.
    SparkOwnJars,
    /// The rest of the Spark distribution.
    Spark,
    /// JARs by Maven coordinates.
    Jars,
    /// Python packages.
    Wheels,
    /// Compiled Python files, and the archives of Spark with compiled files in them.
    Bytecode,
    /// The archive of class data, and how Java is started with it.
    ClassData,
    /// Entry point, users and directories.
    Hearth,
    /// The user's own files.
    Files,
}

impl LayerName {
    /// As shown to people and in the image's history.
    pub fn label(self) -> &'static str {
        match self {
            Self::Java => "Java runtime",
            Self::Python => "Python",
            Self::SparkJars => "Spark JARs",
            Self::SparkOwnJars => "Spark's own JARs",
            Self::Spark => "Spark programs, Python package and examples",
            Self::Jars => "JARs",
            Self::Wheels => "Python packages",
            Self::Bytecode => "compiled Python files",
            Self::ClassData => "class data of Java",
            Self::Hearth => "entry point, user and directories",
            Self::Files => "files",
        }
    }

    /// The first word of the names of its inputs in a lock.
    pub fn word(self) -> &'static str {
        match self {
            Self::Java => "java",
            Self::Python => "python",
            Self::SparkJars | Self::SparkOwnJars | Self::Spark => "spark",
            Self::Jars => "jar",
            Self::Wheels => "wheel",
            Self::Bytecode => "bytecode",
            Self::ClassData => "classes",
            Self::Hearth => "hearth",
            Self::Files => "file",
        }
    }

    /// The part of a file of the Spark distribution.
    pub fn of_spark(path: &ImagePath) -> Self {
        let is_jar = path.as_str().split('/').any(|part| part == "jars");
        match (is_jar, path.name().starts_with("spark-")) {
            (true, true) => Self::SparkOwnJars,
            (true, false) => Self::SparkJars,
            (false, _) => Self::Spark,
        }
    }

    /// Whether its files are JARs that change one by one; Spark's own change all together.
    pub(super) fn is_jars(self) -> bool {
        matches!(self, Self::SparkJars | Self::Jars)
    }

    /// Whether it lies on top: it changes more often than what is below.
    pub(super) fn on_top(self) -> bool {
        matches!(self, Self::Hearth | Self::Files)
    }
}

/// Bounds of a plan, in uncompressed bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Layers of an image, its base's included. Overlay file systems stop at 127.
    pub layers: usize,
    /// Smaller groups are copied instead of shared.
    pub smallest: u64,
    /// Larger groups are cut.
    pub largest: u64,
    /// Groups of JARs are divided into portions of about this size.
    pub portion: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { layers: 24, smallest: 4 << 20, largest: 256 << 20, portion: 48 << 20 }
    }
}

/// The files that one image adds to its base.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// How many layers the base has.
    pub base_layers: usize,
    /// The files, by part.
    pub parts: BTreeMap<LayerName, Tree>,
}

impl Files {
    /// Digest over all files and the parts that they belong to.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&serde_json::to_vec(&self.parts).expect("paths are strings"))
    }

    /// Every file with its part.
    pub(super) fn entries(&self) -> impl Iterator<Item = (LayerName, &ImagePath, &Entry)> {
        self.parts.iter().flat_map(|(name, tree)| tree.iter().map(|(path, entry)| (*name, path, entry)))
    }
}

/// One layer and the images that have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What is in it.
    pub name: LayerName,
    /// Which part of a group that was cut, and of how many.
    pub part: (usize, usize),
    /// The images, by their position.
    pub images: Vec<usize>,
    /// The files.
    pub tree: Tree,
}

impl Planned {
    /// As shown to people and in the image's history. It says nothing about the other images: an image must
    /// not change because another one is added.
    pub fn label(&self) -> String {
        match self.part {
            (_, 1) => self.name.label().to_owned(),
            (part, of) => format!("{} ({part}/{of})", self.name.label()),
        }
    }
}
