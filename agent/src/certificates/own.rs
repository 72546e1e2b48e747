//! The key and certificate of this node, and when to renew them.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::{CertificateError, Facts, identity, pem};

/// A key that a certificate is requested for.
#[derive(Debug)]
pub struct OwnKey(KeyPair);

impl OwnKey {
    /// ECDSA on P-256: every TLS library verifies it.
    pub fn new() -> Result<Self, CertificateError> {
        Ok(Self(KeyPair::generate()?))
    }

    /// A signing request (PKCS #10) for the peers' name and the node's identity, in PEM.
    pub fn request(&self, name: &str, node: &str) -> Result<Vec<u8>, CertificateError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, node);
        params.subject_alt_names =
            vec![SanType::DnsName(name.try_into()?), SanType::URI(identity(name, node).as_str().try_into()?)];
        let request = params.serialize_request(&self.0)?;
        Ok(pem("CERTIFICATE REQUEST", request.der()).into_bytes())
    }

    /// The file of this node: the certificate, then the key.
    pub fn file(&self, certificate: &str) -> String {
        format!("{}\n{}", certificate.trim_end(), pem("PRIVATE KEY", self.0.serialized_der()))
    }
}

/// When a certificate is renewed: after a third of its life, and earlier when it is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// At once.
    Now,
    /// After this time.
    In(Duration),
}

/// Decides from the certificate in this node's file, if there is one, and the authorities that peers trust. Pure.
pub fn renewal(file: Option<&[u8]>, bundle: &[u8], name: &str, node: &str, now: Timestamp) -> Renewal {
    let facts = file.and_then(|file| Facts::read(&CertificateDer::from_pem_slice(file).ok()?).ok());
    let Some(facts) = facts.filter(|facts| facts.is_valid(now) && facts.node(name) == Some(node)) else {
        return Renewal::Now;
    };
    let trusted = CertificateDer::pem_slice_iter(bundle).any(|authority| {
        authority.is_ok_and(|der| Facts::read(&der).is_ok_and(|found| found.subject == facts.issuer))
    });
    if !trusted {
        return Renewal::Now;
    }
    let life: SignedDuration = facts.until.duration_since(facts.from);
    let due = facts.until - life * 2 / 3;
    match Duration::try_from(due.duration_since(now)) {
        Ok(left) if !left.is_zero() => Renewal::In(left),
        _ => Renewal::Now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::{
        NAME,
        authority::{Authorities, LIFE},
        judge,
    };

    #[test]
    fn a_certificate_is_renewed_after_a_third_of_its_life() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut authorities = Authorities::default();
        authorities.renew(NAME, start).unwrap();
        let key = OwnKey::new().unwrap();
        let request = judge::parse(&key.request(NAME, "n1").unwrap(), NAME, "n1", LIFE).unwrap();
        let file = key.file(&authorities.issue(&request, NAME, start).unwrap());
        let bundle = authorities.bundle();
        let at = |node: &str, hours: u64| {
            renewal(Some(file.as_bytes()), bundle.as_bytes(), NAME, node, start + Duration::from_hours(hours))
        };
        let Renewal::In(left) = at("n1", 1) else { panic!("it is new") };
        assert!((22..24).contains(&(left.as_secs() / 3600)), "{left:?}");
        for (node, hours) in [("n1", 25), ("n1", 100), ("n2", 1)] {
            assert_eq!(at(node, hours), Renewal::Now, "{node} {hours}");
        }
        let other = {
            let mut authorities = Authorities::default();
            authorities.renew(NAME, start + Duration::from_secs(1)).unwrap();
            authorities.bundle()
        };
        let before = start - Duration::from_hours(1);
        for (file, bundle, now) in [
            (None, &bundle, start),
            (Some("half a file"), &bundle, start),
            (Some(file.as_str()), &bundle, before),
            // Its authority is trusted no longer.
            (Some(file.as_str()), &other, start),
        ] {
            let due = renewal(file.map(str::as_bytes), bundle.as_bytes(), NAME, "n1", now);
            assert_eq!(due, Renewal::Now, "{file:?} {now}");
        }
    }
}
