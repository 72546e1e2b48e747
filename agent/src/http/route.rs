//! From a request line to what is wanted. Pure; no handler sees a path.
//!
//! ```text
//! GET|HEAD /v2/
//! GET|HEAD /v2/[<registry>/]<name>/manifests/<tag or digest>     [?ns=<registry>]
//! GET|HEAD /v2/[<registry>/]<name>/blobs/<digest>                [?ns=<registry>]
//! GET|HEAD /v2/[<registry>/]<name>/tags/list                     [?ns=..&n=..&last=..]
//! GET|HEAD /v2/[<registry>/]<name>/referrers/<digest>            [?ns=..&artifactType=..]
//! ```
//!
//! Which registry: `ns` (containerd; OCI distribution specification 1.2, "Registry Proxying"), else a first segment
//! that looks like a host (CRI-O, podman, people), else the configured default (Docker's `registry-mirrors`).

use http::Method;

use crate::types::{Digest, NameError, Reference, RegistryHost, RepoName, Repository};

/// What a request wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Whether this speaks the protocol.
    Base,
    /// A manifest.
    Manifest {
        /// Where.
        repository: Repository,
        /// Which.
        reference: Reference,
    },
    /// A blob.
    Blob {
        /// Where.
        repository: Repository,
        /// Which.
        digest: Digest,
    },
    /// A tag list.
    Tags {
        /// Where.
        repository: Repository,
        /// How the client names the registry, for links.
        addressing: Addressing,
        /// Parameters for upstream.
        query: Option<String>,
    },
    /// The referrers of a digest.
    Referrers {
        /// Where.
        repository: Repository,
        /// Of what.
        digest: Digest,
        /// How the client names the registry, for links.
        addressing: Addressing,
        /// Parameters for upstream.
        query: Option<String>,
    },
}

/// How a request named its registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Addressing {
    /// By `ns`.
    Namespace,
    /// By the first path segment.
    Path,
    /// Not at all.
    Default,
}

/// Why a request is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RouteError {
    #[error("this is a registry mirror: only `/v2/` is served here")]
    NotApi,
    #[error("this is a pull-through mirror: only GET and HEAD are served, push to the registry itself")]
    Method,
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("parameter `ns` must be given once and name a registry: `{0}`")]
    Namespace(String),
    #[error(
        "the request names no registry, neither by `ns` nor by its path, and no `defaultRegistry` is configured"
    )]
    NoRegistry,
    #[error("registry `{0}` is not configured in this mirror")]
    NotServed(RegistryHost),
    #[error("the request came from this mirror itself: an endpoint of a registry points back at the agent")]
    Loop,
}

/// Reads a request line.
pub(super) fn parse(
    method: &Method,
    path: &str,
    query: Option<&str>,
    default: Option<&RegistryHost>,
) -> Result<Route, RouteError> {
    let path = path.strip_prefix("/v2").ok_or(RouteError::NotApi)?;
    if !path.is_empty() && !path.starts_with('/') {
        return Err(RouteError::NotApi);
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(RouteError::Method);
    }
    let path = path.strip_prefix('/').unwrap_or(path);
    if path.is_empty() {
        return Ok(Route::Base);
    }
    let (namespace, query) = split_namespace(query)?;
    let (name, resource, item) = split_resource(path).ok_or(RouteError::NotApi)?;
    let (repository, addressing) = locate(name, namespace, default)?;
    // Some clients escape the colon of a digest, which a path need not (RFC 3986, 3.3).
    let item = decode(item).unwrap_or_else(|| item.to_owned());
    match resource {
        Resource::Manifests => Ok(Route::Manifest { repository, reference: item.parse()? }),
        Resource::Blobs => Ok(Route::Blob { repository, digest: item.parse().map_err(NameError::from)? }),
        Resource::Tags => Ok(Route::Tags { repository, addressing, query }),
        Resource::Referrers => Ok(Route::Referrers {
            repository,
            digest: item.parse().map_err(NameError::from)?,
            addressing,
            query,
        }),
    }
}

/// For the fuzz target.
pub(crate) fn try_parse(path: &str, query: Option<&str>) {
    let default = "docker.io".parse().ok();
    for default in [None, default.as_ref()] {
        let _ = parse(&Method::GET, path, query, default);
    }
}

enum Resource {
    Manifests,
    Blobs,
    Tags,
    Referrers,
}

/// Splits from the right: everything before the resource's word is the name, which may itself contain such words.
fn split_resource(path: &str) -> Option<(&str, Resource, &str)> {
    let (rest, item) = path.rsplit_once('/')?;
    let (name, word) = rest.rsplit_once('/')?;
    let resource = match (word, item) {
        ("manifests", _) => Resource::Manifests,
        ("blobs", _) => Resource::Blobs,
        ("tags", "list") => Resource::Tags,
        ("referrers", _) => Resource::Referrers,
        _ => return None,
    };
    Some((name, resource, item))
}

fn locate(
    name: &str,
    namespace: Option<RegistryHost>,
    default: Option<&RegistryHost>,
) -> Result<(Repository, Addressing), RouteError> {
    let (registry, name, addressing) = if let Some(registry) = namespace {
        (registry, name, Addressing::Namespace)
    } else if let Some((host, rest)) =
        name.split_once('/').filter(|(first, _)| RegistryHost::looks_like_host(first))
    {
        (decode(host).unwrap_or_else(|| host.to_owned()).parse()?, rest, Addressing::Path)
    } else {
        (default.cloned().ok_or(RouteError::NoRegistry)?, name, Addressing::Default)
    };
    let name: RepoName = name.parse()?;
    Ok((Repository { registry, name }, addressing))
}

