//! Simple signing: the payload of cosign 1 and 2.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::{PublicKey, Refused, key::signer, read};
use crate::Digest;

/// `critical.type` of the payload.
const TYPE: &str = "cosign container image signature";

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// Checks a payload and its signature in Base64. Returns the position of the key that made it.
pub fn check_simple(
    payload: &[u8],
    signature: &str,
    image: &Digest,
    keys: &[PublicKey],
) -> Result<usize, Refused> {
    let signature = STANDARD.decode(signature.trim()).map_err(|error| Refused::Format(error.to_string()))?;
    let key = signer(keys, payload, &signature).ok_or(Refused::Key)?;
    let Critical { image: signed, kind } = read::<Payload>(payload)?.critical;
    if kind != TYPE {
        return Err(Refused::Predicate(kind));
    }
    if signed.digest != image.to_string() {
        return Err(Refused::Image(signed.digest));
    }
    Ok(key)
}
