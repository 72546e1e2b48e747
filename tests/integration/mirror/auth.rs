//! The upstream's side of trust: tokens, credentials, redirects.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use kit::{
    agent::{Agent, AgentConfig, REGISTRY, blob_path, manifest_path},
    pull::Puller,
    registry::{Access, Bearer, FakeUpstream, Fault, Image, Kind, Layer, On, RedirectTo, sha256},
};
use tempfile::NamedTempFile;

use super::{REPOSITORY, start};

fn docker_config(host: &str, user: &str, password: &str) -> NamedTempFile {
    let auth = STANDARD.encode(format!("{user}:{password}"));
    let file = NamedTempFile::new().expect("temporary files are available");
    let text = serde_json::json!({ "auths": { host: { "auth": auth } } }).to_string();
    std::fs::write(file.path(), text).expect("writable");
    file
}

fn with_credentials(upstream: &FakeUpstream, file: &NamedTempFile) -> AgentConfig {
    AgentConfig::default()
        .registry(REGISTRY, &[&upstream.url()], "private: agent, realms: [\"127.0.0.2\"]")
        .with(&format!("credentials: {{ dockerConfig: {} }}", file.path().display()))
}

async fn image(upstream: &FakeUpstream) -> Image {
    upstream.image(REPOSITORY, "v1", [Layer::random(1, 300_000), Layer::random(2, 70_000)]).await
}

