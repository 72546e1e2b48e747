//! Requests for certificates of peers by those who should not have one.

use hearth_agent::certificates::{NAME, SIGNER, USAGES, own::OwnKey};
use k8s_openapi::{ByteString, api::certificates::v1::CertificateSigningRequest};
use kit::{kubernetes::FakeApi, registry::FakeUpstream};
use kube::{Api, Client, api::PostParams};
use serde_json::json;

use crate::{
    cluster::eventually,
    peers::issued::{AGENTS, account, cluster},
};

fn client(url: &str) -> Client {
    Client::try_from(kube::Config::new(url.parse().expect("it is a URL"))).expect("a plain client")
}

/// What became of a request for a node's certificate, sent to this URL: `certificate`, or why not.
async fn requested(url: &str, node: &str) -> String {
    let requests: Api<CertificateSigningRequest> = Api::all(client(url));
    let pem = OwnKey::new().expect("keys can be made").request(NAME, node).expect("requests can be made");
    let request = serde_json::from_value(json!({
        "metadata": {"generateName": "attack-"},
        "spec": {
            "request": ByteString(pem), "signerName": SIGNER, "usages": USAGES,
            // The API server does not believe these.
            "username": AGENTS, "extra": {"authentication.kubernetes.io/node-name": [node]},
        },
    }));
    let request = request.expect("it is a request");
    let made = requests.create(&PostParams::default(), &request).await.expect("every account may ask");
    let name = made.metadata.name.expect("it got a name");
    eventually("an answer", || async {
        let status = requests.get(&name).await.ok().and_then(|request| request.status).unwrap_or_default();
        let denied = status.conditions.iter().flatten().find(|condition| condition.type_ == "Denied");
        match (status.certificate, denied) {
            (Some(_), _) => Ok("certificate".to_owned()),
            (None, Some(denied)) => Ok(denied.message.clone().unwrap_or_default()),
            _ => Err("nothing yet"),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_gets_no_certificate_of_another_node_and_others_get_none() {
    let upstream = FakeUpstream::start().await;
    let (api, controller) = cluster(&upstream).await;
    let agent = account(&api, "n1");
    assert_eq!(requested(&agent, "n1").await, "certificate");
    let refusal = requested(&agent, "n2").await;
    assert!(refusal.contains("/node/n2") && refusal.contains("an agent on `n1`"), "{refusal}");
    let tenant = |name: &str, user: &str| {
        api.role(name, crate::cluster::shipped_rules("hearth-agent"));
        api.account(name, user, "n1");
        api.url_for(name)
    };
    for user in ["system:serviceaccount:team:hearth-agent", "system:serviceaccount:hearth:default"] {
        let refusal = requested(&tenant("tenant", user), "n1").await;
        assert!(refusal.contains(user) && refusal.contains("is not the account of agents"), "{refusal}");
    }
    let denied = controller.metrics().await.sum("hearth_controller_certificates_denied_total", &[]);
    assert!((denied - 3.0).abs() < 0.5, "{denied}");
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_cannot_sign_for_itself() {
    let api = FakeApi::start().await;
    let url = account(&api, "n1");
    let requests: Api<CertificateSigningRequest> = Api::all(client(&url));
    let request: CertificateSigningRequest = serde_json::from_value(json!({
        "metadata": {"name": "own"},
        "spec": {"request": ByteString(b"x".to_vec()), "signerName": SIGNER, "usages": USAGES},
    }))
    .expect("it is a request");
    requests.create(&PostParams::default(), &request).await.expect("every account may ask");
    let approval = json!({"status": {"conditions": [{"type": "Approved", "status": "True"}]}});
    let patch = kube::api::Patch::Merge(&approval);
    let refused = requests.patch_approval("own", &kube::api::PatchParams::default(), &patch).await;
    assert!(matches!(&refused, Err(kube::Error::Api(status)) if status.code == 403), "{refused:?}");
}
