//! Which request means what, and what a request that means nothing gets.

use kit::{
    agent::{Agent, AgentConfig, REGISTRY},
    registry::{FakeUpstream, INDEX, Kind, Layer, MANIFEST, absent_digest, random_bytes, sha256},
};
use reqwest::Method;

use super::{REPOSITORY, refusal, start};

#[tokio::test]
async fn the_base_route_says_that_the_protocol_is_spoken() {
    let (_upstream, agent) = start().await;
    for path in ["/v2/", "/v2", "/v2/?ns=registry.test"] {
        for method in [Method::GET, Method::HEAD] {
            let response = agent.request(method, path).send().await.expect("an answer");
            assert_eq!(response.status(), 200, "{path}");
            assert_eq!(response.headers()["docker-distribution-api-version"], "registry/2.0");
        }
    }
}

#[tokio::test]
async fn a_manifest_has_its_own_type_digest_and_length_by_tag_and_by_digest_for_get_and_head() {
    let (upstream, agent) = start().await;
    let image = upstream.image(REPOSITORY, "one", [Layer::random(1, 1000)]).await;
    let index = upstream.index("v1", &image);
    for (reference, digest, media_type) in [
        ("one", &image.digest, MANIFEST),
        (&image.digest, &image.digest, MANIFEST),
        ("v1", &index, INDEX),
        (&index, &index, INDEX),
    ] {
        for method in [Method::HEAD, Method::GET, Method::HEAD] {
            let path = format!("/v2/{REPOSITORY}/manifests/{reference}?ns={REGISTRY}");
            let response = agent.request(method.clone(), &path).send().await.expect("an answer");
            let headers = response.headers().clone();
            assert_eq!(response.status(), 200, "{method} {reference}");
            assert_eq!(headers["docker-content-digest"], digest.as_str(), "{method} {reference}");
            assert_eq!(headers["content-type"], media_type, "{method} {reference}");
            let length: usize =
                headers["content-length"].to_str().expect("digits").parse().expect("a number");
            let body = response.bytes().await.expect("a whole body");
            if method == Method::GET {
                assert_eq!((sha256(&body), body.len()), (digest.clone(), length), "{reference}");
            } else {
                assert!(body.is_empty() && length > 0, "{reference}");
            }
        }
    }
}

#[tokio::test]
async fn a_blob_has_its_digest_and_length_for_get_and_head_cold_and_warm() {
    let (upstream, agent) = start().await;
    for (seed, size) in
        [(1_u64, 0_usize), (2, 1), (3, 65_535), (4, 65_536), (5, 65_537), (6, 300_000), (7, 5_000_000)]
    {
        let digest = upstream.random_blob(REPOSITORY, seed, size as u64).await;
        let path = format!("/v2/{REPOSITORY}/blobs/{digest}?ns={REGISTRY}");
        for (step, method) in [Method::HEAD, Method::GET, Method::GET, Method::HEAD].into_iter().enumerate() {
            let response = agent.request(method.clone(), &path).send().await.expect("an answer");
            assert_eq!(response.status(), 200, "{size} {step}");
            assert_eq!(response.headers()["docker-content-digest"], digest.as_str(), "{size} {step}");
            assert_eq!(response.headers()["content-length"], size.to_string().as_str(), "{size} {step}");
            assert!(!response.headers().contains_key("content-encoding"));
            let body = response.bytes().await.expect("a whole body");
            assert!(method == Method::HEAD || body == random_bytes(seed, size), "{size} {step}");
        }
    }
}

