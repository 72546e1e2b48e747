//! What this process's account may do in the cluster, asked of the API server (`SelfSubjectAccessReview`, which every account
//! may create).

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, Client, api::PostParams};

use super::{client, within};
use crate::types::chain;

/// Questions under way at once.
const AT_ONCE: usize = 4;

/// Something that an account may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Right {
    /// `list`, `watch`, `create`, `patch` or `get`.
    pub(crate) verb: &'static str,
    /// API group; empty for the core group.
    pub(crate) group: &'static str,
    /// Plural name, with a subresource behind a slash.
    pub(crate) resource: &'static str,
    /// Name of the only object that is meant; empty for all.
    pub(crate) name: &'static str,
    /// Namespace; `None` for the whole cluster.
    pub(crate) namespace: Option<String>,
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if !self.name.is_empty() {
            write!(f, "/{}", self.name)?;
        }
        self.namespace.as_ref().map_or(Ok(()), |namespace| write!(f, " in {namespace}"))
    }
}

/// Returns the rights that the account lacks, in the same order. `url` as in [`super::connect`].
pub(crate) async fn missing(url: Option<&str>, rights: Vec<Right>) -> Result<Vec<Right>, String> {
    let client = client(url).await?;
    let ask = |right: Right| {
        let client = client.clone();
        async move { may(client, &right).await.map(|may| (right, may)) }
    };
    let answers: Vec<(Right, bool)> = stream::iter(rights)
        .map(ask)
        .buffered(AT_ONCE)
        .try_collect()
        .await
        .map_err(|error| format!("the API server cannot be asked: {}", chain(&error)))?;
    Ok(answers.into_iter().filter(|(_, may)| !may).map(|(right, _)| right).collect())
}

async fn may(client: Client, right: &Right) -> Result<bool, kube::Error> {
    let (resource, subresource) = right
        .resource
        .split_once('/')
        .map_or((right.resource, None), |(resource, sub)| (resource, Some(sub)));
    let attributes = ResourceAttributes {
        verb: Some(right.verb.to_owned()),
        group: Some(right.group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource: subresource.map(str::to_owned),
        name: (!right.name.is_empty()).then(|| right.name.to_owned()),
        namespace: right.namespace.clone(),
        ..ResourceAttributes::default()
    };
    let spec =
        SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), non_resource_attributes: None };
    let question = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let api: Api<SelfSubjectAccessReview> = Api::all(client);
    let answer = within(api.create(&PostParams::default(), &question)).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_is_named_as_kubectl_names_it() {
        for (group, resource, name, namespace, expected) in [
            ("", "nodes/status", "", None, "patch nodes/status"),
            ("hearth.dev", "nodecaches", "", None, "patch nodecaches.hearth.dev"),
            ("", "configmaps", "a", Some("hearth"), "patch configmaps/a in hearth"),
            (
                "discovery.k8s.io",
                "endpointslices",
                "",
                Some("hearth"),
                "patch endpointslices.discovery.k8s.io in hearth",
            ),
        ] {
            let namespace = namespace.map(str::to_owned);
            let right = Right { verb: "patch", group, resource, name, namespace };
            assert_eq!(right.to_string(), expected);
        }
    }
}
