//! The parts of a manifest that the agent reads: its media type and the content it refers to. It never writes
//! one.

use oci::{
    Digest,
    media_type::{INDEX, MANIFEST},
};
use serde::Deserialize;

/// Largest manifest accepted, in bytes: the limit that registries keep (OCI distribution specification 1.1,
/// "Pushing manifests": at least 4 MiB must be taken).
pub const MAX_MANIFEST_BYTES: u64 = 4 * 1024 * 1024;

/// `Accept` of every manifest request to a registry. One fixed value, so that a response can be used for every
/// client.
pub const MANIFEST_ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.oci.artifact.manifest.v1+json, */*;q=0.1";

/// A media type without parameters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MediaType(String);

impl MediaType {
    /// As in a header.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses `Content-Type` and drops parameters; `None` when it would not be a valid header value.
    pub fn parse(value: &str) -> Option<Self> {
        let bare = value.split(';').next().unwrap_or_default().trim();
        let ok = bare.len() <= 255 && bare.contains('/') && bare.bytes().all(|b| b.is_ascii_graphic());
        ok.then(|| Self(bare.to_ascii_lowercase()))
    }
}

/// The role of content, according to the manifest that refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An image configuration: small, and parsed by the client before anything else.
    Config,
    /// A layer, or any other blob.
    Layer,
    /// A layer that registries need not have: it lists other sources, or may not be distributed.
    Foreign,
    /// Another manifest, in an index.
    Manifest,
}

/// Content that a manifest refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its role.
    pub role: Role,
}

/// Everything that a manifest refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestLinks {
    /// In the manifest's order: configuration, layers, child manifests.
    pub descriptors: Vec<Descriptor>,
}

/// Why bytes are not a manifest that can be served.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of the expected shape.
    #[error("manifest is not a JSON document of a known shape")]
    Json(#[source] serde_json::Error),
    /// Docker's first manifest format.
    #[error(
        "manifest has schema version 1, which container runtimes no longer accept: push the image again with a current tool"
    )]
    SchemaOne,
}

#[derive(Deserialize)]
struct RawManifest {
    #[serde(rename = "schemaVersion")]
    schema_version: Option<u32>,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Vec<RawDescriptor>,
    #[serde(default)]
    blobs: Vec<RawDescriptor>,
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
struct RawDescriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    urls: Vec<String>,
}

impl RawDescriptor {
    /// Descriptors with unsupported digests are left out: the agent could not verify the content.
    fn known(&self, role: Role) -> Option<Descriptor> {
        Some(Descriptor { digest: self.digest.parse().ok()?, size: self.size, role })
    }

    /// OCI image specification, "Non-Distributable Layers"; Docker calls them foreign.
    fn is_foreign(&self) -> bool {
        !self.urls.is_empty()
            || self.media_type.contains(".nondistributable.")
            || self.media_type.contains(".foreign.")
    }
}

impl ManifestLinks {
    /// Reads a manifest or index.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let raw: RawManifest = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        if raw.schema_version == Some(1) {
            return Err(ManifestError::SchemaOne);
        }
        let config = raw.config.iter().filter_map(|descriptor| descriptor.known(Role::Config));
        let layers = raw.layers.iter().chain(&raw.blobs).filter_map(|descriptor| {
            descriptor.known(if descriptor.is_foreign() { Role::Foreign } else { Role::Layer })
        });
        let children =
            raw.manifests.iter().flatten().filter_map(|descriptor| descriptor.known(Role::Manifest));
        Ok(Self { descriptors: config.chain(layers).chain(children).collect() })
    }
}

/// The media type in or implied by the document (OCI image specification, "Media Types"); used when a registry
/// sends none that is usable.
pub fn media_type_of(bytes: &[u8]) -> Option<MediaType> {
    if let Some(named) = named_media_type(bytes) {
        return Some(named);
    }
    let raw: RawManifest = serde_json::from_slice(bytes).ok()?;
    MediaType::parse(if raw.manifests.is_some() { INDEX } else { MANIFEST })
}

/// The media type in the document.
pub fn named_media_type(bytes: &[u8]) -> Option<MediaType> {
    let raw: RawManifest = serde_json::from_slice(bytes).ok()?;
    MediaType::parse(&raw.media_type?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(fill: &str) -> String {
        format!("sha256:{}", fill.repeat(64))
    }

    #[test]
    fn a_manifest_refers_to_its_config_and_layers() {
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{}","size":7}},"layers":[{{"digest":"{}","size":9,"urls":["x"]}}]}}"#,
            digest("a"),
            digest("b")
        );
        let links = ManifestLinks::parse(text.as_bytes()).unwrap();
        assert_eq!(links.descriptors.len(), 2);
        assert_eq!((links.descriptors[0].role, links.descriptors[0].size), (Role::Config, 7));
        assert_eq!((links.descriptors[1].role, links.descriptors[1].size), (Role::Foreign, 9));
        assert_eq!(media_type_of(text.as_bytes()).unwrap().as_str(), MANIFEST);
    }

    #[test]
    fn an_index_refers_to_its_manifests() {
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{}","size":7}}]}}"#, digest("c"));
        assert_eq!(ManifestLinks::parse(text.as_bytes()).unwrap().descriptors[0].role, Role::Manifest);
        assert_eq!(media_type_of(text.as_bytes()).unwrap().as_str(), INDEX);
    }

    #[test]
    fn the_first_schema_and_junk_are_told_apart() {
        assert!(matches!(ManifestLinks::parse(br#"{"schemaVersion":1}"#), Err(ManifestError::SchemaOne)));
        assert!(matches!(ManifestLinks::parse(b"<html>"), Err(ManifestError::Json(_))));
    }

    #[test]
    fn media_types_lose_their_parameters() {
        assert_eq!(MediaType::parse("Application/JSON; charset=utf-8").unwrap().as_str(), "application/json");
        assert_eq!(MediaType::parse("nonsense"), None);
        assert_eq!(MediaType::parse("a/b\r\nx: y"), None);
    }
}
