//! The authorities of a cluster's peers: made, replaced, and used to sign.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use time::OffsetDateTime;

use super::{CertificateError, Facts, judge::Request, pem};

/// How long an authority is trusted.
pub const AUTHORITY_LIFE: Duration = Duration::from_hours(365 * 24);

/// The next authority is made when this much is left of the newest.
const SUCCESSION: Duration = Duration::from_hours(120 * 24);

/// How long a new authority is only published. Agents read the published ones more often than this by far.
const PUBLISHED: Duration = Duration::from_hours(48);

/// How long a certificate is valid: peers go on without the API server for two thirds of it.
pub const LIFE: Duration = Duration::from_hours(72);

/// Clocks of nodes may be wrong by this much.
const SKEW: Duration = Duration::from_mins(10);

/// Most authorities that are kept; there are two during a succession.
const MOST: usize = 8;

/// A certificate that may sign, and its key.
#[derive(Debug)]
struct Authority {
    certificate: CertificateDer<'static>,
    key: KeyPair,
    facts: Facts,
}

impl Authority {
    fn new(name: &str, now: Timestamp) -> Result<Self, CertificateError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        // The time tells authorities apart: a verifier finds the right one by its name.
        params.distinguished_name = common_name(&format!("{name} {now:.0}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = (time_of(now - SKEW), time_of(now + AUTHORITY_LIFE));
        let certificate = params.self_signed(&key)?.der().clone();
        Self::of(certificate, key)
    }

    fn of(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, CertificateError> {
        let facts = Facts::read(&certificate)?;
        Ok(Self { certificate, key, facts })
    }
}

/// Oldest first.
#[derive(Debug, Default)]
pub struct Authorities(Vec<Authority>);

impl Authorities {
    /// Reads what [`Self::secret`] has written.
    pub fn read(secret: &[u8]) -> Result<Self, CertificateError> {
        let unreadable = |what: &str, error: &dyn std::fmt::Display| {
            CertificateError::Unreadable(format!("not {what} in PEM: {error}"))
        };
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(secret)
            .collect::<Result<_, _>>()
            .map_err(|error| unreadable("certificates", &error))?;
        let keys: Vec<PrivatePkcs8KeyDer<'static>> = PrivatePkcs8KeyDer::pem_slice_iter(secret)
            .collect::<Result<_, _>>()
            .map_err(|error| unreadable("keys", &error))?;
        if certificates.len() != keys.len() || certificates.is_empty() || keys.len() > MOST {
            let (certificates, keys) = (certificates.len(), keys.len());
            return Err(CertificateError::Unreadable(format!(
                "{certificates} certificates and {keys} keys: expected as many of both, from 1 to {MOST}"
            )));
        }
        let pairs = certificates.into_iter().zip(keys);
        let read: Result<Vec<_>, CertificateError> =
            pairs.map(|(certificate, key)| Authority::of(certificate, KeyPair::try_from(&key)?)).collect();
        Ok(Self(read?))
    }

    /// Certificates and keys, in PEM.
    pub fn secret(&self) -> String {
        let both = |one: &Authority| {
            pem("CERTIFICATE", &one.certificate) + &pem("PRIVATE KEY", one.key.serialized_der())
        };
        self.0.iter().map(both).collect()
    }

    /// The certificates that agents trust, in PEM.
    pub fn bundle(&self) -> String {
        self.0.iter().map(|one| pem("CERTIFICATE", &one.certificate)).collect()
    }

    /// Removes expired authorities and makes one when it is time; `true` when something has changed.
    pub fn renew(&mut self, name: &str, now: Timestamp) -> Result<bool, CertificateError> {
        let before = self.0.len();
        self.0.retain(|one| now < one.facts.until);
        let due = self.0.last().is_none_or(|newest| newest.facts.until < now + SUCCESSION);
        if due {
            self.0.push(Authority::new(name, now)?);
        }
        Ok(due || self.0.len() != before)
    }

    /// The newest that every agent knows by now; in a new cluster, the only one.
    fn signer(&self, now: Timestamp) -> Option<&Authority> {
        let valid = || self.0.iter().filter(|one| one.facts.is_valid(now));
        valid().rfind(|one| one.facts.from + SKEW + PUBLISHED <= now).or_else(|| valid().next())
    }

    /// A certificate for the node of the request, in PEM.
    pub fn issue(&self, request: &Request, name: &str, now: Timestamp) -> Result<String, CertificateError> {
        let signer = self.signer(now).ok_or_else(|| {
            CertificateError::Unreadable("no authority is valid now: is the clock right?".into())
        })?;
        let until = (now + request.life.min(LIFE)).min(signer.facts.until);
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&request.node);
        params.subject_alt_names = vec![
            SanType::DnsName(name.try_into()?),
            SanType::URI(super::identity(name, &request.node).as_str().try_into()?),
        ];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (time_of(now - SKEW), time_of(until));
        let issuer = Issuer::from_ca_cert_der(&signer.certificate, &signer.key)?;
        Ok(pem("CERTIFICATE", params.signed_by(&request.key, &issuer)?.der()))
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn time_of(at: Timestamp) -> OffsetDateTime {
    // Every time that a clock shows until the year 9999 is one.
    OffsetDateTime::from_unix_timestamp(at.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::{NAME, judge, own::OwnKey};

    const HOUR: Duration = Duration::from_hours(1);
    const DAY: Duration = Duration::from_hours(24);

    fn start() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn issued(authorities: &Authorities, now: Timestamp) -> (Facts, String) {
        let key = OwnKey::new().unwrap();
        let request = judge::parse(&key.request(NAME, "n1").unwrap(), NAME, "n1", LIFE).unwrap();
        let pem = authorities.issue(&request, NAME, now).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        (Facts::read(&der).unwrap(), parsed.issuer().to_string())
    }

    fn subjects(authorities: &Authorities) -> Vec<String> {
        let of = |one: &Authority| {
            x509_parser::parse_x509_certificate(&one.certificate).unwrap().1.subject().to_string()
        };
        authorities.0.iter().map(of).collect()
    }

    #[test]
    fn a_certificate_is_for_one_node_and_lasts_three_days() {
        let mut authorities = Authorities::default();
        assert!(authorities.renew(NAME, start()).unwrap());
        let (facts, _) = issued(&authorities, start() + HOUR);
        assert_eq!(facts.node(NAME), Some("n1"));
        assert_eq!((facts.node("other"), facts.until), (None, start() + HOUR + LIFE));
        assert!(facts.is_valid(start() + HOUR) && !facts.is_valid(start() + HOUR + LIFE));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut authorities = Authorities::default();
        authorities.renew(NAME, start()).unwrap();
        let again = Authorities::read(authorities.secret().as_bytes()).unwrap();
        assert_eq!((again.secret(), again.bundle()), (authorities.secret(), authorities.bundle()));
        assert!(!authorities.bundle().contains("PRIVATE"));
        for bad in ["", "x", &authorities.bundle(), &authorities.secret().repeat(MOST + 1)] {
            assert!(Authorities::read(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_new_authority_is_published_before_it_signs_and_an_old_one_is_trusted_until_it_expires() {
        let mut authorities = Authorities::default();
        authorities.renew(NAME, start()).unwrap();
        assert!(!authorities.renew(NAME, start() + 244 * DAY).unwrap());
        let made = start() + 246 * DAY;
        assert!(authorities.renew(NAME, made).unwrap());
        let names = subjects(&authorities);
        assert_eq!(names.len(), 2);
        assert_eq!(issued(&authorities, made + 47 * HOUR).1, names[0]);
        assert_eq!(issued(&authorities, made + 49 * HOUR).1, names[1]);
        let over = start() + 366 * DAY;
        assert!(authorities.renew(NAME, over).unwrap());
        assert_eq!(subjects(&authorities), names[1..]);
        assert_eq!(issued(&authorities, over).1, names[1]);
    }

    #[test]
    fn a_certificate_does_not_outlive_its_authority() {
        let mut authorities = Authorities::default();
        authorities.renew(NAME, start()).unwrap();
        let (facts, _) = issued(&authorities, start() + 364 * DAY);
        assert_eq!(facts.until, start() + AUTHORITY_LIFE);
    }
}
