//! Peers that know each other by certificate.

use std::{net::SocketAddr, path::Path, sync::Arc};

use hearth_agent::peers::{Files, Tls};
use kit::{
    agent::{Agent, AgentConfig},
    certificates::Authority,
    cluster::{Cluster, peer_config, places},
};

use super::{config, pull, pull_all, sent, sum, upstream};

/// Bytes that travel between peers when they share: the layer, and more.
const LEAST: f64 = 30e6;

const NAME: &str = "hearth-peers.hearth.svc";

/// The keys of `peer` for the certificate `file` and the authority of these peers.
fn keys(directory: &Path, file: &str) -> String {
    let path = |name: String| directory.join(name).display().to_string();
    let (certificate, key, ca) =
        (path(format!("{file}.pem")), path(format!("{file}.key")), path("peers.pem".to_owned()));
    format!("wait: 1s, tls: {{ certificate: \"{certificate}\", key: \"{key}\", ca: \"{ca}\", name: {NAME} }}")
}

fn authority(directory: &Path) -> Authority {
    let authority = Authority::new(directory, "peers").expect("openssl is there");
    authority.sign("peer", &format!("DNS:{NAME}")).expect("the authority signs");
    authority
}

#[tokio::test(flavor = "multi_thread")]
async fn members_with_certificates_share_one_fetch() {
    let directory = tempfile::tempdir().unwrap();
    authority(directory.path());
    let (upstream, size) = upstream().await;
    let cluster = Cluster::start(&config(&upstream), 4, &keys(directory.path(), "peer")).await;
    pull_all(&cluster.agents).await;
    assert!(sent(&upstream) < size + size / 50, "{} of {size}", sent(&upstream));
    // What one of them has, at least three have from the others.
    assert!(sum(&cluster.agents, "hearth_peer_received_bytes_total", &[]).await > LEAST);
}

/// What a stranger gets from a peer: nothing, whatever it reports about itself.
pub(super) async fn refused(address: SocketAddr, stranger: reqwest::ClientBuilder) -> String {
    let client = stranger.danger_accept_invalid_certs(true).build().expect("a client");
    for scheme in ["https", "http"] {
        let answer = client.get(format!("{scheme}://{address}/peer/v1/health")).send().await;
        assert!(answer.is_err(), "{scheme}: {answer:?}");
    }
    format!("https://{address}/peer/v1/health")
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_certificate_for_the_members_name_is_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    authority.sign("other", "DNS:other.hearth.svc").unwrap();
    let foreign = tempfile::tempdir().unwrap();
    Authority::new(foreign.path(), "foreign").unwrap().sign("peer", &format!("DNS:{NAME}")).unwrap();
    let (upstream, _) = upstream().await;
    let cluster = Cluster::start(&config(&upstream), 2, &keys(directory.path(), "peer")).await;
    let identity = |directory: &Path, file: &str| {
        let read = |name: String| std::fs::read(directory.join(name)).unwrap();
        let pem = [read(format!("{file}.pem")), read(format!("{file}.key"))].concat();
        reqwest::Identity::from_pem(&pem).unwrap()
    };
    let peer = cluster.places[0].address;
    refused(peer, reqwest::Client::builder()).await;
    // Of the right authority for another name, and of another authority for the right name.
    refused(peer, reqwest::Client::builder().identity(identity(directory.path(), "other"))).await;
    let url = refused(peer, reqwest::Client::builder().identity(identity(foreign.path(), "peer"))).await;
    // The way in that all of these miss.
    let known = reqwest::Client::builder().identity(identity(directory.path(), "peer"));
    let known = known.danger_accept_invalid_certs(true).build().unwrap();
    assert!(known.get(url).send().await.unwrap().status().is_success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_among_the_members_gives_and_gets_nothing_and_harms_nobody() {
    let (directory, foreign) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    authority(directory.path());
    authority(foreign.path());
    let (upstream, size) = upstream().await;
    let (base, places) = (config(&upstream), places(3));
    let mut agents = Vec::new();
    for (place, directory) in places.iter().zip([&directory, &directory, &foreign]) {
        let keys = keys(directory.path(), "peer");
        agents.push(Agent::start(&peer_config(&base, place, &places, &keys)).await);
    }
    pull_all(&agents).await;
    // The two as one, the stranger for itself.
    assert!(sent(&upstream) <= 2 * size + size / 50, "{} of {size}", sent(&upstream));
    let received = sum(&agents[2..], "hearth_peer_received_bytes_total", &[]).await;
    let given = sum(&agents[2..], "hearth_peer_sent_bytes_total", &[]).await;
    assert!(received + given < 1.0, "{received} {given}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_are_named_before_anything_starts() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    authority.sign("other", "DNS:other.hearth.svc").unwrap();
    std::fs::write(directory.path().join("empty.pem"), "").unwrap();
    std::fs::write(directory.path().join("empty.key"), "").unwrap();
    std::fs::copy(directory.path().join("other.key"), directory.path().join("mixed.key")).unwrap();
    std::fs::copy(directory.path().join("peer.pem"), directory.path().join("mixed.pem")).unwrap();
    let problem = |keys: &str| {
        let text = format!("registries: [{{host: docker.io}}]\npeer: {{ {keys} }}");
        hearth_agent::config::Config::from_yaml(&text).unwrap_err().to_string()
    };
    let missing = problem("tls: { certificate: a }");
    assert!(missing.ends_with("`peer.tls.certificate`: needs `peer.tls.key`"), "{missing}");
    for (file, expected) in [
        ("nowhere", "nowhere.pem` cannot be read: No such file"),
        ("empty", "empty.pem` contains no certificate"),
        ("other", "other.pem` is not valid for `hearth-peers.hearth.svc` (`peer.tls.name`)"),
        ("mixed", "mixed.pem` cannot be used with its key"),
    ] {
        let found = problem(&keys(directory.path(), file));
        let at_key = found.starts_with("hearth-agent.yaml:2:") && found.contains("`peer.tls.certificate`: `");
        assert!(at_key && found.contains(expected), "{found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_members_a_node_with_certificates_pulls_for_itself() {
    let directory = tempfile::tempdir().unwrap();
    authority(directory.path());
    let (upstream, _) = upstream().await;
    let base: AgentConfig =
        config(&upstream).with(&format!("peer: {{ {} }}", keys(directory.path(), "peer")));
    pull(&Agent::start(&base).await).await;
}

#[test]
fn renewed_certificates_are_used_and_broken_ones_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let tls = Tls::open(Files {
        certificate: authority.path("peer.pem"),
        key: authority.path("peer.key"),
        ca: authority.certificate(),
        name: NAME.try_into().unwrap(),
        by_node: false,
    })
    .unwrap();
    let first = tls.server().unwrap();
    assert!(!tls.reload().unwrap(), "nothing has changed");
    assert!(Arc::ptr_eq(&tls.server().unwrap(), &first));
    authority.sign("peer", &format!("DNS:{NAME}")).unwrap();
    assert!(tls.reload().unwrap());
    let second = tls.server().unwrap();
    assert!(!Arc::ptr_eq(&second, &first));
    std::fs::write(authority.path("peer.key"), "half a key").unwrap();
    let error = tls.reload().unwrap_err();
    assert_eq!(error.key, "peer.tls.key");
    assert!(Arc::ptr_eq(&tls.server().unwrap(), &second));
}
