//! The pull secrets of this node's sets and of their service accounts: read from the cluster, if a role allows
//! it, and used as the agent's credentials for registries with `private: agent`. They are used as long as a set
//! names them, and read again regularly, because they are rotated.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::Api;

use super::{Shared, translate::Wanted};
use crate::{
    kubernetes::{forbidden, has_code, within},
    prepull::{
        crd::Reference,
        jitter::{around, fraction},
    },
    types::{Repository, chain},
    upstream::PullSecret,
};

/// How often the secrets are read.
const AGE: Duration = Duration::from_mins(5);

/// Wait after a secret could not be read.
const RETRY: Duration = Duration::from_secs(30);

/// The key of a secret of type `kubernetes.io/dockerconfigjson`.
const KEY: &str = ".dockerconfigjson";

pub(super) async fn run(shared: &Arc<Shared>) {
    let part = fraction(&format!("secrets {}", shared.config.node));
    let mut wanted = shared.wanted.subscribe();
    let (mut before, mut complained) = (false, false);
    loop {
        let named = Named::of(wanted.borrow_and_update().iter().flatten());
        let mut whole = true;
        if named != Named::default() || before {
            let (secrets, problems) = named.read(shared).await;
            whole = problems.is_empty();
            for Unreadable { object, problem, .. } in problems.iter().filter(|_| !complained) {
                tracing::warn!(object, problem, "cannot read a pull secret: retrying");
            }
            shared.unreadable.send_if_modified(|before| {
                let changed = *before != problems;
                before.clone_from(&problems);
                changed
            });
            for problem in shared.prepuller.use_secrets(secrets) {
                tracing::warn!(problem, "a pull secret is not valid");
            }
            complained = !whole;
        }
        before = named != Named::default();
        let rest = around(if whole { AGE } else { RETRY }, part);
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(rest) => {}
        }
    }
}

/// The secrets and service accounts in the sets of this node, with the repositories of these sets.
#[derive(Debug, Default, PartialEq, Eq)]
struct Named {
    secrets: BTreeMap<Reference, BTreeSet<Repository>>,
    accounts: BTreeMap<Reference, BTreeSet<Repository>>,
}

impl Named {
    fn of<'a>(sets: impl Iterator<Item = &'a Wanted>) -> Self {
        let mut named = Self::default();
        for wanted in sets {
            let images = wanted.set.iter().flat_map(|set| &set.images);
            let repositories: BTreeSet<_> = images.map(|image| image.repository.clone()).collect();
            for secret in &wanted.secrets {
                named.secrets.entry(secret.clone()).or_default().extend(repositories.iter().cloned());
            }
            for account in &wanted.accounts {
                named.accounts.entry(account.clone()).or_default().extend(repositories.iter().cloned());
            }
        }
        named
    }

    /// The secrets that can be read, including those of the accounts, and the errors of the others.
    async fn read(&self, shared: &Shared) -> (Vec<PullSecret>, Vec<Unreadable>) {
        let (mut found, mut problems, mut secrets) = (Vec::new(), Vec::new(), self.secrets.clone());
        let unreadable = |kind: &str, object: &Reference, problem: String| Unreadable {
            namespace: object.namespace.clone(),
            object: format!("{kind} `{object}`"),
            problem,
        };
        for (account, repositories) in &self.accounts {
            match secrets_of(shared, account).await {
                Ok(of_account) => {
                    for secret in of_account {
                        secrets.entry(secret).or_default().extend(repositories.iter().cloned());
                    }
                }
                Err(problem) => problems.push(unreadable("ServiceAccount", account, problem)),
            }
        }
        for (secret, repositories) in secrets {
            match read(shared, &secret).await {
                Ok(document) => found.push(PullSecret { document, repositories }),
                Err(problem) => problems.push(unreadable("Secret", &secret, problem)),
            }
        }
        (found, problems)
    }
}

/// An object that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub(super) namespace: String,
    /// Its kind and name.
    pub(super) object: String,
    pub(super) problem: String,
}

fn cause(error: &kube::Error) -> String {
    match error {
        error if forbidden(error) => {
            "forbidden: no role lets agents read it (the component `pull-secrets`, in the chart \
                                      `pullSecrets.enabled`, has one for the namespace of the agents)"
                .to_owned()
        }
        error if has_code(error, &[404]) => "it does not exist".to_owned(),
        error => chain(error),
    }
}

/// The secrets that a kubelet uses to pull for pods of this account.
async fn secrets_of(shared: &Shared, account: &Reference) -> Result<Vec<Reference>, String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(shared.client.clone(), &account.namespace);
    let found = within(accounts.get(&account.name)).await.map_err(|error| cause(&error))?;
    let names = found.image_pull_secrets.into_iter().flatten().map(|secret| secret.name);
    Ok(names.map(|name| Reference { namespace: account.namespace.clone(), name }).collect())
}

async fn read(shared: &Shared, reference: &Reference) -> Result<Vec<u8>, String> {
    let secrets: Api<Secret> = Api::namespaced(shared.client.clone(), &reference.namespace);
    let secret = within(secrets.get(&reference.name)).await.map_err(|error| cause(&error))?;
    let document = secret.data.and_then(|mut data| data.remove(KEY));
    document
        .map(|bytes| bytes.0)
        .ok_or_else(|| format!("it has no `{KEY}`: its type must be `kubernetes.io/dockerconfigjson`"))
}
