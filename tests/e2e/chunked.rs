//! Layers in zstd:chunked, as Debian's newest podman and skopeo read and write them.
//!
//! Two patch releases of a small Spark: podman has the older one and pulls the newer one through a proxy that counts.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use hearth_builder::{
    digest::Digest,
    layer::chunked::{Annotations, Entry, Reader},
};
use kit::{
    build_fixture::{Fixture, write_spark},
    registry::{random_bytes, sha256},
    runtime::{ContainersTools, CountingProxy, DockerRegistry, Suite},
};
use serde_json::Value;

const REPOSITORY: &str = "data/spark";

/// Bytes of a JAR that every release changes.
const CHANGED: usize = 8 << 20;

/// Bytes in the middle of a JAR that every release changes; the rest of its [`CHANGED`] bytes stays. podman 5.8 reuses whole
/// files only, so all of it moves; skopeo 1.22 reuses chunks.
const WITHIN: usize = 100_000;

/// Seeds of the releases' bytes. Bytes of neighbouring seeds are the same ones, moved by a few places: chunks in them would be found
/// again.
const SEEDS: [(u64, &str); 2] = [(11 << 40, "3.5.8"), (12 << 40, "3.5.9")];

/// The name of the image of a release.
fn tag(version: &str) -> String {
    format!("{version}-java17-python3.11")
}

/// A registry with both releases, and the proxy before it.
struct World {
    _fixture: Fixture,
    storage: PathBuf,
    registry: DockerRegistry,
    proxy: CountingProxy,
    built: Value,
}

impl World {
    async fn new() -> Result<Self> {
        let fixture = Fixture::new();
        let storage = fixture.path("storage");
        let registry = DockerRegistry::start(&storage).await?;
        let proxy = CountingProxy::start(registry.address(), None).await?;
        let host = registry.address().to_string();
        for (seed, version) in SEEDS {
            let changed = random_bytes(seed, CHANGED);
            let mut patched = random_bytes(10, CHANGED);
            patched[CHANGED / 2..CHANGED / 2 + WITHIN].copy_from_slice(&random_bytes(seed, WITHIN));
            let jars: [(&str, &[u8]); 2] =
                [("deps/jars/app-changed.jar", &changed), ("deps/jars/app-patched.jar", &patched)];
            write_spark(File::create(fixture.path(&format!("pyspark-{version}.tar.gz")))?, version, &jars);
        }
        fixture.spec(&format!("{host}/{REPOSITORY}"), "{ rootfs: base.tar }", "");
        let text = fs::read_to_string(fixture.path("hearth.yaml"))?;
        fs::write(fixture.path("hearth.yaml"), text.replace("[\"3.5.9\"]", "[\"3.5.8\", \"3.5.9\"]"))?;
        let built = tokio::task::block_in_place(|| fixture.build(&["--push", "--plain-http", &host]));
        Ok(Self { _fixture: fixture, storage, registry, proxy, built })
    }

    /// podman and skopeo of Debian's newest, which pull single chunks from the proxy.
    fn tools(&self) -> Result<ContainersTools> {
        let tools = ContainersTools::without_mirror(Suite::Sid)?;
        let (address, path) = (self.proxy.address(), tools.path());
        fs::write(
            path.join("etc/containers/registries.conf"),
            format!("[[registry]]\nlocation = \"{address}\"\ninsecure = true\n"),
        )?;
        let storage = path.join("storage.conf");
        let text = fs::read_to_string(&storage)?;
        let options = "[storage.options]\npull_options = { enable_partial_images = \"true\" }\n";
        fs::write(&storage, format!("{text}{options}"))?;
        Ok(tools)
    }

    fn image(&self, version: &str) -> String {
        format!("{}/{REPOSITORY}:{}", self.proxy.address(), tag(version))
    }

    /// Bytes of blobs that left the registry since the last call.
    fn moved(&self) -> u64 {
        let moved = self.proxy.blob_gets().iter().map(|get| get.bytes).sum();
        self.proxy.clear();
        moved
    }

