//! Certificates for peers that the controller signs: who they are for, how long they last, and who may have one. No I/O.
//!
//! ```text
//! agent -- CertificateSigningRequest (its own token says which node) --> API server --> controller: `judge`, `authority`
//! agent <-- certificate -- API server;   agent <-- authorities -- ConfigMap `hearth-peer-authority` <-- controller
//! ```
//!
//! A certificate is valid for the name that all peers share and for the node's identity, an URI as SPIFFE has them
//! (`spiffe://<name>/node/<node>`). The node comes from the claim of the token with which the request was sent, which the API
//! server writes into the request: an agent gets a certificate for its own node and for no other.
//!
//! Authorities are replaced before they expire. A new one is published long before it signs, so that every agent trusts it by
//! then; an old one is trusted until it expires.

pub mod authority;
pub mod judge;
pub mod own;

use jiff::Timestamp;
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer as _, X509Certificate},
};

/// Name of the signer: who may use it is said by roles (`signers`, verbs `approve` and `sign`).
pub const SIGNER: &str = "hearth.dev/peer";

/// The name that peers' certificates are valid for, unless it is configured.
pub const NAME: &str = "hearth-peers";

/// Name of the `ConfigMap` with the authorities' certificates, and of the `Secret` with their keys.
pub const AUTHORITY: &str = "hearth-peer-authority";

/// Key in the `ConfigMap`: certificates of authorities, in PEM.
pub const BUNDLE: &str = "ca.crt";

/// What is asked of a certificate for peers, in the words of the API.
pub const USAGES: [&str; 3] = ["digital signature", "server auth", "client auth"];

/// Why a certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It cannot be made or signed.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// The text is not what it should be.
    #[error("{0}")]
    Unreadable(String),
}

/// The identity of a node as an URI (RFC 3986): node names have no characters that need escaping.
pub fn identity(name: &str, node: &str) -> String {
    format!("spiffe://{name}/node/{node}")
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Valid from here.
    pub from: Timestamp,
    /// Valid until here.
    pub until: Timestamp,
    /// URIs that it is valid for.
    pub identities: Vec<String>,
    /// The name of the authority that signed it, in DER.
    pub issuer: Vec<u8>,
    /// Its own name, in DER.
    pub subject: Vec<u8>,
}

impl Facts {
    /// Reads them from DER.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| CertificateError::Unreadable(format!("not a certificate: {error}")))?;
        let at = |seconds| {
            Timestamp::from_second(seconds)
                .map_err(|error| CertificateError::Unreadable(format!("a time out of range: {error}")))
        };
        let validity = certificate.validity();
        let identities = certificate
            .extensions()
            .iter()
            .filter_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
                _ => None,
            })
            .flatten()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            })
            .collect();
        Ok(Self {
            from: at(validity.not_before.timestamp())?,
            until: at(validity.not_after.timestamp())?,
            identities,
            issuer: certificate.issuer().as_raw().to_vec(),
            subject: certificate.subject().as_raw().to_vec(),
        })
    }

    /// The node that the certificate is for, among peers of this name.
    pub fn node<'a>(&'a self, name: &str) -> Option<&'a str> {
        let prefix = identity(name, "");
        self.identities.iter().find_map(|uri| uri.strip_prefix(&prefix)).filter(|node| !node.is_empty())
    }

    /// Whether it is valid at this time.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.from <= now && now < self.until
    }
}

/// PEM around DER.
fn pem(label: &str, der: &[u8]) -> String {
    ::pem::encode_config(
        &::pem::Pem::new(label, der),
        ::pem::EncodeConfig::new().set_line_ending(::pem::LineEnding::LF),
    )
}
