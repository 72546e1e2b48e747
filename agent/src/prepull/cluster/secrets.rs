//! Pull secrets that the sets of this node name: read from the cluster, where a role lets the agent, and used as
//! credentials of the agent for registries whose `private` is `agent`. They are in force as long as a set names them,
//! and are read again now and then, because they are rotated.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;

use super::{Shared, api::within};
use crate::prepull::{
    crd::SecretReference,
    spread::{around, fraction},
};

/// How often they are read anew.
const AGE: Duration = Duration::from_mins(5);

/// After a secret could not be read.
const RETRY: Duration = Duration::from_secs(30);

/// The key of a secret of type `kubernetes.io/dockerconfigjson`.
const KEY: &str = ".dockerconfigjson";

pub(super) async fn run(shared: &Arc<Shared>) {
    let part = fraction(&format!("secrets {}", shared.config.node));
    let mut wanted = shared.wanted.subscribe();
    let (mut before, mut complained) = (BTreeSet::new(), false);
    loop {
        let named: BTreeSet<SecretReference> = {
            let wanted = wanted.borrow_and_update();
            wanted.iter().flatten().flat_map(|set| set.secrets.iter().cloned()).collect()
        };
        let mut whole = true;
        if !named.is_empty() || !before.is_empty() {
            let mut documents = Vec::new();
            for secret in &named {
                match read(shared, secret).await {
                    Ok(document) => documents.push(document),
                    Err(problem) => {
                        whole = false;
                        if !complained {
                            tracing::warn!(
                                namespace = secret.namespace,
                                name = secret.name,
                                problem,
                                "a pull secret is not used: tried again"
                            );
                        }
                    }
                }
            }
            for problem in shared.prepuller.use_secrets(&documents) {
                tracing::warn!(problem, "a pull secret is not usable");
            }
            complained = !whole;
        }
        before = named;
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

async fn read(shared: &Shared, reference: &SecretReference) -> Result<Vec<u8>, String> {
    let secrets: Api<Secret> = Api::namespaced(shared.client.clone(), &reference.namespace);
    let secret = within(secrets.get(&reference.name)).await.map_err(|error| error.to_string())?;
    let document = secret.data.and_then(|mut data| data.remove(KEY));
    document
        .map(|bytes| bytes.0)
        .ok_or_else(|| format!("it has no `{KEY}`: its type must be `kubernetes.io/dockerconfigjson`"))
}
