//! Two agents on one directory: for a while at a rolling update, and by mistake.

use std::time::Duration;

use kit::{
    agent::{AgentConfig, REGISTRY, assert_store_is_right, manifest_path, stored_blobs},
    process::AgentProcess,
    pull::Puller,
    registry::{FakeUpstream, Layer},
};

use super::{REPOSITORY, restart::home};

fn puller(agent: &AgentProcess) -> Puller {
    Puller::new(&format!("http://{}", agent.addresses.mirror), Some(REGISTRY))
}

async fn ready(agent: &AgentProcess) -> String {
    let response = reqwest::get(format!("http://{}/readyz", agent.addresses.admin)).await;
    let response = response.expect("the admin listener answers");
    assert_eq!(response.status(), 200);
    response.text().await.expect("a body")
}

#[tokio::test]
async fn a_new_agent_serves_beside_the_old_one_and_owns_the_directory_after_it() {
    let upstream = FakeUpstream::start().await;
    upstream.image(REPOSITORY, "old", [Layer::random(1, 500_000)]).await;
    let image = upstream.image(REPOSITORY, "new", [Layer::random(2, 500_000)]).await;
    let (home, config) = (home(), AgentConfig::for_upstream(&upstream).with("tags: { freshness: 1h }"));
    let data = home.path().join("data");
    let mut old = config.start_process(home.path()).await.expect("it starts");
    puller(&old).pull(REPOSITORY, "old", |_| ()).await.expect("the pull succeeds");

    let new = config.start_process(home.path()).await.expect("it starts beside the old one");
    assert!(ready(&new).await.contains("held by another agent"), "{}", ready(&new).await);
    let asked = upstream.log().len();
    puller(&new).pull(REPOSITORY, "old", |_| ()).await.expect("the pull succeeds");
    assert!(upstream.log().since(asked).is_empty(), "{}", upstream.log().since(asked).describe());
    puller(&new).pull(REPOSITORY, "new", |_| ()).await.expect("the pull succeeds");
    assert!(!stored_blobs(&data).contains(&image.digest), "only the owner writes");

    old.terminate().expect("it runs");
    assert!(old.wait().await.expect("it ends").success(), "{}", old.log());
    let taken_over = async {
        while !image.blobs().all(|digest| stored_blobs(&data).iter().any(|one| one == digest)) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            puller(&new).pull(REPOSITORY, "new", |_| ()).await.expect("the pull succeeds");
        }
    };
    tokio::time::timeout(Duration::from_secs(30), taken_over).await.expect("it owns the directory");
    assert_eq!(ready(&new).await, "ok\n");
    assert_store_is_right(&data);
}

#[tokio::test]
async fn no_request_fails_while_one_agent_takes_over_from_another_on_the_same_port() {
    let upstream = FakeUpstream::start().await;
    upstream.image(REPOSITORY, "v1", [Layer::random(1, 1_000)]).await;
    let (home, config) = (home(), AgentConfig::for_upstream(&upstream).with("tags: { freshness: 1h }"));
    let file = config.write(home.path()).expect("writable");
    let mut old = AgentProcess::start(&file).await.expect("it starts");
    let mirror = old.addresses.mirror.to_string();
    puller(&old).pull(REPOSITORY, "v1", |_| ()).await.expect("the pull succeeds");
    let new = AgentProcess::start_with(&file, &[("HEARTH_MIRROR_LISTEN", &mirror)]).await;
    let new = new.expect("it listens on the same port");

    let (stop, stopped) = tokio::sync::watch::channel(false);
    let url = format!("http://{mirror}{}", manifest_path(REPOSITORY, "v1"));
    let asking = tokio::spawn(async move {
        let mut answers = 0;
        while !*stopped.borrow() {
            // A connection of its own for each request: that is what finds a closed port.
            let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build()?;
            let response = client.get(&url).send().await?;
            assert_eq!(response.status(), 200);
            answers += 1;
        }
        Ok::<_, reqwest::Error>(answers)
    });
    old.terminate().expect("it runs");
    assert!(old.wait().await.expect("it ends").success(), "{}", old.log());
    tokio::time::sleep(Duration::from_millis(200)).await;
    stop.send(true).expect("someone asks");
    let answers: u32 = asking.await.expect("no panic").expect("every request is answered");
    assert!(answers > 10, "{answers} answers");
    drop(new);
}

#[tokio::test]
async fn a_second_agent_on_a_directory_that_is_never_let_go_of_ends_with_two_and_says_why() {
    let upstream = FakeUpstream::start().await;
    let home = home();
    let config = AgentConfig::for_upstream(&upstream).with("store: { minFree: \"0\", lockWait: 500ms }");
    let first = config.start_process(home.path()).await.expect("it starts");
    let mut second = config.start_process(home.path()).await.expect("it starts");
    assert_eq!(second.wait().await.expect("it ends").code(), Some(2), "{}", second.log());
    assert!(second.log().contains("in use by another agent"), "{}", second.log());
    assert_eq!(ready(&first).await, "ok\n");
}
