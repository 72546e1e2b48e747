//! A store with a bound: the image that was not used for the longest time goes, what others share stays.

use std::time::Duration;

use kit::{
    agent::{Agent, AgentConfig, REGISTRY, stored_blobs},
    process::binary,
    pull::Puller,
    registry::{FakeUpstream, Layer},
};

use super::REPOSITORY;

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn above_its_limit_the_store_evicts_the_least_recently_used_image_and_keeps_what_is_shared() {
    let upstream = FakeUpstream::start().await;
    let base = || Layer::random(1, MIB);
    let old = upstream.image(REPOSITORY, "old", [base(), Layer::random(2, 2 * MIB)]).await;
    let new = upstream.image(REPOSITORY, "new", [base(), Layer::random(3, 2 * MIB)]).await;
    let config = AgentConfig::for_upstream(&upstream)
        .with("tags: { freshness: 1h }")
        .with("store: { limit: 4MiB, minFree: \"0\", lowWatermark: 80% }");
    let agent = Agent::start(&config).await;
    let puller = Puller::new(&agent.url(), Some(REGISTRY));
    puller.pull(REPOSITORY, "old", |_| ()).await.expect("the pull succeeds");
    // Uses are told apart by the second.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    puller.pull(REPOSITORY, "new", |_| ()).await.expect("the pull succeeds");
    let gone = async {
        while agent.metrics().await.sum("hearth_evicted_images_total", &[]) < 1.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("the limit is kept");
    // The last removals follow the count closely.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stored = agent.stored();
    assert!(new.blobs().all(|digest| stored.iter().any(|one| one == digest)), "{stored:?}");
    let left: Vec<_> = old.blobs().filter(|digest| stored.iter().any(|one| one == *digest)).collect();
    let shared: Vec<_> = old.blobs().filter(|digest| new.blobs().any(|one| one == *digest)).collect();
    assert_eq!(left, shared, "only what the other image needs is left");
    let asked = upstream.log().len();
    puller.pull(REPOSITORY, "new", |_| ()).await.expect("the pull succeeds");
    assert!(upstream.log().since(asked).is_empty(), "{}", upstream.log().since(asked).describe());
    puller.pull(REPOSITORY, "old", |_| ()).await.expect("an evicted image is fetched again");
}

#[tokio::test]
async fn gc_says_what_would_go_and_removes_it_only_when_told() {
    let upstream = FakeUpstream::start().await;
    upstream.image(REPOSITORY, "v1", [Layer::random(1, 2 * MIB)]).await;
    let config = AgentConfig::for_upstream(&upstream);
    let agent = Agent::start(&config).await;
    let puller = Puller::new(&agent.url(), Some(REGISTRY));
    puller.pull(REPOSITORY, "v1", |_| ()).await.expect("the pull succeeds");
    let home = agent.stop().await;
    let data = home.path().join("data");
    let file = config.write(home.path()).expect("writable");
    let gc = |more: &[&str]| {
        let output = std::process::Command::new(binary("hearth-agent").expect("the binary is built"))
            .args(["gc", "--store-limit", "1MiB", "--config"])
            .arg(&file)
            .args(more)
            .output()
            .expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let before = stored_blobs(&data).len();
    let said = gc(&["--dry-run"]);
    assert!(said.contains("registry.test/team/app:v1") && said.contains("not used for"), "{said}");
    assert_eq!(stored_blobs(&data).len(), before, "a dry run removes nothing");
    gc(&[]);
    assert!(stored_blobs(&data).is_empty(), "{:?}", stored_blobs(&data));
    assert_eq!(std::fs::read_dir(data.join("refs-v1")).expect("readable").count(), 0, "no empty directories");
}
