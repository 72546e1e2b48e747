//! Sigstore bundles: a DSSE envelope or a message signature. Certificates and entries of transparency logs in them are
//! not read: only keys count.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::{PublicKey, Refused, SIGN_PREDICATE, key::signer, read};
use crate::Digest;

/// Signatures of one envelope that are tried.
const MOST: usize = 16;

/// `payloadType` of in-toto statements.
const IN_TOTO: &str = "application/vnd.in-toto+json";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    dsse_envelope: Option<Envelope>,
    message_signature: Option<MessageSignature>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    #[serde(default)]
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
struct MessageSignature {
    signature: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(default)]
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    digest: std::collections::BTreeMap<String, String>,
}

/// Checks a bundle for an image with this digest and manifest. Returns the position of the key that made its signature.
pub fn check_bundle(
    bundle: &[u8],
    image: &Digest,
    manifest: &[u8],
    keys: &[PublicKey],
) -> Result<usize, Refused> {
    let bundle: Bundle = read(bundle)?;
    match (bundle.dsse_envelope, bundle.message_signature) {
        (Some(envelope), _) => check_envelope(&envelope, image, keys),
        (None, Some(message)) => {
            // The digest in it is not signed, so it says nothing: the manifest itself is.
            signer(keys, manifest, &decode(&message.signature)?).ok_or(Refused::Key)
        }
        (None, None) => Err(Refused::Format("neither a DSSE envelope nor a message signature".into())),
    }
}

fn check_envelope(envelope: &Envelope, image: &Digest, keys: &[PublicKey]) -> Result<usize, Refused> {
    let payload = decode(&envelope.payload)?;
    let signed = encoded(&envelope.payload_type, &payload);
    let mut made_by = None;
    for signature in envelope.signatures.iter().take(MOST) {
        made_by = made_by.or(signer(keys, &signed, &decode(&signature.sig)?));
    }
    let key = made_by.ok_or(Refused::Key)?;
    if envelope.payload_type != IN_TOTO {
        return Err(Refused::Predicate(envelope.payload_type.clone()));
    }
    let statement: Statement = read(&payload)?;
    if statement.predicate_type != SIGN_PREDICATE {
        return Err(Refused::Predicate(statement.predicate_type));
    }
    let (algorithm, hex) = (image.algorithm().as_str(), image.hex());
    if statement.subject.iter().any(|subject| subject.digest.get(algorithm) == Some(&hex)) {
        return Ok(key);
    }
    let named = statement.subject.iter().filter_map(|subject| subject.digest.get(algorithm));
    Err(Refused::Image(named.map(|hex| format!("{algorithm}:{hex}")).collect::<Vec<_>>().join(", ")))
}

/// The bytes that DSSE signs ("pre-authentication encoding").
pub(super) fn encoded(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

fn decode(text: &str) -> Result<Vec<u8>, Refused> {
    STANDARD.decode(text).map_err(|error| Refused::Format(error.to_string()))
}
