//! A wish: which images are to be on this node, and how they come there. The same for a set of the configuration file
//! and for an `ImageSet` of the cluster.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schedule::Schedule;
use crate::types::{ImageName, Platform};

/// What is done when a tag means something else than before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// The new image is pulled beside the old one, which is let go when the new one is whole.
    #[default]
    IfChanged,
    /// The first meaning stays.
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
    /// Whose name it is.
    pub origin: Origin,
    /// Unique there.
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

/// See the module's text.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// Its name.
    pub name: SetName,
    /// The images, each once.
    pub images: Vec<ImageName>,
    /// Platforms of an index that are brought; none means the node's own.
    pub platforms: Vec<Platform>,
    /// When tags are asked for again; without one, every so often.
    pub schedule: Option<Schedule>,
    /// What a changed tag leads to.
    pub policy: PullPolicy,
    /// What was brought is never evicted.
    pub pin: bool,
    /// Most bytes a second for one image.
    pub bandwidth: Option<u64>,
    /// The image goes into the container runtime's own store as well.
    pub runtime: bool,
    /// It is this node's turn: other nodes may come first.
    pub admitted: bool,
    /// What failed may be tried again.
    pub retries: bool,
}

impl Set {
    /// One with nothing but its name and images.
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
        }
    }
}
