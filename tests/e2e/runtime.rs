//! Images in the container runtime: loaded through the agent and its members, there when a pod starts, and the proof that a
//! runtime's requests arrive at all.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hearth_agent::runtime::Pin;
use kit::agent::AgentConfig;
use kit::cluster::Place;
use kit::kubernetes::FakeApi;
use kit::net::Net;
use kit::process::{AgentProcess, binary};
use kit::runtime::{Containerd, ContainersTools, DockerRegistry, Dockerd, Finished, Mirror, run};
use serde_json::json;

use crate::support::{Agent, Image, REGISTRY, Upstream};

const REGISTRY_PORT: u16 = 5000;
const PEER_PORT: u16 = 5051;
const LIMIT: Duration = Duration::from_mins(3);

/// An agent on node 1 or 2, which know each other; the registry is on node 0.
async fn agent_on(net: &Net, node: u8, home: &Path, more: &str) -> Result<AgentProcess> {
    let home = home.join(format!("agent-{node}"));
    fs::create_dir_all(&home)?;
    let member = |node: u8| format!("node-{node}={}:{PEER_PORT}", Net::address(node));
    let config = AgentConfig::default()
        .registry(REGISTRY, &[&format!("http://{}:{REGISTRY_PORT}", Net::address(0))], "")
        .with(&format!(
            "peer: {{ listen: \"{}:{PEER_PORT}\", name: node-{node}, members: \"{},{}\" }}",
            Net::address(node),
            member(1),
            member(2)
        ))
        .with(more)
        .with_log("info");
    let mut command = net.on(node, &binary("hearth-agent")?.to_string_lossy());
    command.args(["run", "--config"]).arg(config.write(&home)?);
    AgentProcess::start_by(command).await
}

/// No way round the node's agent.
fn only_by(containerd: &Containerd, agent: &AgentProcess) -> Result<()> {
    let mirror = format!("http://{}", agent.addresses.mirror);
    containerd.mirror(REGISTRY, &mirror, &mirror)
}

