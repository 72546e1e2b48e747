//! Blobs that the container runtime already has: used when they are what their names say, and only then.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use kit::{
    agent::{Agent, AgentConfig, REGISTRY, assert_store_is_right, blob_path},
    pull::{Pulled, Puller},
    registry::{FakeUpstream, Fault, Image, Layer, On, random_bytes},
};

use super::REPOSITORY;

const MIB: u64 = 1 << 20;

struct Runtime {
    home: tempfile::TempDir,
}

impl Runtime {
    fn new() -> Self {
        Self { home: tempfile::tempdir().expect("temporary folders are available") }
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.home.path().join("blobs").join(digest.replace(':', "/"))
    }

    fn put(&self, digest: &str, content: &[u8]) {
        let path = self.path(digest);
        std::fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("writable");
        std::fs::write(path, content).expect("writable");
    }

    /// Everything that upstream has of an image.
    fn put_image(&self, upstream: &FakeUpstream, image: &Image) {
        for digest in image.blobs() {
            let file = upstream.blob_file(digest).expect("upstream has it");
            self.put(digest, &std::fs::read(file).expect("readable"));
        }
    }

    fn config(&self, upstream: &FakeUpstream, link: bool) -> AgentConfig {
        let directory = self.home.path().display();
        AgentConfig::for_upstream(upstream).with(&format!(
            "store: {{ minFree: \"0\", runtimeContent: \"{directory}\", runtimeLink: {link} }}"
        ))
    }
}

async fn pull(agent: &Agent) -> anyhow::Result<Pulled> {
    Puller::new(&agent.url(), Some(REGISTRY)).pull(REPOSITORY, "v1", |_| ()).await
}

fn stored(data: &Path, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    data.join("blobs-v1/sha256").join(&hex[..2]).join(hex)
}

#[tokio::test]
async fn what_the_runtime_has_is_not_fetched_and_linked_when_that_is_allowed() {
    for link in [false, true] {
        let upstream = FakeUpstream::start().await;
        let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 5 * MIB), Layer::random(2, 10)]).await;
        upstream.fault(On::blob().whole(), Fault::Status(503, Vec::new(), "blocked".into()));
        let runtime = Runtime::new();
        runtime.put_image(&upstream, &image);
        let agent = Agent::start(&runtime.config(&upstream, link)).await;
        pull(&agent).await.expect("the pull succeeds");
        // A few bytes of each blob, by which the registry shows that it has it.
        let gets = upstream.log().blob_gets();
        assert!(gets.bytes() <= 3 * 4_096, "{}", upstream.log().describe());
        assert_store_is_right(&agent.data());
        for digest in image.blobs() {
            super::when_there(&stored(&agent.data(), digest)).await;
        }
        let links =
            std::fs::metadata(stored(&agent.data(), &image.layers[0].0)).expect("it is there").nlink();
        assert_eq!(links, if link { 2 } else { 1 });
        let counted = agent.metrics().await.sum("hearth_runtime_content_bytes_total", &[]);
        assert!(counted >= 5e6, "{counted}");
        // The runtime collects its garbage; the agent's blob stays.
        std::fs::remove_dir_all(runtime.home.path().join("blobs")).expect("removable");
        pull(&agent).await.expect("the pull succeeds");
    }
}

#[tokio::test]
async fn wrong_and_short_files_of_the_runtime_are_found_out_and_the_blob_is_fetched() {
    for link in [false, true] {
        let upstream = FakeUpstream::start().await;
        let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 5 * MIB)]).await;
        let runtime = Runtime::new();
        let layer = &image.layers[0].0;
        let mut wrong = random_bytes(1, 5 << 20);
        wrong[4 << 20] ^= 1;
        runtime.put(layer, &wrong);
        runtime.put(&image.config, b"short");
        let agent = Agent::start(&runtime.config(&upstream, link)).await;
        // The client checks what it gets.
        pull(&agent).await.expect("the pull succeeds");
        assert_store_is_right(&agent.data());
        super::when_there(&stored(&agent.data(), layer)).await;
        assert_eq!(std::fs::read(runtime.path(layer)).expect("readable"), wrong, "it is not ours to mend");
    }
}

#[tokio::test]
async fn a_blob_of_the_runtime_that_no_manifest_of_the_agents_names_is_not_given_out() {
    let upstream = FakeUpstream::start().await;
    let runtime = Runtime::new();
    let secret = random_bytes(7, 1_000);
    let digest = kit::registry::sha256(&secret);
    runtime.put(&digest, &secret);
    let agent = Agent::start(&runtime.config(&upstream, true)).await;
    assert_eq!(agent.get(&blob_path(REPOSITORY, &digest)).await.status(), 404);
}

/// A registry that an attacker controls: its manifest names a layer whose digest and size are known and which the runtime
/// has pulled with somebody's secret.
#[tokio::test]
async fn a_crafted_manifest_does_not_open_what_the_runtime_has() {
    for link in [false, true] {
        let upstream = FakeUpstream::start().await;
        let runtime = Runtime::new();
        let secret = random_bytes(7, 100_000);
        let digest = kit::registry::sha256(&secret);
        runtime.put(&digest, &secret);
        let config = upstream.blob(REPOSITORY, b"{}").await;
        let media = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": secret.len()}],
        });
        upstream.manifest(REPOSITORY, "v1", media, manifest.to_string());
        let agent = Agent::start(&runtime.config(&upstream, link)).await;
        assert_eq!(agent.get(&kit::agent::manifest_path(REPOSITORY, "v1")).await.status(), 200);
        let answer = agent.get(&blob_path(REPOSITORY, &digest)).await;
        let got = answer.bytes().await.unwrap_or_default();
        assert_ne!(got, secret, "the runtime's blob is given out");
    }
}
