//! One sentence about what to do. Pure.

use super::{Cached, Explanation};
use crate::{
    journal::Failure,
    types::RegistryHost,
    upstream::{CredentialsFound, EndpointStatus, RegistryStatus},
};

/// A failure that is older says nothing about now, in seconds.
const RECENT: u64 = 600;

/// What to do about an image. The first thing that stands in the way counts.
pub(super) fn advice(seen: &Explanation, registry: &RegistryHost, now: u64) -> String {
    if seen.policy.is_none() {
        return format!(
            "This agent does not serve `{registry}`: add it to `registries` of its configuration, then run `hearth-agent setup`."
        );
    }
    let complete = seen.cached.as_ref().is_some_and(is_complete);
    if !seen.downloads_under_way.is_empty() {
        return under_way(seen);
    }
    let failure = seen.last_failures.first().filter(|failure| now.saturating_sub(failure.at) < RECENT);
    if complete {
        return cached(seen, registry);
    }
    if let Some(advice) = seen.registry.as_ref().and_then(|status| about_registry(status, registry)) {
        return advice;
    }
    if let Some(failure) = failure {
        return about_failure(failure, seen, registry);
    }
    match &seen.cached {
        Some(Cached { image: Some(image), .. }) => format!(
            "{} of its blobs are missing here: the next pull downloads them and uses the rest from disk.",
            image.missing_blobs.max(1)
        ),
        _ if seen.last_pulls.is_empty() => {
            "No request for it has reached this agent since it started: pull it, and if nothing changes here, `hearth-agent \
             doctor` says why the container runtime does not use the agent."
                .to_owned()
        }
        _ => "It is not on this node: the next pull downloads it.".to_owned(),
    }
}

fn is_complete(cached: &Cached) -> bool {
    cached.image.as_ref().is_some_and(|image| image.complete)
}

fn under_way(seen: &Explanation) -> String {
    let (mut have, mut size, mut registry, mut peers) = (0, 0, 0, 0);
    for one in &seen.downloads_under_way {
        (have, size) = (have + one.have, size + one.size.unwrap_or(one.have));
        (registry, peers) = (registry + one.from_registry, peers + one.from_peers);
    }
    let percent = have * 100 / size.max(1);
    let source = match (registry, peers) {
        (0, 0) => "nothing has arrived yet",
        (0, _) => "from peers",
        (_, 0) => "from the registry",
        _ => "from peers and the registry",
    };
    format!("It is being downloaded ({percent} % of the blobs that are under way, {source}): wait.")
}

fn cached(seen: &Explanation, registry: &RegistryHost) -> String {
    let silent = seen.registry.as_ref().is_some_and(|status| about_registry(status, registry).is_some());
    let by_tag = seen.cached.as_ref().is_some_and(|cached| cached.confirmed_seconds_ago.is_some());
    match (by_tag, silent) {
        (true, true) => format!(
            "It is complete on this node, and is served from disk although `{registry}` cannot confirm its tag now."
        ),
        _ => "It is complete on this node: a pull is served from disk. If pods still wait, the time goes into unpacking or \
              the container runtime does not use the agent (`hearth-agent doctor`)."
            .to_owned(),
    }
}

/// What is wrong with a registry at all of its endpoints.
fn about_registry(status: &RegistryStatus, registry: &RegistryHost) -> Option<String> {
    let all = |wait: fn(&EndpointStatus) -> Option<u64>| {
        let waits: Option<Vec<u64>> = status.endpoints.iter().map(wait).collect();
        waits.and_then(|waits| waits.into_iter().min())
    };
    if let Some(wait) = all(|endpoint| endpoint.rate.throttled_for_seconds) {
        return Some(format!(
            "`{registry}` limits the rate of requests and takes none for another {wait} s: wait, or give the agent credentials \
             with a higher limit."
        ));
    }
    let wait = all(|endpoint| endpoint.circuit_open_for_seconds)?;
    let reason = status.endpoints.iter().find_map(|endpoint| endpoint.last_error.as_deref());
    Some(format!(
        "`{registry}` fails and is tried again in {wait} s{}: check the network and the registry.",
        reason.map(|reason| format!(" (last error: {reason})")).unwrap_or_default()
    ))
}

fn about_failure(failure: &Failure, seen: &Explanation, registry: &RegistryHost) -> String {
    let credentials = seen.policy.as_ref().map(|policy| &policy.credentials);
    match (failure.status, credentials) {
        (404, _) => format!("`{registry}` says that it does not exist: check the name and the tag."),
        (403, Some(CredentialsFound::NotUsed)) if is_challenged(seen) => format!(
            "`{registry}` does not let the pod's pull secret read it: check the secret. Without one, or with another container \
             runtime than containerd, private images of this registry (`private: challenge`) are pulled past the agent."
        ),
        (403, Some(CredentialsFound::NotUsed)) => format!(
            "`{registry}` denies anonymous access and `private: decline` applies: the container runtime pulls it with the \
             pod's own secret, past the agent; set `private: challenge` or `private: agent` to have it cached."
        ),
        (403, Some(CredentialsFound::None)) => format!(
            "`{registry}` denies access and the agent has no credentials for it: add them (`credentials` in the configuration)."
        ),
        (403, Some(CredentialsFound::Failed(reason))) => {
            format!("The agent's credentials for `{registry}` cannot be had: {reason}.")
        }
        (403, _) => {
            format!("`{registry}` denies access with the agent's credentials: check what they may read.")
        }
        _ => format!("The last request failed: {}; the next pull tries again.", failure.reason),
    }
}