#[tokio::test]
async fn a_loaded_image_comes_from_a_member_when_upstream_is_gone_and_then_a_pod_starts_without_asking_anyone()
-> Result<()> {
    let image = Image::built().await?;
    let home = tempfile::tempdir()?;
    let net = Net::new(&["1gbit", "1gbit", "1gbit"].map(str::to_owned))?;
    let registry = DockerRegistry::start_on(&net, 0, &image.storage, REGISTRY_PORT).await?;
    let (one, other) = (Containerd::start_on(&net, 1).await?, Containerd::start_on(&net, 2).await?);
    let set = format!(
        "runtime: {{ socket: \"{}\" }}\nprepull: {{ interval: 1s, sets: [{{ name: spark, images: [\"{}\"], runtime: true }}] }}",
        one.socket().display(),
        image.name()
    );
    let (first, second) =
        (agent_on(&net, 1, home.path(), &set).await?, agent_on(&net, 2, home.path(), "").await?);
    only_by(&one, &first)?;
    only_by(&other, &second)?;

    let loaded = async {
        while !one.runtime().has(&image.name()).await? {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, loaded).await.with_context(|| first.log())??;

    registry.stop();
    // By its digest: what a tag resolves to is not taken from a single peer.
    let tag = image.name();
    let (repository, _) = tag.rsplit_once(':').context("a name with a tag")?;
    let name = format!("{repository}@{}", image.manifest.digest);
    other.runtime().load(&name, None).await.with_context(|| second.log())?;
    assert_eq!(other.digest_of(&name).await?, image.manifest.digest);

    // What a pod's start asks for now is on the node: nobody is left who could be asked.
    first.kill().await?;
    other.pull_by_cri(&name).await?;
    let started = other.run_container(&name, &[], &["/bin/echo", "started"], LIMIT).await?;
    assert_eq!(started.output()?.trim(), "started");
    Ok(())
}

#[tokio::test]
async fn a_loaded_image_is_pinned_as_far_as_the_runtime_lets_others_pin_and_let_go_of_again() -> Result<()> {
    let image = Image::built().await?;
    let upstream = Upstream::start(&image.storage, None).await?;
    let agent = Agent::start(upstream.proxy.address()).await?;
    let containerd = Containerd::start().await?;
    containerd.mirror(REGISTRY, &agent.url(), &agent.url())?;
    let runtime = containerd.runtime();

    let loaded = runtime.load(&image.name(), None).await?;
    let labels = containerd.labels_of(&image.name()).await?;
    assert!(labels.contains("io.cri-containerd.pinned=pinned"), "{labels}");
    assert!(labels.contains("io.cri-containerd.image=managed"), "the other labels stay: {labels}");
    // containerd before 1.7 keeps the label and does not heed it.
    let heeded = containerd.output(&["version"]).await?;
    let old = ["v1.5.", "v1.6.", " 1.5.", " 1.6."].iter().any(|version| heeded.contains(version));
    assert_eq!(loaded.pin, if old { Pin::Unsupported } else { Pin::Held }, "{heeded}");

    runtime.release(&image.name()).await?;
    let labels = containerd.labels_of(&image.name()).await?;
    assert!(!labels.contains("io.cri-containerd.pinned"), "{labels}");
    runtime.remove(&image.name()).await?;
    assert!(!runtime.has(&image.name()).await?);
    runtime.release(&image.name()).await?;
    runtime.remove(&image.name()).await?;
    let absent = format!("{REGISTRY}/no/such:image");
    let error = runtime.load(&absent, None).await.expect_err("nobody has it");
    assert!(error.is_not_found(), "{error}");
    Ok(())
}

/// `hearth-agent setup --check` for an agent on a free port.
fn check(agent: &Agent, config: &Path, more: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary("hearth-agent")?);
    command.args(["setup", "--check", "--config"]).arg(config);
    command.args(["--mirror-listen", agent.url().trim_start_matches("http://")]);
    command.arg("--admin-socket").arg(agent.socket()).args(more);
    Ok(command)
}

fn said(finished: &Finished) -> String {
    format!("{}{}", finished.stdout, finished.stderr)
}

#[tokio::test]
async fn a_check_proves_with_a_pull_of_the_real_containerd_that_requests_arrive_and_says_what_to_do_when_not()
-> Result<()> {
    let home = tempfile::tempdir()?;
    let upstream = Upstream::start(&home.path().join("storage"), None).await?;
    let agent = Agent::start(upstream.proxy.address()).await?;
    let containerd = Containerd::start().await?;
    let (config, node) = (home.path().join("agent.yaml"), home.path().join("node"));
    fs::write(&config, format!("registries: [{{ host: {REGISTRY} }}]\n"))?;
    fs::create_dir_all(node.join("etc/containerd"))?;
    let (root, socket) = (node.to_string_lossy(), containerd.socket());
    let more = ["--root", &root, "--socket", &socket.to_string_lossy()];

    let before = run(check(&agent, &config, &more)?, LIMIT).await?;
    let text = said(&before);
    assert!(!before.success, "{text}");
    for expected in
        ["containerd: FAILED", "not set up: /etc/containerd/certs.d/registry.test/hosts.toml", "config_path"]
    {
        assert!(text.contains(expected), "`{expected}` is missing: {text}");
    }

    containerd.mirror(REGISTRY, &agent.url(), &agent.url())?;
    let after = run(check(&agent, &config, &more)?, LIMIT).await?;
    assert!(after.success, "{}", said(&after));
    assert!(after.stdout.contains("through the agent at"), "{}", after.stdout);
    assert_eq!(containerd.output(&["images", "list", "--quiet"]).await?.trim(), "", "nothing stays behind");
    Ok(())
}

