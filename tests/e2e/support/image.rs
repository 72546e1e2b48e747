//! The image that the tests pull: built and pushed by the real `hearth`, once for all of them.
//!
//! Every test is a process of its own, so what is shared lies on disk, beside the binaries:
//!
//! ```text
//! <target>/e2e/lock                held while an image is made
//! <target>/e2e/<key>/storage/      the docker-registry storage that the image was pushed to
//! <target>/e2e/<key>/reference     repository:tag
//! ```
//!
//! `<key>` is the digest of the `hearth` binary and of the names of its inputs: a new binary makes a new image and
//! removes the old one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kit::process::binary;
use kit::runtime::{DockerRegistry, run};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::REGISTRY;

pub const SPARK: &str = "3.5.9";
const REPOSITORY: &str = "data/spark";

/// Compressing 700 MB takes under two minutes on two cores.
const BUILD_LIMIT: Duration = Duration::from_mins(10);

/// A manifest, configuration or layer.
#[derive(Debug, Clone)]
pub struct Blob {
    pub digest: String,
    pub size: u64,
}

/// The image as the upstream's storage has it.
#[derive(Debug)]
pub struct Image {
    /// The storage of the registry that it was pushed to.
    pub storage: PathBuf,
    /// `<repository>:<tag>` without the registry.
    reference: String,
    /// The manifest.
    pub manifest: Blob,
    config_and_layers: Vec<Blob>,
}

impl Image {
    /// The image, built now when this `hearth` has not built it yet.
    pub async fn built() -> Result<Self> {
        let (base, spark) = (kit::fixtures::base_rootfs()?, kit::fixtures::pyspark(SPARK)?);
        let hearth = binary("hearth")?;
        let mut key = Sha256::new();
        key.update(fs::read(&hearth)?);
        key.update(format!("{}\n{}", base.display(), spark.display()));
        let all = hearth.parent().context("the binary lies in a directory")?.join("e2e");
        let directory = all.join(&hex::encode(key.finalize())[..16]);
        fs::create_dir_all(&all)?;
        let lock = File::create(all.join("lock"))?;
        lock.lock()?;
        if !directory.exists() {
            remove_directories_in(&all)?;
            let partial = all.join("partial");
            fs::create_dir(&partial)?;
            build_and_push(&hearth, &base, &spark, &partial).await.context("`hearth build --push` failed")?;
            fs::rename(&partial, &directory)?;
        }
        Self::read(&directory)
    }

    fn read(directory: &Path) -> Result<Self> {
        let storage = directory.join("storage");
        let reference = fs::read_to_string(directory.join("reference"))?;
        let (repository, tag) = reference.split_once(':').context("a reference is repository:tag")?;
        let tags = storage.join("docker/registry/v2/repositories").join(repository).join("_manifests/tags");
        let digest = fs::read_to_string(tags.join(tag).join("current/link"))
            .with_context(|| format!("`{reference}` was not pushed"))?;
        let bytes = fs::read(data(&storage, &digest))?;
        let manifest = Blob { digest, size: bytes.len() as u64 };
        let parsed: Value = serde_json::from_slice(&bytes).context("the pushed manifest is not JSON")?;
        let layers = parsed["layers"].as_array().context("the pushed manifest is not one of an image")?;
        let config_and_layers = std::iter::once(&parsed["config"])
            .chain(layers)
            .map(|descriptor| {
                let digest = descriptor["digest"].as_str().context("a descriptor has a digest")?.to_owned();
                Ok(Blob { digest, size: descriptor["size"].as_u64().context("a descriptor has a size")? })
            })
            .collect::<Result<_>>()?;
        Ok(Self { storage, reference, manifest, config_and_layers })
    }

    /// Its name for clients.
    pub fn name(&self) -> String {
        format!("{REGISTRY}/{}", self.reference)
    }

    /// The words that it starts with, whatever its arguments.
    pub fn entry_point(&self) -> Result<Vec<String>> {
        let config: Value =
            serde_json::from_slice(&fs::read(self.upstream_file(&self.config_and_layers[0]))?)?;
        serde_json::from_value(config["config"]["Entrypoint"].clone()).context("the image has no entry point")
    }

    /// Its configuration, then its layers, the lowest first.
    pub fn config_and_layers(&self) -> &[Blob] {
        &self.config_and_layers
    }

    /// The manifest, the configuration and the layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.manifest).chain(&self.config_and_layers)
    }

    /// The file in which the upstream keeps `blob`.
    pub fn upstream_file(&self, blob: &Blob) -> PathBuf {
        data(&self.storage, &blob.digest)
    }
}

async fn build_and_push(hearth: &Path, base: &Path, spark: &Path, directory: &Path) -> Result<()> {
    let registry = DockerRegistry::start(&directory.join("storage")).await?;
    let host = registry.address().to_string();
    let tag = format!("{SPARK}-java17-python3.11");
    let spec = directory.join("hearth.yaml");
    fs::write(
        &spec,
        format!(
            "apiVersion: hearth.dev/v1alpha1\n\
             kind: ImageMatrix\n\
             repository: {host}/{REPOSITORY}\n\
             tag: \"{{spark}}-java{{java}}-python{{python}}\"\n\
             base: {{ rootfs: {} }}\n\
             axes:\n  spark: [\"{SPARK}\"]\n  java: [\"17\"]\n  python: [\"3.11\"]\n\
             sources:\n  spark: {{ path: {} }}\n",
            base.display(),
            spark.display(),
        ),
    )?;
    let mut command = Command::new(hearth);
    command.args(["build", "--push", "--plain-http", &host, "--file"]).arg(&spec);
    command.arg("--to").arg(directory.join("layout")).arg("--cache-dir").arg(directory.join("cache"));
    run(command, BUILD_LIMIT).await?.output()?;
    // What the tests pull is what upstream has; 1 GB that nobody reads again.
    fs::remove_dir_all(directory.join("layout"))?;
    fs::remove_dir_all(directory.join("cache"))?;
    fs::write(directory.join("reference"), format!("{REPOSITORY}:{tag}"))?;
    registry.stop();
    Ok(())
}

fn remove_directories_in(all: &Path) -> Result<()> {
    for entry in fs::read_dir(all)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
        }
    }
    Ok(())
}

/// Where `docker-registry` keeps a blob.
fn data(storage: &Path, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    let short = hex.get(..2).unwrap_or_default();
    storage.join("docker/registry/v2/blobs/sha256").join(short).join(hex).join("data")
}
