//! `verify`: only images that a listed key signed are served, from every source, and nothing of others.

use std::{path::PathBuf, sync::Arc, time::Duration};

use kit::{
    agent::{Agent, AgentConfig, REGISTRY, blob_path, manifest_path},
    cluster::{peer_config, places},
    pull::Puller,
    registry::{FakeUpstream, Fault, Image, Kind, Layer, On},
    signatures::{Signer, payload, signature_tag},
};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tempfile::TempDir;

const REPOSITORY: &str = "team/app";

/// A registry with an image, a key pair, and a folder for public keys.
struct Setting {
    upstream: FakeUpstream,
    image: Image,
    signer: Signer,
    home: TempDir,
}

impl Setting {
    async fn new() -> Self {
        let upstream = FakeUpstream::start().await;
        let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 100_000)]).await;
        let home = tempfile::tempdir().expect("temporary folders are available");
        Self { upstream, image, signer: Signer::generate(), home }
    }

    fn key(&self, name: &str, signer: &Signer) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::write(&path, signer.public_pem()).expect("writable");
        path
    }

    /// The registry, where these keys may sign.
    fn config_with(&self, keys: &[PathBuf]) -> AgentConfig {
        let keys: Vec<_> = keys.iter().map(|path| path.display().to_string()).collect();
        let verify = format!("verify: {{ keys: [{}] }}", keys.join(", "));
        AgentConfig::default()
            .registry(REGISTRY, &[&self.upstream.url()], &verify)
            .with("tags: { freshness: 0s, negative: 0s }")
    }

    fn config(&self) -> AgentConfig {
        self.config_with(&[self.key("team.pub", &self.signer)])
    }

    async fn agent(&self) -> Agent {
        Agent::start(&self.config()).await
    }

    /// Everything of the image: by tag, by digest, its configuration and its layer.
    fn paths(&self) -> Vec<String> {
        let mut paths = vec![manifest_path(REPOSITORY, "v1"), manifest_path(REPOSITORY, &self.image.digest)];
        paths.extend(self.image.blobs().map(|blob| blob_path(REPOSITORY, blob)));
        paths
    }

    async fn sign(&self) {
        self.upstream.sign_simple(REPOSITORY, &self.image.digest, &self.signer).await;
    }
}

async fn is_served(agent: &Agent, paths: &[String]) {
    for path in paths {
        assert_eq!(agent.get(path).await.status(), StatusCode::OK, "{path}");
    }
}