async fn pull(agent: &Agent) -> anyhow::Result<()> {
    Puller::new(&agent.url(), Some(REGISTRY)).pull(REPOSITORY, "v1", |_| ()).await.map(drop)
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once_and_used_for_the_whole_image() {
    for (realm_elsewhere, say_lifetime) in [(false, true), (true, true), (false, false)] {
        let (upstream, agent) = start().await;
        image(&upstream).await;
        upstream.access(Access::Bearer(Bearer { realm_elsewhere, say_lifetime, ..Bearer::default() }));
        pull(&agent).await.expect("the pull succeeds");
        let log = upstream.log();
        assert_eq!(log.kind(Kind::Token).len(), 1, "{}", log.describe());
        let token =
            log.kind(Kind::Token).iter().next().and_then(|entry| entry.uri.query().map(str::to_owned));
        let query = token.expect("a GET with parameters");
        let decoded = query.replace("%3A", ":").replace("%2F", "/");
        assert!(
            decoded.contains("service=kit") && decoded.contains("scope=repository:team/app:pull"),
            "{query}"
        );
    }
}

#[tokio::test]
async fn a_token_is_not_fetched_once_for_each_of_many_first_requests() {
    let (upstream, agent) = start().await;
    let mut digests = Vec::new();
    for seed in 0..8 {
        digests.push(upstream.random_blob(REPOSITORY, seed, 1000).await);
    }
    upstream.access(Access::Bearer(Bearer::default()));
    upstream.fault(On::token(), Fault::Delay(Duration::from_millis(200)));
    let gets =
        digests.iter().map(|digest| async { agent.get(&blob_path(REPOSITORY, digest)).await.status() });
    assert!(futures_util::future::join_all(gets).await.iter().all(|status| *status == 200));
    assert_eq!(upstream.log().kind(Kind::Token).len(), 1, "{}", upstream.log().describe());
}

#[tokio::test]
async fn a_token_that_expires_is_renewed() {
    let (upstream, agent) = start().await;
    let image = image(&upstream).await;
    upstream.access(Access::Bearer(Bearer::default()));
    assert_eq!(agent.get(&manifest_path(REPOSITORY, "v1")).await.status(), 200);
    upstream.expire_tokens();
    let body =
        agent.get(&blob_path(REPOSITORY, &image.layers[0].0)).await.bytes().await.expect("a whole body");
    assert_eq!(sha256(&body), image.layers[0].0);
    assert_eq!(upstream.log().kind(Kind::Token).len(), 2, "{}", upstream.log().describe());
}

#[tokio::test]
async fn credentials_of_the_docker_config_open_basic_and_bearer_registries() {
    let user = ("ann".to_owned(), "se:cret".to_owned());
    for access in [
        Access::Basic(user.0.clone(), user.1.clone()),
        Access::Bearer(Bearer { user: Some(user.clone()), ..Bearer::default() }),
        Access::Bearer(Bearer { user: Some(user.clone()), post: false, ..Bearer::default() }),
        Access::Bearer(Bearer { user: Some(user), realm_elsewhere: true, ..Bearer::default() }),
    ] {
        let shown = format!("{access:?}");
        let upstream = FakeUpstream::start().await;
        let file = docker_config(REGISTRY, "ann", "se:cret");
        let agent = Agent::start(&with_credentials(&upstream, &file)).await;
        image(&upstream).await;
        upstream.access(access);
        pull(&agent)
            .await
            .unwrap_or_else(|error| panic!("{shown}: {error:#}\n{}", upstream.log().describe()));
    }
}

#[tokio::test]
async fn a_private_image_is_declined_without_credentials_and_denied_with_wrong_ones() {
    let upstream = FakeUpstream::start().await;
    let image = image(&upstream).await;
    upstream.access(Access::Basic("ann".to_owned(), "secret".to_owned()));
    let wrong = docker_config(REGISTRY, "ann", "guess");
    for config in [AgentConfig::for_upstream(&upstream), with_credentials(&upstream, &wrong)] {
        let agent = Agent::start(&config).await;
        for path in [manifest_path(REPOSITORY, "v1"), blob_path(REPOSITORY, &image.config)] {
            let response = agent.get(&path).await;
            assert!(!response.headers().contains_key("www-authenticate"), "no challenge reaches the runtime");
            let (status, code) = super::refusal(response).await;
            assert!(matches!(status, 403 | 404), "{path}: {status} {code}");
        }
        assert!(agent.stored().is_empty());
    }
}

#[tokio::test]
async fn no_credential_of_a_client_is_passed_on() {
    let (upstream, agent) = start().await;
    image(&upstream).await;
    let path = manifest_path(REPOSITORY, "v1");
    let request = agent.request(reqwest::Method::GET, &path).basic_auth("pod", Some("secret"));
    assert_eq!(request.header("cookie", "a=b").send().await.expect("an answer").status(), 200);
    let log = upstream.log();
    assert!(
        log.iter().all(|entry| entry.authorization().is_none() && entry.header("cookie").is_none()),
        "{}",
        log.describe()
    );
}

#[tokio::test]
async fn redirects_are_followed_and_no_authorization_follows_them() {
    let user = Some(("ann".to_owned(), "secret".to_owned()));
    for (status, to) in [
        (302, RedirectTo::OtherHost),
        (307, RedirectTo::OtherHost),
        (308, RedirectTo::OtherPort),
        (307, RedirectTo::OtherPort),
        (302, RedirectTo::Relative),
        (307, RedirectTo::Chain(3)),
        (301, RedirectTo::OtherHost),
        (303, RedirectTo::OtherHost),
    ] {
        let upstream = FakeUpstream::start().await;
        let file = docker_config(REGISTRY, "ann", "secret");
        let agent = Agent::start(&with_credentials(&upstream, &file)).await;
        let image = image(&upstream).await;
        upstream.access(Access::Bearer(Bearer { user: user.clone(), ..Bearer::default() }));
        upstream.fault(On::blob(), Fault::Redirect(status, to));
        pull(&agent)
            .await
            .unwrap_or_else(|error| panic!("{status} {to:?}: {error:#}\n{}", upstream.log().describe()));
        let cdn = upstream.log().kind(Kind::Cdn);
        assert!(cdn.len() >= image.layers.len(), "{status} {to:?}: {}", cdn.describe());
        if to != RedirectTo::Relative {
            assert!(
                cdn.iter().all(|entry| entry.authorization().is_none()),
                "{status} {to:?}: a secret left for another origin"
            );
        }
    }
}

#[tokio::test]
async fn a_resumption_after_a_cut_at_the_redirects_target_asks_the_registry_for_a_new_url() {
    let (upstream, agent) = start().await;
    let image = image(&upstream).await;
    upstream.fault(On::blob().get(), Fault::Redirect(307, RedirectTo::OtherHost));
    upstream.fault(On::cdn().get().whole().reference(&image.layers[0].0), Fault::Cut(100_000)).times(1);
    pull(&agent).await.expect("the pull succeeds");
    let asked = upstream.log().blob_gets().reference(&image.layers[0].0);
    assert_eq!(asked.len(), 2, "{}", upstream.log().describe());
}

#[tokio::test]
async fn a_redirect_that_leads_nowhere_is_503_and_quick() {
    for to in [RedirectTo::Loop, RedirectTo::Expired] {
        let (upstream, agent) = start().await;
        let digest = upstream.random_blob(REPOSITORY, 1, 1000).await;
        upstream.fault(On::blob(), Fault::Redirect(307, to));
        let started = std::time::Instant::now();
        let status = agent.get(&blob_path(REPOSITORY, &digest)).await.status();
        assert!(matches!(status.as_u16(), 403 | 503), "{to:?}: {status}");
        assert!(started.elapsed() < super::HEADER_LIMIT, "{to:?}: {:?}", started.elapsed());
        upstream.heal();
        // A failed endpoint is left alone for a moment.
        let healed = async {
            while agent.get(&blob_path(REPOSITORY, &digest)).await.status() != 200 {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), healed)
            .await
            .unwrap_or_else(|_| panic!("{to:?}: not healed"));
    }
}
