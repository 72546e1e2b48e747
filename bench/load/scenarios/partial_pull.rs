//! `partial-pull`: podman has a Spark image and pulls the next patch release: bytes that leave the registry, against the
//! files that the release changed. Then `hearth convert` rewrites a gzip image of the release: time and memory.
//!
//! podman is that of Debian's newest suite (`tests/runtimes.sh`), with partial pulls switched on. The changed files are
//! those whose content is nowhere in the old image, as they lie compressed in the new one.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use hearth_builder::{
    digest::Digest,
    layer::chunked::{Annotations, Entry, Reader},
};
use kit::runtime::{ContainersTools, CountingProxy, DockerRegistry, Suite};
use serde_json::Value;
use tokio::process::Command;

use super::{images, seconds};
use crate::{Arguments, machine::settle, report::Report};

/// A release and its predecessor.
const RELEASES: [&str; 2] = ["3.5.8", "3.5.9"];

const REPOSITORY: &str = "bench/spark";

pub(crate) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let home = kit::fixtures::directory();
    fs::create_dir_all(&home)?;
    let work = tempfile::Builder::new().prefix("hearth-load-").tempdir_in(home)?;
    let work = work.path();
    let registry = DockerRegistry::start(&work.join("storage")).await?;
    let host = registry.address().to_string();
    for version in RELEASES {
        let link = work.join(format!("pyspark-{version}.tar.gz"));
        std::os::unix::fs::symlink(kit::fixtures::pyspark(version)?, link)?;
    }
    let built = build(work, &host, "zstd:chunked", &["--push", "--plain-http", &host]).await?;
    let [old, new] = [0, 1].map(|at| manifest(work, &built["images"][at]));
    let (old, new) = (files(work, &old?)?, files(work, &new?)?);
    let had: BTreeSet<Digest> = old.iter().filter_map(|file| file.digest).collect();
    let mut counted = BTreeSet::new();
    let changed: u64 = new
        .iter()
        .filter(|file| file.digest.is_some_and(|digest| !had.contains(&digest) && counted.insert(digest)))
        .map(|file| file.end_offset - file.offset)
        .sum();
    report.detail("changed files MB", megabytes(changed));
    report.detail("changed layers MB", megabytes(new_layers(&built)));
    let proxy = CountingProxy::start(registry.address(), None).await?;
    for _ in 0..arguments.rounds {
        let tools = ContainersTools::without_mirror(Suite::Sid)?;
        configure(&tools, &proxy)?;
        let mut moved = [0; 2];
        for (version, moved) in RELEASES.iter().zip(&mut moved) {
            proxy.clear();
            tools.podman_pull(&format!("{}/{REPOSITORY}:{version}", proxy.address())).await?;
            *moved = proxy.blob_gets().iter().map(|get| get.bytes).sum();
        }
        report.detail("old image MB", megabytes(moved[0]));
        report.detail("upgrade MB", megabytes(moved[1]));
        report.figure("bytes_over_changed", megabytes(moved[1]) / megabytes(changed));
    }
    registry.stop();
    build(work, "registry.example.com", "gzip", &["--output", "gzip"]).await?;
    for _ in 0..arguments.rounds {
        images::remove(&work.join("converted"))?;
        images::remove(&work.join("convert-cache"))?;
        settle(2 << 30).await?;
        let mut convert = Command::new(kit::process::binary("hearth")?);
        convert.args(["convert", "oci:gzip:3.5.9", "oci:converted", "--cache-dir", "convert-cache"]);
        let started = Instant::now();
        let peak = images::run_watched(convert.current_dir(work)).await?;
        report.detail("convert s", seconds(started.elapsed()));
        #[expect(clippy::cast_precision_loss, reason = "a few hundred thousand")]
        report.figure("convert_peak_mib", peak as f64 / 1024.0);
    }
    Ok(())
}

async fn build(work: &Path, host: &str, codec: &str, more: &[&str]) -> Result<Value> {
    let spec = format!(
        "apiVersion: hearth.dev/v1alpha1\nkind: ImageMatrix\nrepository: {host}/{REPOSITORY}\n\
         tag: \"{{spark}}\"\nbase: {{ rootfs: {} }}\ncompression: {codec}\n\
         axes: {{ spark: [\"{}\"], java: [\"17\"], python: [\"3.11\"] }}\n\
         sources: {{ spark: {{ path: \"pyspark-{{spark}}.tar.gz\" }} }}\n",
        kit::fixtures::base_rootfs()?.display(),
        RELEASES.join("\", \"")
    );
    fs::write(work.join("hearth.yaml"), spec)?;
    let mut build = Command::new(kit::process::binary("hearth")?);
    build.args(["build", "--cache-dir", "cache", "--output-format", "json"]).args(more);
    Ok(serde_json::from_slice(&images::output(build.current_dir(work)).await?)?)
}

fn configure(tools: &ContainersTools, proxy: &CountingProxy) -> Result<()> {
    let registries = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", proxy.address());
    fs::write(tools.path().join("etc/containers/registries.conf"), registries)?;
    let storage = tools.path().join("storage.conf");
    let options = "[storage.options]\npull_options = { enable_partial_images = \"true\" }\n";
    fs::write(&storage, fs::read_to_string(&storage)? + options)?;
    Ok(())
}

fn blob(work: &Path, descriptor: &Value) -> Result<PathBuf> {
    let digest =
        descriptor.as_str().or(descriptor["digest"].as_str()).context("a descriptor has a digest")?;
    Ok(work.join("dist/blobs").join(digest.replace(':', "/")))
}

fn manifest(work: &Path, image: &Value) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(blob(work, &image["manifest"])?)?)?)
}

/// The files of an image, as the tables of contents of its layers name them.
fn files(work: &Path, manifest: &Value) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    for layer in manifest["layers"].as_array().context("a manifest has layers")? {
        let annotations: Annotations = serde_json::from_value(layer["annotations"].clone())?;
        let size = layer["size"].as_u64().context("a layer has a size")?;
        let entries = Reader::open(File::open(blob(work, layer)?)?, size, &annotations)?.entries;
        found.extend(entries.into_iter().filter(|entry| entry.kind == "reg"));
    }
    ensure!(!found.is_empty(), "an image has files");
    Ok(found)
}

/// Bytes of the layers that the new image does not share with the old one.
fn new_layers(built: &Value) -> u64 {
    let layers = |at: usize| built["images"][at]["layers"].as_array().cloned().unwrap_or_default();
    let had: Vec<Value> = layers(0).iter().map(|layer| layer["digest"].clone()).collect();
    let new = layers(1).into_iter().filter(|layer| !had.contains(&layer["digest"]));
    new.filter_map(|layer| layer["size"].as_u64()).sum()
}

#[expect(clippy::cast_precision_loss, reason = "below 2^53")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
