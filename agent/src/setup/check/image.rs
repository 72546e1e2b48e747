//! The test image: one new file, for this machine's architecture, with a name that no registry has. A runtime that
//! can pull it has it from the agent.

use std::{
    io, process,
    time::{SystemTime, UNIX_EPOCH},
};

use oci::{
    layout::{self, path_of},
    media_type::{CONFIG, LAYER, MANIFEST},
};
use serde_json::json;

use crate::types::{Digest, ImageName, NameError};

/// The archive and name of a test image.
#[derive(Debug)]
pub struct Probe {
    /// A name in the registry that is checked.
    pub name: ImageName,
    /// A tar of an OCI layout.
    pub archive: Vec<u8>,
}

impl Probe {
    /// A new test image for a registry.
    pub fn new(registry: &str) -> Result<Self, ProbeError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos());
        let nonce = Digest::of(format!("{registry} {now} {}", process::id()).as_bytes()).to_string();
        let nonce = &nonce[nonce.len() - 16..];
        let name = format!("{registry}/hearth-check/{nonce}:{nonce}").parse()?;
        Ok(Self { name, archive: archive(nonce)? })
    }
}

/// Why the test image cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The registry's name is not valid in an image name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Writing into memory failed.
    #[error("cannot create the test image")]
    Write(#[from] io::Error),
}

fn archive(nonce: &str) -> io::Result<Vec<u8>> {
    let layer = tar([("hearth-check".to_owned(), nonce.as_bytes())])?;
    let layer_digest = Digest::of(&layer);
    let config = json!({
        "architecture": architecture(), "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [layer_digest.to_string()] },
    });
    let config = config.to_string().into_bytes();
    let descriptor = |kind: &str, bytes: &[u8]| json!({ "mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len() });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [descriptor(LAYER, &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor(MANIFEST, &manifest)] }).to_string();
    let blob = |bytes: &[u8]| path_of(&Digest::of(bytes));
    tar([
        (layout::MARK.to_owned(), layout::VERSION),
        (blob(&layer), &layer),
        (blob(&config), &config),
        (blob(&manifest), &manifest),
        (layout::INDEX.to_owned(), index.as_bytes()),
    ])
}

fn tar<'a>(files: impl IntoIterator<Item = (String, &'a [u8])>) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes)?;
    }
    tar.into_inner()
}

/// This machine's architecture, as in the image specification.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_image_is_new_and_belongs_to_the_registry() {
        let (one, other) = (Probe::new("r.test:5000").unwrap(), Probe::new("r.test:5000").unwrap());
        assert_ne!(one.name, other.name);
        assert_ne!(one.archive, other.archive);
        assert!(one.name.to_string().starts_with("r.test:5000/hearth-check/"), "{}", one.name);
    }
}
