//! Registries that name another host as the place where credentials are to be sent.

use std::{io::Write as _, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Method;
use kit::{
    agent::{Agent, AgentConfig, REGISTRY, manifest_path},
    registry::{Access, Bearer, Entry, FakeUpstream, Fault, Kind, Layer, On},
};
use tempfile::NamedTempFile;

const REPOSITORY: &str = "team/app";

fn bearer(realm_elsewhere: bool, post: bool) -> Access {
    let user = Some(("ann".to_owned(), "secret".to_owned()));
    let identity_token = Some("identity".to_owned());
    Access::Bearer(Bearer { user, identity_token, realm_elsewhere, post, ..Bearer::default() })
}

/// `entry` is the registry's in the Docker configuration, `more` further keys of its entry in the agent's.
async fn agent(upstream: &FakeUpstream, entry: serde_json::Value, more: &str) -> (Agent, NamedTempFile) {
    let mut file = NamedTempFile::new().expect("temporary files are available");
    write!(file, "{}", serde_json::json!({ "auths": { REGISTRY: entry } })).expect("writable");
    let config = AgentConfig::default()
        .registry(REGISTRY, &[&upstream.url()], &format!("private: agent{more}"))
        .with(&format!("credentials: {{ dockerConfig: {} }}", file.path().display()));
    upstream.image(REPOSITORY, "v1", [Layer::random(1, 1000)]).await;
    (Agent::start(&config).await, file)
}

async fn status(agent: &Agent) -> u16 {
    let path = manifest_path(REPOSITORY, "v1");
    let get = agent.get(&path);
    tokio::time::timeout(Duration::from_mins(1), get).await.expect("an answer").status().as_u16()
}

fn logins() -> [serde_json::Value; 2] {
    [
        serde_json::json!({ "auth": STANDARD.encode("ann:secret") }),
        serde_json::json!({ "auth": STANDARD.encode("ann:"), "identitytoken": "identity" }),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_realm_on_another_host_gets_no_credentials_unless_it_is_configured() {
    for login in logins() {
        let upstream = FakeUpstream::start().await;
        upstream.access(bearer(true, true));
        let (refused, _file) = agent(&upstream, login.clone(), "").await;
        assert!(matches!(status(&refused).await, 403 | 404 | 503), "{login}");
        let log = upstream.log().kind(Kind::Token);
        let secret = |entry: &Entry| entry.authorization().is_some() || entry.method == Method::POST;
        assert!(!log.iter().any(secret), "{login}: {}", log.describe());
        let (configured, _file) = agent(&upstream, login, ", realms: [\"127.0.0.2\"]").await;
        assert_eq!(status(&configured).await, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_never_posted() {
    for code in [404, 405] {
        let upstream = FakeUpstream::start().await;
        upstream.access(bearer(false, true));
        upstream.fault(On::token().get(), Fault::status(code));
        let (agent, _file) = agent(&upstream, logins()[0].clone(), "").await;
        assert_ne!(status(&agent).await, 200);
        let posts = upstream.log().method(&Method::POST);
        assert!(posts.is_empty(), "{code}: {}", posts.describe());
    }
}
