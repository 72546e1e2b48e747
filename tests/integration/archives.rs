//! Import and export: images that travel as files, into agents that reach no registry. Hostile archives leave nothing.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use kit::{
    agent::{Agent, AgentConfig, REGISTRY, assert_store_is_right, blob_path, manifest_path},
    pull::Puller,
    registry::{FakeUpstream, INDEX, Image, Layer, MANIFEST, random_bytes, sha256},
};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::UnixStream};

use crate::cli::{agent as hearth_agent, command, complaint, stdout};

const REPOSITORY: &str = "team/app";
const MIB: u64 = 1 << 20;

/// Nothing listens at its only registry, and every tag is asked for anew.
fn closed_network() -> AgentConfig {
    AgentConfig::default()
        .registry(REGISTRY, &["http://127.0.0.1:9"], "")
        .with("tags: { freshness: 0s, maxStale: 1s }")
}

/// An image that an agent has pulled.
async fn source() -> (FakeUpstream, Agent, Image) {
    let upstream = FakeUpstream::start().await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 3 * MIB), Layer::random(2, 10)]).await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    pull(&agent, "v1").await.expect("the pull succeeds");
    // A client has its last byte a moment before the blob lies in its place.
    let stored = async {
        while agent.stored().len() < 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), stored).await.expect("manifest, configuration, two layers");
    (upstream, agent, image)
}

async fn pull(agent: &Agent, tag: &str) -> anyhow::Result<kit::pull::Pulled> {
    Puller::new(&agent.url(), Some(REGISTRY)).pull(REPOSITORY, tag, |_| ()).await
}