#[tokio::test]
async fn a_check_of_crio_pulls_with_podman_where_there_is_no_crio() -> Result<()> {
    let home = tempfile::tempdir()?;
    let upstream = Upstream::start(&home.path().join("storage"), None).await?;
    let agent = Agent::start(upstream.proxy.address()).await?;
    let config = home.path().join("agent.yaml");
    fs::write(&config, format!("registries: [{{ host: {REGISTRY} }}]\n"))?;
    let wrong = Mirror { registry: "other.test", agent: agent.mirror };
    for (mirror, expected) in [(wrong, false), (Mirror { registry: REGISTRY, agent: agent.mirror }, true)] {
        let tools = ContainersTools::new(mirror)?;
        let command = check(&agent, &config, &["--runtime", "crio"])?;
        let finished = tools.run(command).await?;
        ensure!(finished.success == expected, "{}", said(&finished));
    }
    Ok(())
}

#[tokio::test]
async fn a_check_of_docker_pulls_through_its_own_api() -> Result<()> {
    let home = tempfile::tempdir()?;
    let upstream = Upstream::start(&home.path().join("storage"), None).await?;
    let config = AgentConfig::default()
        .registry("docker.io", &[&format!("http://{}", upstream.proxy.address())], "")
        .with("defaultRegistry: docker.io");
    let file = config.write(home.path())?;
    let agent = AgentProcess::start(&file).await?;
    let mirror = format!("http://{}", agent.addresses.mirror);
    for (mirror, expected) in [("http://127.0.0.1:9", false), (mirror.as_str(), true)] {
        let docker = Dockerd::start(mirror).await?;
        let mut command = Command::new(binary("hearth-agent")?);
        command.args(["setup", "--check", "--runtime", "docker", "--config"]).arg(&file);
        command.args(["--mirror-listen", &agent.addresses.mirror.to_string()]);
        command.arg("--socket").arg(docker.socket());
        let finished = run(command, LIMIT).await?;
        ensure!(finished.success == expected, "{}\n{}\n{}", said(&finished), docker.log(), agent.log());
    }
    Ok(())
}

#[tokio::test]
async fn an_agent_of_a_cluster_proves_by_itself_that_the_real_containerd_uses_it() -> Result<()> {
    let home = tempfile::tempdir()?;
    let upstream = Upstream::start(&home.path().join("storage"), None).await?;
    let (containerd, api) = (Containerd::start().await?, FakeApi::start().await);
    api.install_hearth();
    api.seed(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}));
    // Known before the agent starts, as on a node that `setup` has configured.
    let place = Place::reserve("n1", "");
    let mirror = format!("http://{}", place.address);
    containerd.mirror(REGISTRY, &mirror, &mirror)?;
    let config = AgentConfig::default()
        .registry(REGISTRY, &[&format!("http://{}", upstream.proxy.address())], "")
        .with(&format!(
            "kubernetes: {{ imageSets: true, api: \"{}\", node: n1, statusInterval: 300ms }}\nruntime: {{ socket: \"{}\" }}",
            api.url(),
            containerd.socket().display()
        ));
    let file = config.write(home.path())?;
    let listen = place.address.to_string();
    let agent = AgentProcess::start_with(&file, &[("HEARTH_MIRROR_LISTEN", listen.as_str())]).await?;
    let proof = || {
        let cache = api.get("NodeCache", "", "n1").unwrap_or_default();
        let all = cache["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = all.into_iter().find(|one| one["type"] == "RuntimeUsesAgent").unwrap_or_default();
        (found["reason"].as_str().unwrap_or_default().to_owned(), found["message"].to_string())
    };
    let proved = async {
        while proof().0 != "Pulled" {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let minute = Duration::from_mins(1);
    let within = tokio::time::timeout(minute, proved).await;
    ensure!(within.is_ok(), "{:?}\n{}", proof(), agent.log());
    let (name, version) = containerd.runtime().version().await?;
    let expected = format!("{name} {} pulls through this agent", version.trim_start_matches('v'));
    ensure!(proof().1.contains(&expected), "{} is not in {}", expected, proof().1);
    assert_eq!(containerd.output(&["images", "list", "--quiet"]).await?.trim(), "", "nothing stays behind");
    Ok(())
}
