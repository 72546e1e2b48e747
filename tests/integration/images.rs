//! `ls`, `pin`, `unpin` and `rm`: the real command against a running agent, and on the data of one that is stopped.

use std::{net::SocketAddr, time::Duration};

use kit::{
    agent::{Agent, AgentConfig, REGISTRY, manifest_path},
    pull::Puller,
    registry::{FakeUpstream, Image, Layer},
    wire,
};
use serde_json::Value;

use crate::cli::{agent as hearth_agent, command, complaint, stdout};

const REPOSITORY: &str = "team/app";
const MIB: u64 = 1 << 20;

fn list(agent: &Agent) -> Vec<Value> {
    serde_json::from_str(&stdout(&command(agent, &["ls", "--output", "json"]))).expect("JSON")
}

async fn pull(agent: &Agent, tag: &str) -> anyhow::Result<kit::pull::Pulled> {
    Puller::new(&agent.url(), Some(REGISTRY)).pull(REPOSITORY, tag, |_| ()).await
}

/// Two images with one layer in common, pulled.
async fn two_images(config: impl Fn(&FakeUpstream) -> AgentConfig) -> (FakeUpstream, Agent, [Image; 2]) {
    let upstream = FakeUpstream::start().await;
    let base = || Layer::random(1, MIB);
    let one = upstream.image(REPOSITORY, "one", [base(), Layer::random(2, 2 * MIB)]).await;
    let two = upstream.image(REPOSITORY, "two", [base(), Layer::random(3, 2 * MIB)]).await;
    let agent = Agent::start(&config(&upstream)).await;
    for tag in ["one", "two"] {
        pull(&agent, tag).await.expect("the pull succeeds");
    }
    (upstream, agent, [one, two])
}

fn name(tag: &str) -> String {
    format!("{REGISTRY}/{REPOSITORY}:{tag}")
}

