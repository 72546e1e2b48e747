//! `private: challenge` with the real containerd: the pull secret of a pod reaches the agent by CRI and decides, two nodes and
//! their peers included.

use anyhow::{Context as _, Result};
use hearth_agent::runtime::Auth;
use kit::agent::AgentConfig;
use kit::certificates::Authority;
use kit::cluster::{peer_config, places};
use kit::process::AgentProcess;
use kit::registry::{Access, FakeUpstream, Image, Layer, Tenants, random_bytes};
use kit::runtime::Containerd;

use crate::support::{REGISTRY, archive, assert_same_bytes};

const PRIVATE: &str = "ann/app";
const PUBLIC: &str = "open/app";
const PEERS: &str = "hearth-peers.hearth.svc";

/// A node: its agent, and a containerd that has no way round it.
struct Node {
    agent: AgentProcess,
    containerd: Containerd,
    _home: tempfile::TempDir,
}

impl Node {
    async fn start(config: &AgentConfig) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("hearth-node-").tempdir()?;
        let agent = config.start_process(home.path()).await?;
        let containerd = Containerd::start().await?;
        let mirror = format!("http://{}", agent.addresses.mirror);
        containerd.mirror(REGISTRY, &mirror, &mirror)?;
        Ok(Self { agent, containerd, _home: home })
    }

    async fn pull(&self, repository: &str, who: Option<(&str, &str)>) -> Result<()> {
        let auth = who.map(|(user, word)| Auth { username: user.to_owned(), password: word.to_owned() });
        let pulled = self.containerd.runtime().pull(&format!("{REGISTRY}/{repository}:v1"), auth).await;
        pulled.map(drop).with_context(|| format!("the agent's log:\n{}", self.agent.log()))
    }

    /// Pulls fail for all but the owner.
    async fn assert_closed(&self, when: &str) {
        for who in [None, Some(("ann", "word-of-ben")), Some(("ben", "word-of-ben"))] {
            let pulled = self.pull(PRIVATE, who).await;
            assert!(pulled.is_err(), "{when}: pulled by {who:?}");
        }
    }

    async fn assert_pulled(&self, upstream: &FakeUpstream, image: &Image) -> Result<()> {
        for digest in image.blobs() {
            let file = upstream.blob_file(digest).context("the registry has it")?;
            assert_same_bytes(&file, &self.containerd.blob(digest))?;
        }
        self.containerd.forget_images().await
    }
}

fn tenants(word: &str) -> Access {
    let login = |user: &str, word: &str| (user.to_owned(), word.to_owned());
    let readers =
        vec![(PRIVATE.to_owned(), login("ann", word)), ("ben/app".to_owned(), login("ben", "word-of-ben"))];
    Access::Tenants(Tenants { readers, bearer: true })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_pull_secret_decides_in_every_state_of_the_cache() -> Result<()> {
    const ANN: Option<(&str, &str)> = Some(("ann", "word-of-ann"));
    let upstream = FakeUpstream::start().await;
    let layer = |seed, length| Layer::Bytes(archive(&random_bytes(seed, length)));
    let private = upstream.image(PRIVATE, "v1", [layer(1, 3 << 20), layer(2, 1_000)]).await;
    let public = upstream.image(PUBLIC, "v1", [layer(3, 100_000)]).await;
    upstream.access(tenants("word-of-ann"));
    let home = tempfile::tempdir()?;
    let authority = Authority::new(home.path(), "peers")?;
    authority.sign("peer", &format!("DNS:{PEERS}"))?;
    let path = |file: &str| authority.path(file).display().to_string();
    let keys = format!(
        "tls: {{ certificate: \"{}\", key: \"{}\", ca: \"{}\", name: {PEERS} }}",
        path("peer.pem"),
        path("peer.key"),
        path("peers.pem")
    );
    let base = AgentConfig::default().registry(REGISTRY, &[&upstream.url()], "private: challenge");
    let places = places(2);
    let first = Node::start(&peer_config(&base, &places[0], &places, &keys)).await?;
    let second = Node::start(&peer_config(&base, &places[1], &places, &keys)).await?;

    first.pull(PUBLIC, None).await?;
    first.assert_pulled(&upstream, &public).await?;
    first.assert_closed("cold").await;
    first.pull(PRIVATE, ANN).await?;
    first.assert_pulled(&upstream, &private).await?;
    first.assert_closed("warm").await;
    upstream.stop().await;
    first.pull(PRIVATE, ANN).await?;
    first.assert_pulled(&upstream, &private).await?;
    first.assert_closed("the registry is down").await;
    upstream.restart().await;

    second.assert_closed("a peer has it").await;
    second.pull(PRIVATE, ANN).await?;
    second.assert_pulled(&upstream, &private).await?;
    let layers = upstream.log().blob_gets().reference(&private.layers[0].0);
    let size = private.layers[0].1;
    assert!(layers.bytes() < size + size / 2, "both nodes read it from the registry:\n{}", layers.describe());

    // Revoked: what was judged before ends within a minute, which is not waited for; a new agent asks at once.
    upstream.access(tenants("another word"));
    let Node { mut agent, containerd, _home: home } = first;
    agent.terminate()?;
    agent.wait().await?;
    let agent = AgentProcess::start(&home.path().join("agent.yaml")).await?;
    let mirror = format!("http://{}", agent.addresses.mirror);
    containerd.mirror(REGISTRY, &mirror, &mirror)?;
    let first = Node { agent, containerd, _home: home };
    assert!(first.pull(PRIVATE, ANN).await.is_err(), "revoked");
    first.pull(PRIVATE, Some(("ann", "another word"))).await?;
    first.assert_pulled(&upstream, &private).await
}
