//! Media types of the OCI image specification ("Media Types") and their predecessors of Docker.

/// A manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An index over the manifests of several platforms.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// An uncompressed layer; compressed ones have a suffix.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's index.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// An uncompressed layer of Docker.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
