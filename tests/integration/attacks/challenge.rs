//! Two tenants of one registry on one node, whose pull secrets decide (`private: challenge`): neither reads what is the
//! other's, whatever is cached.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::header;
use kit::{
    agent::{Agent, AgentConfig, REGISTRY, blob_path, manifest_path},
    registry::{Access, FakeUpstream, Fault, Image, Layer, On, Tenants},
};
use tempfile::TempDir;

const ANNS: &str = "ann/app";
const BENS: &str = "ben/app";
const OPEN: &str = "open/app";

const ANN: Option<(&str, &str)> = Some(("ann", "word-of-ann"));
const BEN: Option<(&str, &str)> = Some(("ben", "word-of-ben"));
const WRONG: Option<(&str, &str)> = Some(("ann", "word-of-ben"));
const NOBODY: Option<(&str, &str)> = None;

/// The registry with a repository of each tenant and one that is public.
struct World {
    upstream: FakeUpstream,
    anns: Image,
    bens: Image,
    open: Image,
}

fn tenants(words: [&str; 2], bearer: bool) -> Access {
    let reader = |repository: &str, user: &str, word: &str| {
        (repository.to_owned(), (user.to_owned(), word.to_owned()))
    };
    Access::Tenants(Tenants {
        readers: vec![reader(ANNS, "ann", words[0]), reader(BENS, "ben", words[1])],
        bearer,
    })
}

const WORDS: [&str; 2] = ["word-of-ann", "word-of-ben"];

impl World {
    async fn start(bearer: bool) -> Self {
        let upstream = FakeUpstream::start().await;
        let anns = upstream.image(ANNS, "v1", [Layer::random(1, 400_000)]).await;
        let bens = upstream.image(BENS, "v1", [Layer::random(2, 50_000)]).await;
        let open = upstream.image(OPEN, "v1", [Layer::random(3, 50_000)]).await;
        upstream.access(tenants(WORDS, bearer));
        Self { upstream, anns, bens, open }
    }

    fn config(&self, private: &str) -> AgentConfig {
        AgentConfig::default()
            .registry(REGISTRY, &[&self.upstream.url()], private)
            .with("tags: { freshness: 0s, negative: 0s }")
    }

    fn challenge(&self) -> AgentConfig {
        self.config("private: challenge")
    }

    fn layer(&self) -> &str {
        &self.anns.layers[0].0
    }

    /// Every way to Ann's image: her tag, her content, and her content by other names.
    fn ways(&self) -> Vec<String> {
        let mut ways = vec![manifest_path(ANNS, "v1")];
        for repository in [ANNS, BENS, OPEN] {
            ways.push(manifest_path(repository, &self.anns.digest));
            ways.push(blob_path(repository, &self.anns.config));
            ways.push(blob_path(repository, self.layer()));
        }
        ways
    }

    /// Her own of these: tag, manifest, configuration and layer.
    fn own(&self) -> Vec<String> {
        self.ways().into_iter().take(4).collect()
    }
}

async fn get(agent: &Agent, path: &str, who: Option<(&str, &str)>) -> reqwest::Response {
    let request = agent.request(http::Method::GET, path);
    let request = match who {
        Some((user, word)) => request.basic_auth(user, Some(word)),
        None => request,
    };
    request.send().await.expect("the mirror answers")
}

async fn status(agent: &Agent, path: &str, who: Option<(&str, &str)>) -> u16 {
    let response = get(agent, path, who).await;
    let status = response.status().as_u16();
    // A body that ends early is a failure that the status does not show.
    if response.bytes().await.is_ok() { status } else { 0 }
}

async fn expect(agent: &Agent, paths: &[String], who: Option<(&str, &str)>, expected: &[u16], when: &str) {
    for path in paths {
        let status = status(agent, path, who).await;
        assert!(expected.contains(&status), "{when}: {path} for {who:?}: {status}");
    }
}

