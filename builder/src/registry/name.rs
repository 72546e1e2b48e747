//! Names as `oci-client` takes them.

use oci::{ImageName, RegistryHost, Repository};
use oci_client::Reference;

/// The registry as it is reached: Docker Hub has another name for it.
pub(super) fn endpoint(registry: &RegistryHost) -> &str {
    match registry.as_str() {
        "docker.io" => "index.docker.io",
        other => other,
    }
}

/// An image as the library takes it.
pub(super) fn reference(image: &ImageName) -> Reference {
    let Repository { registry, name } = &image.repository;
    let (registry, name) = (registry.to_string(), name.to_string());
    match image.reference() {
        oci::Reference::Tag(tag) => Reference::with_tag(registry, name, tag.to_string()),
        oci::Reference::Digest(digest) => Reference::with_digest(registry, name, digest.to_string()),
    }
}

/// The same where only the repository matters.
pub(super) fn any_of(repository: &Repository) -> Reference {
    reference(&ImageName { repository: repository.clone(), reference: None })
}
