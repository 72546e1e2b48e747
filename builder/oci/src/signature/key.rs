//! Public keys: PEM files with `PUBLIC KEY` sections, as `cosign generate-key-pair` and `openssl pkey -pubout` write them.

use std::sync::Arc;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, VerificationAlgorithm,
};
use rustls_pki_types::pem::{self, PemObject as _, SectionKind};

use crate::Digest;

/// The schemes that cosign signs with. For keys of 384 bits it used SHA-256 before it used SHA-384.
const SCHEMES: [&dyn VerificationAlgorithm; 5] = [
    &ECDSA_P256_SHA256_ASN1,
    &ECDSA_P384_SHA384_ASN1,
    &ECDSA_P384_SHA256_ASN1,
    &ED25519,
    &RSA_PKCS1_2048_8192_SHA256,
];

/// A public key. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PublicKey(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: Digest,
    name: String,
    schemes: Vec<ParsedPublicKey>,
}

/// Why a file has no usable public keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not PEM.
    #[error("not a PEM file: {0:?}")]
    Pem(pem::Error),
    /// A file without keys.
    #[error("no `PUBLIC KEY` section in it")]
    Empty,
    /// A secret in the wrong place.
    #[error("it contains a private key: name the file with the public key (`cosign.pub`)")]
    Private,
    /// Another section.
    #[error("it contains a section that is not a `PUBLIC KEY`: certificates are not supported")]
    Section,
    /// A key of another kind.
    #[error("unsupported key: expected ECDSA P-256 or P-384, Ed25519, or RSA of at least 2048 bits")]
    Unsupported,
}

impl PublicKey {
    /// All keys of a PEM file; `name` is for messages.
    pub fn read_pem(text: &[u8], name: &str) -> Result<Vec<Self>, KeyError> {
        let mut keys = Vec::new();
        // `cosign generate-key-pair` writes private keys as sections that the PEM reader does not know.
        if String::from_utf8_lossy(text).contains("PRIVATE KEY-----") {
            return Err(KeyError::Private);
        }
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
            match section.map_err(KeyError::Pem)? {
                (SectionKind::PublicKey, der) => keys.push(Self::read_der(&der, name)?),
                _ => return Err(KeyError::Section),
            }
        }
        if keys.is_empty() { Err(KeyError::Empty) } else { Ok(keys) }
    }

    /// `SubjectPublicKeyInfo` of RFC 5280.
    fn read_der(der: &[u8], name: &str) -> Result<Self, KeyError> {
        let parsed = SCHEMES.iter().filter_map(|scheme| ParsedPublicKey::new(*scheme, der).ok());
        let schemes: Vec<_> = parsed.collect();
        if schemes.is_empty() {
            return Err(KeyError::Unsupported);
        }
        Ok(Self(Arc::new(Inner { id: Digest::of(der), name: name.to_owned(), schemes })))
    }

    /// The SHA-256 of the key as DER: the usual fingerprint.
    pub fn id(&self) -> &Digest {
        &self.0.id
    }

    /// The file that it came from.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether this key made the signature.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0.schemes.iter().any(|scheme| scheme.verify_sig(message, signature).is_ok())
    }
}

/// The position of the key that made a signature.
pub(super) fn signer(keys: &[PublicKey], message: &[u8], signature: &[u8]) -> Option<usize> {
    keys.iter().position(|key| key.verifies(message, signature))
}