/// Takes `ns` out of the query: it is for mirrors only and must not reach the registry.
fn split_namespace(query: Option<&str>) -> Result<(Option<RegistryHost>, Option<String>), RouteError> {
    let mut namespace: Option<RegistryHost> = None;
    let mut rest = Vec::new();
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        match pair.strip_prefix("ns=") {
            Some(value) => {
                let wrong = || RouteError::Namespace(value.chars().take(160).collect());
                let host: RegistryHost = decode(value).ok_or_else(wrong)?.parse().map_err(|_| wrong())?;
                if namespace.replace(host).is_some() {
                    return Err(wrong());
                }
            }
            None => rest.push(pair),
        }
    }
    Ok((namespace, (!rest.is_empty()).then(|| rest.join("&"))))
}

/// Percent-decoding; nothing when it is malformed or not text.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = tail;
            continue;
        }
        let digits = tail.get(..2)?;
        bytes.push(hex::decode(digits).ok()?[0]);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn get(target: &str) -> Result<Route, RouteError> {
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        parse(&Method::GET, path, query, Some(&"docker.io".parse().unwrap()))
    }

    fn repository(registry: &str, name: &str) -> Repository {
        Repository { registry: registry.parse().unwrap(), name: name.parse().unwrap() }
    }

    #[test]
    fn the_registry_is_taken_from_ns_then_the_path_then_the_default() {
        for (target, registry, name) in [
            ("/v2/library/spark/manifests/v1?ns=ghcr.io", "ghcr.io", "library/spark"),
            ("/v2/library/spark/manifests/v1?ns=r.test%3A8443", "r.test:8443", "library/spark"),
            ("/v2/ghcr.io/org/spark/manifests/v1", "ghcr.io", "org/spark"),
            ("/v2/localhost:5000/spark/manifests/v1", "localhost:5000", "spark"),
            ("/v2/localhost/spark/manifests/v1", "localhost", "spark"),
            ("/v2/library/spark/manifests/v1", "docker.io", "library/spark"),
            ("/v2/a.b/manifests/v1?ns=ghcr.io", "ghcr.io", "a.b"),
            ("/v2/manifests/blobs/manifests/v1", "docker.io", "manifests/blobs"),
            ("/v2/spark/manifests/v1?x=1&ns=ghcr.io", "ghcr.io", "spark"),
        ] {
            let expected =
                Route::Manifest { repository: repository(registry, name), reference: "v1".parse().unwrap() };
            assert_eq!(get(target), Ok(expected), "{target}");
        }
    }

    #[test]
    fn every_resource_is_told_apart() {
        assert_eq!(get("/v2/"), Ok(Route::Base));
        assert_eq!(get("/v2"), Ok(Route::Base));
        assert!(matches!(get(&format!("/v2/a/blobs/{DIGEST}")), Ok(Route::Blob { .. })));
        assert!(matches!(
            get(&format!("/v2/a/manifests/{DIGEST}")),
            Ok(Route::Manifest { reference: Reference::Digest(_), .. })
        ));
        let tags = get("/v2/r.test/a/tags/list?n=2&last=x&ns=");
        assert!(matches!(tags, Err(RouteError::Namespace(_))), "{tags:?}");
        let tags = get("/v2/r.test/a/tags/list?n=2&last=x").unwrap();
        assert_eq!(
            tags,
            Route::Tags {
                repository: repository("r.test", "a"),
                addressing: Addressing::Path,
                query: Some("n=2&last=x".into())
            }
        );
        assert!(matches!(get(&format!("/v2/a/referrers/{DIGEST}?artifactType=x&ns=r.test")),
            Ok(Route::Referrers { query: Some(query), addressing: Addressing::Namespace, .. }) if query == "artifactType=x"));
    }

    #[test]
    fn whatever_is_not_the_api_is_refused() {
        for target in ["/", "/v1/", "/v2x/", "/v2/_catalog", "/v2/a", "/v2/a/tags/other", "/metrics"] {
            assert_eq!(get(target), Err(RouteError::NotApi), "{target}");
        }
        for target in [
            "/v2/A/manifests/v1",
            "/v2/a/manifests/.v1",
            "/v2/a//b/manifests/v1",
            "/v2/a/blobs/sha256:12",
            "/v2/../../etc/manifests/v1",
            "/v2/bad..host/a/manifests/v1",
        ] {
            assert!(matches!(get(target), Err(RouteError::Name(_))), "{target}");
        }
        for target in [
            "/v2/a/manifests/v1?ns=a&ns=b",
            "/v2/a/manifests/v1?ns=a/b",
            "/v2/a/manifests/v1?ns=%zz",
            "/v2/a/manifests/v1?ns=%",
        ] {
            assert!(matches!(get(target), Err(RouteError::Namespace(_))), "{target}");
        }
        assert_eq!(parse(&Method::GET, "/v2/a/manifests/v1", None, None), Err(RouteError::NoRegistry));
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            assert_eq!(parse(&method, "/v2/a/blobs/uploads/", None, None), Err(RouteError::Method));
        }
    }

    proptest! {
        #[test]
        fn no_request_line_makes_the_parser_panic(path in "/v2/[ -~é]{0,80}", query in "[ -~é]{0,60}") {
            let _ = parse(&Method::GET, &path, Some(&query), None);
        }
    }
}
