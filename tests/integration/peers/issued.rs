//! Peers whose certificates the controller signs.

use hearth_agent::certificates::AUTHORITY;
use kit::{
    agent::{Agent, AgentConfig},
    cluster::{Place, peer_config, places},
    controller::Controller,
    kubernetes::FakeApi,
    registry::FakeUpstream,
};

use serde_json::json;

use super::{config, membership::knows, pull, pull_all, sent, sum, tls::refused, upstream};
use crate::cluster::shipped_rules;

/// User name of the agents of the shipped manifests.
pub(crate) const AGENTS: &str = "system:serviceaccount:hearth:hearth-agent";

/// An API server with the shipped roles, and the controller.
pub(crate) async fn cluster(upstream: &FakeUpstream) -> (FakeApi, Controller) {
    let api = FakeApi::start().await;
    api.install_hearth();
    api.role("controller", shipped_rules("hearth-controller"));
    api.seed(
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": AUTHORITY, "namespace": "hearth"}}),
    );
    let controller = controller(&api, upstream);
    (api, controller)
}

fn controller(api: &FakeApi, upstream: &FakeUpstream) -> Controller {
    let url = api.url_for("controller");
    let keys = format!(
        "kubernetes: {{ imageSets: true, api: \"{url}\" }}\npeer: {{ tls: {{ signer: hearth.dev/peer }} }}"
    );
    Controller::start(&config(upstream).with(&keys))
}

/// The URL of the API server for the agent of a node.
pub(crate) fn account(api: &FakeApi, node: &str) -> String {
    api.role(node, shipped_rules("hearth-agent"));
    api.account(node, AGENTS, node);
    api.url_for(node)
}

/// The configuration of an agent that knows `known` from a list.
fn listed(upstream: &FakeUpstream, api: &FakeApi, place: &Place, known: &[Place]) -> AgentConfig {
    let url = account(api, &place.name);
    let more = format!("wait: 1s, api: \"{url}\", tls: {{ signer: hearth.dev/peer }}");
    peer_config(&config(upstream), place, known, &more)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_gets_a_certificate_of_its_own_and_peers_share_one_fetch() {
    let (upstream, size) = upstream().await;
    let (api, first) = cluster(&upstream).await;
    let places = places(4);
    let start = async |at: usize| {
        let place = &places[at];
        api.put(&format!("peers-{at}"), &[place]);
        let source = format!(
            "peer: {{ listen: \"{}\", name: {}, service: hearth/peers, api: \"{}\", tls: {{ signer: hearth.dev/peer }} }}",
            place.address,
            place.name,
            account(&api, &place.name)
        );
        Agent::start(&config(&upstream).with(&source)).await
    };
    let mut agents = vec![start(0).await, start(1).await, start(2).await];
    for agent in &agents {
        knows(agent, 3).await;
    }
    pull_all(&agents).await;
    assert!(sent(&upstream) < size + size / 50, "{} of {size}", sent(&upstream));
    refused(places[0].address, reqwest::Client::builder()).await;
    let issued = first.metrics().await.sum("hearth_controller_certificates_issued_total", &[]);
    assert!((issued - 3.0).abs() < 0.5, "{issued}");
    // Another process of the controller has the same authorities, and a node that comes later is a peer of the others.
    let keys = || api.get("Secret", "hearth", AUTHORITY).expect("the authorities are kept")["data"].clone();
    let before = keys();
    first.stop().await;
    let second = controller(&api, &upstream);
    agents.push(start(3).await);
    knows(&agents[3], 4).await;
    pull(&agents[3]).await;
    // It reads the segments that are its own from the registry.
    let received = sum(&agents[3..], "hearth_peer_received_bytes_total", &[]).await;
    assert!(received > 15e6, "{received}");
    assert_eq!(keys(), before);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_keeps_its_peers_through_a_restart_without_the_api_server() {
    let (upstream, size) = upstream().await;
    let (mut api, controller) = cluster(&upstream).await;
    let places = places(2);
    let [one, two] = [0, 1].map(|at| listed(&upstream, &api, &places[at], &places));
    let (first, second) = (Agent::start(&one).await, Agent::start(&two).await);
    knows(&first, 2).await;
    knows(&second, 2).await;
    api.stop().await;
    drop(controller);
    let second = Agent::start_in(&two, second.stop().await).await;
    knows(&second, 2).await;
    pull(&first).await;
    pull(&second).await;
    assert!(sent(&upstream) < size + size / 50, "{} of {size}", sent(&upstream));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_controller_a_node_pulls_for_itself() {
    let (upstream, size) = upstream().await;
    let api = FakeApi::start().await;
    let places = places(2);
    let agent = Agent::start(&listed(&upstream, &api, &places[0], &places)).await;
    pull(&agent).await;
    assert_eq!(sent(&upstream), size);
    refused(places[0].address, reqwest::Client::builder()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_counts_at_the_address_of_its_node_only() {
    let (upstream, size) = upstream().await;
    let (api, _controller) = cluster(&upstream).await;
    let mut places = places(2);
    let first = Agent::start(&listed(&upstream, &api, &places[0], &places)).await;
    // What runs at the second address has the certificate of a node that the first agent does not expect there.
    "node-07".clone_into(&mut places[1].name);
    let second = Agent::start(&listed(&upstream, &api, &places[1], &places)).await;
    knows(&first, 2).await;
    knows(&second, 2).await;
    pull(&second).await;
    // The second may ask the first, which reads a part of the blob for it.
    assert_eq!(sent(&upstream), size);
    pull(&first).await;
    let received = sum(&[first], "hearth_peer_received_bytes_total", &[]).await;
    assert!(received < 1.0, "{received} bytes are taken from a node that is not the expected one");
    assert!(sent(&upstream) > size);
}
