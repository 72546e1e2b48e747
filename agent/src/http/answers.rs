//! The mirror's answers that are not errors, from what is to be sent. Pure.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::{
    body::{self, Body},
    route::Addressing,
};
use crate::{
    download::ManifestInfo,
    types::{Digest, Repository},
    upstream::Listing,
};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

pub(super) fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    headers.insert(
        name,
        HeaderValue::from_str(value)
            .expect("digests, numbers, media types and hosts are valid header values"),
    );
}

pub(super) fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

/// `If-None-Match` names this content.
pub(super) fn is_known(headers: &HeaderMap, digest: &Digest) -> bool {
    let etag = etag(digest);
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|tag| tag.trim().trim_start_matches("W/") == etag)
}

pub(super) fn not_modified(digest: &Digest) -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    set(response.headers_mut(), header::ETAG, &etag(digest));
    response
}

pub(super) fn unsatisfiable(size: u64) -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
    set(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{size}"));
    response
}

pub(super) fn json(bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(body::full(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn manifest_response(
    info: &ManifestInfo,
    bytes: Option<Bytes>,
    repository: &Repository,
) -> Response<Body> {
    let mut response = Response::new(bytes.map_or_else(body::empty, body::full));
    let headers = response.headers_mut();
    set(headers, header::CONTENT_TYPE, info.media_type.as_str());
    set(headers, header::CONTENT_LENGTH, &info.size.to_string());
    set(headers, CONTENT_DIGEST, &info.digest.to_string());
    set(headers, header::ETAG, &etag(&info.digest));
    set(headers, NAMESPACE, repository.registry.as_str());
    if info.stale {
        // RFC 9111 has retired the field; people and tools still read it.
        set(headers, header::WARNING, "110 hearth \"registry cannot confirm this tag: last known digest\"");
    }
    response
}

pub(super) fn blob_response(
    status: StatusCode,
    digest: &Digest,
    length: u64,
    repository: &Repository,
    body: Body,
) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    set(headers, header::CONTENT_LENGTH, &length.to_string());
    set(headers, CONTENT_DIGEST, &digest.to_string());
    set(headers, header::ETAG, &etag(digest));
    set(headers, NAMESPACE, repository.registry.as_str());
    response
}

/// A listing of the registry, with its `Link` rewritten so that the next page is requested from this agent.
pub(super) fn listed(listing: Listing, repository: &Repository, addressing: Addressing) -> Response<Body> {
    let mut response = Response::new(body::full(listing.bytes));
    let link = listing.headers.get(header::LINK).and_then(|value| value.to_str().ok());
    let link = link.and_then(|link| turn_link(link, repository, addressing));
    *response.headers_mut() = listing.headers;
    response.headers_mut().remove(header::LINK);
    if let Some(link) = link.and_then(|link| HeaderValue::from_str(&link).ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    set(response.headers_mut(), NAMESPACE, repository.registry.as_str());
    response
}

/// `<upstream's URL or path>; rel="next"` with the path and parameters that lead the client to this mirror again.
fn turn_link(link: &str, repository: &Repository, addressing: Addressing) -> Option<String> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let path_and_query = match target.split_once("://") {
        Some((_, rest)) => &rest[rest.find('/')?..],
        None => target,
    };
    let (path, query) =
        path_and_query.split_once('?').map_or((path_and_query, ""), |(path, query)| (path, query));
    let below = path.find("/v2/").map(|at| &path[at + 4..])?;
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    let target = match addressing {
        Addressing::Default => format!("/v2/{below}{query}"),
        Addressing::Path => format!("/v2/{}/{below}{query}", repository.registry),
        Addressing::Namespace => {
            let join = if query.is_empty() { '?' } else { '&' };
            format!("/v2/{below}{query}{join}ns={}", repository.registry.as_str().replace(':', "%3A"))
        }
    };
    Some(format!("<{target}>{parameters}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_back_to_the_mirror() {
        let repository = Repository { registry: "r.test:5000".parse().unwrap(), name: "a".parse().unwrap() };
        let table = [
            (
                "</v2/a/tags/list?last=x&n=2>; rel=\"next\"",
                Addressing::Default,
                Some("</v2/a/tags/list?last=x&n=2>; rel=\"next\""),
            ),
            (
                "</v2/a/tags/list?n=2>; rel=\"next\"",
                Addressing::Path,
                Some("</v2/r.test:5000/a/tags/list?n=2>; rel=\"next\""),
            ),
            (
                "<https://r.test:5000/v2/a/tags/list?n=2>; rel=next",
                Addressing::Namespace,
                Some("</v2/a/tags/list?n=2&ns=r.test%3A5000>; rel=next"),
            ),
            (
                "<https://r.test:5000/prefix/v2/a/tags/list>",
                Addressing::Namespace,
                Some("</v2/a/tags/list?ns=r.test%3A5000>"),
            ),
            ("nonsense", Addressing::Default, None),
            ("<https://r.test>", Addressing::Default, None),
        ];
        for (link, addressing, expected) in table {
            assert_eq!(turn_link(link, &repository, addressing).as_deref(), expected, "{link}");
        }
    }
}