/// Every path is refused in the shape of a registry's error, and nothing of the image was sent. Returns the first reason.
async fn is_refused(agent: &Agent, paths: &[String]) -> String {
    let mut reasons = Vec::new();
    for path in paths {
        assert_eq!(agent.head(path).await.status(), StatusCode::FORBIDDEN, "HEAD {path}");
        let answer = agent.get(path).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
        let error: Value = serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON");
        assert_eq!(error["errors"][0]["code"], "DENIED", "{error}");
        reasons.push(error["errors"][0]["message"].as_str().expect("a text").to_owned());
    }
    let served = agent.metrics().await.sum("hearth_served_bytes_total", &[]);
    assert!(served < 1.0, "{served} bytes were sent");
    reasons.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn images_with_a_signature_of_cosign_are_served_whole() {
    let setting = Setting::new().await;
    setting.sign().await;
    let agent = setting.agent().await;
    let pulled = Puller::new(&agent.url(), Some(REGISTRY)).pull(REPOSITORY, "v1", |_| ()).await;
    assert_eq!(pulled.expect("the pull succeeds").digest, setting.image.digest);
    is_served(&agent, &setting.paths()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_with_a_sigstore_bundle_are_served() {
    let setting = Setting::new().await;
    let (upstream, digest) = (&setting.upstream, setting.image.digest.as_str());
    // A document that the same key signed is no signature.
    let provenance = setting.signer.statement(digest, "https://slsa.dev/provenance/v1");
    upstream.attach_bundle(REPOSITORY, digest, &provenance).await;
    let agent = setting.agent().await;
    let reason = is_refused(&agent, &setting.paths()).await;
    assert!(reason.contains("a document about the image (`https://slsa.dev/provenance/v1`)"), "{reason}");
    agent.stop().await;
    upstream.attach_bundle(REPOSITORY, digest, &setting.signer.image_bundle(digest)).await;
    is_served(&setting.agent().await, &setting.paths()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_signature_of_the_manifest_counts() {
    let setting = Setting::new().await;
    let client = reqwest::Client::builder().no_proxy().build().expect("a plain client");
    let manifest = format!("{}/v2/{REPOSITORY}/manifests/v1", setting.upstream.url());
    let answer = client.get(&manifest).send().await.expect("the registry answers");
    let manifest = answer.bytes().await.expect("a body");
    let bundle = setting.signer.message_bundle(&manifest);
    setting.upstream.attach_bundle(REPOSITORY, &setting.image.digest, &bundle).await;
    is_served(&setting.agent().await, &setting.paths()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_are_found_in_registries_without_the_referrers_api() {
    let setting = Setting::new().await;
    let (upstream, digest) = (&setting.upstream, setting.image.digest.as_str());
    upstream.fault(On::kind(Kind::Referrers), Fault::status(404));
    upstream.attach_bundle_by_tag(REPOSITORY, digest, &setting.signer.image_bundle(digest)).await;
    is_served(&setting.agent().await, &setting.paths()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_image_without_a_valid_signature_is_served() {
    let other = Signer::generate();
    for case in ["none", "other key", "other image", "changed payload", "bundle of another image"] {
        let setting = Setting::new().await;
        let (upstream, digest) = (&setting.upstream, setting.image.digest.as_str());
        let foreign = upstream.image(REPOSITORY, "v2", [Layer::random(2, 1_000)]).await.digest;
        let right = payload(REPOSITORY, digest);
        let expected = match case {
            "none" => "Found: no referrers that are signatures, and no tag",
            "other key" => {
                upstream.sign_simple(REPOSITORY, digest, &other).await;
                "made by none of the listed keys, or changed afterwards"
            }
            "other image" => {
                let wrong = payload(REPOSITORY, &foreign);
                let signature = setting.signer.sign(wrong.as_bytes());
                upstream.attach_simple(REPOSITORY, digest, &wrong, &signature).await;
                "made for another image"
            }
            "changed payload" => {
                let wrong = payload(REPOSITORY, &foreign);
                let signature = setting.signer.sign(wrong.as_bytes());
                upstream.attach_simple(REPOSITORY, digest, &right, &signature).await;
                "made by none of the listed keys, or changed afterwards"
            }
            _ => {
                let bundle = setting.signer.image_bundle(&foreign);
                upstream.attach_bundle(REPOSITORY, digest, &bundle).await;
                "made for another image"
            }
        };
        let agent = setting.agent().await;
        let reason = is_refused(&agent, &setting.paths()).await;
        assert!(reason.contains(expected), "{case}: {reason}");
        let image = format!("`{REGISTRY}/{REPOSITORY}@{digest}` is not signed by a key");
        assert!(reason.starts_with(&image) && reason.contains("team.pub"), "{case}: {reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_of_an_index_covers_its_manifests_and_their_blobs() {
    let setting = Setting::new().await;
    let index = setting.upstream.index("all", &setting.image);
    setting.upstream.sign_simple(REPOSITORY, &index, &setting.signer).await;
    let agent = setting.agent().await;
    // By itself the manifest is not signed.
    is_refused(&agent, &setting.paths()).await;
    agent.stop().await;
    let agent = setting.agent().await;
    let pulled = Puller::new(&agent.url(), Some(REGISTRY)).pull(REPOSITORY, "all", |_| ()).await;
    assert_eq!(pulled.expect("the pull succeeds").digest, index);
    is_served(&agent, &setting.paths()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_are_looked_up_once_and_an_outage_takes_nothing_away() {
    let setting = Setting::new().await;
    setting.sign().await;
    let agent = Arc::new(setting.agent().await);
    let tag = manifest_path(REPOSITORY, "v1");
    let answers = (0..20).map(|_| {
        let (agent, tag) = (agent.clone(), tag.clone());
        tokio::spawn(async move { agent.get(&tag).await.status() })
    });
    for answer in answers.collect::<Vec<_>>() {
        assert_eq!(answer.await.expect("no panic"), StatusCode::OK);
    }
    let log = setting.upstream.log();
    let of_tag = log.reference(&signature_tag(&setting.image.digest));
    assert_eq!(log.kind(Kind::Referrers).len(), 1, "{}", log.describe());
    assert_eq!(of_tag.method(&Method::HEAD).len(), 1, "{}", log.describe());
    is_served(&agent, &setting.paths()).await;
    assert_eq!(setting.upstream.log().kind(Kind::Referrers).len(), 1);
    let agent = Arc::into_inner(agent).expect("the tasks have ended");
    let data = agent.stop().await;
    setting.upstream.stop().await;
    let agent = Agent::start_in(&setting.config(), data).await;
    is_served(&agent, &setting.paths()).await;
    // Blobs alone, as a client that has the manifest requests them after a start of the agent.
    let data = agent.stop().await;
    let agent = Agent::start_in(&setting.config(), data).await;
    is_served(&agent, &setting.paths()[2..]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_cannot_be_asked_is_503_and_not_a_missing_signature() {
    let setting = Setting::new().await;
    let tag = manifest_path(REPOSITORY, "v1");
    setting.upstream.fault(On::kind(Kind::Referrers), Fault::status(500));
    let agent = setting.agent().await;
    let answer = agent.get(&tag).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let reason = answer.text().await.expect("a body");
    assert!(reason.contains("cannot be checked"), "{reason}");
    setting.upstream.heal();
    setting.sign().await;
    let healed = async {
        while agent.get(&tag).await.status() != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), healed).await.expect("it is asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_no_longer_listed_cover_nothing() {
    let setting = Setting::new().await;
    setting.sign().await;
    let (team, other) =
        (setting.key("team.pub", &setting.signer), setting.key("other.pub", &Signer::generate()));
    let agent = Agent::start(&setting.config_with(&[team.clone(), other.clone()])).await;
    is_served(&agent, &setting.paths()).await;
    let data = agent.stop().await;
    // Another key that is listed too, or no more, changes nothing.
    let agent = Agent::start_in(&setting.config_with(&[team]), data).await;
    is_served(&agent, &setting.paths()).await;
    let data = agent.stop().await;
    let agent = Agent::start_in(&setting.config_with(&[other]), data).await;
    is_refused(&agent, &setting.paths()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_registries_are_not_checked_and_open_nothing() {
    let setting = Setting::new().await;
    let open = "open.test";
    let config = setting.config().registry(open, &[&setting.upstream.url()], "");
    let agent = Agent::start(&config).await;
    let path = |registry: &str| format!("/v2/{REPOSITORY}/manifests/v1?ns={registry}");
    assert_eq!(agent.get(&path(open)).await.status(), StatusCode::OK);
    let layer = &setting.image.layers[0].0;
    let blob = |registry: &str| format!("/v2/{REPOSITORY}/blobs/{layer}?ns={registry}");
    assert_eq!(agent.get(&blob(open)).await.status(), StatusCode::OK);
    for path in [path(REGISTRY), blob(REGISTRY)] {
        assert_eq!(agent.get(&path).await.status(), StatusCode::FORBIDDEN, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_peers_are_checked_like_those_of_the_registry() {
    let setting = Setting::new().await;
    let places = places(2);
    // The first node does not check signatures.
    let careless = AgentConfig::for_upstream(&setting.upstream).with("tags: { freshness: 0s, negative: 0s }");
    let first = Agent::start(&peer_config(&careless, &places[0], &places, "")).await;
    is_served(&first, &setting.paths()).await;
    let second = Agent::start(&peer_config(&setting.config(), &places[1], &places, "")).await;
    is_refused(&second, &setting.paths()).await;
    setting.sign().await;
    let signed = async {
        while second.get(&setting.paths()[0]).await.status() != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), signed).await.expect("a refusal is not for ever");
    is_served(&second, &setting.paths()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_sets_follow_the_same_rule() {
    let setting = Setting::new().await;
    let signed = setting.upstream.image(REPOSITORY, "signed", [Layer::random(3, 1_000)]).await;
    setting.upstream.sign_simple(REPOSITORY, &signed.digest, &setting.signer).await;
    let names = ["v1", "signed"].map(|tag| format!("\"{REGISTRY}/{REPOSITORY}:{tag}\"")).join(", ");
    let config = setting
        .config()
        .with(&format!("prepull: {{ interval: 1s, sets: [{{ name: s, images: [{names}] }}] }}"));
    let agent = Agent::start(&config).await;
    let client =
        reqwest::Client::builder().no_proxy().unix_socket(agent.socket()).build().expect("a plain client");
    let settled = async {
        loop {
            let answer = client.get("http://agent/api/v1/status").send().await.expect("the socket answers");
            let status: Value = serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON");
            let images = status["prepull"][0]["images"].clone();
            if images[1]["state"] == "Ready" && images[0]["reason"] == "NotSigned" {
                return;
            }
            assert_ne!(images[0]["state"], "Ready", "{images}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), settled).await.expect("both are settled");
    let stored = agent.stored();
    assert!(!stored.contains(&setting.image.layers[0].0), "a layer of the unsigned image was fetched");
    assert!(stored.contains(&signed.layers[0].0));
}