#[tokio::test]
async fn the_registry_is_named_by_parameter_by_path_or_by_default() {
    let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let config = AgentConfig::default()
        .registry("first.test", &[&first.url()], "")
        .registry("second.test:5000", &[&second.url()], "")
        .registry("*.wild.test", &[&second.url()], "")
        .with("defaultRegistry: first.test");
    let agent = Agent::start(&config).await;
    let one = first.image("team/app", "v1", [Layer::random(1, 10)]).await.digest;
    let other = second.image("team/app", "v1", [Layer::random(2, 10)]).await.digest;
    for (path, expected) in [
        ("/v2/team/app/manifests/v1", &one),
        ("/v2/team/app/manifests/v1?ns=first.test", &one),
        ("/v2/team/app/manifests/v1?ns=second.test:5000", &other),
        ("/v2/team/app/manifests/v1?ns=second.test%3A5000", &other),
        ("/v2/first.test/team/app/manifests/v1", &one),
        ("/v2/second.test:5000/team/app/manifests/v1", &other),
        ("/v2/team/app/manifests/v1?ns=a.wild.test", &other),
    ] {
        let response = agent.get(path).await;
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.headers()["docker-content-digest"], expected.as_str(), "{path}");
    }
    for upstream in [&first, &second] {
        let log = upstream.log();
        assert!(
            log.iter().all(|entry| entry.uri.query().is_none_or(|query| !query.contains("ns="))),
            "{}",
            log.describe()
        );
    }
}

#[tokio::test]
async fn a_request_that_means_nothing_gets_the_protocols_error() {
    let (upstream, agent) = start().await;
    let digest = upstream.blob(REPOSITORY, b"x").await;
    let before = upstream.log().len();
    let short = "sha256:00";
    for (method, path, expected) in [
        ("GET", "/".to_owned(), (404, "UNSUPPORTED")),
        ("GET", "/v1/search".to_owned(), (404, "UNSUPPORTED")),
        ("GET", format!("/v2/team/app/blobs/{digest}"), (400, "NAME_INVALID")),
        ("GET", format!("/v2/team/app/blobs/{digest}?ns=other.test"), (403, "DENIED")),
        ("GET", format!("/v2/other.test/team/app/blobs/{digest}"), (403, "DENIED")),
        ("GET", format!("/v2/team/app/blobs/{digest}?ns={REGISTRY}&ns={REGISTRY}"), (400, "NAME_INVALID")),
        ("GET", format!("/v2/team/app/blobs/{digest}?ns=a/b"), (400, "NAME_INVALID")),
        ("GET", format!("/v2/team/app/blobs/{digest}?ns="), (400, "NAME_INVALID")),
        ("GET", format!("/v2/team/app/blobs/{short}?ns={REGISTRY}"), (400, "DIGEST_INVALID")),
        ("GET", format!("/v2/team/app/manifests/{short}?ns={REGISTRY}"), (400, "DIGEST_INVALID")),
        ("GET", format!("/v2/Team/app/manifests/v1?ns={REGISTRY}"), (400, "NAME_INVALID")),
        ("GET", format!("/v2/team/../app/manifests/v1?ns={REGISTRY}"), (400, "NAME_INVALID")),
        ("POST", format!("/v2/team/app/blobs/uploads/?ns={REGISTRY}"), (405, "UNSUPPORTED")),
        ("PUT", format!("/v2/team/app/manifests/v1?ns={REGISTRY}"), (405, "UNSUPPORTED")),
        ("PATCH", format!("/v2/team/app/blobs/uploads/7?ns={REGISTRY}"), (405, "UNSUPPORTED")),
        ("DELETE", format!("/v2/team/app/blobs/{digest}?ns={REGISTRY}"), (405, "UNSUPPORTED")),
    ] {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        // Sent by hand: a URL library would tidy `..` away.
        let request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n");
        let limit = std::time::Duration::from_secs(5);
        let answer = kit::wire::exchange(agent.mirror(), &request, limit).await.expect("an answer");
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let code = body["errors"][0]["code"].as_str().unwrap_or_default();
        assert_eq!((answer.status(), code), expected, "{method} {path}");
    }
    assert_eq!(upstream.log().len(), before, "none of these may reach upstream");
}

