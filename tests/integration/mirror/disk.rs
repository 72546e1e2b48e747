//! A disk that takes nothing: no pull is worse for it than without a mirror. On a real, small file system.

use std::{path::Path, sync::Arc, time::Duration};

use kit::{
    agent::{Agent, AgentConfig, REGISTRY, assert_store_is_right, blob_path, manifest_path, stored_blobs},
    disk::SmallDisk,
    pull::{Progress, Puller},
    registry::{FakeUpstream, Fault, Layer, On, Where, random_bytes, sha256},
};
use reqwest::Method;
use tempfile::TempDir;

use super::REPOSITORY;

const MIB: u64 = 1 << 20;

/// An agent whose data lies on a small disk of its own. The disk outlives the agent.
struct Stage {
    upstream: FakeUpstream,
    agent: Agent,
    disk: SmallDisk,
    home: Arc<TempDir>,
}

fn home() -> Arc<TempDir> {
    Arc::new(
        tempfile::Builder::new().prefix("kit-agent-").tempdir().expect("temporary folders are available"),
    )
}

fn config(upstream: &FakeUpstream) -> AgentConfig {
    AgentConfig::for_upstream(upstream)
        .with("store: { limit: 100%, minFree: \"0\" }\ntags: { freshness: 1h }")
}

impl Stage {
    async fn set(bytes: u64) -> Self {
        let (upstream, home) = (FakeUpstream::start().await, home());
        let disk = SmallDisk::mount(&home.path().join("data"), bytes).expect("root may mount");
        let agent = Agent::start_in(&config(&upstream), home.clone()).await;
        Self { upstream, agent, disk, home }
    }

    fn puller(&self) -> Puller {
        Puller::new(&self.agent.url(), Some(REGISTRY))
    }

    /// Transfers a cold blob of 8 MiB, the disk full to the last byte from its second MiB on; gives the blob's digest.
    async fn filled_under_a_transfer(&self) -> String {
        let digest = self.upstream.random_blob(REPOSITORY, 7, 8 * MIB).await;
        self.upstream.rate_per_connection(8 * MIB);
        let mut response = self.agent.get(&blob_path(REPOSITORY, &digest)).await;
        let (mut body, mut filled) = (Vec::new(), false);
        while let Some(chunk) = response.chunk().await.expect("the body goes on") {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > MIB && !filled {
                filled = true;
                self.disk.fill_up(0).expect("there is room to fill");
            }
        }
        assert_eq!(sha256(&body), digest);
        digest
    }

    async fn ready(&self) -> String {
        let response = reqwest::get(format!("http://{}/readyz", self.agent.addresses.admin)).await;
        let response = response.expect("the admin listener answers");
        assert_eq!(response.status(), 200, "a full disk is no reason to send clients away");
        response.text().await.expect("a body")
    }

    async fn passed_through(&self) -> f64 {
        self.agent.metrics().await.sum("hearth_passed_through_total", &[])
    }
}

#[tokio::test]
async fn an_image_that_is_larger_than_the_disk_is_streamed_through() {
    let stage = Stage::set(8 * MIB).await;
    let layers = [Layer::random(1, MIB), Layer::random(2, 12 * MIB), Layer::random(3, 9 * MIB)];
    let image = stage.upstream.image(REPOSITORY, "v1", layers).await;
    for _ in 0..2 {
        stage.puller().pull(REPOSITORY, "v1", |_| ()).await.expect("the pull succeeds");
    }
    assert!(stage.ready().await.contains("store full"), "{}", stage.ready().await);
    assert!(stage.passed_through().await >= 4.0);
    let log = stage.upstream.log();
    assert_eq!(log.manifest_gets().len(), 1, "{}", log.describe());
    let sent = log.blob_gets().bytes();
    let size = image.layers.iter().map(|(_, size)| size).sum::<u64>();
    assert!(sent < 2 * size, "what fits is stored: {sent} of twice {size}");
    assert_store_is_right(&stage.agent.data());
}

