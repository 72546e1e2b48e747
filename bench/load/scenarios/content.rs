//! What nodes of a cluster pull: images in the storage of a `docker-registry`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use kit::registry::{MANIFEST, random_bytes, sha256};
use serde_json::{Value, json};
use tokio::process::Command;

use super::images;

const REPOSITORY: &str = "bench/image";
const TAG: &str = "v1";
const SPARK: &str = "3.5.8";

/// One image.
#[derive(Debug)]
pub(crate) struct Content {
    /// The root directory of a registry that has it.
    pub(crate) storage: PathBuf,
    /// Paths and sizes of what a client asks for: the manifest first.
    pub(crate) parts: Vec<(String, u64)>,
    /// Bytes of all blobs.
    pub(crate) size: u64,
}

impl Content {
    /// A configuration and one layer of random bytes.
    pub(crate) fn random(storage: &Path, seed: u64, size: u64) -> Result<Self> {
        Self::layered(storage, seed, size, 1)
    }

    /// The same with the bytes in several layers of one size.
    pub(crate) fn layered(storage: &Path, seed: u64, size: u64, layers: u64) -> Result<Self> {
        let config =
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#.to_vec();
        let length = usize::try_from(size / layers)?;
        let layers: Vec<_> = (0..layers).map(|layer| random_bytes(seed * 1_000 + layer, length)).collect();
        let descriptor = |bytes: &Vec<u8>, kind: &str| {
            let media_type = format!("application/vnd.oci.image.{kind}");
            json!({ "mediaType": media_type, "digest": sha256(bytes), "size": bytes.len() })
        };
        let described: Vec<_> = layers.iter().map(|layer| descriptor(layer, "layer.v1.tar")).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(&config, "config.v1+json"), "layers": described,
        });
        Self::publish(storage, manifest.to_string().as_bytes(), std::iter::once(config).chain(layers))
    }

    /// A Spark with Java and Python as `hearth build` makes it.
    pub(crate) async fn spark(storage: &Path) -> Result<Self> {
        let work = tempfile::Builder::new().prefix("hearth-forest-image-").tempdir()?;
        let (base, spark) = (kit::fixtures::base_rootfs()?, kit::fixtures::pyspark(SPARK)?);
        let specification = format!(
            "apiVersion: hearth.dev/v1alpha1\nkind: ImageMatrix\nrepository: registry.example.com/bench/spark\n\
             tag: \"{{spark}}\"\nbase: {{ rootfs: \"{}\" }}\n\
             axes: {{ spark: [\"{SPARK}\"], java: [\"17\"], python: [\"3.11\"] }}\n\
             sources: {{ spark: {{ path: \"{}\" }} }}\n",
            base.display(),
            spark.display()
        );
        fs::write(work.path().join("hearth.yaml"), specification)?;
        let mut build = Command::new(kit::process::binary("hearth")?);
        build.args(["build", "--to", "dist", "--cache-dir"]);
        build.arg(kit::fixtures::directory().join("build-cache")).current_dir(work.path());
        images::run(&mut build).await?;
        let layout = work.path().join("dist");
        let blob = |descriptor: &Value| -> Result<Vec<u8>> {
            let digest = descriptor["digest"].as_str().context("a descriptor has a digest")?;
            Ok(fs::read(layout.join("blobs").join(digest.replace(':', "/")))?)
        };
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
        let manifest = blob(&index["manifests"][0])?;
        let described: Value = serde_json::from_slice(&manifest)?;
        let layers = described["layers"].as_array().context("the build gave no single image")?;
        let blobs = std::iter::once(&described["config"]).chain(layers).map(blob).collect::<Result<Vec<_>>>();
        Self::publish(storage, &manifest, blobs?)
    }

    /// As the registry's own storage driver lays it out.
    fn publish(storage: &Path, manifest: &[u8], blobs: impl IntoIterator<Item = Vec<u8>>) -> Result<Self> {
        let root = storage.join("docker/registry/v2");
        let repository = root.join("repositories").join(REPOSITORY);
        let put = |bytes: &[u8], links: &[String]| -> Result<String> {
            let digest = sha256(bytes);
            let hex = digest.trim_start_matches("sha256:");
            let directory = root.join("blobs/sha256").join(&hex[..2]).join(hex);
            fs::create_dir_all(&directory)?;
            fs::write(directory.join("data"), bytes)?;
            for link in links {
                let directory = repository.join(link.replace("HEX", hex));
                fs::create_dir_all(&directory)?;
                fs::write(directory.join("link"), &digest)?;
            }
            Ok(digest)
        };
        let mut parts = vec![(format!("/v2/{REPOSITORY}/manifests/{TAG}"), manifest.len() as u64)];
        for bytes in blobs {
            let digest = put(&bytes, &["_layers/sha256/HEX".to_owned()])?;
            parts.push((format!("/v2/{REPOSITORY}/blobs/{digest}"), bytes.len() as u64));
        }
        let tag = format!("_manifests/tags/{TAG}");
        put(
            manifest,
            &[
                "_manifests/revisions/sha256/HEX".to_owned(),
                format!("{tag}/index/sha256/HEX"),
                format!("{tag}/current"),
            ],
        )?;
        let size = parts.iter().skip(1).map(|(_, size)| size).sum();
        Ok(Self { storage: storage.to_owned(), parts, size })
    }
}
