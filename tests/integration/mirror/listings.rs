//! Tag lists and referrers: passed on, with links that lead back to the mirror.

use kit::{
    agent::REGISTRY,
    registry::{Layer, MANIFEST},
};
use reqwest::Method;
use serde_json::{Value, json};

use super::{REPOSITORY, refusal, start};

/// The target of a `Link` header with `rel="next"`.
fn next(link: Option<&reqwest::header::HeaderValue>) -> Option<String> {
    let text = link?.to_str().ok()?;
    let (target, rel) = text.strip_prefix('<')?.split_once('>')?;
    rel.contains("next").then(|| target.to_owned())
}

#[tokio::test]
async fn a_tag_list_is_read_page_by_page_however_the_registry_is_named() {
    let (upstream, agent) = start().await;
    for tag in ["a", "b", "c", "d", "e"] {
        upstream.image(REPOSITORY, tag, []).await;
    }
    for first in [
        format!("/v2/{REPOSITORY}/tags/list?n=2&ns={REGISTRY}"),
        format!("/v2/{REGISTRY}/{REPOSITORY}/tags/list?n=2"),
    ] {
        let (mut tags, mut path) = (Vec::new(), Some(first.clone()));
        while let Some(current) = path {
            let response = agent.get(&current).await;
            assert_eq!(response.status(), 200, "{current}");
            path = next(response.headers().get("link"));
            let page: Value = response.json().await.expect("a tag list is JSON");
            assert_eq!(page["name"], REPOSITORY);
            tags.extend(
                page["tags"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|tag| tag.as_str().map(str::to_owned)),
            );
            assert!(tags.len() <= 5, "{first}: the pages do not end");
        }
        assert_eq!(tags, ["a", "b", "c", "d", "e"], "{first}");
    }
}

#[tokio::test]
async fn a_list_that_cannot_be_had_now_is_503_and_an_unknown_one_404() {
    let (upstream, agent) = start().await;
    let path = format!("/v2/{REPOSITORY}/tags/list?ns={REGISTRY}");
    assert_eq!(refusal(agent.get(&path).await).await.0, 404);
    upstream.stop().await;
    assert_eq!(refusal(agent.get(&path).await).await.0, 503);
}

#[tokio::test]
async fn referrers_are_passed_on_with_their_filter() {
    let (upstream, agent) = start().await;
    let image = upstream.image(REPOSITORY, "v1", [Layer::random(1, 10)]).await;
    let empty = upstream.blob(REPOSITORY, b"{}").await;
    for kind in ["application/spdx+json", "application/vnd.cyclonedx+json"] {
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "layers": [],
            "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2 },
            "subject": { "mediaType": MANIFEST, "digest": image.digest, "size": image.size },
        });
        upstream.manifest(REPOSITORY, "", MANIFEST, manifest.to_string());
    }
    for (filter, count, applied) in
        [("", 2, None), ("&artifactType=application/spdx%2Bjson", 1, Some("artifactType"))]
    {
        let path = format!("/v2/{REPOSITORY}/referrers/{}?ns={REGISTRY}{filter}", image.digest);
        let response = agent.request(Method::GET, &path).send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/vnd.oci.image.index.v1+json");
        let header = response
            .headers()
            .get("oci-filters-applied")
            .map(|value| value.to_str().expect("ASCII").to_owned());
        assert_eq!(header.as_deref(), applied, "{filter}");
        let index: Value = response.json().await.expect("an index is JSON");
        assert_eq!(index["manifests"].as_array().map(Vec::len), Some(count), "{filter}: {index}");
    }
}
