//! The format of `docker save` (also of `podman save` and `skopeo copy docker-archive:`): `manifest.json` lists, for
//! each image, the paths of a configuration and layers. It contains no manifest: the import creates one, always the
//! same for the same content. The `diff_ids` in the configuration are the only proof of the layers, and are verified.

use oci::media_type::{DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST};
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    ArchiveError,
    intake::{DOCKER, Intake, uncompressed_digest},
    naming::Entry,
};
use crate::{
    store::Staged,
    types::{Digest, MediaType},
};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

/// The images in the archive; an entry for each name. The created manifests are added to the intake.
pub(super) fn entries(
    intake: &mut Intake,
    manifest: &[u8],
    stop: &CancellationToken,
) -> Result<Vec<Entry>, ArchiveError> {
    let saved: Vec<Saved> = serde_json::from_slice(manifest)
        .map_err(|error| ArchiveError::document(DOCKER, error.to_string()))?;
    let mut found = Vec::new();
    for image in &saved {
        let bytes = manifest_of(intake, image, stop)?;
        let digest = intake.add(&bytes)?;
        let media_type = MediaType::parse(DOCKER_MANIFEST).expect("a media type by its grammar");
        let entry =
            |names| Entry { digest, size: Some(bytes.len() as u64), media_type: media_type.clone(), names };
        let tags = image.repo_tags.clone().unwrap_or_default();
        if tags.is_empty() {
            found.push(entry(Vec::new()));
        }
        found.extend(tags.into_iter().map(|tag| entry(vec![tag])));
    }
    Ok(found)
}

fn manifest_of(intake: &Intake, image: &Saved, stop: &CancellationToken) -> Result<Vec<u8>, ArchiveError> {
    let file = |path: &str| {
        let missing =
            || ArchiveError::document(DOCKER, format!("it refers to `{path}`, which is not in the archive"));
        intake.file(path).ok_or_else(missing)
    };
    let config = file(&image.config)?;
    let too_large = || ArchiveError::document(&image.config, "it is too large for an image configuration");
    let bytes = config.read_small()?.ok_or_else(too_large)?;
    let parsed: Config = serde_json::from_slice(&bytes)
        .map_err(|error| ArchiveError::document(&image.config, error.to_string()))?;
    let diff_ids = parsed.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() != image.layers.len() {
        let reason = format!("it has {} layers, `manifest.json` has {}", diff_ids.len(), image.layers.len());
        return Err(ArchiveError::document(&image.config, reason));
    }
    let mut layers = Vec::new();
    for (path, diff_id) in image.layers.iter().zip(&diff_ids) {
        let layer = file(path)?;
        let diff_id: Digest =
            diff_id.parse().map_err(|error| ArchiveError::document(&image.config, format!("{error}")))?;
        let media_type = layer_type(layer, &diff_id, stop)?.ok_or_else(|| {
            ArchiveError::member(path, &format!("its content is not the layer `{diff_id}`"))
        })?;
        layers.push(json!({
            "mediaType": media_type, "size": layer.size(), "digest": layer.digest().to_string(),
        }));
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": { "mediaType": DOCKER_CONFIG, "size": config.size(), "digest": config.digest().to_string() },
        "layers": layers,
    });
    Ok(serde_json::to_vec(&manifest).expect("a document of plain values is always valid JSON"))
}

/// The layer's media type, if its content matches the configuration.
fn layer_type(
    layer: &Staged,
    diff_id: &Digest,
    stop: &CancellationToken,
) -> Result<Option<String>, ArchiveError> {
    if layer.digest() == diff_id {
        return Ok(Some(DOCKER_LAYER.to_owned()));
    }
    if uncompressed_digest(layer, stop)? != *diff_id {
        return Ok(None);
    }
    let mut magic = [0; 1];
    std::io::Read::read_exact(&mut layer.open()?, &mut magic).map_err(ArchiveError::Read)?;
    let suffix = if magic == [0x1f] { "gzip" } else { "zstd" };
    Ok(Some(format!("{DOCKER_LAYER}.{suffix}")))
}
