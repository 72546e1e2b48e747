//! Networks without a registry: archives that real tools made are imported and pulled by real runtimes, what is exported
//! is read by real tools, and what a real containerd has is not fetched again.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::agent::{Agent, AgentConfig, REGISTRY};
use kit::process::binary;
use kit::pull::Puller;
use kit::registry::{FakeUpstream, Image, Layer, random_bytes};
use kit::runtime::{Containerd, ContainersTools, Mirror, run};

const REPOSITORY: &str = "team/app";
const LIMIT: Duration = Duration::from_mins(1);

fn name() -> String {
    format!("{REGISTRY}/{REPOSITORY}:v1")
}

/// A layer that can be unpacked.
fn layer(seed: u64) -> Layer {
    let content = random_bytes(seed, 300_000);
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, format!("file-{seed}"), content.as_slice()).expect("writing to memory");
    Layer::Bytes(builder.into_inner().expect("writing to memory"))
}

async fn image() -> (FakeUpstream, Image) {
    let upstream = FakeUpstream::start().await;
    let image = upstream.image(REPOSITORY, "v1", [layer(1), layer(2)]).await;
    (upstream, image)
}

async fn hearth_agent(agent: &Agent, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(binary("hearth-agent")?);
    command.args(arguments).arg("--agent").arg(agent.socket());
    run(command, LIMIT).await?.output()
}

fn tools(agent: &Agent) -> Result<ContainersTools> {
    ContainersTools::new(Mirror { registry: REGISTRY, agent: agent.mirror() })
}

/// Nothing listens at its only registry.
async fn closed() -> Agent {
    let config = AgentConfig::default().registry(REGISTRY, &["http://127.0.0.1:9"], "");
    Agent::start(&config.with("tags: { freshness: 0s }")).await
}

/// Imports an archive where no registry is, and pulls the image from there.
async fn import_and_pull(archive: &Path, more: &[&str]) -> Result<()> {
    let agent = closed().await;
    let path = archive.to_str().context("temporary paths are UTF-8")?;
    let said = hearth_agent(&agent, &[&["import", path], more].concat()).await?;
    ensure!(said.contains(&format!("imported {}", name())), "{said}");
    tools(&agent)?.skopeo_copy(&name(), "copy").await?;
    let containerd = Containerd::start().await?;
    containerd.mirror(REGISTRY, &agent.url(), &agent.url())?;
    containerd.pull_by_ctr(&name()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_real_tools_are_imported_and_pulled_while_there_is_no_registry() -> Result<()> {
    let (upstream, _image) = image().await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    let tools = tools(&agent)?;
    let home = tools.path();
    let at = |file: &str| home.join(file);
    let from = format!("docker://{}", name());
    let to = |transport: &str, file: &str, reference: &str| {
        format!("{transport}:{}:{reference}", at(file).display())
    };

    for (transport, file, reference) in [
        ("oci", "layout", "v1"),
        ("oci-archive", "skopeo-oci.tar", name().as_str()),
        ("docker-archive", "skopeo-docker.tar", name().as_str()),
    ] {
        tools.output("skopeo", &["copy", &from, &to(transport, file, reference)]).await?;
    }
    tools.podman_pull(&name()).await?;
    for format in ["docker-archive", "oci-archive"] {
        let file = at(&format!("podman-{format}.tar"));
        tools
            .output("podman", &["save", "--format", format, "--output", &file.to_string_lossy(), &name()])
            .await?;
    }
    tools.buildah_pull(&name()).await?;
    tools.output("buildah", &["push", &name(), &to("oci-archive", "buildah.tar", &name())]).await?;
    // umoci changes the layout in place: another manifest under another tag.
    let edited = format!("{}:v1", at("layout").display());
    tools
        .output("umoci", &["config", "--image", &edited, "--tag", "edited", "--config.user", "nobody"])
        .await?;
    let containerd = Containerd::start().await?;
    containerd.mirror(REGISTRY, &agent.url(), &agent.url())?;
    containerd.pull_by_ctr(&name()).await?;
    let exported = at("containerd.tar");
    containerd.output(&["images", "export", &exported.to_string_lossy(), &name()]).await?;

    let repository = format!("{REGISTRY}/{REPOSITORY}");
    for (file, more) in [
        ("layout", &["--name", repository.as_str()][..]),
        ("skopeo-oci.tar", &[]),
        ("skopeo-docker.tar", &[]),
        ("podman-docker-archive.tar", &[]),
        ("podman-oci-archive.tar", &[]),
        ("buildah.tar", &[]),
        ("containerd.tar", &["--pin"]),
    ] {
        import_and_pull(&at(file), more).await.with_context(|| file.to_owned())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_is_read_by_skopeo_and_containerd() -> Result<()> {
    let (upstream, image) = image().await;
    let agent = Agent::start(&AgentConfig::for_upstream(&upstream)).await;
    Puller::new(&agent.url(), Some(REGISTRY)).pull(REPOSITORY, "v1", |_| ()).await?;
    let tools = tools(&agent)?;
    let (layout, tar) = (tools.path().join("layout"), tools.path().join("image.tar"));
    for to in [&layout, &tar] {
        hearth_agent(&agent, &["export", "--to", &to.to_string_lossy(), &name()]).await?;
    }
    for from in [format!("oci:{}:v1", layout.display()), format!("oci-archive:{}:v1", tar.display())] {
        let digest = tools.output("skopeo", &["inspect", "--format", "{{.Digest}}", &from]).await?;
        assert_eq!(digest.trim(), image.digest);
        let to = format!("dir:{}", tools.path().join("copy").display());
        tools.output("skopeo", &["copy", &from, &to]).await?;
    }
    let containerd = Containerd::start().await?;
    containerd.output(&["images", "import", &tar.to_string_lossy()]).await?;
    assert_eq!(containerd.digest_of(&name()).await?, image.digest);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_real_containerd_has_is_not_fetched_again() -> Result<()> {
    let (upstream, image) = image().await;
    let containerd = Containerd::start().await?;
    containerd.mirror(REGISTRY, &upstream.url(), &upstream.url())?;
    containerd.pull_by_ctr(&name()).await?;
    let before = upstream.log().len();
    let content = containerd.content();
    let config = AgentConfig::for_upstream(&upstream).with(&format!(
        "store: {{ minFree: \"0\", runtimeContent: \"{}\", runtimeLink: true }}",
        content.display()
    ));
    let agent = Agent::start(&config).await;
    Puller::new(&agent.url(), Some(REGISTRY)).pull(REPOSITORY, "v1", |_| ()).await?;
    // A few bytes show that the registry gives each blob to the agent.
    let (requests, blobs) = (upstream.log().since(before).blob_gets(), image.blobs().count() as u64);
    assert!(requests.bytes() <= blobs * 4_096, "{}", requests.describe());
    let same_disk = std::fs::metadata(&content)?.dev() == std::fs::metadata(agent.data())?.dev();
    for digest in image.blobs() {
        let links = std::fs::metadata(containerd.blob(digest))?.nlink();
        assert_eq!(links, if same_disk { 2 } else { 1 }, "{digest}");
    }
    // containerd collects its garbage; the agent keeps what it has.
    containerd.forget_images().await?;
    Puller::new(&agent.url(), Some(REGISTRY)).pull(REPOSITORY, "v1", |_| ()).await?;
    Ok(())
}