    /// The layers' digests of what they unpack to.
    fn diff_ids(&self, version: &str) -> Vec<String> {
        let images = self.built["images"].as_array().expect("images were built").iter();
        let name = tag(version);
        let image = images
            .clone()
            .find(|image| image["reference"].as_str().is_some_and(|text| text.ends_with(&name)));
        let layers = image.expect("it was built")["layers"].as_array().expect("layers").clone();
        layers.iter().map(|layer| layer["diffId"].as_str().expect("a digest").to_owned()).collect()
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.storage.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_upgrade_moves_little_more_than_what_it_changed() -> Result<()> {
    let world = World::new().await?;
    let tools = world.tools()?;
    tools.podman_pull(&world.image("3.5.8")).await?;
    let whole = world.moved();
    tools.podman_pull(&world.image("3.5.9")).await?;
    let moved = world.moved();
    let changed = (CHANGED + CHANGED) as u64;
    assert!(
        whole > 20_000_000 && moved <= changed * 11 / 10,
        "{moved} bytes moved for {changed} changed ones"
    );
    for version in ["3.5.8", "3.5.9"] {
        let printed = tools
            .output(
                "podman",
                &["image", "inspect", "--format", "{{json .RootFS.Layers}}", &world.image(version)],
            )
            .await?;
        let layers: Vec<String> = serde_json::from_str(printed.trim())?;
        assert_eq!(layers, world.diff_ids(version));
    }
    // What podman made of the chunks is what the layers hold: it puts the archives together with tar-split.
    let saved = tools.path().join("saved");
    let to = format!("dir:{}", saved.display());
    let from = format!("containers-storage:{}", world.image("3.5.9"));
    tools.output("skopeo", &["copy", "--dest-decompress", &from, &to]).await?;
    for diff_id in world.diff_ids("3.5.9") {
        let file = saved.join(diff_id.trim_start_matches("sha256:"));
        assert_eq!(sha256(&fs::read(&file).with_context(|| file.display().to_string())?), diff_id);
    }
    world.registry.stop();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_podman_wrote_is_read_by_its_table() -> Result<()> {
    let world = World::new().await?;
    let tools = world.tools()?;
    tools.podman_pull(&world.image("3.5.9")).await?;
    let theirs = format!("{}/data/theirs:1", world.proxy.address());
    let arguments = [
        "push",
        "--quiet",
        "--compression-format",
        "zstd:chunked",
        "--force-compression",
        &world.image("3.5.9"),
        &theirs,
    ];
    tools.output("podman", &arguments).await?;
    let inspected = tools.output("skopeo", &["inspect", "--raw", &format!("docker://{theirs}")]).await?;
    let manifest: Value = serde_json::from_str(&inspected)?;
    let layers = manifest["layers"].as_array().context("the pushed image has layers")?;
    let diff_ids = world.diff_ids("3.5.9");
    ensure!(layers.len() == diff_ids.len(), "{inspected}");
    let ours = chunks(&world, "3.5.9")?;
    let mut same = 0;
    let mut all = 0;
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        let mut reader = open(&world, layer)?;
        reader.verify()?;
        let mut archive = Vec::new();
        reader.archive(&mut archive)?;
        assert_eq!(sha256(&archive), diff_id);
        // Ours have chunks above this size.
        let large = |entry: &&Entry| entry.size > 1 << 20;
        let large: BTreeSet<&str> =
            reader.entries.iter().filter(large).map(|entry| entry.name.as_str()).collect();
        for entry in reader.entries.iter().filter(|entry| large.contains(entry.name.as_str())) {
            if let Some(digest) = entry.chunk_digest {
                all += 1;
                same += usize::from(ours.contains(&digest));
            }
        }
    }
    assert!(all > 100 && same * 4 >= all * 3, "{same} of {all} chunks of large files are the same in both");
    world.registry.stop();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_reuses_chunks_within_a_file() -> Result<()> {
    let world = World::new().await?;
    let tools = world.tools()?;
    let (mut moved, mut exchanges) = (0, Vec::new());
    for version in ["3.5.8", "3.5.9"] {
        world.moved();
        let (from, to) = (
            format!("docker://{}", world.image(version)),
            format!("containers-storage:localhost/spark:{version}"),
        );
        tools.output("skopeo", &["copy", "--quiet", &from, &to]).await?;
        exchanges = world.proxy.blob_gets();
        moved = world.moved();
    }
    let changed = (CHANGED + WITHIN) as u64;
    assert!(
        moved >= changed && moved <= changed * 11 / 10,
        "{moved} bytes moved for {changed} changed ones: {exchanges:?}"
    );
    world.registry.stop();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_know_zstd_only_unpack_the_layers() -> Result<()> {
    let world = World::new().await?;
    let image = world.image("3.5.9");
    let own = ContainersTools::without_mirror(Suite::Own)?;
    let address = world.proxy.address();
    fs::write(
        own.path().join("etc/containers/registries.conf"),
        format!("[[registry]]\nlocation = \"{address}\"\ninsecure = true\n"),
    )?;
    own.buildah_pull(&image).await?;
    let printed =
        own.output("podman", &["image", "inspect", "--format", "{{json .RootFS.Layers}}", &image]).await?;
    assert_eq!(serde_json::from_str::<Vec<String>>(printed.trim())?, world.diff_ids("3.5.9"));
    let container = own.output("buildah", &["from", "--pull-never", &image]).await?;
    let mounted = own.output("buildah", &["mount", container.trim()]).await?;
    let jar = Path::new(mounted.trim()).join("opt/spark/jars/app-changed.jar");
    assert!(fs::read(jar)? == random_bytes(SEEDS[1].0, CHANGED));
    world.registry.stop();
    Ok(())
}

/// A layer of the registry with its table.
fn open(world: &World, layer: &Value) -> Result<Reader<File>> {
    let digest = layer["digest"].as_str().context("a layer has a digest")?;
    let size = layer["size"].as_u64().context("a layer has a size")?;
    let annotations: Annotations = serde_json::from_value(layer["annotations"].clone())?;
    Ok(Reader::open(File::open(world.blob(digest))?, size, &annotations)?)
}

/// The digests of an image's chunks.
fn chunks(world: &World, version: &str) -> Result<BTreeSet<Digest>> {
    let name = tag(version);
    let digest = world.built["tags"][&name].as_str().context("it was built")?;
    let manifest: Value = serde_json::from_slice(&fs::read(world.blob(digest))?)?;
    let mut found = BTreeSet::new();
    for layer in manifest["layers"].as_array().context("it has layers")? {
        found.extend(open(world, layer)?.entries.iter().filter_map(|entry| entry.chunk_digest));
    }
    Ok(found)
}
