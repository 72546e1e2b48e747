//! Why an image is not converted, and with which exit code.

use std::{io, path::PathBuf};

use crate::{
    cache::CacheError,
    digest::{Digest, Mismatch},
    fetch::download::DownloadError,
    publish::{PushError, layout::LayoutError},
    registry::RegistryError,
};

/// Why an image was not converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The target cannot be written to.
    #[error("cannot write to `{name}`: {problem}")]
    Target {
        /// The target.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The image cannot be converted.
    #[error("cannot convert `{name}`: {problem}")]
    Source {
        /// The image.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file of the source cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the layout is not what its name says.
    #[error("`{}` has the digest `{found}`: the layout is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The digest of its bytes.
        found: Digest,
    },
    /// The archive in a layer cannot be read.
    #[error("cannot read the layer's archive")]
    Archive(#[source] io::Error),
    /// A layer cannot be read.
    #[error("cannot unpack the layer `{layer}`")]
    Layer {
        /// The layer.
        layer: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A layer is not what the configuration says.
    #[error("the layer `{layer}` unpacks to `{found}`, but its image configuration says `{expected}`",
        found = .mismatch.found, expected = .mismatch.expected)]
    DiffId {
        /// The layer.
        layer: Digest,
        /// The digest of what it unpacks to, and that of the configuration.
        mismatch: Box<Mismatch>,
    },
    /// The source's registry fails.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The target's registry fails.
    #[error(transparent)]
    Push(#[from] PushError),
    /// No HTTP client.
    #[error("cannot reach registries")]
    Client(#[source] DownloadError),
    /// The layout cannot be written.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl ConvertError {
    /// 2 when the command line has to be changed.
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Self::Target { .. }) { 2 } else { 1 }
    }

    /// Names the layer in an error of its archive.
    pub(super) fn of_layer(self, layer: Digest) -> Self {
        match self {
            Self::Archive(source) | Self::Cache(CacheError::Input(source)) => Self::Layer { layer, source },
            other => other,
        }
    }
}
