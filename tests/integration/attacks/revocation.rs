//! Content that came with credentials and is cached, against the end of the right to read it.

use std::{fmt::Write as _, sync::Arc};

use kit::{
    agent::{Agent, AgentConfig, REGISTRY, blob_path, manifest_path},
    pull::Puller,
    registry::{Access, FakeUpstream, Image, Layer},
};
use tempfile::TempDir;

const REPOSITORY: &str = "team/app";

/// Another name of a registry, and another repository, that anyone may name.
const OTHER: &str = "other.test";

fn password() -> Access {
    Access::Basic("user".to_owned(), "word".to_owned())
}

/// With the agent's credentials, when there are some in `home`.
fn config(upstream: &FakeUpstream, other: &FakeUpstream, word: Option<&str>, home: &TempDir) -> AgentConfig {
    let private = if word.is_some() { "private: agent" } else { "private: decline" };
    let mut config = AgentConfig::default()
        .registry(REGISTRY, &[&upstream.url()], private)
        .registry(OTHER, &[&other.url()], "private: decline")
        .with("tags: { freshness: 0s, negative: 0s }");
    if let Some(word) = word {
        let mut text = String::new();
        let _ = write!(text, r#"{{"auths":{{"{REGISTRY}":{{"username":"user","password":"{word}"}}}}}}"#);
        let path = home.path().join("docker.json");
        std::fs::write(&path, text).expect("writable");
        config = config.with(&format!("credentials: {{ dockerConfig: {} }}", path.display()));
    }
    config
}

/// A private image that the agent has pulled with its credentials, and the agent's data.
async fn cached(home: &TempDir) -> (FakeUpstream, FakeUpstream, Image, Arc<TempDir>) {
    let (upstream, other) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 100_000)]).await;
    other.image("any/one", "v1", [Layer::random(2, 1_000)]).await;
    upstream.access(password());
    let agent = Agent::start(&config(&upstream, &other, Some("word"), home)).await;
    let puller = Puller::new(&agent.url(), Some(REGISTRY));
    puller.pull(REPOSITORY, "v1", |_| ()).await.expect("the pull succeeds");
    let paths = everything(&image);
    for path in &paths[..3] {
        assert_eq!(agent.get(path).await.status(), 200, "{path}");
    }
    (upstream, other, image, agent.stop().await)
}

/// The image's tag, manifest and layer; then manifest and layer by other names.
fn everything(image: &Image) -> Vec<String> {
    let layer = &image.layers[0].0;
    vec![
        manifest_path(REPOSITORY, "v1"),
        manifest_path(REPOSITORY, &image.digest),
        blob_path(REPOSITORY, layer),
        manifest_path("any/one", &image.digest),
        blob_path("any/one", layer),
        format!("/v2/any/one/manifests/{}?ns={OTHER}", image.digest),
        format!("/v2/any/one/blobs/{layer}?ns={OTHER}"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_to_decline_takes_effect_on_what_is_cached() {
    let home = tempfile::tempdir().expect("temporary folders are available");
    let (upstream, other, image, data) = cached(&home).await;
    let agent = Agent::start_in(&config(&upstream, &other, None, &home), data).await;
    for path in everything(&image) {
        let status = agent.get(&path).await.status();
        assert!(matches!(status.as_u16(), 403 | 404), "{path}: {status}");
    }
    // What its registry gives to anyone is given to anyone.
    upstream.access(Access::Open);
    for path in &everything(&image)[..3] {
        assert_eq!(agent.get(path).await.status(), 200, "{path}");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_do_not_open_what_came_with_credentials() {
    let home = tempfile::tempdir().expect("temporary folders are available");
    let (upstream, other, image, data) = cached(&home).await;
    let agent = Agent::start_in(&config(&upstream, &other, Some("word"), &home), data).await;
    // Also those of the same registry: it has the content in one repository and not in the other.
    for path in &everything(&image)[3..] {
        let status = agent.get(path).await.status();
        assert!(matches!(status.as_u16(), 403 | 404), "{path}: {status}");
    }
    agent.stop().await;
}

/// The agent may read both repositories, and the registry says so: that is not yet a reason to give through one what the
/// other has.
#[tokio::test(flavor = "multi_thread")]
async fn a_repository_does_not_open_what_another_of_the_same_registry_has() {
    let home = tempfile::tempdir().expect("temporary folders are available");
    let (upstream, other, image, data) = cached(&home).await;
    let own = upstream.image("team/other", "v1", [Layer::random(3, 1_000)]).await;
    let agent = Agent::start_in(&config(&upstream, &other, Some("word"), &home), data).await;
    Puller::new(&agent.url(), Some(REGISTRY)).pull("team/other", "v1", |_| ()).await.expect("its own image");
    let open = [manifest_path("team/other", &own.digest), blob_path("team/other", &own.layers[0].0)];
    for path in &open {
        assert_eq!(agent.get(path).await.status(), 200, "{path}");
    }
    let layer = &image.layers[0].0;
    for path in [manifest_path("team/other", &image.digest), blob_path("team/other", layer)] {
        let status = agent.get(&path).await.status();
        assert!(matches!(status.as_u16(), 403 | 404), "{path}: {status}");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_credentials_takes_effect_and_an_outage_does_not() {
    let home = tempfile::tempdir().expect("temporary folders are available");
    let (upstream, other, image, data) = cached(&home).await;
    let agent = Agent::start_in(&config(&upstream, &other, Some("revoked"), &home), data).await;
    for path in &everything(&image)[1..3] {
        let status = agent.get(path).await.status();
        assert!(matches!(status.as_u16(), 403 | 404), "{path}: {status}");
    }
    let data = agent.stop().await;
    upstream.stop().await;
    let agent = Agent::start_in(&config(&upstream, &other, Some("word"), &home), data).await;
    for path in &everything(&image)[..3] {
        assert_eq!(agent.get(path).await.status(), 200, "{path}");
    }
    agent.stop().await;
}
