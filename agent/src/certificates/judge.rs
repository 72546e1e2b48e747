//! Who gets a certificate.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use rcgen::{CertificateSigningRequestParams, PublicKey, SanType};
use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject as _};

use super::{SIGNER, USAGES, authority::LIFE, identity};

/// The claim of a token that names the node of its pod (since Kubernetes 1.30).
const NODE: &str = "authentication.kubernetes.io/node-name";

/// Shortest life that the API lets a client ask for.
const SHORTEST: Duration = Duration::from_mins(10);

/// A request that is granted.
#[derive(Clone, Debug)]
pub struct Request {
    /// The node that it comes from.
    pub node: String,
    /// Its public key.
    pub key: PublicKey,
    /// How long the certificate may last.
    pub life: Duration,
}

/// What to do with a request.
#[derive(Debug)]
pub enum Verdict {
    /// Sign it.
    Issue(Box<Request>),
    /// Refuse it, for a reason that the client reads.
    Deny(String),
    /// It is for another signer, or decided.
    Ignore,
}

/// Decides. `account` is the user name of agents, `name` the name of peers. Pure.
pub fn judge(csr: &CertificateSigningRequest, account: &str, name: &str) -> Verdict {
    let (spec, status) = (&csr.spec, csr.status.clone().unwrap_or_default());
    let ended = |kind: &str| kind == "Denied" || kind == "Failed";
    let over = status.conditions.iter().flatten().any(|condition| ended(&condition.type_));
    if spec.signer_name != SIGNER || over || status.certificate.is_some() {
        return Verdict::Ignore;
    }
    let user = spec.username.as_deref().unwrap_or_default();
    if user != account {
        return Verdict::Deny(format!("`{user}` is not the account of agents (`{account}`)"));
    }
    let claim = spec.extra.as_ref().and_then(|extra| extra.get(NODE)?.first());
    let Some(node) = claim.filter(|node| !node.is_empty()) else {
        return Verdict::Deny(format!(
            "the account's token does not name a node (`{NODE}`): Kubernetes 1.30 is needed"
        ));
    };
    let asked: BTreeSet<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    if asked != USAGES.into_iter().collect() {
        return Verdict::Deny(format!("usages {asked:?}: expected {USAGES:?}"));
    }
    let life = spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let life = life.map_or(LIFE, Duration::from_secs).clamp(SHORTEST, LIFE);
    match parse(&spec.request.0, name, node, life) {
        Ok(request) => Verdict::Issue(Box::new(request)),
        Err(reason) => Verdict::Deny(reason),
    }
}

/// Reads a signing request (PKCS #10, in PEM), checks its signature, and that it asks for this node's names and nothing else.
pub(super) fn parse(pem: &[u8], name: &str, node: &str, life: Duration) -> Result<Request, String> {
    let der = CertificateSigningRequestDer::from_pem_slice(pem)
        .map_err(|error| format!("not a signing request in PEM: {error}"))?;
    let parsed = CertificateSigningRequestParams::from_der(&der)
        .map_err(|error| format!("not a signing request that can be used: {error}"))?;
    let text = |name: &SanType| match name {
        SanType::DnsName(name) => format!("DNS:{}", name.as_str()),
        SanType::URI(uri) => format!("URI:{}", uri.as_str()),
        other => format!("{other:?}"),
    };
    let asked: Vec<String> = parsed.params.subject_alt_names.iter().map(text).collect();
    let expected = [format!("DNS:{name}"), format!("URI:{}", identity(name, node))];
    if asked != expected {
        return Err(format!("names {asked:?}: an agent on `{node}` gets {expected:?}"));
    }
    Ok(Request { node: node.to_owned(), key: parsed.public_key, life })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;
    use crate::certificates::{NAME, own::OwnKey};

    const AGENTS: &str = "system:serviceaccount:hearth:hearth-agent";

    fn csr(change: impl FnOnce(&mut CertificateSigningRequest)) -> CertificateSigningRequest {
        let mut csr: CertificateSigningRequest = serde_json::from_value(json!({
            "metadata": {"name": "c"},
            "spec": {
                "request": "", "signerName": SIGNER, "username": AGENTS, "usages": USAGES, "expirationSeconds": 7200,
                "extra": {NODE: ["n1"]},
            },
        }))
        .unwrap();
        csr.spec.request = ByteString(OwnKey::new().unwrap().request(NAME, "n1").unwrap());
        change(&mut csr);
        csr
    }

    fn denied(change: impl FnOnce(&mut CertificateSigningRequest)) -> String {
        match judge(&csr(change), AGENTS, NAME) {
            Verdict::Deny(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn for_names(name: &str, node: &str) -> ByteString {
        ByteString(OwnKey::new().unwrap().request(name, node).unwrap())
    }

    #[test]
    fn an_agent_gets_a_certificate_for_its_own_node() {
        let Verdict::Issue(request) = judge(&csr(|_| {}), AGENTS, NAME) else { panic!("it is granted") };
        assert_eq!((request.node.as_str(), request.life.as_secs()), ("n1", 7200));
        let Verdict::Issue(request) =
            judge(&csr(|csr| csr.spec.expiration_seconds = Some(1 << 30)), AGENTS, NAME)
        else {
            panic!("it is granted, for less")
        };
        assert_eq!(request.life, LIFE);
    }

    #[test]
    fn others_are_told_why_not() {
        let user = denied(|csr| csr.spec.username = Some("system:serviceaccount:x:hearth-agent".into()));
        assert!(user.contains("is not the account of agents"), "{user}");
        assert!(denied(|csr| csr.spec.username = None).contains("is not the account"));
        let unnamed = denied(|csr| csr.spec.extra = None);
        assert!(unnamed.contains("does not name a node"), "{unnamed}");
        let other = denied(|csr| csr.spec.request = for_names(NAME, "n2"));
        assert!(other.contains("/node/n2") && other.contains("an agent on `n1`"), "{other}");
        let other = denied(|csr| csr.spec.request = for_names("api", "n1"));
        assert!(other.contains("DNS:api"), "{other}");
        let usages = denied(|csr| csr.spec.usages = Some(vec!["cert sign".into()]));
        assert!(usages.contains("cert sign"), "{usages}");
        assert!(denied(|csr| csr.spec.request = ByteString(b"x".to_vec())).contains("not a signing request"));
        // A signature of another key.
        let forged = denied(|csr| {
            let text = String::from_utf8(csr.spec.request.0.clone()).unwrap();
            let mut der = ::pem::parse(text).unwrap().into_contents();
            *der.last_mut().unwrap() ^= 1;
            csr.spec.request = ByteString(crate::certificates::pem("CERTIFICATE REQUEST", &der).into_bytes());
        });
        assert!(forged.contains("not a signing request"), "{forged}");
    }

    #[test]
    fn what_is_decided_or_for_others_is_ignored() {
        let ignored = |change: &dyn Fn(&mut CertificateSigningRequest)| {
            matches!(judge(&csr(change), AGENTS, NAME), Verdict::Ignore)
        };
        assert!(ignored(&|csr| csr.spec.signer_name = "kubernetes.io/kubelet-serving".into()));
        for status in [
            json!({"certificate": "eA=="}),
            json!({"conditions": [{"type": "Denied", "status": "True"}]}),
            json!({"conditions": [{"type": "Approved", "status": "True"}, {"type": "Failed", "status": "True"}]}),
        ] {
            let status = serde_json::from_value(status).unwrap();
            assert!(ignored(&|csr| csr.status = Some(Clone::clone(&status))));
        }
    }
}
