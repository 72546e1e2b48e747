//! A store with a bound: the image that was not used for the longest time goes, what others share stays.

use std::{path::Path, time::Duration};

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

/// A tag's record as the store has it.
fn record(data: &Path, tag: &str, confirmed: u64, pinned: bool) {
    let directory = data.join(format!("refs-v1/{REGISTRY}/{REPOSITORY}/_tags"));
    std::fs::create_dir_all(&directory).expect("writable");
    let digest = kit::registry::sha256(b"some manifest");
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let record = serde_json::json!({
        "digest": digest, "mediaType": media_type, "size": 13, "confirmed": confirmed, "pinned": pinned,
    });
    std::fs::write(directory.join(tag), record.to_string()).expect("writable");
}

#[tokio::test]
async fn of_very_many_tags_the_least_recently_confirmed_go() {
    let upstream = FakeUpstream::start().await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    let home = agent.stop().await;
    let data = home.path().join("data");
    for number in 0..40_000 {
        record(&data, &format!("v{number}"), number, number == 7);
    }
    let agent = Agent::start_in(&AgentConfig::for_upstream(&upstream), home).await;
    let directory = data.join(format!("refs-v1/{REGISTRY}/{REPOSITORY}/_tags"));
    let count = || std::fs::read_dir(&directory).expect("readable").count();
    let bounded = async {
        while count() > 16_384 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), bounded).await.expect("the number of tags is bounded");
    // The removals under way end.
    let mut last = 0;
    while std::mem::replace(&mut last, count()) != last {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(last > 8_192, "no more than necessary: {last}");
    let has = |number: u64| directory.join(format!("v{number}")).exists();
    assert!(has(7), "it is pinned");
    assert!(has(39_999) && has(30_000) && !has(8) && !has(20_000), "the oldest go first");
    drop(agent);
}
