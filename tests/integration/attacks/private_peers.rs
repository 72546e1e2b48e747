//! Pods that call the peer port, against images that only the agent's credentials can read.

use std::time::Duration;

use hearth_agent::{app::App, config::Config};
use kit::{
    agent::{AgentConfig, REGISTRY},
    certificates::Authority,
    cluster::{peer_config, places},
    registry::{Access, FakeUpstream, Layer},
    wire,
};
use tokio_util::sync::CancellationToken;

use crate::cli::agent as hearth_agent;

const REPOSITORY: &str = "team/app";
const NAME: &str = "hearth-peers.hearth.svc";

#[test]
fn private_images_and_peers_without_tls_are_a_configuration_error() {
    let home = tempfile::tempdir().expect("temporary folders are available");
    let write = |text: &str| {
        let path = home.path().join("agent.yaml");
        std::fs::write(
            &path,
            format!("dataDir: {}/data\nlog: {{ format: json }}\n{text}", home.path().display()),
        )
        .expect("writable");
        path.display().to_string()
    };
    for source in ["members: \"a=127.0.0.1:1\"", "dns: \"hearth:5051\"", "service: hearth/hearth-peers"] {
        for private in ["private: agent", "private: challenge"] {
            let file = write(&format!(
                "peer: {{ name: a, {source} }}\nregistries: [{{ host: open.test }}, {{ host: r.test, {private} }}]"
            ));
            let output = hearth_agent(&["run", "--config", &file], &[]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{said}");
            for part in ["agent.yaml:4", "`r.test`", private, "peer.tls", "private: decline"] {
                assert!(said.contains(part), "`{part}`: {said}");
            }
        }
    }
}

/// An agent that has no TLS towards peers although it has credentials: no configuration leads there, and if one did, a
/// request of a peer would still not be a reason to show them.
#[tokio::test(flavor = "multi_thread")]
async fn an_unauthenticated_peer_never_makes_the_agent_log_in() {
    nothing_is_read_for_a_peer_without_a_certificate("private: agent").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unauthenticated_peer_gets_nothing_where_clients_are_challenged() {
    nothing_is_read_for_a_peer_without_a_certificate("private: challenge").await;
}

async fn nothing_is_read_for_a_peer_without_a_certificate(private: &str) {
    let upstream = FakeUpstream::start().await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 50_000)]).await;
    upstream.access(Access::Basic("user".to_owned(), "word".to_owned()));
    let home = tempfile::tempdir().expect("temporary folders are available");
    let login = home.path().join("docker.json");
    let text = serde_json::json!({"auths": {REGISTRY: {"username": "user", "password": "word"}}}).to_string();
    std::fs::write(&login, text).expect("writable");
    let authority = Authority::new(home.path(), "peers").expect("openssl is there");
    authority.sign("peer", &format!("DNS:{NAME}")).expect("the authority signs");
    let path = |name: &str| home.path().join(name).display().to_string();
    let (certificate, key, ca) = (path("peer.pem"), path("peer.key"), path("peers.pem"));
    let tls =
        format!("tls: {{ certificate: \"{certificate}\", key: \"{key}\", ca: \"{ca}\", name: {NAME} }}");
    let places = places(2);
    let base = AgentConfig::default()
        .registry(REGISTRY, &[&upstream.url()], private)
        .with(&format!("credentials: {{ dockerConfig: {} }}", login.display()));
    let yaml = peer_config(&base, &places[0], &places, &tls).yaml(&home.path().join("data"));
    let mut config = Config::from_yaml(&yaml).unwrap_or_else(|error| panic!("{error}"));
    config.peers.tls = None;
    let app = App::build(config).await.expect("free ports and an own folder");
    let stop = CancellationToken::new();
    let running = tokio::spawn(app.run(stop.clone()));
    let (digest, layer) = (&image.digest, &image.layers[0].0);
    let query = format!("registry={REGISTRY}&repository={REPOSITORY}");
    for path in [
        format!("tags/v1?{query}"),
        format!("manifests/{digest}?{query}"),
        format!("pieces/{layer}/0?{query}&size=50000&role=source&member=evil&zone=&whole=0"),
        format!("pieces/{layer}/0?{query}&size=50000&role=source&member=evil&zone=&whole=1"),
        format!("hashes/{layer}/0?{query}&size=50000&again=piece"),
    ] {
        let get = wire::get(&format!("/peer/v1/{path}"), "");
        let answer =
            wire::exchange(places[0].address, &get, Duration::from_secs(20)).await.expect("an answer");
        assert_eq!(answer.status(), 403, "{path}: {}", String::from_utf8_lossy(&answer.body));
    }
    assert!(upstream.log().is_empty(), "{}", upstream.log().describe());
    stop.cancel();
    running.await.expect("no panic").expect("it drains");
}