fn name(tag: &str) -> String {
    format!("{REGISTRY}/{REPOSITORY}:{tag}")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_image_is_pulled_by_its_tag_where_no_registry_is() {
    let (_upstream, agent, image) = source().await;
    let home = tempfile::tempdir().expect("temporary folders are available");
    let (tar, directory) = (home.path().join("a.tar"), home.path().join("layout"));
    stdout(&command(&agent, &["export", "--to", text(&tar), &name("v1")]));
    stdout(&command(&agent, &["export", "--to", text(&directory), &name("v1")]));
    let packed = |path: PathBuf, pack: &dyn Fn(&[u8]) -> Vec<u8>| {
        std::fs::write(&path, pack(&std::fs::read(&tar).expect("readable"))).expect("writable");
        path
    };
    let gzip = packed(home.path().join("a.tar.gz"), &|bytes| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("writing to memory")
    });
    let zstd = packed(home.path().join("a.tar.zst"), &|bytes| zstd::encode_all(bytes, 1).expect("in memory"));
    for archive in [&tar, &directory, &gzip, &zstd] {
        let closed = Agent::start(&closed_network()).await;
        let said = stdout(&command(&closed, &["import", text(archive)]));
        assert!(said.contains(&format!("imported {} ({}", name("v1"), image.digest)), "{said}");
        assert_store_is_right(&closed.data());
        for _ in 0..2 {
            let pulled = pull(&closed, "v1").await.expect("the pull succeeds");
            assert_eq!((pulled.digest.as_str(), pulled.blobs.len()), (image.digest.as_str(), 3));
        }
        let answer = closed.head(&manifest_path(REPOSITORY, "v1")).await;
        assert!(answer.headers().contains_key("warning"), "nobody confirmed it: {}", archive.display());
        // Again, and after a restart.
        stdout(&command(&closed, &["import", text(archive)]));
        let closed = Agent::start_in(&closed_network(), closed.stop().await).await;
        pull(&closed, "v1").await.expect("the pull succeeds");
        assert_eq!(std::fs::read_dir(closed.data().join("tmp")).expect("readable").count(), 0);
    }
    let exists = complaint(&command(&agent, &["export", "--to", text(&directory), &name("v1")]));
    assert!(exists.contains("not empty"), "{exists}");
    let unknown = complaint(&command(&agent, &["export", "--to", text(&tar), &name("v9")]));
    assert!(unknown.contains("not in the store"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_images_and_an_index_travel_with_a_stopped_agents_data() {
    let (upstream, agent, image) = source().await;
    upstream.image(REPOSITORY, "v2", [Layer::random(1, 3 * MIB), Layer::random(3, 20)]).await;
    let other = json!({ "mediaType": MANIFEST, "digest": kit::registry::absent_digest(7), "size": 7,
        "platform": { "architecture": "arm64", "os": "linux" } });
    let amd64 = json!({ "mediaType": MANIFEST, "digest": image.digest, "size": image.size,
        "platform": { "architecture": "amd64", "os": "linux" } });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [other, amd64] });
    upstream.manifest(REPOSITORY, "multi", INDEX, index.to_string());
    for tag in ["v2", "multi"] {
        pull(&agent, tag).await.expect("the pull succeeds");
    }
    let home = agent.stop().await;
    let (data, tar) = (home.path().join("data"), home.path().join("images.tar"));
    let offline = |data: &Path, arguments: &[&str]| {
        // Not how full this machine's disk is.
        let place = ["--offline", "--data-dir", text(data), "--store-min-free", "0"];
        stdout(&hearth_agent(&[arguments, &place].concat(), &[]))
    };
    offline(&data, &["export", "--to", text(&tar), &name("v2"), &name("multi")]);
    let target = tempfile::tempdir().expect("temporary folders are available");
    let said = offline(&target.path().join("data"), &["import", "--pin", text(&tar)]);
    assert!(said.contains("1 other platforms not in the archive"), "{said}");
    let listed = offline(&target.path().join("data"), &["ls"]);
    assert_eq!(listed.matches("complete, pinned").count(), 2, "{listed}");
    let closed = Agent::start_in(&closed_network(), target.into()).await;
    for tag in ["v2", "multi"] {
        pull(&closed, tag).await.expect("the pull succeeds");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_image_outlives_a_registry_that_does_not_know_it_and_follows_one_that_does() {
    let (_upstream, agent, image) = source().await;
    let home = tempfile::tempdir().expect("temporary folders are available");
    let tar = home.path().join("a.tar");
    stdout(&command(&agent, &["export", "--to", text(&tar), &name("v1")]));
    let empty = FakeUpstream::start().await;
    let config = AgentConfig::for_upstream(&empty).with("tags: { freshness: 0s, negative: 0s }");
    let agent = Agent::start(&config).await;
    assert_eq!(agent.head(&manifest_path(REPOSITORY, "v1")).await.status(), 404);
    stdout(&command(&agent, &["import", text(&tar)]));
    let pulled = pull(&agent, "v1").await.expect("imported is stronger than not known");
    assert_eq!(pulled.digest, image.digest);
    let agent = Agent::start_in(&config, agent.stop().await).await;
    let newer = empty.image(REPOSITORY, "v1", [Layer::random(9, 10)]).await;
    let pulled = pull(&agent, "v1").await.expect("the pull succeeds");
    assert_eq!(pulled.digest, newer.digest, "the registry's word counts as soon as it has one");
}

/// A tar of these files.
fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content.as_slice()).expect("writing to memory");
    }
    builder.into_inner().expect("writing to memory")
}

fn blob(content: &[u8]) -> (String, Vec<u8>) {
    (sha256(content).replace(':', "/").replace("sha256", "blobs/sha256"), content.to_vec())
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": sha256(content), "size": content.len() })
}

/// Files of a layout with one image; the change gets its manifest and index before they are written.
fn layout(change: impl Fn(&mut Value, &mut Value)) -> Vec<(String, Vec<u8>)> {
    let (config, layer) = (br#"{"os":"linux"}"#.to_vec(), random_bytes(5, 5_000));
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    let mut index = json!({ "schemaVersion": 2, "manifests": [{ "mediaType": MANIFEST,
        "annotations": { "org.opencontainers.image.ref.name": name("v1") } }] });
    change(&mut manifest, &mut index);
    let manifest = manifest.to_string().into_bytes();
    for (key, value) in [("digest", json!(sha256(&manifest))), ("size", json!(manifest.len()))] {
        let entry = &mut index["manifests"][0];
        if entry[key].is_null() {
            entry[key] = value;
        }
    }
    vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), index.to_string().into_bytes()),
        blob(&manifest),
        blob(&config),
        blob(&layer),
    ]
}

