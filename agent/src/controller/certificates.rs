//! Signs the certificates of peers ([`crate::certificates`]): keeps the authorities, and answers agents' requests.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{
        certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
        core::v1::{ConfigMap, Secret},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    runtime::{
        controller::{Action, Config as Running, Controller},
        watcher,
    },
};
use serde_json::json;
use tokio::sync::watch;

use super::MANAGER;
use crate::{
    certificates::{
        AUTHORITY, BUNDLE, CertificateError, SIGNER,
        authority::Authorities,
        judge::{Request, Verdict, judge},
    },
    kubernetes::{has_code, within},
    metrics::ControllerMetrics,
    types::chain,
};

/// Key in the `Secret`: certificates and keys of authorities, in PEM.
const KEYS: &str = "authorities.pem";

/// How often the authorities are looked at.
const LOOK: Duration = Duration::from_mins(10);

/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(10);

/// Requests that are answered at once.
const AT_ONCE: u16 = 8;

/// What the controller signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The name that all peers share.
    pub name: String,
    /// Service account of the agents, in the controller's namespace.
    pub account: String,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("the API server refuses or does not answer")]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(
        "the secret `{0}` cannot be used: delete it for new authorities, and agents request new certificates"
    )]
    Secret(String, #[source] CertificateError),
    #[error("the secret `{0}` is not there: apply the manifests of this version, which make it")]
    NoSecret(String),
    #[error("the authorities are not there yet")]
    NoAuthority,
}

struct Context {
    client: Client,
    name: String,
    /// User name of the agents.
    account: String,
    metrics: ControllerMetrics,
    authorities: watch::Receiver<Option<Arc<Authorities>>>,
}

/// Runs until the caller stops it.
pub(super) async fn run(client: &Client, config: &Config, namespace: &str, metrics: &ControllerMetrics) {
    let publish = watch::Sender::new(None);
    let context = Context {
        client: client.clone(),
        name: config.name.clone(),
        account: format!("system:serviceaccount:{namespace}:{}", config.account),
        metrics: metrics.clone(),
        authorities: publish.subscribe(),
    };
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let mine = watcher::Config::default().fields(&format!("spec.signerName={SIGNER}"));
    let answering = Controller::new(requests, mine)
        .with_config(Running::default().concurrency(AT_ONCE))
        .run(answer, again, Arc::new(context))
        // Failures are logged where they are retried.
        .for_each(|_| std::future::ready(()));
    tokio::join!(keep(client, namespace, &config.name, &publish), answering);
}

/// Keeps the authorities and their published certificates.
async fn keep(
    client: &Client,
    namespace: &str,
    name: &str,
    publish: &watch::Sender<Option<Arc<Authorities>>>,
) {
    loop {
        let pause = match renewed(client, namespace, name).await {
            Ok(authorities) => {
                publish.send_replace(Some(Arc::new(authorities)));
                LOOK
            }
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "cannot renew the authorities of peers' certificates: retrying"
                );
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// The authorities, after they were written and published.
async fn renewed(client: &Client, namespace: &str, name: &str) -> Result<Authorities, Trouble> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let stored = within(secrets.get_opt(AUTHORITY)).await?;
    let mut secret = stored.ok_or_else(|| Trouble::NoSecret(format!("{namespace}/{AUTHORITY}")))?;
    let keys = secret.data.as_ref().and_then(|data| data.get(KEYS));
    let mut authorities = match keys {
        Some(keys) => Authorities::read(&keys.0)
            .map_err(|error| Trouble::Secret(format!("{namespace}/{AUTHORITY}"), error))?,
        None => Authorities::default(),
    };
    if authorities.renew(name, Timestamp::now())? {
        let data = secret.data.get_or_insert_default();
        data.insert(KEYS.to_owned(), ByteString(authorities.secret().into_bytes()));
        let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        // With the version that was read: another process that was faster makes this fail, and its keys are read then.
        within(secrets.replace(AUTHORITY, &parameters, &secret)).await?;
        tracing::info!(
            secret = format!("{namespace}/{AUTHORITY}"),
            "renewed the authorities of peers' certificates"
        );
    }
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let published = within(maps.get_opt(AUTHORITY)).await?;
    let bundle = authorities.bundle();
    if published.and_then(|map| map.data?.remove(BUNDLE)).as_ref() != Some(&bundle) {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": AUTHORITY}, "data": {BUNDLE: bundle}});
        within(maps.patch(AUTHORITY, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&map))).await?;
    }
    Ok(authorities)
}

/// Answers one request.
async fn answer(csr: Arc<CertificateSigningRequest>, context: Arc<Context>) -> Result<Action, Trouble> {
    match judge(&csr, &context.account, &context.name) {
        Verdict::Ignore => {}
        Verdict::Deny(reason) => {
            tracing::warn!(request = csr.name_any(), reason, "refused to sign a certificate for peers");
            decide(&context.client, &csr, "Denied", &reason).await?;
            context.metrics.certificates_denied.inc();
        }
        Verdict::Issue(request) => {
            sign(&csr, &context, &request).await?;
            context.metrics.certificates_issued.inc();
        }
    }
    Ok(Action::await_change())
}

async fn sign(csr: &CertificateSigningRequest, context: &Context, request: &Request) -> Result<(), Trouble> {
    let authorities = context.authorities.borrow().clone().ok_or(Trouble::NoAuthority)?;
    let certificate = authorities.issue(request, &context.name, Timestamp::now())?;
    let reason = "an agent asks for the certificate of its own node";
    let version = decide(&context.client, csr, "Approved", reason).await?;
    let status = json!({
        "metadata": {"resourceVersion": version},
        "status": {"certificate": ByteString(certificate.into_bytes())},
    });
    let requests: Api<CertificateSigningRequest> = Api::all(context.client.clone());
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    within(requests.patch_status(&csr.name_any(), &parameters, &Patch::Merge(&status))).await?;
    Ok(())
}

/// Approves or denies, unless that was done before; the object's version after that. A request that has changed since it was read
/// is a conflict, so none is answered twice.
async fn decide(
    client: &Client,
    csr: &CertificateSigningRequest,
    kind: &str,
    message: &str,
) -> Result<Option<String>, Trouble> {
    let mut conditions = csr.status.clone().and_then(|status| status.conditions).unwrap_or_default();
    if conditions.iter().any(|condition| condition.type_ == kind) {
        return Ok(csr.resource_version());
    }
    conditions.push(CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some("HearthPeer".to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(Time(Timestamp::now())),
        ..CertificateSigningRequestCondition::default()
    });
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let patch = Patch::Merge(json!({
        "metadata": {"resourceVersion": csr.resource_version()},
        "status": {"conditions": conditions},
    }));
    let decided = within(requests.patch_approval(&csr.name_any(), &parameters, &patch)).await?;
    Ok(decided.resource_version())
}

/// When a request that failed is answered again.
#[expect(clippy::needless_pass_by_value, reason = "the signature that kube's controller asks for")]
fn again(csr: Arc<CertificateSigningRequest>, error: &Trouble, _context: Arc<Context>) -> Action {
    let changed = matches!(error, Trouble::Api(error) if has_code(error, &[404, 409]));
    if changed || matches!(error, Trouble::NoAuthority) {
        return Action::requeue(Duration::from_secs(1));
    }
    tracing::warn!(
        request = csr.name_any(),
        error = chain(error),
        "cannot sign a certificate for peers: retrying"
    );
    Action::requeue(RETRY)
}
