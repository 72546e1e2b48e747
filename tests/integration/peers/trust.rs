//! Taken-over peers against what a tag resolves to. An attacker here is a whole agent with a valid place (and
//! certificate) in the cluster whose registry is another one: it lies as well as any attacker can, about tags, about
//! what does not exist, and it has the manifests and blobs to go with its lies.

use std::time::Duration;

use hearth_agent::peers::rank::{key, weight};
use kit::{
    agent::{Agent, AgentConfig, REGISTRY, manifest_path},
    certificates::Authority,
    cluster::{Place, peer_config, places},
    pull::Puller,
    registry::{FakeUpstream, Fault, Image, Layer, On},
};
use serde_json::Value;

use super::REPOSITORY;

/// Name of every peer's certificate.
const NAME: &str = "hearth-peers.hearth.svc";

/// Every request for a tag is felt by the registry.
const ALWAYS: &str = "tags: { freshness: 0s, negative: 0s }";

async fn image(upstream: &FakeUpstream, seed: u64) -> Image {
    upstream.image(REPOSITORY, "v1", [Layer::random(seed, 50_000)]).await
}

/// A name that ranks before all `others` for a subject: found by trying, as anyone who may choose a name can.
fn ground(kind: &str, text: &str, others: &[Place]) -> String {
    let subject = key(kind, text);
    let rank = |name: &str| weight(subject, 0, key("member", name));
    let best = others.iter().map(|place| rank(&place.name)).max().unwrap_or_default();
    let mut names = (0..).map(|n| format!("evil-{n}"));
    names.find(|name| rank(name) > best).expect("some name ranks first")
}

/// The digest that an agent gives for the tag, whether it marked it, and the status.
async fn resolve(agent: &Agent) -> (u16, Option<String>, bool) {
    let answer = agent.head(&manifest_path(REPOSITORY, "v1")).await;
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let digest = header("docker-content-digest").map(str::to_owned);
    (answer.status().as_u16(), digest, header("warning").is_some())
}