fn whole() -> Vec<(String, Vec<u8>)> {
    layout(|_, _| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_and_hostile_archives_are_refused_and_leave_nothing() {
    let agent = Agent::start(&closed_network().with("store: { limit: 8MiB, minFree: \"0\" }")).await;
    let home = tempfile::tempdir().expect("temporary folders are available");
    let without = |at: usize| {
        let mut files = whole();
        files.remove(at);
        tar(&files)
    };
    let with = |path: &str, content: &[u8]| {
        let mut files = whole();
        files.push((path.to_owned(), content.to_vec()));
        tar(&files)
    };
    let changed = |change: fn(&mut Value, &mut Value)| tar(&layout(change));
    let mut wrong = whole();
    wrong[4].1[0] ^= 1;
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&with("padding", &vec![0; 64 << 20])).expect("writing to memory");
    let bomb = bomb.finish().expect("writing to memory");
    assert!(bomb.len() < 1 << 20);
    let schema_one = changed(|manifest, _| manifest["schemaVersion"] = json!(1));
    let cases = [
        ("cut short", tar(&whole())[..7_000].to_vec(), "cut short"),
        ("wrong bytes", tar(&wrong), "has the digest"),
        ("no layer", without(4), "is missing"),
        ("no configuration", without(3), "is missing"),
        ("no manifest", without(2), "is missing"),
        ("no index", without(1), "neither an OCI image layout"),
        ("no layout", without(0), "oci-layout"),
        ("twice", with("index.json", b"{}"), "twice"),
        ("bomb", bomb, "unpacks to more than"),
        ("schema 1", schema_one, "schema version 1"),
        ("another size", changed(|manifest, _| manifest["layers"][0]["size"] = json!(4_999)), "is missing"),
        (
            "another size in the index",
            changed(|_, index| index["manifests"][0]["size"] = json!(3)),
            "another size",
        ),
        (
            "another type",
            changed(|_, index| index["manifests"][0]["mediaType"] = json!(INDEX)),
            "its media type is",
        ),
        ("no name", changed(|_, index| index["manifests"][0]["annotations"] = json!({})), "--name"),
        ("no archive", random_bytes(1, 20 << 20), "not a tar archive"),
        ("xz", b"\xfd7zXZ\0".repeat(100), "xz"),
        ("nothing", Vec::new(), "cut short"),
    ];
    for (what, bytes, problem) in cases {
        let path = home.path().join("archive");
        std::fs::write(&path, &bytes).expect("writable");
        let said = complaint(&command(&agent, &["import", text(&path)]));
        assert!(said.contains(problem), "{what}: {said}");
        assert_eq!(agent.stored(), [""; 0], "{what}");
        assert_eq!(std::fs::read_dir(agent.data().join("tmp")).expect("readable").count(), 0, "{what}");
        assert_eq!(std::fs::read_dir(agent.data().join("refs-v1")).expect("readable").count(), 0, "{what}");
    }
    let path = home.path().join("good.tar");
    std::fs::write(&path, tar(&whole())).expect("writable");
    stdout(&command(&agent, &["import", text(&path)]));
    pull(&agent, "v1").await.expect("the same archive unharmed is taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_docker_saves_is_taken_with_its_layers_checked() {
    let layer = tar(&[("file".to_owned(), random_bytes(3, 3_000))]);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&layer).expect("writing to memory");
    let packed = packed.finish().expect("writing to memory");
    let config = json!({ "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [sha256(&layer), sha256(&layer)] } })
    .to_string();
    let manifest = json!([{ "Config": "abc.json", "RepoTags": [name("v1"), name("v2")],
        "Layers": ["one/layer.tar", "two/layer.tar"] }]);
    let archive = |first: &[u8]| {
        let files = [("one/layer.tar", first), ("abc.json", config.as_bytes()), ("one/VERSION", &b"1.0"[..])];
        let files = files.map(|(path, content)| (path.to_owned(), content.to_vec()));
        let mut builder = tar::Builder::new(tar(&files));
        builder.get_mut().truncate(tar(&files).len() - 1_024);
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        builder.append_link(&mut link, "two/layer.tar", "../one/layer.tar").expect("writing to memory");
        let mut header = tar::Header::new_gnu();
        let manifest = manifest.to_string();
        header.set_size(manifest.len() as u64);
        builder.append_data(&mut header, "manifest.json", manifest.as_bytes()).expect("writing to memory");
        builder.into_inner().expect("writing to memory")
    };
    let home = tempfile::tempdir().expect("temporary folders are available");
    let path = home.path().join("saved.tar");
    for layer in [&layer, &packed] {
        let agent = Agent::start(&closed_network()).await;
        std::fs::write(&path, archive(layer)).expect("writable");
        stdout(&command(&agent, &["import", text(&path)]));
        let digests = [pull(&agent, "v1").await, pull(&agent, "v2").await]
            .map(|pulled| pulled.expect("the pull succeeds").digest);
        assert_eq!(digests[0], digests[1]);
        assert_eq!(agent.get(&blob_path(REPOSITORY, &sha256(config.as_bytes()))).await.status(), 200);
        stdout(&command(&agent, &["import", "--name", &format!("{REGISTRY}/{REPOSITORY}"), text(&path)]));
        let listed: Value =
            serde_json::from_str(&stdout(&command(&agent, &["ls", "--output", "json"]))).expect("JSON");
        assert_eq!(listed.as_array().map(Vec::len), Some(1), "the same manifest each time: {listed}");
    }
    let agent = Agent::start(&closed_network()).await;
    std::fs::write(&path, archive(b"another layer")).expect("writable");
    let said = complaint(&command(&agent, &["import", text(&path)]));
    assert!(said.contains("is not the layer"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hearth_builds_is_taken_from_its_directory() {
    let fixture = kit::build_fixture::Fixture::new();
    let report = fixture.build(&[]);
    let dist = fixture.path("dist");
    let agent = Agent::start(&closed_network()).await;
    let repository = format!("{REGISTRY}/{REPOSITORY}");
    let said = stdout(&command(&agent, &["import", text(&dist), "--name", &repository]));
    let digest = report["images"][0]["manifest"].as_str().expect("the report names it");
    assert!(said.contains(digest), "{said}");
    pull(&agent, "3.5.9-java17-python3.11").await.expect("the pull succeeds");
    let elsewhere = command(&agent, &["import", text(&dist), "--name", "other.test/x"]);
    let said = String::from_utf8_lossy(&elsewhere.stderr).into_owned();
    assert!(elsewhere.status.success() && said.contains("is not in `registries`"), "{said}");
    let unnamed = complaint(&command(&agent, &["import", text(&dist)]));
    assert!(unnamed.contains("--name REGISTRY/REPOSITORY"), "{unnamed}");
}

/// Sends a part of a request over the agent's socket.
async fn begin(agent: &Agent, part: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(agent.socket()).await.expect("it listens");
    stream.write_all(part).await.expect("the agent reads");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_of_its_archive_leaves_nothing_behind() {
    let agent = Agent::start(&closed_network()).await;
    let archive = tar(&whole());
    let head = format!(
        "POST /api/v1/images HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
        archive.len()
    );
    let part = [head.as_bytes(), &archive[..archive.len() / 2]].concat();
    let aside = || std::fs::read_dir(agent.data().join("tmp")).expect("readable").count();
    let limit = Duration::from_secs(20);
    let exchange = begin(&agent, &part).await;
    let wait = async |staged: bool| {
        while (aside() > 0) != staged {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(limit, wait(true)).await.expect("what has come is staged");
    drop(exchange);
    tokio::time::timeout(limit, wait(false)).await.expect("and swept");
    assert!(agent.stored().is_empty());
    // It holds up neither the next one nor the end of the agent.
    let exchange = begin(&agent, &part).await;
    tokio::time::timeout(limit, wait(true)).await.expect("what has come is staged");
    let home = agent.stop().await;
    drop(exchange);
    assert_eq!(std::fs::read_dir(home.path().join("data/tmp")).expect("readable").count(), 0);
}
