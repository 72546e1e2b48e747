//! The part of `doctor` that asks the API server whether this agent's account may do what the agent does.

use super::doctor::Check;
use crate::{
    certificates::AUTHORITY,
    config::Config,
    kubernetes::rights::{Right, missing},
    peers::Source,
};

/// What an agent with this configuration asks of the API server. Pure.
fn needed(config: &Config) -> Vec<Right> {
    let right = |verb, group, resource, namespace: Option<&String>| Right {
        verb,
        group,
        resource,
        name: "",
        namespace: namespace.cloned(),
    };
    let mut rights = Vec::new();
    if config.kubernetes.is_some() {
        for (verb, group, resource) in [
            ("list", "hearth.dev", "imagesets"),
            ("watch", "hearth.dev", "imagesets"),
            ("create", "hearth.dev", "nodecaches"),
            ("patch", "hearth.dev", "nodecaches"),
            ("patch", "hearth.dev", "nodecaches/status"),
            ("get", "", "nodes"),
            ("patch", "", "nodes"),
            ("patch", "", "nodes/status"),
            ("create", "events.k8s.io", "events"),
            ("patch", "events.k8s.io", "events"),
        ] {
            rights.push(right(verb, group, resource, None));
        }
    }
    if config.kubernetes.as_ref().is_some_and(|kubernetes| kubernetes.pod_events) {
        rights.extend(["list", "watch"].map(|verb| right(verb, "", "pods", None)));
    }
    if let Source::Service { namespace, .. } = &config.peers.source {
        for verb in ["list", "watch"] {
            rights.push(right(verb, "discovery.k8s.io", "endpointslices", Some(namespace)));
        }
    }
    if let Some(enrolment) = &config.peers.enrolment {
        rights.push(Right { name: AUTHORITY, ..right("get", "", "configmaps", Some(&enrolment.namespace)) });
        for verb in ["create", "get"] {
            rights.push(right(verb, "certificates.k8s.io", "certificatesigningrequests", None));
        }
    }
    rights
}

/// The API server that the configuration names; `None` is that of the cluster in which this process runs.
fn server(config: &Config) -> Option<&str> {
    let peers = match &config.peers.source {
        Source::Service { api, .. } => api.as_deref(),
        _ => None,
    };
    config.kubernetes.as_ref().and_then(|kubernetes| kubernetes.api.as_deref()).or(peers)
}

/// Asks; no check without a cluster in the configuration.
pub(super) fn check(config: &Config) -> anyhow::Result<Option<Check>> {
    let needed = needed(config);
    if needed.is_empty() {
        return Ok(None);
    }
    let count = needed.len();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(Some(judge(count, runtime.block_on(missing(server(config), needed)))))
}

fn judge(needed: usize, missing: Result<Vec<Right>, String>) -> Check {
    match missing {
        Err(problem) => Check::failed(
            "cluster",
            problem,
            "run `doctor` in the agent's pod (`kubectl exec`); cached images are served while the API server is away",
        ),
        Ok(missing) if missing.is_empty() => {
            Check::ok("cluster", format!("the API server answers, and the account has all {needed} rights"))
        }
        Ok(missing) => {
            let names: Vec<_> = missing.iter().map(Right::to_string).collect();
            Check::failed(
                "cluster",
                format!("the account may not: {}", names.join(", ")),
                "apply the roles of this version's manifests (`manifests/base/rbac.yaml`; pods: the component `pod-events`)",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &str) -> Config {
        let text = format!("registries: [{{host: r.test}}]\n{more}");
        Config::from_yaml(&text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn only_what_is_configured_needs_rights() {
        assert_eq!(needed(&config("")), []);
        assert_eq!(needed(&config("kubernetes: {imageSets: true}")).len(), 10);
        let with_pods = needed(&config("kubernetes: {imageSets: true, podEvents: true}"));
        assert_eq!(
            with_pods[10..].iter().map(Right::to_string).collect::<Vec<_>>(),
            ["list pods", "watch pods"]
        );
        let rights = needed(&config("peer: {service: hearth/hearth-agent-peers}"));
        let names: Vec<_> = rights.iter().map(Right::to_string).collect();
        assert_eq!(
            names,
            [
                "list endpointslices.discovery.k8s.io in hearth",
                "watch endpointslices.discovery.k8s.io in hearth"
            ]
        );
        let rights = needed(&config("peer: {service: hearth/peers, tls: {signer: hearth.dev/peer}}"));
        let names: Vec<_> = rights[2..].iter().map(Right::to_string).collect();
        assert_eq!(
            names,
            [
                "get configmaps/hearth-peer-authority in hearth",
                "create certificatesigningrequests.certificates.k8s.io",
                "get certificatesigningrequests.certificates.k8s.io"
            ]
        );
    }
}