/// Nothing of Ann's is for anyone else.
async fn closed_to_others(agent: &Agent, world: &World, when: &str) {
    let ways = world.ways();
    expect(agent, &ways, NOBODY, &[401, 404], when).await;
    expect(agent, &ways, BEN, &[403, 404], when).await;
    expect(agent, &ways, WRONG, &[403, 404], when).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn private_images_are_challenged_and_public_ones_are_not() {
    for bearer in [false, true] {
        let world = World::start(bearer).await;
        let agent = Agent::start(&world.challenge()).await;
        for path in world.own() {
            let response = get(&agent, &path, NOBODY).await;
            assert_eq!(response.status(), 401, "{path}");
            let challenge = response.headers()[header::WWW_AUTHENTICATE].to_str().unwrap().to_owned();
            assert!(challenge.starts_with("Basic realm=\""), "{challenge}");
            assert!(response.text().await.unwrap().contains("UNAUTHORIZED"));
        }
        let open = [
            manifest_path(OPEN, "v1"),
            manifest_path(OPEN, &world.open.digest),
            blob_path(OPEN, &world.open.layers[0].0),
            format!("/v2/{OPEN}/tags/list?ns={REGISTRY}"),
        ];
        expect(&agent, &open, NOBODY, &[200], "public").await;
        expect(&agent, &world.own(), ANN, &[200], "the owner").await;
        let tags = [format!("/v2/{ANNS}/tags/list?ns={REGISTRY}")];
        for (who, expected) in [(ANN, 200), (BEN, 403), (WRONG, 403), (NOBODY, 401)] {
            expect(&agent, &tags, who, &[expected], "tags").await;
        }
        expect(&agent, &[manifest_path(ANNS, "v2")], ANN, &[404], "it does not exist").await;
        expect(&agent, &[manifest_path(OPEN, "v2")], NOBODY, &[404], "it does not exist").await;
        expect(&agent, &open, NOBODY, &[200], "public, after that").await;
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_tenant_has_brought_is_closed_to_the_other_in_every_state_of_the_cache() {
    for bearer in [false, true] {
        let world = World::start(bearer).await;
        let agent = Agent::start(&world.challenge()).await;
        closed_to_others(&agent, &world, "cold").await;
        // The other tenant's own is open to him, so that a refusal is not one of the agent's own making.
        expect(&agent, &[manifest_path(BENS, "v1")], BEN, &[200], "his own").await;

        expect(&agent, &world.own()[..2], ANN, &[200], "her manifest").await;
        closed_to_others(&agent, &world, "manifest only").await;

        let layer = world.layer().to_owned();
        let paused = world
            .upstream
            .fault(On::blob().get().reference(&layer), Fault::Stall(100_000, Duration::from_mins(10)));
        let first = get(&agent, &blob_path(ANNS, &layer), ANN).await;
        assert_eq!(first.status(), 200);
        assert!(agent.stored().iter().all(|digest| *digest != layer), "it is under way");
        closed_to_others(&agent, &world, "under way").await;
        drop((first, paused));
        world.upstream.heal();

        expect(&agent, &world.own(), ANN, &[200], "warm, for the owner").await;
        closed_to_others(&agent, &world, "warm").await;
        let data = agent.stop().await;
        let agent = Agent::start_in(&world.challenge(), data).await;
        closed_to_others(&agent, &world, "after a restart").await;
        expect(&agent, &world.own(), ANN, &[200], "after a restart, for the owner").await;
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_given_only_where_a_manifest_names_it() {
    let world = World::start(false).await;
    // The registry itself would give it: its storage has the blob in his repository too.
    let stray = world.upstream.random_blob(BENS, 1, 400_000).await;
    assert_eq!(stray, world.layer());
    let agent = Agent::start(&world.challenge()).await;
    expect(&agent, &world.own(), ANN, &[200], "the owner").await;
    expect(&agent, &[manifest_path(BENS, "v1")], BEN, &[200], "his own").await;
    expect(&agent, &[blob_path(BENS, &stray)], BEN, &[403], "no manifest of his names it").await;
    let own = blob_path(BENS, &world.bens.layers[0].0);
    expect(&agent, &[own], BEN, &[200], "a manifest of his names it").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_credentials_end_although_their_tokens_live() {
    for bearer in [false, true] {
        let world = World::start(bearer).await;
        let agent = Agent::start(&world.challenge()).await;
        expect(&agent, &world.own(), ANN, &[200], "before").await;
        let next = world.upstream.image(ANNS, "v2", [Layer::random(4, 1_000)]).await;
        world.upstream.access(tenants(["another word", WORDS[1]], bearer));
        // Where a verdict is old, and where content is new here, the registry judges the credentials again; a token of theirs
        // is still good.
        expect(&agent, &[manifest_path(ANNS, &next.digest)], ANN, &[403], "revoked").await;
        let agent = Agent::start_in(&world.challenge(), agent.stop().await).await;
        expect(&agent, &world.own(), ANN, &[403], "revoked").await;
        expect(&agent, &world.own(), Some(("ann", "another word")), &[200], "renewed").await;
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_registry_is_down_only_verdicts_of_before_count() {
    let world = World::start(true).await;
    let agent = Agent::start(&world.challenge()).await;
    expect(&agent, &world.own(), ANN, &[200], "before").await;
    let open = [manifest_path(OPEN, "v1"), blob_path(OPEN, &world.open.layers[0].0)];
    expect(&agent, &open, NOBODY, &[200], "before").await;
    world.upstream.stop().await;
    expect(&agent, &world.own(), ANN, &[200], "judged before").await;
    expect(&agent, &world.own(), NOBODY, &[401], "without credentials").await;
    expect(&agent, &world.own(), BEN, &[503], "not judged").await;
    expect(&agent, &open, NOBODY, &[200], "public").await;
    let agent = Agent::start_in(&world.challenge(), agent.stop().await).await;
    expect(&agent, &world.own(), ANN, &[503], "after a restart").await;
    expect(&agent, &open, NOBODY, &[200], "public, after a restart").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_policy_takes_effect_on_what_is_cached() {
    let world = World::start(false).await;
    let home = tempfile::tempdir().expect("temporary folders are available");
    let secrets = |word: &str| credentials(&home, "ann", word);
    let all = world.ways();
    let own = world.own();
    let start = async |config: AgentConfig, data: Arc<TempDir>| Agent::start_in(&config, data).await;

    let agent = Agent::start(&world.challenge()).await;
    expect(&agent, &own, ANN, &[200], "challenge").await;
    let agent = start(world.config("private: decline"), agent.stop().await).await;
    for who in [NOBODY, ANN] {
        expect(&agent, &all, who, &[403, 404], "decline").await;
    }
    // Credentials of the agent that do not open it.
    let wrong = world.config("private: agent").with(&secrets("wrong"));
    let agent = start(wrong, agent.stop().await).await;
    for who in [NOBODY, ANN] {
        expect(&agent, &all, who, &[403, 404], "agent without the right").await;
    }
    // A registry that cannot be asked takes nothing from the agent, but this was never its own.
    world.upstream.stop().await;
    let right = || world.config("private: agent").with(&secrets(WORDS[0]));
    let agent = start(right(), agent.stop().await).await;
    expect(&agent, &own[1..], NOBODY, &[503], "agent, not asked").await;
    world.upstream.restart().await;
    let agent = start(right(), agent.stop().await).await;
    expect(&agent, &own, NOBODY, &[200], "agent").await;
    expect(&agent, &all[4..], NOBODY, &[403, 404], "agent, by other names").await;
    let agent = start(world.challenge(), agent.stop().await).await;
    closed_to_others(&agent, &world, "challenge again").await;
    expect(&agent, &own, ANN, &[200], "challenge again").await;
    agent.stop().await;

    // What the agent alone has brought.
    let agent = Agent::start(&world.config("private: agent").with(&secrets(WORDS[0]))).await;
    expect(&agent, &own, NOBODY, &[200], "agent").await;
    let agent = start(world.challenge(), agent.stop().await).await;
    closed_to_others(&agent, &world, "challenge after agent").await;
    expect(&agent, &own, ANN, &[200], "challenge after agent").await;
    agent.stop().await;
}

fn credentials(home: &TempDir, user: &str, word: &str) -> String {
    let path = home.path().join("docker.json");
    let text = serde_json::json!({ "auths": { REGISTRY: { "username": user, "password": word } } });
    std::fs::write(&path, text.to_string()).expect("writable");
    format!("credentials: {{ dockerConfig: {} }}", path.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_closed_is_challenged_although_its_tag_was_public() {
    let world = World::start(false).await;
    world.upstream.access(Access::Open);
    let agent = Agent::start(&world.challenge()).await;
    expect(&agent, &world.own(), NOBODY, &[200], "public").await;
    world.upstream.access(tenants(WORDS, false));
    let next = world.upstream.image(ANNS, "v1", [Layer::random(4, 1_000)]).await;
    // The owner's credentials are lent to downloads now, and must not answer others.
    let news =
        [manifest_path(ANNS, "v1"), manifest_path(ANNS, &next.digest), blob_path(ANNS, &next.layers[0].0)];
    let agent = Agent::start_in(&world.challenge(), agent.stop().await).await;
    expect(&agent, &news[..1], ANN, &[200], "the owner").await;
    expect(&agent, &news, NOBODY, &[401], "closed").await;
    expect(&agent, &news, BEN, &[403], "closed").await;
    expect(&agent, &news, ANN, &[200], "the owner").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_not_a_request_each() {
    let world = World::start(false).await;
    let agent = Agent::start(&world.challenge()).await;
    for _ in 0..20 {
        expect(&agent, &[manifest_path(ANNS, "v1")], WRONG, &[403], "wrong").await;
    }
    let asked = world.upstream.log().len();
    assert!(asked <= 2, "{}", world.upstream.log().describe());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_neither_stored_nor_logged() {
    let world = World::start(true).await;
    let home = tempfile::tempdir().expect("temporary folders are available");
    let config = world.challenge().with_log("trace");
    let mut agent = config.start_process(home.path()).await.expect("it starts");
    let url = format!("http://{}", agent.addresses.mirror);
    for (path, who) in [(&world.own()[0], ANN), (&world.own()[1], ANN), (&world.own()[0], WRONG)] {
        let (user, word) = who.expect("someone");
        let client = reqwest::Client::builder().no_proxy().build().expect("a plain client");
        let request = client.get(format!("{url}{path}")).basic_auth(user, Some(word));
        request.send().await.expect("an answer").bytes().await.expect("whole");
    }
    agent.terminate().expect("it runs");
    agent.wait().await.expect("it ends");
    let mut texts = vec![("the log".to_owned(), agent.log().into_bytes())];
    let mut folders = vec![home.path().join("data")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("readable").flatten() {
            match entry.file_type().expect("known") {
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => {
                    let bytes = std::fs::read(entry.path()).expect("readable");
                    texts.push((entry.path().display().to_string(), bytes));
                }
                _ => {}
            }
        }
    }
    assert!(texts.len() > 3, "{:?}", texts.iter().map(|(name, _)| name).collect::<Vec<_>>());
    assert!(texts[0].1.len() > 1_000, "it logs");
    for (user, word) in [ANN, WRONG].into_iter().flatten() {
        let encoded = BASE64_STANDARD.encode(format!("{user}:{word}"));
        for secret in [word, &encoded] {
            for (name, bytes) in &texts {
                let found = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
                assert!(!found, "{secret} in {name}");
            }
        }
    }
}

#[test]
fn a_mirror_that_others_reach_and_a_certificate_of_the_agent_are_configuration_errors() {
    let home = tempfile::tempdir().expect("temporary folders are available");
    let authority = kit::certificates::Authority::new(home.path(), "agent").expect("openssl is there");
    let (certificate, key) = (authority.certificate(), authority.path("agent.key"));
    let tls = format!("tls: {{ certificate: \"{}\", key: \"{}\" }}", certificate.display(), key.display());
    for (text, parts) in [
        (
            "mirror: { listen: \"0.0.0.0:5050\" }\nregistries: [{ host: r.test, private: challenge }]"
                .to_owned(),
            ["`r.test`", "`mirror.listen`", "127.0.0.1"],
        ),
        (
            format!("registries: [{{ host: r.test, private: challenge, {tls} }}]"),
            ["`r.test`", "private: challenge", "`tls.certificate`"],
        ),
        (
            "registries: [{ host: r.test, private: chalenge }]".to_owned(),
            ["`chalenge`", "`challenge`", "`decline`"],
        ),
    ] {
        let path = home.path().join("agent.yaml");
        std::fs::write(&path, format!("dataDir: {}/data\n{text}", home.path().display())).expect("writable");
        let output = crate::cli::agent(&["run", "--config", &path.display().to_string()], &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        for part in parts {
            assert!(said.contains(part), "`{part}`: {said}");
        }
    }
}

mod peers {
    use kit::{certificates::Authority, cluster::Cluster};

    use super::*;

    const NAME: &str = "hearth-peers.hearth.svc";

    fn keys(authority: &Authority) -> String {
        let path = |file: &str| authority.path(file).display().to_string();
        format!(
            "wait: 1s, tls: {{ certificate: \"{}\", key: \"{}\", ca: \"{}\", name: {NAME} }}",
            path("peer.pem"),
            path("peer.key"),
            path("peers.pem")
        )
    }

    fn authority(home: &TempDir) -> Authority {
        let authority = Authority::new(home.path(), "peers").expect("openssl is there");
        authority.sign("peer", &format!("DNS:{NAME}")).expect("the authority signs");
        authority
    }

    /// Requests of a peer that has shown a certificate.
    fn peer(authority: &Authority) -> reqwest::Client {
        let read = |file: &str| std::fs::read(authority.path(file)).expect("readable");
        let pem = [read("peer.pem"), read("peer.key")].concat();
        let identity = reqwest::Identity::from_pem(&pem).expect("a certificate and its key");
        let client = reqwest::Client::builder().identity(identity).danger_accept_invalid_certs(true);
        client.timeout(Duration::from_secs(20)).build().expect("a client")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_peers_have_is_closed_to_the_other_tenant_and_read_once() {
        let world = World::start(true).await;
        let home = tempfile::tempdir().expect("temporary folders are available");
        let cluster = Cluster::start(&world.challenge(), 2, &keys(&authority(&home))).await;
        let [first, second] = &cluster.agents[..] else { panic!("two agents") };
        expect(first, &world.own(), ANN, &[200], "the first").await;
        closed_to_others(second, &world, "cold, the peer has it").await;
        expect(second, &world.own(), ANN, &[200], "the second").await;
        closed_to_others(second, &world, "warm on both").await;
        let layer = world.upstream.log().blob_gets().reference(world.layer());
        assert!(layer.bytes() < 400_000 + 100_000, "{}", layer.describe());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_peer_causes_no_login_and_gets_what_is_here() {
        let world = World::start(false).await;
        let home = tempfile::tempdir().expect("temporary folders are available");
        let authority = authority(&home);
        let cluster = Cluster::start(&world.challenge(), 2, &keys(&authority)).await;
        let (client, address) = (peer(&authority), cluster.places[0].address);
        let (digest, layer) = (&world.anns.digest, world.layer());
        let query = format!("registry={REGISTRY}&repository={ANNS}");
        let asked = [
            format!("tags/v1?{query}"),
            format!("manifests/{digest}?{query}"),
            format!("pieces/{layer}/0?{query}&size=400000&role=source&member=node-01&zone=&whole=0"),
            format!("pieces/{layer}/0?{query}&size=400000&role=source&member=node-01&zone=&whole=1"),
        ];
        let send = async |path: &str| {
            let answer = client.get(format!("https://{address}/peer/v1/{path}")).send().await;
            answer.expect("an answer").status().as_u16()
        };
        for path in &asked {
            let status = send(path).await;
            assert!(matches!(status, 404 | 503), "{path}: {status}");
        }
        assert!(world.upstream.log().is_empty(), "{}", world.upstream.log().describe());
        expect(&cluster.agents[0], &world.own(), ANN, &[200], "a client").await;
        for path in &asked {
            assert_eq!(send(path).await, 200, "{path}");
        }
    }
}