#[tokio::test]
async fn not_found_is_said_only_when_upstream_says_so() {
    let (upstream, agent) = start().await;
    upstream.image(REPOSITORY, "v1", []).await;
    let absent = absent_digest(1);
    for (path, code) in [
        (format!("/v2/{REPOSITORY}/manifests/nope?ns={REGISTRY}"), "MANIFEST_UNKNOWN"),
        (format!("/v2/{REPOSITORY}/manifests/{absent}?ns={REGISTRY}"), "MANIFEST_UNKNOWN"),
        (format!("/v2/{REPOSITORY}/blobs/{absent}?ns={REGISTRY}"), "BLOB_UNKNOWN"),
        (format!("/v2/no/such/tags/list?ns={REGISTRY}"), "NAME_UNKNOWN"),
    ] {
        assert_eq!(refusal(agent.get(&path).await).await, (404, code.to_owned()), "{path}");
        if code == "NAME_UNKNOWN" {
            continue;
        }
        assert_eq!(agent.head(&path).await.status(), 404, "{path}");
    }
    upstream.stop().await;
    for path in [
        format!("/v2/{REPOSITORY}/manifests/other?ns={REGISTRY}"),
        format!("/v2/{REPOSITORY}/manifests/{}?ns={REGISTRY}", absent_digest(2)),
        format!("/v2/{REPOSITORY}/blobs/{}?ns={REGISTRY}", absent_digest(2)),
    ] {
        let response = agent.get(&path).await;
        assert!(response.headers().contains_key("retry-after"), "{path}");
        assert_eq!(refusal(response).await.0, 503, "{path}");
    }
}

#[tokio::test]
async fn an_upstream_that_is_the_agent_itself_ends_the_loop_at_once() {
    // The address is not known before the agent listens: find a free port first.
    let probe = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = probe.local_addr().expect("an address");
    drop(probe);
    let config = AgentConfig::default().registry(REGISTRY, &[&format!("http://{address}")], "");
    let home = tempfile::tempdir().expect("a temporary folder");
    let yaml = config
        .yaml(&home.path().join("data"))
        .replace("mirror: { listen: 127.0.0.1:0 }", &format!("mirror: {{ listen: \"{address}\" }}"));
    let path = home.path().join("agent.yaml");
    std::fs::write(&path, yaml).expect("writable");
    let agent = kit::process::AgentProcess::start(&path).await.expect("the agent starts");
    let started = std::time::Instant::now();
    let url = format!("http://{}/v2/{REGISTRY}/team/app/manifests/v1", agent.addresses.mirror);
    let response = reqwest::get(url).await.expect("an answer");
    assert!(matches!(response.status().as_u16(), 503 | 508), "{}", response.status());
    assert!(started.elapsed() < std::time::Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_known_etag_gets_not_modified() {
    let (upstream, agent) = start().await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 100)]).await;
    for path in [
        format!("/v2/{REPOSITORY}/manifests/v1?ns={REGISTRY}"),
        format!("/v2/{REPOSITORY}/blobs/{}?ns={REGISTRY}", image.config),
    ] {
        let etag = agent.get(&path).await.headers()["etag"].clone();
        let response =
            agent.request(Method::GET, &path).header("if-none-match", etag).send().await.expect("an answer");
        assert_eq!(response.status(), 304, "{path}");
    }
}

#[tokio::test]
async fn one_tag_with_two_types_is_answered_by_what_upstream_has_whatever_is_accepted() {
    let (upstream, agent) = start().await;
    let image = upstream.image(REPOSITORY, "one", []).await;
    upstream.index("v1", &image);
    for accept in ["*/*", MANIFEST, INDEX, "application/vnd.docker.distribution.manifest.v2+json"] {
        let path = format!("/v2/{REPOSITORY}/manifests/v1?ns={REGISTRY}");
        let response =
            agent.request(Method::GET, &path).header("accept", accept).send().await.expect("an answer");
        assert_eq!(response.headers()["content-type"], INDEX, "{accept}");
    }
    assert_eq!(
        upstream.log().kind(Kind::Manifest).method(&Method::GET).len(),
        1,
        "{}",
        upstream.log().describe()
    );
}
