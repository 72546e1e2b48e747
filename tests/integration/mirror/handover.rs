//! Two agents on one directory: for a while at a rolling update, and by mistake.

use std::time::Duration;

use kit::{
    agent::{AgentConfig, REGISTRY, assert_store_is_right, blob_path, manifest_path, stored_blobs},
    process::AgentProcess,
    pull::Puller,
    registry::{FakeUpstream, Fault, Layer, On, sha256},
};
use tokio::sync::watch;

use super::{REPOSITORY, restart::home};

/// Waits until an agent, ready all the while, says this of itself.
async fn says(agent: &AgentProcess, expected: impl Fn(&str) -> bool) {
    let mut said = String::new();
    let heard = async {
        loop {
            said = ready(agent).await;
            if expected(&said) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let heard = tokio::time::timeout(Duration::from_secs(30), heard).await;
    assert!(heard.is_ok(), "it still says {said}");
}

fn puller(agent: &AgentProcess) -> Puller {
    Puller::new(&format!("http://{}", agent.addresses.mirror), Some(REGISTRY))
}

/// What an agent says of its readiness, once it has begun to serve. It is ready then.
async fn ready(agent: &AgentProcess) -> String {
    let asked = async {
        loop {
            let response = reqwest::get(format!("http://{}/readyz", agent.addresses.admin)).await;
            let response = response.expect("the admin listener answers");
            let (status, said) = (response.status(), response.text().await.expect("a body"));
            if said == "starting\n" {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
            assert_eq!(status, 200, "{said}");
            break said;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asked).await.expect("it begins to serve")
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
    says(&new, |said| said.contains("held by another agent")).await;
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
    says(&new, |said| said == "ok\n").await;
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

    let (answered, mut answers) = watch::channel(0);
    let url = format!("http://{mirror}{}", manifest_path(REPOSITORY, "v1"));
    let asking = tokio::spawn(async move {
        while !answered.is_closed() {
            // A connection of its own for each request: that is what finds a closed port.
            let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build()?;
            let response = client.get(&url).send().await?;
            assert_eq!(response.status(), 200);
            answered.send_modify(|answers| *answers += 1);
        }
        Ok::<_, reqwest::Error>(())
    });
    ten_more(&mut answers).await;
    old.terminate().expect("it runs");
    assert!(old.wait().await.expect("it ends").success(), "{}", old.log());
    ten_more(&mut answers).await;
    drop(answers);
    asking.await.expect("no panic").expect("every request is answered");
    drop(new);
}

#[tokio::test]
async fn probes_of_the_new_agent_never_reach_the_old_one_that_drains() {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.random_blob(REPOSITORY, 3, 4_000_000).await;
    upstream.fault(On::blob().get(), Fault::Rate(1_000_000));
    let home = home();
    let file = AgentConfig::for_upstream(&upstream).write(home.path()).expect("writable");
    let mut old = AgentProcess::start(&file).await.expect("it starts");
    let admin = old.addresses.admin.to_string();
    let new = AgentProcess::start_with(&file, &[("HEARTH_ADMIN_LISTEN", &admin)]).await;
    let _new = new.expect("it listens on the same port");
    let url = format!("http://{}{}", old.addresses.mirror, blob_path(REPOSITORY, &digest));
    let body = tokio::spawn(async move { reqwest::get(url).await?.bytes().await });
    while upstream.log().blob_gets().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    old.terminate().expect("it runs");
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..40 {
        // A connection of its own for each probe, as the kubelet has.
        let probe = reqwest::get(format!("http://{admin}/readyz")).await.expect("the new agent answers");
        assert_eq!(probe.status(), 200);
    }
    assert!(!body.is_finished(), "the old agent drains meanwhile");
    assert_eq!(body.await.expect("no panic").expect("the body is finished").len(), 4_000_000);
    assert!(old.wait().await.expect("it ends").success(), "{}", old.log());
}

/// Reads a blob as container runtimes do: what a cut connection has not brought is asked for again from there.
async fn resuming(url: String, size: usize) -> Vec<u8> {
    let mut body: Vec<u8> = Vec::new();
    for _ in 0..20 {
        let client =
            reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("a client");
        let from = format!("bytes={}-", body.len());
        if let Ok(mut response) = client.get(&url).header("range", from).send().await {
            assert_eq!(response.status(), 206);
            while let Ok(Some(chunk)) = response.chunk().await {
                body.extend_from_slice(&chunk);
            }
        }
        if body.len() == size {
            return body;
        }
    }
    panic!("only {} bytes", body.len());
}

#[tokio::test]
async fn a_slow_transfer_survives_three_updates_and_is_read_once() {
    const SIZE: usize = 8_000_000;
    let upstream = FakeUpstream::start().await;
    let digest = upstream.random_blob(REPOSITORY, 3, SIZE as u64).await;
    upstream.rate_per_connection(1_000_000);
    let home = home();
    let config = AgentConfig::for_upstream(&upstream).with("limits: { shutdownGrace: 300ms }");
    let file = config.write(home.path()).expect("writable");
    let mut agent = AgentProcess::start(&file).await.expect("it starts");
    let mirror = agent.addresses.mirror.to_string();
    let url = format!("http://{mirror}{}", blob_path(REPOSITORY, &digest));
    let body = tokio::spawn(resuming(url, SIZE));
    for update in 1..=3 {
        while upstream.log().blob_gets().bytes() < update * 1_500_000 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let next = AgentProcess::start_with(&file, &[("HEARTH_MIRROR_LISTEN", &mirror)]).await;
        let next = next.expect("it takes over the port");
        ready(&next).await;
        agent.terminate().expect("it runs");
        assert!(agent.wait().await.expect("it ends").success(), "{}", agent.log());
        agent = next;
    }
    assert!(!body.is_finished(), "every update met the transfer");
    assert_eq!(sha256(&body.await.expect("no panic")), digest);
    let read = upstream.log().blob_gets().bytes();
    assert!(read <= SIZE as u64 + SIZE as u64 / 20, "{}", upstream.log().blob_gets().describe());
}

/// Waits for more answers, or for the end of those who ask, who say why they ended.
async fn ten_more(answers: &mut watch::Receiver<u32>) {
    let enough = *answers.borrow() + 10;
    let more = answers.wait_for(|answers| *answers >= enough);
    tokio::time::timeout(Duration::from_secs(30), more).await.expect("answers keep coming").ok();
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

/// A client of a node during updates: images that are there, on connections that are kept; and images that are not.
/// Counts its answers until nobody asks for the count any more.
async fn load(url: String, cold: usize, answers: watch::Sender<u32>) -> anyhow::Result<()> {
    let kept = reqwest::Client::builder().no_proxy().build()?;
    let mut next = 0;
    while !answers.is_closed() {
        pull_without_retry(&kept, &url, "warm", &answers).await?;
        if next < cold {
            pull_without_retry(&kept, &url, &format!("cold-{next}"), &answers).await?;
            next += 1;
        }
    }
    Ok(())
}

/// Every request once: what a client would repeat counts as failed.
async fn pull_without_retry(
    client: &reqwest::Client,
    url: &str,
    tag: &str,
    answers: &watch::Sender<u32>,
) -> anyhow::Result<()> {
    let get = async |path: String| {
        let response = client.get(format!("{url}{path}")).send().await?.error_for_status()?;
        let bytes = response.bytes().await?;
        answers.send_modify(|answers| *answers += 1);
        anyhow::Ok(bytes)
    };
    let manifest = get(manifest_path(REPOSITORY, tag)).await?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest)?;
    let layers = manifest["layers"].as_array().into_iter().flatten();
    for descriptor in layers.chain([&manifest["config"]]) {
        let digest = descriptor["digest"].as_str().unwrap_or_default().to_owned();
        let bytes = get(blob_path(REPOSITORY, &digest)).await?;
        // Elsewhere: a client that is busy would not hear that a connection it keeps has ended.
        let found = tokio::task::spawn_blocking(move || sha256(&bytes)).await?;
        anyhow::ensure!(found == digest, "`{digest}` arrived with other bytes");
    }
    Ok(())
}

#[tokio::test]
async fn three_updates_in_a_row_under_load_fail_no_request() {
    const COLD: usize = 12;
    let upstream = FakeUpstream::start().await;
    upstream.image(REPOSITORY, "warm", [Layer::random(1, 3_000_000), Layer::random(2, 10_000)]).await;
    for at in 0..COLD {
        let seed = 10 + u64::try_from(at).expect("a few");
        upstream.image(REPOSITORY, &format!("cold-{at}"), [Layer::random(seed, 4_000_000)]).await;
    }
    // Slow enough that transfers are under way whenever an agent is told to end.
    upstream.rate_per_connection(4_000_000);
    let (home, config) = (home(), AgentConfig::for_upstream(&upstream).with("tags: { freshness: 1h }"));
    let file = config.write(home.path()).expect("writable");
    let mut agent = AgentProcess::start(&file).await.expect("it starts");
    let mirror = agent.addresses.mirror.to_string();
    let (mut clients, mut counts) = (Vec::new(), Vec::new());
    for at in 0..4 {
        let (answers, count) = watch::channel(0);
        clients.push(tokio::spawn(load(format!("http://{mirror}"), COLD * (at % 2), answers)));
        counts.push(count);
    }
    for _ in 0..3 {
        let next = AgentProcess::start_with(&file, &[("HEARTH_MIRROR_LISTEN", &mirror)]).await;
        let next = next.expect("it listens on the same port");
        ready(&next).await;
        agent.terminate().expect("it runs");
        assert!(agent.wait().await.expect("it ends").success(), "{}", agent.log());
        agent = next;
        says(&agent, |said| said == "ok\n").await;
        for count in &mut counts {
            ten_more(count).await;
        }
    }
    drop(counts);
    for client in clients {
        let ended = client.await.expect("no panic");
        ended.unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    }
    assert_store_is_right(&home.path().join("data"));
}