#[tokio::test]
async fn on_a_disk_without_a_free_byte_manifests_cost_upstream_one_request() {
    let stage = Stage::set(8 * MIB).await;
    stage.upstream.image(REPOSITORY, "v1", [Layer::random(1, 300_000)]).await;
    stage.disk.fill_up(0).expect("there is room to fill");
    for _ in 0..3 {
        stage.puller().pull(REPOSITORY, "v1", |_| ()).await.expect("the pull succeeds");
    }
    let log = stage.upstream.log();
    assert_eq!(log.manifest_gets().len(), 1, "{}", log.describe());
    assert_eq!(log.blob_gets().len(), 6, "one request for each blob of each pull:\n{}", log.describe());
    assert!(stage.ready().await.contains("store full"), "{}", stage.ready().await);
    assert!(stage.agent.metrics().await.sum("hearth_store_errors_total", &[("kind", "full")]) > 0.0);
}

/// The disk has room when the transfer begins and none in its middle: one answer, whole and right.
#[tokio::test]
async fn a_client_does_not_notice_that_the_disk_becomes_full_under_its_transfer() {
    let stage = Stage::set(16 * MIB).await;
    stage.filled_under_a_transfer().await;
    assert!(stage.passed_through().await >= 1.0, "the disk was full");
    let sent = stage.upstream.log().blob_gets().bytes();
    assert!(sent < 9 * MIB + MIB / 2, "the stream goes on where the transfer ended: {sent}");
    assert!(stored_blobs(&stage.agent.data()).is_empty());
    let partial = stage.agent.data().join("partial-v1");
    let left = || std::fs::read_dir(&partial).expect("readable").count();
    // The flight gives its room back a moment after its readers went on.
    for _ in 0..100 {
        if left() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert_eq!(left(), 0, "others need the room");
}

#[tokio::test]
async fn a_disk_that_others_fill_under_a_transfer_is_given_room_by_what_was_not_used() {
    let stage = Stage::set(24 * MIB).await;
    let old = stage.upstream.image(REPOSITORY, "old", [Layer::random(1, 9 * MIB)]).await;
    stage.puller().pull(REPOSITORY, "old", |_| ()).await.expect("the pull succeeds");
    let digest = stage.filled_under_a_transfer().await;
    let stored = || stage.agent.stored();
    for _ in 0..100 {
        if !stored().contains(&digest) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(stored().contains(&digest), "it is kept");
    assert!(!old.blobs().all(|blob| stored().iter().any(|one| one == blob)), "what was older made room");
    assert!(stage.passed_through().await < 0.5, "nobody had to go past the store");
}

#[tokio::test]
async fn room_is_made_before_a_transfer_and_a_full_disk_that_has_room_again_is_used_again() {
    let stage = Stage::set(16 * MIB).await;
    let old = stage.upstream.image(REPOSITORY, "old", [Layer::random(1, 8 * MIB)]).await;
    let new = stage.upstream.image(REPOSITORY, "new", [Layer::random(2, 10 * MIB)]).await;
    stage.puller().pull(REPOSITORY, "old", |_| ()).await.expect("the pull succeeds");
    stage.puller().pull(REPOSITORY, "new", |_| ()).await.expect("the pull succeeds");
    let all = |image: &kit::registry::Image| {
        let stored = stage.agent.stored();
        image.blobs().all(|digest| stored.iter().any(|one| one == digest))
    };
    let until = async |what: &dyn Fn() -> bool| {
        let waiting = async {
            while !what() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("in time");
    };
    until(&|| all(&new)).await;
    assert!(!all(&old), "it made room");
    assert!(stage.passed_through().await < 0.5);

    stage.disk.fill_up(0).expect("there is room to fill");
    let third = stage.upstream.image(REPOSITORY, "third", [Layer::random(3, 12 * MIB)]).await;
    stage.puller().pull(REPOSITORY, "third", |_| ()).await.expect("the pull succeeds");
    assert!(!all(&third), "not even all that is stored makes room for it");
    stage.disk.empty().expect("it was filled");
    let again = async {
        while !all(&third) {
            tokio::time::sleep(Duration::from_millis(500)).await;
            stage.puller().pull(REPOSITORY, "third", |_| ()).await.expect("the pull succeeds");
        }
    };
    tokio::time::timeout(Duration::from_mins(1), again).await.expect("the disk is used again");
    assert_eq!(stage.ready().await, "ok\n");
    assert_store_is_right(&stage.agent.data());
}

#[tokio::test]
async fn wrong_bytes_that_pass_through_are_never_completed_and_a_cut_is_resumed() {
    let stage = Stage::set(2 * MIB).await;
    let content = random_bytes(5, 3_000_000);
    let digest = stage.upstream.random_blob(REPOSITORY, 5, 3_000_000).await;
    for place in [Where::First, Where::Middle, Where::Last] {
        stage.upstream.fault(On::blob().get(), Fault::Corrupt(place));
        let response = stage.agent.get(&blob_path(REPOSITORY, &digest)).await;
        // A liar may be known already: then there is no answer to complete.
        if response.status() == 200 {
            assert!(response.bytes().await.is_err(), "{place:?}: a wrong blob was completed");
        }
        stage.upstream.heal();
    }
    let right =
        super::when_available(|| stage.agent.request(Method::GET, &blob_path(REPOSITORY, &digest))).await;
    assert!(right.bytes().await.expect("a whole body") == content);
    stage.upstream.fault(On::blob().get(), Fault::Cut(1_000_000)).skip(1).times(1);
    let response = stage.agent.get(&blob_path(REPOSITORY, &digest)).await;
    assert!(response.bytes().await.expect("resumed unnoticed") == content);
    for (range, part) in [("bytes=100-199", 100..200), ("bytes=2999000-", 2_999_000..3_000_000)] {
        let request = stage.agent.request(Method::GET, &blob_path(REPOSITORY, &digest));
        let response = request.header("range", range).send().await.expect("an answer");
        assert_eq!(response.status(), 206);
        assert!(response.bytes().await.expect("a whole part") == content[part]);
    }
    assert!(stored_blobs(&stage.agent.data()).is_empty());
}

#[tokio::test]
async fn a_store_on_a_read_only_disk_serves_what_it_has_and_streams_the_rest() {
    let stage = Stage::set(32 * MIB).await;
    stage.upstream.image(REPOSITORY, "here", [Layer::random(1, MIB)]).await;
    stage.upstream.image(REPOSITORY, "not-here", [Layer::random(2, MIB)]).await;
    stage.puller().pull(REPOSITORY, "here", |_| ()).await.expect("the pull succeeds");
    let Stage { upstream, agent, disk, home } = stage;
    agent.stop().await;
    disk.make_read_only().expect("nobody writes");
    let agent = Agent::start_in(&config(&upstream), home.clone()).await;
    let stage = Stage { upstream, agent, disk, home };
    let asked = stage.upstream.log().len();
    stage.puller().pull(REPOSITORY, "here", |_| ()).await.expect("the pull succeeds");
    assert!(stage.upstream.log().since(asked).is_empty(), "{}", stage.upstream.log().since(asked).describe());
    for _ in 0..2 {
        stage.puller().pull(REPOSITORY, "not-here", |_| ()).await.expect("the pull succeeds");
    }
    assert!(stage.ready().await.contains("store read-only"), "{}", stage.ready().await);
    let log = stage.upstream.log().since(asked);
    assert_eq!(log.manifest_gets().len(), 1, "{}", log.describe());
    assert_eq!(log.blob_gets().len(), 4, "no second request for what cannot be stored:\n{}", log.describe());
    let head = stage.agent.head(&manifest_path(REPOSITORY, "not-here")).await;
    assert_eq!(head.status(), 200);
    assert!(Path::new(&stage.home.path().join("data/blobs-v1")).is_dir());
}

#[tokio::test]
async fn many_clients_of_a_full_disk_all_get_right_bytes_as_they_arrive() {
    let stage = Stage::set(4 * MIB).await;
    stage.upstream.image(REPOSITORY, "v1", [Layer::random(1, 6 * MIB), Layer::random(2, 5 * MIB)]).await;
    let pulls = (0..8).map(|_| {
        let puller = stage.puller();
        tokio::spawn(async move { puller.pull(REPOSITORY, "v1", |_: Progress| ()).await })
    });
    for pull in pulls.collect::<Vec<_>>() {
        pull.await.expect("no panic").expect("the pull succeeds");
    }
    assert_store_is_right(&stage.agent.data());
}
