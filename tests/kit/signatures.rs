//! Signs images of a [`FakeUpstream`] as cosign does, with a key pair of the test.

use aws_lc_rs::{
    encoding::AsDer as _,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::registry::{FakeUpstream, INDEX, MANIFEST};

const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";

/// A key pair of the kind that `cosign generate-key-pair` makes: ECDSA P-256.
#[derive(Debug)]
pub struct Signer(EcdsaKeyPair);

impl Signer {
    /// A new key pair.
    pub fn generate() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("randomness is available"))
    }

    /// `cosign.pub`.
    pub fn public_pem(&self) -> String {
        let der = self.0.public_key().as_der().expect("a public key has a DER form");
        let der: &[u8] = der.as_ref();
        let text = STANDARD.encode(der);
        format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
    }

    /// A signature in Base64.
    pub fn sign(&self, message: &[u8]) -> String {
        let signature = self.0.sign(&SystemRandom::new(), message).expect("randomness is available");
        let signature: &[u8] = signature.as_ref();
        STANDARD.encode(signature)
    }

    /// A bundle with an in-toto statement about an image.
    pub fn statement(&self, image: &str, predicate: &str) -> Value {
        let hex = image.trim_start_matches("sha256:");
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1", "subject": [{ "digest": { "sha256": hex } }],
            "predicateType": predicate, "predicate": {},
        })
        .to_string();
        let signed = format!("DSSEv1 {} {IN_TOTO} {} {statement}", IN_TOTO.len(), statement.len());
        bundle(&json!({ "dsseEnvelope": {
            "payload": STANDARD.encode(&statement), "payloadType": IN_TOTO,
            "signatures": [{ "sig": self.sign(signed.as_bytes()), "keyid": "" }],
        }}))
    }

    /// A bundle that signs an image.
    pub fn image_bundle(&self, image: &str) -> Value {
        self.statement(image, SIGN)
    }

    /// A bundle with a signature of these bytes.
    pub fn message_bundle(&self, message: &[u8]) -> Value {
        bundle(&json!({ "messageSignature": {
            "messageDigest": { "algorithm": "SHA2_256", "digest": "" }, "signature": self.sign(message),
        }}))
    }
}

fn bundle(content: &Value) -> Value {
    let mut bundle = content.clone();
    bundle["mediaType"] = BUNDLE.into();
    bundle["verificationMaterial"] = json!({ "publicKey": { "hint": "" }, "tlogEntries": [] });
    bundle
}

/// The payload of simple signing for an image.
pub fn payload(repository: &str, image: &str) -> String {
    json!({
        "critical": {
            "identity": { "docker-reference": repository }, "image": { "docker-manifest-digest": image },
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string()
}

/// The tag under which cosign 1 and 2 keep signatures.
pub fn signature_tag(image: &str) -> String {
    format!("{}.sig", image.replacen(':', "-", 1))
}

impl FakeUpstream {
    /// Keeps a payload and its signature where cosign 1 and 2 look for those of an image; returns the payload's digest.
    pub async fn attach_simple(
        &self,
        repository: &str,
        image: &str,
        payload: &str,
        signature: &str,
    ) -> String {
        let blob = self.blob(repository, payload.as_bytes()).await;
        let config = self.blob(repository, b"{}").await;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2 },
            "layers": [{
                "mediaType": SIMPLE, "digest": blob, "size": payload.len(),
                "annotations": { "dev.cosignproject.cosign/signature": signature },
            }],
        });
        self.manifest(repository, &signature_tag(image), MANIFEST, manifest.to_string());
        blob
    }

    /// Signs an image as cosign 1 and 2 do.
    pub async fn sign_simple(&self, repository: &str, image: &str, signer: &Signer) {
        let payload = payload(repository, image);
        self.attach_simple(repository, image, &payload, &signer.sign(payload.as_bytes())).await;
    }

    /// Keeps a bundle as a referrer of an image, as cosign 3 does. Returns the digest of the bundle.
    pub async fn attach_bundle(&self, repository: &str, image: &str, bundle: &Value) -> String {
        self.attach(repository, image, bundle, true).await
    }

    /// The same in a registry without the referrers API.
    pub async fn attach_bundle_by_tag(&self, repository: &str, image: &str, bundle: &Value) -> String {
        self.attach(repository, image, bundle, false).await
    }

    async fn attach(&self, repository: &str, image: &str, bundle: &Value, api: bool) -> String {
        let text = bundle.to_string();
        let blob = self.blob(repository, text.as_bytes()).await;
        let config = self.blob(repository, b"{}").await;
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BUNDLE,
            "config": { "mediaType": EMPTY, "digest": config, "size": 2 },
            "layers": [{ "mediaType": BUNDLE, "digest": blob, "size": text.len() }],
        });
        if api {
            manifest["subject"] = json!({ "mediaType": MANIFEST, "digest": image, "size": 1 });
        }
        let manifest = manifest.to_string();
        let digest = self.manifest(repository, "", MANIFEST, manifest.clone());
        if !api {
            let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [{
                "mediaType": MANIFEST, "digest": digest, "size": manifest.len(), "artifactType": EMPTY,
            }]});
            self.manifest(repository, &image.replacen(':', "-", 1), INDEX, index.to_string());
        }
        blob
    }
}
