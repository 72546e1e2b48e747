//! A set: which images to cache on this node, and how. The same for the configuration file and for an
//! `ImageSet` of the cluster.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schedule::Schedule;
use crate::types::{ImageName, Platform};

/// What to do when a tag resolves to another digest than before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// The new image is pulled beside the old one, which becomes evictable when the new one is complete.
    #[default]
    IfChanged,
    /// The first digest of the tag is kept.
    Once,
}

impl FromStr for PullPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "IfChanged" => Ok(Self::IfChanged),
            "Once" => Ok(Self::Once),
            other => Err(format!("`{other}` is neither `IfChanged` nor `Once`")),
        }
    }
}

/// Where a set comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// The configuration file.
    File,
    /// An `ImageSet`.
    Cluster,
}

/// The name of a set, unique on this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SetName {
    /// The source of the set.
    pub origin: Origin,
    /// Unique within the source.
    pub name: String,
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            Origin::File => write!(f, "file/{}", self.name),
            Origin::Cluster => write!(f, "imageset/{}", self.name),
        }
    }
}

/// Applications of one namespace, which have no say beyond it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    /// Their namespace.
    pub namespace: String,
    /// Most bytes of the images of all its sets on this node.
    pub limit: u64,
}

/// See the module documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// Its name.
    pub name: SetName,
    /// The images, each once.
    pub images: Vec<ImageName>,
    /// Platforms of an index to pull; empty means the node's own.
    pub platforms: Vec<Platform>,
    /// When tags are resolved again; `None` means at a fixed interval.
    pub schedule: Option<Schedule>,
    /// What to do when a tag changes.
    pub policy: PullPolicy,
    /// Whether pulled images are never evicted.
    pub pin: bool,
    /// Most bytes per second for one image.
    pub bandwidth: Option<u64>,
    /// Whether to load the image into the container runtime as well.
    pub runtime: bool,
    /// Whether it is this node's turn: other nodes may come first.
    pub admitted: bool,
    /// Whether failed images may be retried.
    pub retries: bool,
    /// For applications: fetched without credentials, within a limit.
    pub application: Option<Application>,
}

impl Set {
    /// A set with default settings.
    pub fn of(name: SetName, images: Vec<ImageName>) -> Self {
        Self {
            name,
            images,
            platforms: Vec::new(),
            schedule: None,
            policy: PullPolicy::default(),
            pin: true,
            bandwidth: None,
            runtime: false,
            admitted: true,
            retries: true,
            application: None,
        }
    }
}
