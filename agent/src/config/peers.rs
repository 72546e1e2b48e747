//! `peer`: who this node is among others, and who they are.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc};

use rustls::pki_types::ServerName;
use serde_saphyr::Location;

use super::raw::{RawPeer, RawPeerTls};
use crate::{
    certificates::{self, SIGNER},
    peers::{Config, Enrolment, Files, Peer, Source, Tls},
};

/// Longest name of a member or zone.
const LONGEST: usize = 253;

/// A key that is wrong: its path, its place, and what is wrong.
pub(super) type Wrong = (&'static str, Option<Location>, String);

/// What certificates need to know of the other sections.
pub(super) struct Cluster {
    /// `kubernetes.namespace`.
    pub(super) namespace: String,
    /// `kubernetes.node`.
    pub(super) node: Option<String>,
    /// `kubernetes.api`.
    pub(super) api: Option<String>,
    /// `dataDir`.
    pub(super) data: PathBuf,
}

/// Holds the keys against each other.
pub(super) fn check(raw: &RawPeer, defaults: &RawPeer, cluster: Cluster) -> Result<Config, Wrong> {
    let source = source(raw)?;
    let name = match &raw.name {
        Some(name) => name.0.0.clone(),
        None => host_name().map_err(|problem| ("peer.name", None, problem))?,
    };
    let zone = raw.zone.as_ref().map(|zone| zone.0.0.clone()).unwrap_or_default();
    macro_rules! value {
        ($field:ident) => {
            raw.$field
                .as_ref()
                .or(defaults.$field.as_ref())
                .expect("every key read so has a default")
                .0
                .clone()
        };
    }
    let (tls, enrolment) = match (&raw.tls.signer, &source) {
        (None, _) => (tls(&raw.tls)?.map(Arc::new), None),
        (Some(_), Source::Off) => (None, None),
        (Some(signer), _) => {
            let (tls, enrolment) = enrolment(&raw.tls, signer.referenced, &name, cluster)?;
            (Some(Arc::new(tls)), Some(enrolment))
        }
    };
    Ok(Config {
        name,
        zone,
        source,
        relay: value!(relay),
        uploads: value!(uploads).0,
        upload_rate: value!(upload_rate).0,
        wait: value!(wait).0,
        tag_quorum: value!(tag_quorum).0,
        tls,
        enrolment,
    })
}

/// The name that peers' certificates are valid for when the controller signs them.
pub(super) fn signed_name(raw: &RawPeerTls) -> String {
    raw.name.as_ref().map_or_else(|| certificates::NAME.to_owned(), |name| name.value.0.0.clone())
}

/// With a signer, the certificate is requested from the cluster.
fn enrolment(
    raw: &RawPeerTls,
    at: Location,
    name: &str,
    cluster: Cluster,
) -> Result<(Tls, Enrolment), Wrong> {
    let files =
        [("peer.tls.certificate", &raw.certificate), ("peer.tls.key", &raw.key), ("peer.tls.ca", &raw.ca)];
    if let Some((key, file)) = files.iter().find_map(|(key, file)| Some((*key, file.as_ref()?))) {
        return Err((
            key,
            Some(file.referenced),
            "cannot be used together with `peer.tls.signer`".to_owned(),
        ));
    }
    let shared = signed_name(raw);
    let server = ServerName::try_from(shared.clone()).map_err(|_| {
        let at = raw.name.as_ref().map_or(at, |name| name.referenced);
        ("peer.tls.name", Some(at), format!("`{shared}` is not a DNS name"))
    })?;
    let enrolment = Enrolment {
        name: shared,
        node: cluster.node.unwrap_or_else(|| name.to_owned()),
        namespace: cluster.namespace,
        api: cluster.api,
        directory: cluster.data.join("peer-certificate"),
    };
    Ok((Tls::awaiting(enrolment.files(server)), enrolment))
}

/// All four keys or none.
fn tls(raw: &RawPeerTls) -> Result<Option<Tls>, Wrong> {
    let keys = [
        ("peer.tls.certificate", raw.certificate.as_ref().map(|set| set.referenced)),
        ("peer.tls.key", raw.key.as_ref().map(|set| set.referenced)),
        ("peer.tls.ca", raw.ca.as_ref().map(|set| set.referenced)),
        ("peer.tls.name", raw.name.as_ref().map(|set| set.referenced)),
    ];
    let (Some(certificate), Some(key), Some(ca), Some(name)) =
        (&raw.certificate, &raw.key, &raw.ca, &raw.name)
    else {
        let set = keys.iter().find_map(|(key, place)| Some((*key, (*place)?)));
        let missing = keys.iter().find(|(_, place)| place.is_none());
        return match (set, missing) {
            (Some((set, place)), Some((missing, _))) => Err((set, Some(place), format!("needs `{missing}`"))),
            _ => Ok(None),
        };
    };
    let named = name.value.0.0.clone();
    let name = ServerName::try_from(named.clone())
        .map_err(|_| ("peer.tls.name", Some(name.referenced), format!("`{named}` is not a DNS name")))?;
    let files = Files {
        certificate: certificate.value.clone(),
        key: key.value.clone(),
        ca: ca.value.clone(),
        name,
        by_node: false,
    };
    Tls::open(files).map(Some).map_err(|error| {
        let place = keys.iter().find(|(path, _)| *path == error.key).and_then(|(_, place)| *place);
        (error.key, place, error.problem)
    })
}

fn source(raw: &RawPeer) -> Result<Source, Wrong> {
    let places = [
        ("peer.members", raw.members.as_ref().map(|set| set.referenced)),
        ("peer.dns", raw.dns.as_ref().map(|set| set.referenced)),
        ("peer.service", raw.service.as_ref().map(|set| set.referenced)),
    ];
    let mut set = places.into_iter().filter_map(|(key, place)| Some((key, place?)));
    let (first, second) = (set.next(), set.next());
    if let (Some((first, _)), Some((second, place))) = (first, second) {
        return Err((second, Some(place), format!("cannot be used together with `{first}`")));
    }
    let members = raw.members.as_ref().map(|list| Source::Static(list.value.0.0.clone()));
    let dns = raw.dns.as_ref().map(|set| {
        let HostPort { host, port } = set.value.0.clone();
        Source::Dns { host, port }
    });
    let service = raw.service.as_ref().map(|set| {
        let ServiceName { namespace, name } = set.value.0.clone();
        let api = raw.api.as_ref().map(|api| api.0.0.to_string());
        Source::Service { namespace, name, api }
    });
    Ok(members.or(dns).or(service).unwrap_or(Source::Off))
}

fn host_name() -> Result<String, String> {
    let system = rustix::system::uname();
    let name = system.nodename().to_str().map_err(|_| "the host's name is not text: set it".to_owned())?;
    name.parse::<Name>().map(|name| name.0)
}

/// A member's or zone's name.
#[derive(Clone, Debug)]
pub(super) struct Name(String);

impl Name {
    /// As it was written.
    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if text.is_empty() || text.len() > LONGEST || !text.chars().all(fits) {
            return Err(format!("`{text}` is not a name: letters, digits, `.`, `-`, `_` and `:`"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// `name[@zone]=address:port`, separated by commas.
#[derive(Clone, Debug)]
pub(super) struct MemberList(Vec<Peer>);

impl FromStr for MemberList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(member).collect::<Result<_, _>>().map(Self)
    }
}

fn member(entry: &str) -> Result<Peer, String> {
    let wrong = || format!("`{entry}` is not a peer: write `name=address:port` or `name@zone=address:port`");
    let (name, address) = entry.split_once('=').ok_or_else(wrong)?;
    let (name, zone) = name.split_once('@').unwrap_or((name, ""));
    let zone = if zone.is_empty() { String::new() } else { zone.parse::<Name>()?.0 };
    let address: SocketAddr = address.parse().map_err(|_| wrong())?;
    Ok(Peer { name: name.parse::<Name>()?.0, zone, address })
}

/// `host:port`.
#[derive(Clone, Debug)]
pub(super) struct HostPort {
    host: String,
    port: u16,
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        match parsed {
            Some((host, port)) if !host.is_empty() && port > 0 => Ok(Self { host: host.to_owned(), port }),
            _ => {
                Err(format!("`{text}` is not a name with a port, for example `hearth-peers.hearth.svc:5051`"))
            }
        }
    }
}

/// The signer of certificates: there is one, which the controller is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signer;

impl FromStr for Signer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == SIGNER {
            Ok(Self)
        } else {
            Err(format!("`{text}` is not a signer that agents know: write `{SIGNER}`"))
        }
    }
}