/// What a node's disk says of the tag.
fn stored_tag(agent: &Agent) -> Value {
    let path = agent.data().join(format!("refs-v1/{REGISTRY}/{REPOSITORY}/_tags/v1"));
    std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// A cluster of `honest` agents in front of the registry and attackers in front of their own, at these places.
struct Attack {
    registry: FakeUpstream,
    honest: Vec<Agent>,
    evil: Vec<Agent>,
    /// The attackers' registry.
    _other: FakeUpstream,
    /// What the registry has, and what the attackers want it to be.
    right: Image,
    wrong: Image,
}

impl Attack {
    async fn start(honest: usize, names: &[String], more: &str) -> Self {
        let (registry, other) = (FakeUpstream::start().await, FakeUpstream::start().await);
        let (right, wrong) = (image(&registry, 1).await, image(&other, 2).await);
        let mut all = places(honest);
        all.extend(names.iter().map(|name| Place::reserve(name, "")));
        let mut agents = Vec::new();
        for (at, place) in all.iter().enumerate() {
            let upstream = if at < honest { &registry } else { &other };
            let base = AgentConfig::for_upstream(upstream).with(ALWAYS);
            agents.push(Agent::start(&peer_config(&base, place, &all, more)).await);
        }
        let evil = agents.split_off(honest);
        let attack = Self { registry, honest: agents, evil, _other: other, right, wrong };
        for agent in &attack.evil {
            // What it says is on its disk before anyone asks.
            assert_eq!(resolve(agent).await.0, 200);
        }
        attack
    }

    async fn unconfirmed(&self, at: usize) -> f64 {
        let labels = [("outcome", "agreed")];
        self.honest[at].metrics().await.sum("hearth_peer_tag_resolutions_total", &labels)
    }
}

/// Names for attackers that rank before every honest node.
fn ground_names(count: usize, honest: usize) -> Vec<String> {
    let first = ground("tag", &format!("{REGISTRY}/{REPOSITORY}:v1"), &places(honest));
    std::iter::once(first).chain((1..count).map(|at| format!("evil-more-{at}"))).collect()
}

async fn the_registry_decides(more: &str) {
    let attack = Attack::start(3, &ground_names(1, 3), more).await;
    for agent in &attack.honest {
        assert_eq!(resolve(agent).await, (200, Some(attack.right.digest.clone()), false));
        let pulled = Puller::new(&agent.url(), Some(REGISTRY)).pull(REPOSITORY, "v1", |_| ()).await;
        assert_eq!(pulled.expect("the pull succeeds").digest, attack.right.digest);
        assert_eq!(stored_tag(agent)["digest"], attack.right.digest.as_str());
    }
    assert!(attack.registry.log().reference("v1").len() >= 3, "{}", attack.registry.log().describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_ranks_first_cannot_set_what_a_tag_resolves_to() {
    the_registry_decides("").await;
}

/// Certificates for every peer, also those of attackers, and the keys of `peer` that name them.
fn tls() -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("temporary folders are available");
    let authority = Authority::new(directory.path(), "peers").expect("openssl is there");
    authority.sign("peer", &format!("DNS:{NAME}")).expect("the authority signs");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (certificate, key, ca) = (path("peer.pem"), path("peer.key"), path("peers.pem"));
    let keys =
        format!("tls: {{ certificate: \"{certificate}\", key: \"{key}\", ca: \"{ca}\", name: {NAME} }}");
    (directory, keys)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_with_a_certificate_cannot_set_it_either() {
    let (_directory, keys) = tls();
    the_registry_decides(&keys).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn colluding_peers_at_the_quorum_set_nothing_while_the_registry_answers() {
    let (_directory, keys) = tls();
    for more in ["", &keys] {
        let attack = Attack::start(1, &ground_names(3, 1), more).await;
        let victim = &attack.honest[0];
        assert_eq!(resolve(victim).await, (200, Some(attack.right.digest.clone()), false), "{more}");
        assert_eq!(stored_tag(victim)["digest"], attack.right.digest.as_str(), "{more}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_cannot_change_or_remove_a_tag_that_is_on_disk() {
    let attack = Attack::start(1, &ground_names(1, 1), "").await;
    let victim = &attack.honest[0];
    assert_eq!(resolve(victim).await.1, Some(attack.right.digest.clone()));
    for (outage, marked) in
        [(None, false), (Some(Fault::too_many(Some("1"))), true), (Some(Fault::status(503)), true)]
    {
        let what = format!("{outage:?}");
        let fault = outage.map(|fault| attack.registry.fault(On::any(), fault));
        let right = (200, Some(attack.right.digest.clone()), marked);
        assert_eq!(resolve(victim).await, right, "{what}");
        assert_eq!(stored_tag(victim)["digest"], attack.right.digest.as_str(), "{what}");
        if let Some(fault) = fault {
            fault.clear();
        }
    }
    attack.registry.stop().await;
    assert_eq!(resolve(victim).await, (200, Some(attack.right.digest.clone()), true), "the registry is off");
}

/// An attacker whose registry knows nothing answers 404 to everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_says_404_removes_and_hides_nothing() {
    let (registry, empty) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let right = image(&registry, 1).await;
    for (kind, text, reference) in [
        ("tag", format!("{REGISTRY}/{REPOSITORY}:v1"), "v1".to_owned()),
        ("manifest", right.digest.clone(), right.digest.clone()),
    ] {
        let mut all = places(2);
        all.push(Place::reserve(&ground(kind, &text, &all), ""));
        let mut agents = Vec::new();
        for (at, place) in all.iter().enumerate() {
            let upstream = if at < 2 { &registry } else { &empty };
            let base = AgentConfig::for_upstream(upstream).with("tags: { freshness: 0s, negative: 1h }");
            agents.push(Agent::start(&peer_config(&base, place, &all, "")).await);
        }
        for agent in &agents[..2] {
            for round in 0..2 {
                let answer = agent.get(&manifest_path(REPOSITORY, &reference)).await;
                assert_eq!(answer.status(), 200, "{reference}, round {round}");
                let digest = answer.headers()["docker-content-digest"].to_str().unwrap().to_owned();
                assert_eq!(digest, right.digest, "{reference}, round {round}");
            }
        }
        let answer = agents[2].get(&manifest_path(REPOSITORY, &reference)).await;
        assert_eq!(answer.status(), 404, "the attacker believes its registry, and no peer");
    }
}

/// How the registry fails.
fn outages() -> [Option<Fault>; 3] {
    [Some(Fault::too_many(None)), Some(Fault::Reset), None]
}

#[tokio::test(flavor = "multi_thread")]
async fn colluding_peers_below_the_quorum_set_nothing_while_the_registry_is_away() {
    let (_directory, keys) = tls();
    for (outage, more) in outages().into_iter().flat_map(|outage| [(outage.clone(), ""), (outage, &keys)]) {
        let what = format!("{outage:?} {more}");
        let attack = Attack::start(1, &ground_names(2, 1), more).await;
        match outage {
            Some(fault) => drop(attack.registry.fault(On::any(), fault)),
            None => attack.registry.stop().await,
        }
        let victim = &attack.honest[0];
        assert_eq!(resolve(victim).await.0, 503, "{what}");
        assert_eq!(stored_tag(victim), Value::Null, "{what}");
        assert!(attack.unconfirmed(0).await < 1.0, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn colluding_peers_at_the_quorum_give_an_answer_that_is_marked_and_ends_with_the_outage() {
    for outage in outages() {
        let what = format!("{outage:?}");
        let attack = Attack::start(1, &ground_names(3, 1), "").await;
        let victim = &attack.honest[0];
        let fault = outage.map(|fault| attack.registry.fault(On::any(), fault));
        if fault.is_none() {
            attack.registry.stop().await;
        }
        let wrong = (200, Some(attack.wrong.digest.clone()), true);
        assert_eq!(resolve(victim).await, wrong, "{what}: three of three agree");
        assert!(attack.unconfirmed(0).await >= 1.0, "{what}: it is counted");
        assert_eq!(stored_tag(victim)["unconfirmed"], true, "{what}: {}", stored_tag(victim));
        match fault {
            Some(fault) => fault.clear(),
            None => attack.registry.restart().await,
        }
        let healed = async {
            while resolve(victim).await != (200, Some(attack.right.digest.clone()), false) {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let healed = tokio::time::timeout(Duration::from_mins(1), healed).await;
        healed.unwrap_or_else(|_| panic!("{what}: the registry decides again"));
        assert_eq!(stored_tag(victim).get("unconfirmed"), None, "{what}: {}", stored_tag(victim));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_honest_peers_than_colluding_ones_win() {
    // Seven others fit into the sample of a node: all of them are asked.
    let attack = Attack::start(5, &ground_names(3, 5), "").await;
    for agent in &attack.honest[1..] {
        assert_eq!(resolve(agent).await, (200, Some(attack.right.digest.clone()), false));
    }
    attack.registry.stop().await;
    let right = (200, Some(attack.right.digest.clone()), true);
    assert_eq!(resolve(&attack.honest[0]).await, right, "four say so, three otherwise");
}

/// What a node believed of its peers is no vote of its own: three attackers do not become four by persuading one.
#[tokio::test(flavor = "multi_thread")]
async fn an_unconfirmed_answer_is_not_passed_on() {
    let attack = Attack::start(2, &ground_names(2, 2), "tagQuorum: 2").await;
    attack.registry.stop().await;
    let wrong = (200, Some(attack.wrong.digest.clone()), true);
    assert_eq!(resolve(&attack.honest[0]).await, wrong, "two of two agree");
    let mut evil = attack.evil;
    drop(evil.pop().expect("two attackers").stop().await);
    // One attacker and the deceived node are one vote.
    assert_eq!(resolve(&attack.honest[1]).await.0, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_nodes_cost_one_manifest_get_and_a_head_each_per_freshness_period() {
    let registry = FakeUpstream::start().await;
    let right = image(&registry, 1).await;
    let all = places(8);
    let mut agents = Vec::new();
    for place in &all {
        let base = AgentConfig::for_upstream(&registry).with("tags: { freshness: 1h }");
        agents.push(Agent::start(&peer_config(&base, place, &all, "")).await);
    }
    let pull = async |agent: &Agent| {
        let pulled = Puller::new(&agent.url(), Some(REGISTRY)).pull(REPOSITORY, "v1", |_| ()).await;
        assert_eq!(pulled.expect("the pull succeeds").digest, right.digest);
    };
    // Three clients on each node, twice.
    for _ in 0..2 {
        let clients = agents.iter().flat_map(|agent| [agent, agent, agent]);
        futures_util::future::join_all(clients.map(pull)).await;
    }
    let log = registry.log();
    assert_eq!(log.manifest_gets().len(), 1, "{}", log.describe());
    let heads = log.method(&reqwest::Method::HEAD).reference("v1").len();
    assert!(heads <= agents.len(), "{heads} HEADs of {} nodes\n{}", agents.len(), log.describe());
}

/// One node cannot reach the registry and asks the others for a tag: they ask by `HEAD`, which registries do not count.
#[tokio::test(flavor = "multi_thread")]
async fn a_peers_question_for_a_tag_costs_no_manifest_request() {
    let (registry, gone) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let right = image(&registry, 1).await;
    let all = places(3);
    let mut agents = Vec::new();
    for (at, place) in all.iter().enumerate() {
        let upstream = if at == 0 { &gone } else { &registry };
        let base = AgentConfig::for_upstream(upstream).with("tags: { freshness: 1h }");
        agents.push(Agent::start(&peer_config(&base, place, &all, "tagQuorum: 3")).await);
    }
    gone.stop().await;
    assert_eq!(resolve(&agents[0]).await.0, 503, "two of three that must agree");
    // What a peer has begun goes on after its answer is no longer waited for.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(registry.log().method(&reqwest::Method::HEAD).reference("v1").len(), 2);
    assert_eq!(registry.log().manifest_gets().len(), 0, "{}", registry.log().describe());
    assert_eq!(stored_tag(&agents[1]), Value::Null, "no record without its manifest");
    // A client needs the manifest, and what the registry just said about the tag need not be asked again.
    assert_eq!(resolve(&agents[1]).await, (200, Some(right.digest.clone()), false));
    assert_eq!(registry.log().manifest_gets().len(), 1, "{}", registry.log().describe());
    assert_eq!(registry.log().method(&reqwest::Method::HEAD).reference("v1").len(), 2);
    assert_eq!(stored_tag(&agents[1])["digest"], right.digest.as_str());
}
