//! How public registries differ in taking uploads, as far as their documentation, issue trackers and answers show.
//!
//! | profile | chunks | `Location` of an upload | mounts | `OCI-Subject` |
//! | --- | --- | --- | --- | --- |
//! | `Specification` | 202, kept | path | yes | yes |
//! | `Distribution` | 202, kept | URL with `_state` | yes | no |
//! | `Ecr` | 201, all after the first are dropped and `Range` stays (aws/containers-roadmap#2831) | URL | no | yes |
//! | `Gar` | refused | path | no | yes |
//! | `Acr` | 202, kept | path with `_nouploadcache` and `_state` | yes | yes |
//! | `Hub` | 202, kept | URL with `_state` | yes | yes |
//! | `Quay` | 202, kept | URL | yes | yes |
//! | `Harbor` | 202, kept | URL with `_state` | yes | yes |

use std::sync::atomic::{AtomicUsize, Ordering};

/// Which registry an upload is taken like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// As the distribution specification says.
    #[default]
    Specification,
    /// CNCF distribution, which Debian calls docker-registry.
    Distribution,
    /// Amazon.
    Ecr,
    /// Google.
    Gar,
    /// Azure.
    Acr,
    /// Docker Hub.
    Hub,
    /// Red Hat.
    Quay,
    /// Harbor.
    Harbor,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Specification,
        Self::Distribution,
        Self::Ecr,
        Self::Gar,
        Self::Acr,
        Self::Hub,
        Self::Quay,
        Self::Harbor,
    ];

    /// Where an upload goes on, from its path.
    pub(super) fn location(self, base: &str, path: &str) -> String {
        match self {
            Self::Specification | Self::Gar => path.to_owned(),
            Self::Acr => format!("{path}?_nouploadcache=false&_state=opaque"),
            Self::Ecr | Self::Quay => format!("{base}{path}"),
            Self::Distribution | Self::Hub | Self::Harbor => format!("{base}{path}?_state=opaque"),
        }
    }

    /// Whether an upload may come in chunks at all.
    pub(super) fn takes_chunks(self) -> bool {
        self != Self::Gar
    }

    /// Whether chunks after the first are answered like it and dropped.
    pub(super) fn drops_chunks(self) -> bool {
        self == Self::Ecr
    }

    /// Whether a blob can be taken from another repository.
    pub(super) fn mounts(self) -> bool {
        !matches!(self, Self::Ecr | Self::Gar)
    }

    /// Whether the registry says that it knows the referrers API.
    pub(super) fn knows_referrers(self) -> bool {
        self != Self::Distribution
    }
}

/// The profile in force.
#[derive(Debug, Default)]
pub(super) struct Current(AtomicUsize);

impl Current {
    pub(super) fn set(&self, profile: Profile) {
        let at = Profile::ALL.iter().position(|known| *known == profile).expect("every profile is listed");
        self.0.store(at, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Profile {
        Profile::ALL[self.0.load(Ordering::Relaxed)]
    }
}