/// `namespace/name`.
#[derive(Clone, Debug)]
pub(super) struct ServiceName {
    namespace: String,
    name: String,
}

impl FromStr for ServiceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("`{text}` is not a service: write `namespace/name`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{config::Config, peers::Source};

    fn read(peer: &str) -> Result<crate::peers::Config, String> {
        let text = format!("registries: [{{host: docker.io}}]\npeer: {{{peer}}}");
        Config::from_yaml(&text).map(|config| config.peers).map_err(|error| error.to_string())
    }

    #[test]
    fn members_are_read_and_without_a_source_there_are_none() {
        let config = read("name: a, members: \"a=10.0.0.1:5051, b@z1=10.0.0.2:5051\"").unwrap();
        let Source::Static(members) = config.source else { panic!("{config:?}") };
        assert_eq!((members[1].name.as_str(), members[1].zone.as_str()), ("b", "z1"));
        assert_eq!((config.name.as_str(), config.tag_quorum), ("a", 3));
        assert_eq!(read("tagQuorum: 2").unwrap().tag_quorum, 2);
        assert_eq!(read("name: a").unwrap().source, Source::Off);
        assert!(!read("wait: 1s").unwrap().name.is_empty(), "the host has a name");
        let Source::Service { namespace, name, api } = read("service: hearth/peers").unwrap().source else {
            panic!("a service is one")
        };
        assert_eq!((namespace.as_str(), name.as_str(), api), ("hearth", "peers", None));
        assert_eq!(read("dns: \"peers:51\"").unwrap().source, Source::Dns { host: "peers".into(), port: 51 });
    }

    #[test]
    fn with_a_signer_the_certificate_is_requested_for_this_node() {
        let config = read("name: n1, service: hearth/peers, tls: {signer: hearth.dev/peer}").unwrap();
        let enrolment = config.enrolment.unwrap();
        assert_eq!((enrolment.name.as_str(), enrolment.node.as_str()), ("hearth-peers", "n1"));
        assert!(config.tls.unwrap().server().is_none(), "there is no certificate yet");
        let alone = read("tls: {signer: hearth.dev/peer}").unwrap();
        assert!(alone.tls.is_none() && alone.enrolment.is_none());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (peer, expected) in [
            ("dns: \"peers:1\", tls: {signer: a.b/c}", "`a.b/c` is not a signer"),
            (
                "dns: \"peers:1\", tls: {signer: hearth.dev/peer, ca: a}",
                "`peer.tls.ca`: cannot be used together with `peer.tls.signer`",
            ),
            ("members: a", "`a` is not a peer"),
            ("members: \"a=b\"", "`a=b` is not a peer"),
            ("service: peers", "`peers` is not a service"),
            ("dns: peers", "`peers` is not a name with a port"),
            ("name: \"a b\"", "`a b` is not a name"),
            ("tagQuorum: 1", "`1` is not a whole number from 2 to 64"),
            ("tagQuorum: 65", "`65` is not a whole number from 2 to 64"),
            ("dns: \"peers:1\", service: a/b", "`peer.service`: cannot be used together with `peer.dns`"),
        ] {
            let message = read(peer).unwrap_err();
            assert!(message.contains(expected) && message.starts_with("hearth-agent.yaml:2:"), "{message}");
        }
    }
}