fn is_challenged(seen: &Explanation) -> bool {
    seen.policy.as_ref().is_some_and(|policy| policy.private == "challenge")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        download::TransferStatus,
        explain::PeersHave,
        images::Listed,
        upstream::{BudgetStatus, Policy},
    };

    fn nothing() -> Explanation {
        Explanation {
            image: "r.test/a:1".into(),
            advice: String::new(),
            cached: None,
            policy: Some(Policy {
                entry: "r.test".into(),
                private: "decline",
                credentials: CredentialsFound::NotUsed,
            }),
            registry: None,
            downloads_under_way: Vec::new(),
            peers: PeersHave::default(),
            last_pulls: Vec::new(),
            last_downloads: Vec::new(),
            last_failures: Vec::new(),
        }
    }

    fn stored(complete: bool) -> Cached {
        let image = Listed {
            digest: "sha256:00".into(),
            names: Vec::new(),
            pinned: false,
            complete,
            bytes: 1,
            own_bytes: 1,
            missing_blobs: 3,
            missing_images: 0,
            last_used: 0,
        };
        Cached {
            digest: "sha256:00".into(),
            confirmed_seconds_ago: Some(9),
            unconfirmed: false,
            image: Some(image),
        }
    }

    fn failed(status: u16, at: u64) -> Vec<Failure> {
        let (request, subject, reason) = ("r".into(), "r.test/a:1".into(), "a reason".into());
        vec![Failure { at, request, subject, status, reason, times: 1 }]
    }

    fn registry(throttled: Option<u64>, open: Option<u64>) -> RegistryStatus {
        let endpoint = EndpointStatus {
            endpoint: "r.test".into(),
            circuit_open_for_seconds: open,
            rate: BudgetStatus { throttled_for_seconds: throttled, ..BudgetStatus::default() },
            last_error: Some("connection refused".into()),
            last_error_seconds_ago: Some(2),
            clock_ahead_seconds: None,
        };
        RegistryStatus { registry: "r.test".into(), endpoints: vec![endpoint] }
    }

    fn transfer() -> TransferStatus {
        TransferStatus {
            digest: "sha256:00".into(),
            size: Some(200),
            have: 124,
            from_registry: 0,
            from_peers: 124,
            repository: Some("r.test/a".into()),
            peers: std::collections::BTreeSet::new(),
            readers: 1,
        }
    }

    fn policy(credentials: CredentialsFound) -> Policy {
        Policy { entry: "r.test".into(), private: "agent", credentials }
    }

    #[test]
    fn the_first_thing_in_the_way_is_named() {
        let host: RegistryHost = "r.test".parse().unwrap();
        let now = 10_000;
        let table: Vec<(&str, Explanation, &str)> = vec![
            ("not served", Explanation { policy: None, ..nothing() }, "does not serve `r.test`"),
            ("never requested", nothing(), "No request for it has reached"),
            ("part", Explanation { cached: Some(stored(false)), ..nothing() }, "3 of its blobs are missing"),
            ("cached", Explanation { cached: Some(stored(true)), ..nothing() }, "served from disk. If pods"),
            (
                "cached, registry down",
                Explanation {
                    cached: Some(stored(true)),
                    registry: Some(registry(None, Some(7))),
                    ..nothing()
                },
                "although `r.test` cannot confirm",
            ),
            (
                "under way",
                Explanation {
                    downloads_under_way: vec![transfer()],
                    last_failures: failed(503, now),
                    ..nothing()
                },
                "62 % of the blobs that are under way, from peers",
            ),
            (
                "throttled",
                Explanation { registry: Some(registry(Some(30), None)), ..nothing() },
                "none for another 30 s",
            ),
            (
                "circuit",
                Explanation { registry: Some(registry(None, Some(7))), ..nothing() },
                "again in 7 s (last error: connection refused)",
            ),
            ("absent", Explanation { last_failures: failed(404, now), ..nothing() }, "does not exist"),
            (
                "declined",
                Explanation { last_failures: failed(403, now), ..nothing() },
                "`private: decline` applies",
            ),
            (
                "challenged",
                Explanation {
                    last_failures: failed(403, now),
                    policy: Some(Policy { private: "challenge", ..policy(CredentialsFound::NotUsed) }),
                    ..nothing()
                },
                "check the secret",
            ),
            (
                "no credentials",
                Explanation {
                    last_failures: failed(403, now),
                    policy: Some(policy(CredentialsFound::None)),
                    ..nothing()
                },
                "has no credentials for it",
            ),
            (
                "helper failed",
                Explanation {
                    last_failures: failed(403, now),
                    policy: Some(policy(CredentialsFound::Failed("it hung".into()))),
                    ..nothing()
                },
                "cannot be had: it hung",
            ),
            ("other", Explanation { last_failures: failed(503, now), ..nothing() }, "a reason"),
            (
                "old failure",
                Explanation { last_failures: failed(503, now - RECENT), ..nothing() },
                "No request",
            ),
        ];
        for (name, seen, expected) in table {
            let said = advice(&seen, &host, now);
            assert!(said.contains(expected), "{name}: {said}");
        }
    }
}
