//! Authentication, throttling, redirects and paging of the kit's registry.

use std::time::Duration;

use kit::{
    registry::{Access, Bearer, FakeUpstream, Fault, Kind, On, RedirectTo},
    wire::{exchange, get},
};
use reqwest::{Client, redirect::Policy};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_throttled_registry_counts_manifest_gets_only() {
    let upstream = FakeUpstream::start().await;
    let image = upstream.image("team/app", "v1", []).await;
    upstream.throttle(Some((2, Duration::from_hours(6))));
    let manifest = format!("{}/v2/team/app/manifests/v1", upstream.url());
    let blob = format!("{}/v2/team/app/blobs/{}", upstream.url(), image.config);
    let client = Client::new();
    let mut seen = Vec::new();
    for (method, url) in [
        (reqwest::Method::HEAD, &manifest),
        (reqwest::Method::GET, &manifest),
        (reqwest::Method::GET, &blob),
        (reqwest::Method::GET, &manifest),
        (reqwest::Method::GET, &manifest),
        (reqwest::Method::HEAD, &manifest),
    ] {
        let response = client.request(method, url).send().await.expect("the registry is up");
        let remaining = response.headers().get("ratelimit-remaining").and_then(|value| value.to_str().ok());
        seen.push((response.status().as_u16(), remaining.unwrap_or("-").to_owned()));
        assert_eq!(response.headers().contains_key("retry-after"), response.status() == 429);
    }
    let expected = [
        (200, "2;w=21600"),
        (200, "1;w=21600"),
        (200, "-"),
        (200, "0;w=21600"),
        (429, "0;w=21600"),
        (200, "0;w=21600"),
    ];
    assert_eq!(seen, expected.map(|(status, remaining)| (status, remaining.to_owned())));
}

#[tokio::test]
async fn a_bearer_token_opens_its_own_scope_until_it_expires() {
    let upstream = FakeUpstream::start().await;
    upstream.image("team/app", "v1", []).await;
    upstream.image("team/other", "v1", []).await;
    let user = Some(("ann".to_owned(), "secret".to_owned()));
    upstream.access(Access::Bearer(Bearer { user, ..Bearer::default() }));
    let client = Client::new();
    let status = async |name: &str, token: &str| {
        let url = format!("{}/v2/{name}/manifests/v1", upstream.url());
        let response = client.get(url).bearer_auth(token).send().await.expect("the registry is up");
        let challenge = response.headers().get("www-authenticate").and_then(|value| value.to_str().ok());
        (response.status().as_u16(), challenge.unwrap_or_default().to_owned())
    };
    let (code, challenge) = status("team/app", "made-up").await;
    let expected =
        format!(r#"Bearer realm="{}/token",service="kit",scope="repository:team/app:pull""#, upstream.url());
    assert_eq!((code, challenge), (401, expected));

    let request =
        || client.get(format!("{}/token?service=kit&scope=repository:team/app:pull", upstream.url()));
    assert_eq!(request().basic_auth("ann", Some("wrong")).send().await.expect("up").status(), 401);
    let granted: Value = request()
        .basic_auth("ann", Some("secret"))
        .send()
        .await
        .expect("up")
        .json()
        .await
        .expect("tokens are JSON");
    let token = granted["token"].as_str().expect("a token was granted");
    assert_eq!(status("team/app", token).await.0, 200);
    let (code, challenge) = status("team/other", token).await;
    assert_eq!(code, 401);
    assert!(challenge.ends_with(r#",error="insufficient_scope""#), "{challenge}");

    upstream.expire_tokens();
    assert_eq!(status("team/app", token).await.0, 401);
}

#[tokio::test]
async fn a_presigned_url_refuses_credentials_other_methods_and_old_age() {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.blob("team/app", b"a layer").await;
    let client = Client::builder().redirect(Policy::none()).build().expect("a plain client");
    let url = format!("{}/v2/team/app/blobs/{digest}", upstream.url());
    let location = async |to: RedirectTo, status: u16| {
        let fault = upstream.fault(On::blob(), Fault::Redirect(status, to));
        let response = client.get(&url).send().await.expect("the registry is up");
        fault.clear();
        assert_eq!(response.status(), status);
        response.headers()["location"].to_str().expect("a URL is ASCII").to_owned()
    };
    let signed = location(RedirectTo::OtherHost, 307).await;
    assert!(signed.starts_with("http://127.0.0.2:"), "{signed}");
    assert_eq!(client.get(&signed).send().await.expect("up").bytes().await.expect("a body"), "a layer");
    assert_eq!(client.get(&signed).bearer_auth("x").send().await.expect("up").status(), 400);
    assert_eq!(client.head(&signed).send().await.expect("up").status(), 403);
    let ranged = client.get(&signed).header("range", "bytes=2-").send().await.expect("up");
    assert_eq!(
        (ranged.status().as_u16(), ranged.bytes().await.expect("a body").as_ref()),
        (206, &b"layer"[..])
    );

    let old = location(RedirectTo::Expired, 302).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(client.get(&old).send().await.expect("up").status(), 403);
    let relative = location(RedirectTo::Relative, 308).await;
    assert!(relative.starts_with("/cdn/GET/"), "{relative}");
    let other_port = location(RedirectTo::OtherPort, 302).await;
    assert!(
        other_port.starts_with("http://127.0.0.1:") && !other_port.starts_with(&upstream.url()),
        "{other_port}"
    );

    upstream.fault(On::blob(), Fault::Redirect(302, RedirectTo::Chain(3))).times(1);
    let before = upstream.log().kind(Kind::Cdn).len();
    assert_eq!(Client::new().get(&url).send().await.expect("up").bytes().await.expect("a body"), "a layer");
    assert_eq!(upstream.log().kind(Kind::Cdn).len() - before, 4, "three more redirects, then the content");
    upstream.fault(On::blob(), Fault::Redirect(302, RedirectTo::Loop));
    assert!(Client::new().get(&url).send().await.expect_err("a loop never ends").is_redirect());
}

#[tokio::test]
async fn tag_lists_come_in_pages_with_a_link_to_the_next() {
    let upstream = FakeUpstream::start().await;
    for tag in ["c", "a", "b"] {
        upstream.image("team/app", tag, []).await;
    }
    for (query, expected, next) in [
        ("", r#"["a","b","c"]"#, None),
        ("?n=2", r#"["a","b"]"#, Some("</v2/team/app/tags/list?n=2&last=b>; rel=\"next\"")),
        ("?n=2&last=b", r#"["c"]"#, None),
        ("?n=0", "[]", None),
    ] {
        let path = format!("/v2/team/app/tags/list{query}");
        let answer = exchange(upstream.address(), &get(&path, ""), LIMIT).await.expect("the registry is up");
        let body: Value = serde_json::from_slice(&answer.body).expect("tag lists are JSON");
        assert_eq!((body["tags"].to_string().as_str(), answer.header("link")), (expected, next), "{query}");
    }
}

#[tokio::test]
async fn a_stopped_registry_refuses_and_a_restarted_one_still_has_everything() {
    let upstream = FakeUpstream::start().await;
    upstream.image("team/app", "v1", []).await;
    let ask = || {
        exchange(upstream.address(), "GET /v2/team/app/manifests/v1 HTTP/1.1\r\nhost: test\r\n\r\n", LIMIT)
    };
    assert_eq!(ask().await.expect("up").status(), 200);
    upstream.stop().await;
    assert_eq!(ask().await.expect_err("down").kind(), std::io::ErrorKind::ConnectionRefused);
    upstream.restart().await;
    assert_eq!(ask().await.expect("up again").status(), 200);
}