#[tokio::test(flavor = "multi_thread")]
async fn ls_shows_what_is_there_as_table_and_as_json() {
    let (_upstream, agent, [one, _]) = two_images(AgentConfig::for_upstream).await;
    let table = stdout(&command(&agent, &["ls"]));
    let line = table.lines().find(|line| line.starts_with(&name("one"))).expect(&table);
    assert!(line.contains("3.0 MiB") && line.contains("2.0 MiB") && line.ends_with("complete"), "{table}");
    let listed = list(&agent);
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[0]["digest"], one.digest);
    assert_eq!(listed[0]["names"][0]["name"], name("one"));
    assert_eq!((&listed[0]["complete"], &listed[0]["pinned"]), (&Value::Bool(true), &Value::Bool(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_image_is_not_evicted_and_outlives_its_deletion_upstream() {
    let limited = |upstream: &FakeUpstream| {
        AgentConfig::for_upstream(upstream)
            .with("tags: { freshness: 0s, negative: 0s }")
            .with("store: { limit: 4MiB, minFree: \"0\", lowWatermark: 80% }")
    };
    let upstream = FakeUpstream::start().await;
    let config = limited(&upstream);
    let agent = Agent::start(&config).await;
    // Any two fit, and the third needs the room of the one that was not used for the longest time.
    let old = upstream.image(REPOSITORY, "old", [Layer::random(2, 3 * MIB / 2)]).await;
    upstream.image(REPOSITORY, "middle", [Layer::random(3, 3 * MIB / 2)]).await;
    upstream.image(REPOSITORY, "new", [Layer::random(4, 3 * MIB / 2)]).await;
    pull(&agent, "old").await.expect("the pull succeeds");
    assert_eq!(stdout(&command(&agent, &["pin", &name("old")])), format!("pinned {}\n", name("old")));
    for tag in ["middle", "new"] {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        pull(&agent, tag).await.expect("the pull succeeds");
    }
    let gone = async {
        while list(&agent).len() > 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("the limit is kept");
    let stays = list(&agent).iter().any(|image| image["digest"] == old.digest && image["complete"] == true);
    assert!(stays, "the oldest one stays: it is pinned");

    upstream.remove(REPOSITORY, "old");
    let answer = agent.head(&manifest_path(REPOSITORY, "old")).await;
    assert_eq!((answer.status().as_u16(), answer.headers().contains_key("warning")), (200, true));
    let home = agent.stop().await;
    let agent = Agent::start_in(&config, home).await;
    pull(&agent, "old").await.expect("the pin outlives the process");

    stdout(&command(&agent, &["unpin", &name("old")]));
    // For ten seconds after upstream did not confirm it, it is not asked again.
    let gone = async {
        while agent.head(&manifest_path(REPOSITORY, "old")).await.status() != 404 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("an unpinned tag goes with upstream's");
}

#[tokio::test(flavor = "multi_thread")]
async fn rm_removes_a_name_with_what_only_it_needs_and_refuses_what_is_pinned() {
    let fresh = |upstream: &FakeUpstream| AgentConfig::for_upstream(upstream).with("tags: { freshness: 1h }");
    let (upstream, agent, [one, two]) = two_images(fresh).await;
    stdout(&command(&agent, &["pin", &name("one")]));
    let refused = complaint(&command(&agent, &["rm", &name("one")]));
    assert!(refused.contains("is pinned") && refused.contains("unpin"), "{refused}");
    assert_eq!(list(&agent).len(), 2);

    stdout(&command(&agent, &["unpin", &name("one")]));
    let removed = stdout(&command(&agent, &["rm", &name("one")]));
    assert!(removed.contains(&format!("removed {}", name("one"))), "{removed}");
    let stored = agent.stored();
    assert!(two.blobs().all(|digest| stored.iter().any(|one| one == digest)), "{stored:?}");
    let left = one.blobs().filter(|digest| stored.iter().any(|one| one == *digest)).count();
    assert_eq!(left, 1, "the shared layer");
    upstream.stop().await;
    assert_eq!(
        agent.head(&manifest_path(REPOSITORY, "one")).await.status(),
        503,
        "it is not remembered either"
    );
    pull(&agent, "two").await.expect("the other one is there");
    let again = complaint(&command(&agent, &["rm", &name("one")]));
    assert!(again.contains("not in the store"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_the_commands_say_so_and_work_offline_on_its_data() {
    let (_upstream, agent, _) = two_images(AgentConfig::for_upstream).await;
    let data = agent.data();
    let offline = |arguments: &[&str]| {
        hearth_agent(&[arguments, &["--offline", "--data-dir", &data.to_string_lossy()]].concat(), &[])
    };
    let locked = complaint(&offline(&["ls"]));
    assert!(locked.contains("in use by another agent") && locked.contains("--offline"), "{locked}");
    let socket = agent.socket().display().to_string();
    let _home = agent.stop().await;
    let stopped = complaint(&hearth_agent(&["ls", "--agent", &socket], &[]));
    for needle in [&socket, "no agent answers", "hearth-agent run", "--offline"] {
        assert!(stopped.contains(needle), "`{needle}`: {stopped}");
    }
    stdout(&offline(&["pin", &name("one")]));
    assert!(complaint(&offline(&["rm", &name("one")])).contains("pinned"));
    stdout(&offline(&["rm", &name("two")]));
    let listed = stdout(&offline(&["ls"]));
    assert!(listed.contains("complete, pinned") && !listed.contains(&name("two")), "{listed}");
    assert_eq!(hearth_agent(&["pin", "no good name"], &[]).status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_nothing_can_be_changed() {
    let upstream = FakeUpstream::start().await;
    let config = AgentConfig::for_upstream(&upstream).with("admin: { listen: 0.0.0.0:0 }");
    let agent = Agent::start(&config).await;
    let port = agent.addresses.admin.port();
    let local: SocketAddr = ([127, 0, 0, 1], port).into();
    let ask = async |to: SocketAddr, request: String| {
        wire::exchange(to, &request, Duration::from_secs(5)).await.expect("an answer").status()
    };
    let request = |method: &str, host: &str, more: &str| {
        format!("{method} /api/v1/pins?name=a HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\n{more}\r\n")
    };
    for (host, more) in
        [("localhost", "x-hearth-command: 1\r\n"), ("rebound.example.com", "origin: http://x\r\n")]
    {
        assert_eq!(ask(local, request("PUT", host, more)).await, 403, "{host} {more}");
    }
    // The machine's own address on a network, if it has one; nothing is sent for this.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    if let Ok(own) = probe {
        let outside = SocketAddr::new(own.ip(), port);
        for (method, path) in [("PUT", "pins?name=a"), ("GET", "images")] {
            let request =
                format!("{method} /api/v1/{path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n");
            assert_eq!(ask(outside, request).await, 403, "{method} {path}");
        }
        assert_eq!(ask(outside, "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n".to_owned()).await, 200);
    }
}
