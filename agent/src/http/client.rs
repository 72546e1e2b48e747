//! How long a client waits for the header of an answer. Pure.
//!
//! | client (`User-Agent`) | when this mirror refuses a blob | so it waits, while nothing arrives |
//! | --- | --- | --- |
//! | containerd, BuildKit | requests it from the registry | `limits.firstHeader` |
//! | Docker | the same, after 404 | `limits.firstHeader` |
//! | podman, skopeo, buildah, CRI-O, every other | fails the pull: the mirror was chosen by the manifest | `limits.blobHeader` |
//!
//! None of them has a limit of its own for a header. While bytes of the download arrive at this node, or at the peer that
//! is to send them, every client waits: a refusal would send it to the registry for bytes that are on their way.

use std::time::Duration;

use super::route::Route;
use crate::types::Reference;

/// The limits of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct HeaderLimits {
    /// For clients that have another place to request content from.
    pub first: Duration,
    /// The same inside a body: ended early, it is resumed from that place.
    pub body: Duration,
    /// For clients that have none, where the registry would be waited for as long.
    pub blob: Duration,
}

/// How long a client is to wait for this answer while nothing arrives.
pub(super) fn patience(user_agent: Option<&str>, route: &Route, limits: HeaderLimits) -> Duration {
    let chosen = match route {
        Route::Blob { .. } | Route::Manifest { reference: Reference::Digest(_), .. } => true,
        // The first request of a pull: every client goes to the registry when it fails.
        Route::Base | Route::Manifest { .. } | Route::Tags { .. } | Route::Referrers { .. } => false,
    };
    if chosen && !falls_back(user_agent) { limits.blob.max(limits.first) } else { limits.first }
}

/// How long a client is to wait inside a body while nothing arrives.
pub(super) fn patience_inside(user_agent: Option<&str>, limits: HeaderLimits) -> Duration {
    if falls_back(user_agent) { limits.body } else { limits.blob.max(limits.body) }
}

/// Whether a client requests a blob from the registry when its mirror refuses it.
fn falls_back(user_agent: Option<&str>) -> bool {
    let known = ["containerd/", "docker/", "buildkit/"];
    user_agent.is_some_and(|agent| known.iter().any(|name| agent.starts_with(name)))
}

/// Docker takes 404 for "ask the next", and retries 5xx on blobs for more than a minute.
pub(super) fn is_docker(user_agent: Option<&str>) -> bool {
    user_agent.is_some_and(|agent| agent.starts_with("docker/"))
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    const LIMITS: HeaderLimits = HeaderLimits {
        first: Duration::from_secs(5),
        body: Duration::from_secs(10),
        blob: Duration::from_mins(1),
    };

    fn route(target: &str) -> Route {
        let registry = "r.test".parse().unwrap();
        super::super::route::parse(&Method::GET, target, None, Some(&registry)).unwrap()
    }

    #[test]
    fn a_client_without_another_place_to_go_waits_as_long_as_it_would_for_the_registry() {
        let digest = crate::types::Digest::of(b"a");
        let (blob, child) = (format!("/v2/a/blobs/{digest}"), format!("/v2/a/manifests/{digest}"));
        for (agent, target, seconds) in [
            (Some("containerd/2.1.9"), blob.as_str(), 5),
            (Some("docker/28.5.2 go/go1.24"), &blob, 5),
            (Some("buildkit/v0.23"), &blob, 5),
            (Some("containers/5.39.0 (github.com/containers/image)"), &blob, 60),
            (Some("skopeo/1.22.0"), &blob, 60),
            (Some("cri-o/1.33.0 go/go1.24 os/linux arch/amd64"), &child, 60),
            (None, &child, 60),
            (None, "/v2/a/manifests/v1", 5),
            (Some("libpod/5.8.6"), "/v2/a/tags/list", 5),
        ] {
            assert_eq!(patience(agent, &route(target), LIMITS).as_secs(), seconds, "{agent:?} {target}");
        }
    }
}
